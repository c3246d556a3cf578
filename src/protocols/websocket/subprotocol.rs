//! `Sec-WebSocket-Protocol` (RFC 6455, sections 4.1 and 11.3.4).
//!
//! This server implements no subprotocol. But a browser fails the connection if its page asked for
//! a subprotocol and the server agreed to none. So the first offer is accepted, as by npm's `ws`.

use std::collections::HashSet;

use actix_web::http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

/// The header is not a list of distinct tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The first subprotocol that the client offers, if any.
///
/// # Errors
/// The header is not a list of distinct tokens, and must not be sent back.
pub(super) fn first(headers: &HeaderMap) -> Result<Option<HeaderValue>, Malformed> {
    let mut seen = HashSet::new();
    let mut first = None;
    for line in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        for protocol in line.as_bytes().split(|byte| *byte == b',') {
            let protocol = trim(protocol);
            if protocol.is_empty() || !protocol.iter().copied().all(is_token) {
                return Err(Malformed);
            }
            if !seen.insert(protocol) {
                return Err(Malformed);
            }
            first.get_or_insert(protocol);
        }
    }
    first.map(|first| HeaderValue::from_bytes(first).map_err(|_| Malformed)).transpose()
}

/// Removes optional whitespace (RFC 9110, section 5.6.3).
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Whether a token may contain this byte (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_offered_is_agreed_to() {
        let agreed = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                let value = HeaderValue::from_str(line).unwrap();
                headers.append(SEC_WEBSOCKET_PROTOCOL, value);
            }
            first(&headers).map(|value| value.map(|value| value.to_str().unwrap().to_owned()))
        };
        assert_eq!(agreed(&[]), Ok(None));
        for (lines, protocol) in [
            (&["json"][..], "json"),
            (&["chat.v1, chat.v0"], "chat.v1"),
            (&["\tb ,a"], "b"),
            (&["b", "a"], "b"),
            (&["!#$%&'*+-.^_`|~09AZaz"], "!#$%&'*+-.^_`|~09AZaz"),
        ] {
            assert_eq!(agreed(lines), Ok(Some(protocol.to_owned())));
        }
        for lines in [
            &[""][..],
            &["json,"],
            &[",json"],
            &["a,,b"],
            &["a b"],
            &["json,json"],
            &["json", "json"],
            &["a/b"],
            &["json;x"],
            &["<script>"],
            &["\"json\""],
        ] {
            assert_eq!(agreed(lines), Err(Malformed), "{lines:?}");
        }
        let mut headers = HeaderMap::new();
        let odd = HeaderValue::from_bytes("j\u{f6}n".as_bytes()).unwrap();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, odd);
        assert_eq!(first(&headers), Err(Malformed));
    }
}
