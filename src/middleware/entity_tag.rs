//! Entity tags and conditional requests as Express's `res.json` has them.
//!
//! Every JSON response has a weak tag of its length and SHA-1. A GET or HEAD with this tag is
//! answered 304. Streamed bodies have no tag.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use sha1::{Digest, Sha1};

use crate::protocols::headers::joined;

/// Adds the tag to a JSON response that has none yet, or replaces the response by 304 if the client
/// has it already.
pub fn apply(res: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let is_json = res
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return res;
    }
    let (req, res) = res.into_parts();
    let (mut res, body) = res.into_parts();
    let body = match body.try_into_bytes() {
        Ok(body) => body,
        Err(streamed) => return ServiceResponse::new(req, res.set_body(streamed)),
    };
    let tag = res.headers().get(header::ETAG).cloned().unwrap_or_else(|| tag(&body));
    let conditional = matches!(*req.method(), Method::GET | Method::HEAD);
    if conditional && res.status().is_success() && is_fresh(req.headers(), &tag) {
        *res.status_mut() = StatusCode::NOT_MODIFIED;
        res.headers_mut().remove(header::CONTENT_TYPE);
        res.headers_mut().insert(header::ETAG, tag);
        return ServiceResponse::new(req, res.set_body(BoxBody::new(())));
    }
    res.headers_mut().insert(header::ETAG, tag);
    ServiceResponse::new(req, res.set_body(BoxBody::new(body)))
}

/// `W/"<length in hex>-<first 27 characters of the SHA-1 in base64>"`, as npm's `etag` makes it.
pub fn tag(body: &Bytes) -> HeaderValue {
    let digest = STANDARD_NO_PAD.encode(Sha1::digest(body));
    let tag = format!("W/\"{:x}-{digest}\"", body.len());
    HeaderValue::from_str(&tag).expect("hex, base64 and quotes are visible ASCII")
}

/// Whether the client's copy is current, by the rules of npm's `fresh`. `Cache-Control: no-cache`
/// asks for a new one, and a date never matches, since our responses have no `Last-Modified`.
fn is_fresh(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let Some(known) = joined(headers, header::IF_NONE_MATCH) else { return false };
    let no_cache = joined(headers, header::CACHE_CONTROL)
        .is_some_and(|value| value.split(',').any(|directive| directive.trim() == "no-cache"));
    if no_cache || joined(headers, header::IF_MODIFIED_SINCE).is_some() {
        return false;
    }
    let strong = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let tag = strong(tag.to_str().unwrap_or_default());
    known == "*" || known.split(',').any(|known| strong(known.trim_matches(' ')) == tag)
}
