//! Paths as Express matches them: any case, one slash more at the end or behind the mount point.
//!
//! The routes are written once, in lower case. A path that Express would have matched to one of
//! them is rewritten to that spelling before actix routes it; the request keeps its own for error
//! pages.

use actix_web::dev::ServiceRequest;
use actix_web::http::Uri;

use crate::error::ApiError;

/// Where Express's routers are mounted.
const MOUNTS: [&str; 2] = ["/api/auth", "/api/chat"];
/// The routes with a parameter, below `/api/chat`.
const WITH_PARAMETER: [&str; 2] = ["/messages/", "/message/"];

/// Rewrites the path that the router sees.
///
/// # Errors
/// [`ApiError::MalformedPath`] when a parameter is no percent-encoded UTF-8. Express finds that
/// out while it matches, so before the guard and for any method.
pub fn normalize(req: &mut ServiceRequest) -> Result<(), ApiError> {
    let Some(path) = canonical(req.uri().path())? else { return Ok(()) };
    let uri: Uri = path.parse().map_err(|_| ApiError::NotFound)?;
    req.match_info_mut().get_mut().update(&uri);
    Ok(())
}

/// The spelling of the route table, or `None` when the path is spelt so already.
fn canonical(path: &str) -> Result<Option<String>, ApiError> {
    let mount = MOUNTS.iter().find_map(|mount| {
        let rest = strip_prefix_any_case(path, mount)?;
        (rest.is_empty() || rest.starts_with('/')).then_some((*mount, rest))
    });
    let Some((mount, rest)) = mount else {
        return Ok(Some(literal(path)).filter(|literal| literal != path));
    };
    // Express's mount point may take one slash with it when another follows.
    let rest = if rest.starts_with("//") { rest.get(1..).unwrap_or(rest) } else { rest };
    let parameter =
        WITH_PARAMETER.iter().find_map(|route| Some((route, strip_prefix_any_case(rest, route)?)));
    let canonical = match parameter {
        Some((route, parameter)) if mount == "/api/chat" => {
            let parameter = parameter.strip_suffix('/').unwrap_or(parameter);
            if parameter.contains('/') || parameter.is_empty() {
                NOWHERE.to_owned()
            } else if !is_percent_encoded_utf8(parameter) {
                return Err(ApiError::MalformedPath);
            } else {
                format!("{mount}{route}{parameter}")
            }
        }
        _ => format!("{mount}{}", literal(rest)),
    };
    Ok(Some(canonical).filter(|canonical| canonical != path))
}

/// A path that no route has and none may ever have: front ends rely on its 404.
const NOWHERE: &str = "/";

/// A path without parameters. Encoded letters are decoded by actix's router, not by Express's, so
/// what holds a `%` matches nothing.
fn literal(path: &str) -> String {
    if path.contains('%') {
        return NOWHERE.to_owned();
    }
    let path = match path.strip_suffix('/') {
        Some(stripped) if !stripped.is_empty() => stripped,
        _ => path,
    };
    path.to_ascii_lowercase()
}

fn strip_prefix_any_case<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = path.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Whether `decodeURIComponent` would accept it.
fn is_percent_encoded_utf8(text: &str) -> bool {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (hex(bytes.next()), hex(bytes.next())) else { return false };
        decoded.push(high << 4 | low);
    }
    std::str::from_utf8(&decoded).is_ok()
}

fn hex(digit: Option<u8>) -> Option<u8> {
    char::from(digit?).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// A path as npm's `encodeurl` prints it on an error page: what no URL may hold is encoded, and so
/// is a `%` that begins no escape, with what stands in the way of one.
pub fn encode(path: &str) -> String {
    use std::fmt::Write;

    let mut encoded = String::with_capacity(path.len());
    let mut push = |byte: u8, stays: bool| {
        if stays {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing into a string cannot fail");
        }
    };
    let mut rest = path.as_bytes();
    while let [byte, behind @ ..] = rest {
        rest = behind;
        if *byte != b'%' {
            push(*byte, is_of_urls(*byte));
            continue;
        }
        match rest {
            // An escape, or one that only the end of the path cuts short.
            [one, two, ..] if one.is_ascii_hexdigit() && two.is_ascii_hexdigit() => {
                push(b'%', true)
            }
            [one] if one.is_ascii_hexdigit() => push(b'%', true),
            [one, other, behind @ ..] if one.is_ascii_hexdigit() => {
                push(b'%', false);
                push(*one, true);
                push(*other, is_of_components(*other));
                rest = behind;
            }
            [other, behind @ ..] => {
                push(b'%', false);
                push(*other, is_of_components(*other));
                rest = behind;
            }
            [] => push(b'%', false),
        }
    }
    encoded
}

/// What `encodeurl` leaves as it is.
fn is_of_urls(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x3B | 0x3D | 0x3F..=0x5F | 0x61..=0x7A | 0x7C | 0x7E)
}

/// What JavaScript's `encodeURI` leaves as it is.
fn is_of_components(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.!~*'();/?:@&=+$,#".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_as_express_matches_them() {
        for (path, expected) in [
            ("/api/chat/rooms", None),
            ("/API/Chat/Rooms/", Some("/api/chat/rooms")),
            ("/api/chat//rooms", Some("/api/chat/rooms")),
            ("/api/chat///rooms", Some("/api/chat//rooms")),
            ("/api/chat/messages/Ab%20", None),
            ("/api/chat/MESSAGES/Ab/", Some("/api/chat/messages/Ab")),
            ("/api/chat/messages/ab//", Some("/")),
            ("/api/chat/messages/", Some("/")),
            ("/api/chat/roo%6ds", Some("/api/chat/")),
            ("/%61pi/chat/rooms", Some("/")),
            ("/api/chatter", None),
            ("/healthz/", Some("/healthz")),
            ("/", None),
        ] {
            assert_eq!(canonical(path).unwrap().as_deref(), expected, "{path}");
        }
        for path in
            ["/api/chat/messages/%E0%A4%A", "/api/chat/messages/%FF", "/api/chat/messages/%"]
        {
            assert!(canonical(path).is_err(), "{path}");
        }
    }

    #[test]
    fn error_pages_name_paths_as_express_does() {
        // What npm's encodeurl 2.0 answers.
        for (path, encoded) in [
            ("/%E0%A4%A", "/%E0%A4%A"),
            ("/a&b'c\"d%22%zz|{}^`", "/a&b'c%22d%22%25zz|%7B%7D^%60"),
            ("/%", "/%25"),
            ("/%4", "/%4"),
            ("/%4/", "/%254/"),
            ("/%AG", "/%25AG"),
            ("/%%41", "/%25%2541"),
            ("/%A%41", "/%25A%2541"),
            ("/%%%", "/%25%25%25"),
            ("/a%[b]", "/a%25%5Bb]"),
            ("/%A]", "/%25A%5D"),
            ("/%{x}", "/%25%7Bx%7D"),
            ("/%c3%28", "/%c3%28"),
        ] {
            assert_eq!(encode(path), encoded, "{path}");
        }
    }
}
