//! Request bodies as `express.json()` reads them, before the router and for every path.
//!
//! Only `application/json` is read: up to 100 KiB, inflated from gzip or deflate, decoded from
//! UTF-8 or UTF-16. It must be an object or an array. Any other body counts as `{}` and is not
//! read.

use std::borrow::Cow;
use std::io::Read;
use std::sync::LazyLock;
use std::time::Duration;

use actix_web::dev::{Payload, ServiceRequest};
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use bytes::{Bytes, BytesMut};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use futures::StreamExt;
use regex::Regex;
use serde::de::IgnoredAny;

use crate::error::ApiError;
use crate::js::Fields;
use crate::protocols::headers::joined;

/// The largest body, before and after inflation: `express.json`'s default of 100 KiB.
pub const MAX_BODY: usize = 102_400;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// How many bytes of a too large body are read and discarded, and for how long.
const MAX_DRAINED: usize = 1 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The text of a body that is valid JSON and an object or array.
struct Json(String);

/// Reads the body if `express.json()` would, and stores it for the extractor of [`Fields`].
///
/// # Errors
/// 400, 408, 413 or 415, as `express.json()` has them.
pub async fn read(req: &mut ServiceRequest) -> Result<(), ApiError> {
    if !has_body(req.headers()) {
        return Ok(());
    }
    let Some(charset) = json_charset(req.headers()) else { return Ok(()) };
    let charset = Charset::of(&charset).ok_or(ApiError::UnsupportedBody)?;
    let encoding = Encoding::of(req.headers()).ok_or(ApiError::UnsupportedBody)?;
    let is_too_large =
        matches!(encoding, Encoding::Identity) && length(req.headers()) > Some(MAX_BODY);
    let mut payload = req.take_payload();
    let collected =
        if is_too_large { Err(ApiError::BodyTooLarge) } else { collect(&mut payload).await };
    if let Err(ApiError::BodyTooLarge) = collected {
        drain(&mut payload).await;
    }
    let sent = collected?;
    let text = charset.decode(&encoding.decode(sent)?);
    if !text.is_empty() {
        let json = validated(text)?;
        req.extensions_mut().insert(Json(json));
    }
    Ok(())
}

/// The fields of the body; none when there was no JSON object to read.
impl FromRequest for Fields {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let fields = match req.extensions().get::<Json>() {
            // An array has no named fields.
            Some(Json(text)) if text.trim_ascii_start().starts_with('{') => {
                Self::from_json(text).map_err(|_| ApiError::MalformedBody("not JSON"))
            }
            _ => Ok(Self::default()),
        };
        std::future::ready(fields)
    }
}

/// Strict mode: the body must be a JSON object or array, so its first character decides.
fn validated(text: String) -> Result<String, ApiError> {
    let first = text.trim_start_matches([' ', '\t', '\n', '\r']).chars().next();
    if !matches!(first, Some('{' | '[')) {
        return Err(ApiError::MalformedBody("neither an object nor an array"));
    }
    // Iterative, so that a deeply nested body cannot exhaust the stack.
    serde_json::from_str::<IgnoredAny>(&text).map_err(|_| ApiError::MalformedBody("not JSON"))?;
    Ok(text)
}

/// As npm's `type-is`: a request has a body if it has a length or a transfer coding.
fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING) || length(headers).is_some()
}

fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The charset of an `application/json` body, `utf-8` by default; `None` for other types and for
/// values that npm's `media-typer` refuses.
fn json_charset(headers: &HeaderMap) -> Option<Cow<'static, str>> {
    /// A parameter: a token, or a quoted string with escapes.
    const PARAMETER: &str = r#"; *([!#$%&'*+\-.0-9A-Z^_`a-z|~]+) *= *("(?:[ !\x23-\x5b\x5d-\x7e]|\\[\x20-\x7e])*"|[!#$%&'*+\-.0-9A-Z^_`a-z|~]+) *"#;
    static PARAMETERS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(PARAMETER).expect("the pattern is valid"));
    static JSON: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = format!(r"^(?i: *application/json *)(?:{PARAMETER})*$");
        Regex::new(&pattern).expect("the pattern is valid")
    });

    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    if value == "application/json" {
        return Some("utf-8".into());
    }
    if !JSON.is_match(value) {
        return None;
    }
    let charset = PARAMETERS
        .captures_iter(value)
        .filter(|parameter| {
            parameter.get(1).is_some_and(|n| n.as_str().eq_ignore_ascii_case("charset"))
        })
        .last()
        .and_then(|parameter| Some(parameter.get(2)?.as_str().trim_matches('"').to_lowercase()))
        .filter(|charset| !charset.is_empty());
    Some(charset.map_or("utf-8".into(), Cow::Owned))
}

/// The charsets of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Charset {
    Utf8,
    /// The byte order mark decides the byte order, else whether the first byte is zero.
    Utf16,
    Utf16Le,
    Utf16Be,
}

impl Charset {
    fn of(name: &str) -> Option<Self> {
        // Names are compared as by iconv-lite; `express.json` only accepts those that begin with
        // `utf-`.
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        match plain.as_str() {
            _ if !name.starts_with("utf-") => None,
            "utf8" => Some(Self::Utf8),
            "utf16" => Some(Self::Utf16),
            "utf16le" => Some(Self::Utf16Le),
            "utf16be" => Some(Self::Utf16Be),
            _ => None,
        }
    }

