//! Cross-origin resource sharing as npm's `cors` does it: for every answer, of every path.

mod origins;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap, HeaderValue};

use crate::protocols::headers::joined;

pub use origins::{BadOrigin, OriginList};

/// Which origins a browser lets read our answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// `*`: all of them.
    Any,
    /// These.
    List(OriginList),
}

impl CorsOrigins {
    /// Whether a page of this origin may talk to us.
    pub fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::List(origins) => origins.allows(origin),
        }
    }
}

/// Answers a preflight: 204, with the requested headers echoed.
pub fn preflight(headers: &HeaderMap, methods: &'static str) -> HttpResponse {
    let mut res = HttpResponse::NoContent();
    res.insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, methods))
        .append_header((header::VARY, "Access-Control-Request-Headers"));
    if let Some(requested) = joined(headers, header::ACCESS_CONTROL_REQUEST_HEADERS) {
        res.insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, requested));
    }
    res.insert_header((header::CONTENT_LENGTH, "0")).finish()
}

/// Adds `Access-Control-Allow-Origin`: `*`, or the request's own origin when it is on the list,
/// and then whether it may send cookies along.
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

/// The header `Origin` of a page that may not talk to us. A client that names none is no page.
pub fn foreign<'a>(headers: &'a HeaderMap, origins: &CorsOrigins) -> Option<&'a HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let allowed = origin.to_str().is_ok_and(|origin| origins.allows(origin));
    (!allowed).then_some(origin)
}
