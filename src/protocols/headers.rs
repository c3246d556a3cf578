//! Request headers, as a Node server reads them.

use actix_web::HttpRequest;
use actix_web::http::header::{
    AcceptEncoding, ContentEncoding, Encoding, Header, HeaderMap, HeaderName, HeaderValue,
};

/// The value of a header as a Node handler sees it: its lines joined by commas. `None` if it is
/// missing or empty.
pub fn joined(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let lines = headers.get_all(name).map(HeaderValue::to_str);
    let value = lines.collect::<Result<Vec<_>, _>>().ok()?.join(", ");
    Some(value).filter(|value| !value.is_empty())
}

/// Whether the client accepts gzip responses.
pub fn reads_gzip(req: &HttpRequest) -> bool {
    const GZIP: Encoding = Encoding::Known(ContentEncoding::Gzip);

    AcceptEncoding::parse(req).is_ok_and(|accepted| accepted.negotiate([GZIP].iter()) == Some(GZIP))
}