    /// Decodes, and removes a byte order mark. Invalid text becomes U+FFFD.
    fn decode(self, bytes: &[u8]) -> String {
        let big_endian = match (self, bytes) {
            (Self::Utf8, bytes) => {
                let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
                return String::from_utf8_lossy(text).into_owned();
            }
            (Self::Utf16Be, _) | (Self::Utf16, [0xFE, 0xFF, ..]) => true,
            (Self::Utf16Le, _) | (Self::Utf16, [0xFF, 0xFE, ..]) => false,
            // JSON begins with ASCII, whose zero byte comes first in big endian.
            (Self::Utf16, bytes) => matches!(bytes, [0, ..]),
        };
        // An incomplete unit at the end is dropped, as by Node's decoder.
        let units = bytes.as_chunks().0.iter().map(|pair| match big_endian {
            true => u16::from_be_bytes(*pair),
            false => u16::from_le_bytes(*pair),
        });
        let text: String = char::decode_utf16(units)
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text)
    }
}

/// The encodings that `express.json` inflates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let Some(value) = joined(headers, header::CONTENT_ENCODING) else {
            return Some(Self::Identity);
        };
        match value.to_ascii_lowercase().as_str() {
            "identity" => Some(Self::Identity),
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    fn decode(self, sent: Bytes) -> Result<Bytes, ApiError> {
        match self {
            Self::Identity if sent.len() > MAX_BODY => Err(ApiError::BodyTooLarge),
            Self::Identity => Ok(sent),
            Self::Gzip => inflate(MultiGzDecoder::new(sent.as_ref())),
            Self::Deflate => inflate(ZlibDecoder::new(sent.as_ref())),
        }
    }
}

/// Inflates at most one byte more than a body may have.
fn inflate(decoder: impl Read) -> Result<Bytes, ApiError> {
    let mut inflated = Vec::new();
    let read = decoder.take(MAX_BODY as u64 + 1).read_to_end(&mut inflated);
    match read {
        _ if inflated.len() > MAX_BODY => Err(ApiError::BodyTooLarge),
        Ok(_) => Ok(inflated.into()),
        Err(_) => Err(ApiError::MalformedBody("broken compression")),
    }
}

/// Reads the whole body, within its time limit. It may be a little larger than `MAX_BODY`, since
/// compression can enlarge a small body.
async fn collect(payload: &mut Payload) -> Result<Bytes, ApiError> {
    const SLACK: usize = 4_096;
    let collecting = async {
        let mut sent = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|_| ApiError::MalformedBody("cut off"))?;
            if sent.len() + chunk.len() > MAX_BODY + SLACK {
                return Err(ApiError::BodyTooLarge);
            }
            sent.extend_from_slice(&chunk);
        }
        Ok(sent.freeze())
    };
    tokio::time::timeout(BODY_TIMEOUT, collecting).await.unwrap_or(Err(ApiError::BodyTimeout))
}

/// Reads and discards a body that is too large, as Node does. If it were left unread, the
/// connection would be closed, perhaps before the client has read the response, and a request after
/// the body would be lost. A body that is larger than `MAX_DRAINED` is left.
async fn drain(payload: &mut Payload) {
    let mut left = MAX_DRAINED;
    let draining = async {
        while left > 0
            && let Some(Ok(chunk)) = payload.next().await
        {
            left = left.saturating_sub(chunk.len());
        }
    };
    // If the client is too slow, the connection is closed.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, draining).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_read_as_express_reads_them() {
        for (value, charset) in [
            ("application/json", Some("utf-8")),
            ("APPLICATION/JSON", Some("utf-8")),
            ("application/json;charset=UTF-16", Some("utf-16")),
            ("application/json; charset=\"utf-8\"", Some("utf-8")),
            ("application/json; foo=bar; charset=latin1", Some("latin1")),
            ("application/json; foo=bar", Some("utf-8")),
            ("application/json; charset=\"\"", Some("utf-8")),
            ("application/json;", None),
            ("application/json,text/plain", None),
            ("text/json", None),
            ("json", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(json_charset(&headers).as_deref(), charset, "{value}");
        }
    }

    #[test]
    fn charsets_are_decoded_with_and_without_a_mark() {
        let units: Vec<u16> = "{\"ä\":\"😀\"}".encode_utf16().collect();
        let le: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let be: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let marked = |mark: [u8; 2], bytes: &[u8]| [&mark, bytes].concat();
        for (name, bytes) in [
            ("utf-16", le.clone()),
            ("utf-16", be.clone()),
            ("utf-16", marked([0xFF, 0xFE], &le)),
            ("utf-16", marked([0xFE, 0xFF], &be)),
            ("utf-16le", le.clone()),
            ("utf-16be", be),
            ("utf-8", "\u{FEFF}{\"ä\":\"😀\"}".into()),
        ] {
            let text = Charset::of(name).unwrap().decode(&bytes);
            assert_eq!(text, "{\"ä\":\"😀\"}", "{name} {bytes:x?}");
        }
        assert_eq!(Charset::of("utf8"), None);
        assert_eq!(Charset::of("utf-99"), None);
    }
}
