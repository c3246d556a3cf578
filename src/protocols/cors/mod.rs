//! Cross-origin resource sharing (CORS), as npm's `cors` does it: on every response of every path.

mod origins;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap, HeaderValue};

use crate::protocols::headers::joined;

pub use origins::{BadOrigin, OriginList};

/// The origins whose pages may read our responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// `*`: every origin.
    Any,
    /// Only the origins of this list.
    List(OriginList),
}

impl CorsOrigins {
    /// Whether pages of this origin may use this server.
    pub fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::List(origins) => origins.allows(origin),
        }
    }
}

/// Answers a preflight request with 204, and allows the requested headers.
pub fn preflight(headers: &HeaderMap, methods: &'static str) -> HttpResponse {
    let mut res = HttpResponse::NoContent();
    res.insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, methods))
        .append_header((header::VARY, "Access-Control-Request-Headers"));
    if let Some(requested) = joined(headers, header::ACCESS_CONTROL_REQUEST_HEADERS) {
        res.insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, requested));
    }
    res.insert_header((header::CONTENT_LENGTH, "0")).finish()
}

/// Adds `Access-Control-Allow-Origin`: `*`, or the request's origin if the list allows it. For a
/// listed origin, also adds `Access-Control-Allow-Credentials` if cookies are allowed.
pub fn allow_origin(headers: &mut HeaderMap, origins: &CorsOrigins, origin: Option<&HeaderValue>) {
    let CorsOrigins::List(list) = origins else {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    };
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let allowed = origin.filter(|origin| origin.to_str().is_ok_and(|text| list.allows(text)));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if list.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }
}

/// The `Origin` header of a page that may not use this server. `None` if the origin is allowed, or
/// if there is none: then the client is not a web page.
pub fn foreign<'a>(headers: &'a HeaderMap, origins: &CorsOrigins) -> Option<&'a HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let allowed = origin.to_str().is_ok_and(|origin| origins.allows(origin));
    (!allowed).then_some(origin)
}
