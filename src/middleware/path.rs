//! Paths as Express matches them: in any letter case, with one more slash at the end or after the
//! mount point.
//!
//! Routes are written in lower case, with `{name}` for a segment that is a parameter. A path that
//! Express would match is rewritten to the route's form before actix routes it. Parameters stay as
//! they are, and the request keeps its own path for error pages.

use actix_web::dev::ServiceRequest;
use actix_web::http::Uri;

use crate::config::ErrorMode;
use crate::error::ApiError;

/// The original's routers, each mounted below `/api`. Express's mount point takes one slash if
/// another one follows.
const MOUNTED: [&str; 2] = ["auth", "chat"];

/// The paths of all routes.
pub struct Paths(Vec<Route>);

struct Route {
    path: &'static str,
    segments: Vec<Segment>,
    errors: Option<ErrorMode>,
}

/// The result of looking for the path of a request.
pub struct Found {
    /// The path as in the route table, if the request spells it differently. Otherwise
    /// [`ApiError::NotFound`] when no route matches, or [`ApiError::MalformedPath`] when a
    /// parameter is no percent-encoded UTF-8. Express detects both when it matches, so before
    /// authentication and for any method.
    pub rewritten: Result<Option<String>, ApiError>,
    /// The route that matches; none if there is none.
    pub matched: Option<Matched>,
}

/// The route whose path matches a request. It is an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched {
    /// The path as the route table has it, with `{name}` for a parameter.
    pub path: &'static str,
    /// The mode of `ERRORS` for this path, whatever is configured.
    pub errors: Option<ErrorMode>,
}

/// The text between two slashes.
#[derive(Debug)]
enum Segment {
    /// This text, in any case.
    Literal(&'static str),
    /// Any text.
    Parameter,
}

impl Paths {
    /// Paths like `/api/chat/messages/{room}`, each with its mode of `ERRORS`, if it has one. The
    /// first path that matches a request is used.
    pub fn new(paths: impl IntoIterator<Item = (&'static str, Option<ErrorMode>)>) -> Self {
        let segment = |text: &'static str| match text.strip_prefix('{') {
            Some(_) => Segment::Parameter,
            None => Segment::Literal(text),
        };
        let route = |(path, errors): (&'static str, _)| {
            let segments = path.split('/').map(segment).collect();
            Route { path, segments, errors }
        };
        Self(paths.into_iter().map(route).collect())
    }

    /// Looks for the path of a request.
    pub fn find(&self, path: &str) -> Found {
        // Most requests have the path of a route without a parameter, letter by letter.
        if let Some(route) = self.0.iter().find(|route| route.path == path) {
            return Found { rewritten: Ok(None), matched: Some(route.matched()) };
        }
        let requested = segments(path);
        let Some(route) = self.0.iter().find(|route| route.matches(&requested)) else {
            return Found { rewritten: Err(ApiError::NotFound), matched: None };
        };
        let spelled = route.spell(&requested);
        let rewritten = spelled.map(|spelled| (spelled != path).then_some(spelled));
        Found { rewritten, matched: Some(route.matched()) }
    }
}

impl Route {
    fn matched(&self) -> Matched {
        Matched { path: self.path, errors: self.errors }
    }

    fn matches(&self, requested: &[&str]) -> bool {
        self.segments.len() == requested.len()
            && self.segments.iter().zip(requested).all(|(segment, text)| segment.matches(text))
    }

    fn spell(&self, requested: &[&str]) -> Result<String, ApiError> {
        let spelled = self.segments.iter().zip(requested).map(|(segment, text)| match segment {
            Segment::Literal(literal) => Ok(*literal),
            Segment::Parameter if is_percent_encoded_utf8(text) => Ok(*text),
            Segment::Parameter => Err(ApiError::MalformedPath),
        });
        Ok(spelled.collect::<Result<Vec<_>, _>>()?.join("/"))
    }
}

impl Segment {
    /// actix's router decodes encoded letters, but Express's does not, so a text with a `%` matches
    /// no literal.
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => literal.eq_ignore_ascii_case(text),
            Self::Parameter => !text.is_empty(),
        }
    }
}

/// Gives the router another path than that of the request.
///
/// # Errors
/// [`ApiError::NotFound`] when the path is not valid.
pub fn rewrite(req: &mut ServiceRequest, path: &str) -> Result<(), ApiError> {
    let uri: Uri = path.parse().map_err(|_| ApiError::NotFound)?;
    req.match_info_mut().get_mut().update(&uri);
    Ok(())
}

/// The texts between the slashes of a path, without the slashes that Express ignores.
fn segments(path: &str) -> Vec<&str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments: Vec<&str> = path.split('/').collect();
    if let ["", api, router, "", ..] = segments[..]
        && api.eq_ignore_ascii_case("api")
        && MOUNTED.iter().any(|mounted| router.eq_ignore_ascii_case(mounted))
    {
        segments.remove(3);
    }
    segments
}

/// Whether `decodeURIComponent` accepts the text.
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

/// A path as npm's `encodeurl` writes it on an error page. Characters that no URL may contain are
/// encoded, and so is a `%` that begins no escape. The character that makes the escape invalid is
/// encoded as by `encodeURI`.
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
            // An escape, or one that is cut off by the end of the path.
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

/// Whether `encodeurl` keeps the byte as it is.
fn is_of_urls(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x3B | 0x3D | 0x3F..=0x5F | 0x61..=0x7A | 0x7C | 0x7E)
}

/// Whether JavaScript's `encodeURI` keeps the byte as it is.
fn is_of_components(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.!~*'();/?:@&=+$,#".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_as_express_matches_them() {
        let paths = Paths::new(
            [
                "/api/chat/rooms",
                "/api/chat/messages/{room}",
                "/api/chat/room/{room}",
                "/api/chat/room/{room}/members/{user}",
                "/api/users/me",
                "/api/users/{user}",
                "/healthz",
            ]
            .map(|path| (path, None)),
        );
        for (path, expected) in [
            ("/api/chat/rooms", "/api/chat/rooms"),
            ("/API/Chat/Rooms/", "/api/chat/rooms"),
            ("/api/chat//rooms", "/api/chat/rooms"),
            ("/api/chat//ROOMS/", "/api/chat/rooms"),
            ("/api/chat/messages/Ab%20", "/api/chat/messages/Ab%20"),
            ("/api/chat/MESSAGES/Ab/", "/api/chat/messages/Ab"),
            ("/api/chat//messages/Ab", "/api/chat/messages/Ab"),
            ("/api/chat/Room/Ab", "/api/chat/room/Ab"),
            ("/api/chat//ROOM/Ab/Members/Cd%2F/", "/api/chat/room/Ab/members/Cd%2F"),
            ("/api/Users/ME", "/api/users/me"),
            ("/api/users/Metoo", "/api/users/Metoo"),
            ("/healthz/", "/healthz"),
        ] {
            let rewritten = paths.find(path).rewritten.unwrap();
            assert_eq!(rewritten.as_deref().unwrap_or(path), expected, "{path}");
        }
        for path in [
            "",
            "/",
            "//",
            "/healthz//",
            "//healthz",
            "/api/chat",
            "/api/chat//",
            "/api/chat///rooms",
            "/api/chat/rooms//",
            "/api/chatter",
            "/api/chatter//rooms",
            "/api/users//me",
            "/api/chat/messages",
            "/api/chat/messages/",
            "/api/chat/messages//",
            "/api/chat/messages/ab//",
            "/api/chat/messages//ab",
            "/api/chat/room//members/cd",
            "/api/chat/room/ab/members/",
            "/api/chat/roo%6ds",
            "/api/chat/roo%zzs",
            "/api/chat/room/%zz/nothing",
            "/%61pi/chat/rooms",
        ] {
            let refused = paths.find(path).rewritten;
            assert!(matches!(refused, Err(ApiError::NotFound)), "{path}: {refused:?}");
        }
        for path in [
            "/api/chat/messages/%E0%A4%A",
            "/api/chat/messages/%FF",
            "/api/chat/messages/%",
            "/api/chat/messages/%/",
            "/api/chat/room/%/members/ab",
            "/api/chat/room/ab/members/%ed%a0%80",
        ] {
            let refused = paths.find(path).rewritten;
            assert!(matches!(refused, Err(ApiError::MalformedPath)), "{path}: {refused:?}");
        }
    }

    #[test]
    fn the_mode_of_a_path_holds_for_a_broken_parameter_too() {
        let precise = Some(ErrorMode::Precise);
        let paths = Paths::new([("/api/chat/message", None), ("/api/chat/message/{id}", precise)]);
        for (path, errors) in [
            ("/api/chat/message", None),
            ("/api/chat/message/", None),
            ("/api/chat/message/ab", precise),
            ("/api/chat/MESSAGE/%FF", precise),
            ("/api/chat/message/ab/cd", None),
        ] {
            let found = paths.find(path).matched.and_then(|matched| matched.errors);
            assert_eq!(found, errors, "{path}");
        }
    }

    #[test]
    fn error_pages_name_paths_as_express_does() {
        // The results of npm's encodeurl 2.0.
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
