//! What Express did around every handler, in its order.
//!
//! Node's parser refuses what is no HTTP to it, `cors` answers preflights, `express.json` reads
//! the body of whatever path, the router finds the handler, `res.json` adds the entity tag and the
//! final handler makes a page of what nobody answered. Each step is a file beside this one; this
//! one only calls them. Sockets never pass here: in the original, too, they were taken out before.

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Method, Version};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpResponse};

use super::path::{self, Paths};
use super::{body, entity_tag};
use crate::config::{Config, ErrorMode};
use crate::error::ApiError;
use crate::limits::Limits;
use crate::protocols::cors;
use crate::refusals::Refusals;

/// The methods that a preflight is told, whatever its path.
const METHODS: &str = "GET,HEAD,PUT,PATCH,POST,DELETE";

/// The middleware, for `from_fn`.
///
/// # Errors
/// Only what actix itself fails with; refusals of ours are responses already.
pub async fn express(
    config: Data<Config>,
    refusals: Data<Refusals>,
    paths: Data<&'static Paths>,
    mut req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if !is_http_to_node(&req) {
        // Node answers these before any handler: no header of ours, and the connection closes.
        return Ok(req.into_response(HttpResponse::BadRequest().force_close().finish()));
    }
    let origin = req.headers().get(header::ORIGIN).cloned();
    let mut res = if req.method() == Method::OPTIONS {
        // Nobody but a browser asks, for a page of another origin, which it then keeps away.
        if let Some(origin) = cors::foreign(req.headers(), &config.cors) {
            refusals.note_origin(origin.as_bytes());
        }
        let answer = cors::preflight(req.headers(), METHODS);
        req.into_response(answer)
    } else {
        match prepare(&paths, &mut req).await {
            Ok(()) => entity_tag::apply(render(&config, next.call(req).await?)),
            Err(error) => {
                let res = req.error_response(error);
                entity_tag::apply(render(&config, res))
            }
        }
    };
    cors::allow_origin(res.headers_mut(), &config.cors, origin.as_ref());
    let is_streamed = res.response().body().size() == BodySize::Stream;
    if is_streamed && res.request().version() < Version::HTTP_11 {
        // Older clients know no chunks: the body ends with the connection.
        let head = res.response_mut().head_mut();
        head.no_chunking(true);
        head.set_connection_type(ConnectionType::Close);
    }
    Ok(res)
}

/// Everything before the router. The path is found before the body is read, since its mode holds
/// for the refusals of a body, too; that nothing has the path is said after.
async fn prepare(paths: &Paths, req: &mut ServiceRequest) -> Result<(), ApiError> {
    let found = paths.find(req.uri().path());
    if let Some(mode) = found.errors {
        req.extensions_mut().insert(mode);
    }
    body::read(req).await?;
    path::rewrite(req, &found.spelled?)
}

/// Turns an [`ApiError`], wherever it arose, into the answer of the mode of its path, otherwise of
/// the configured one.
fn render<B: MessageBody + 'static>(
    config: &Config,
    res: ServiceResponse<B>,
) -> ServiceResponse<BoxBody> {
    let Some(answer) = res.response().error().and_then(|error| {
        let error = error.as_error::<ApiError>()?;
        if let Some(limits) = res.request().app_data::<Data<Limits>>() {
            limits.note(error);
        }
        let chosen = res.request().extensions().get::<ErrorMode>().copied();
        Some(error.respond(chosen.unwrap_or(config.errors), &Requested(res.request())))
    }) else {
        return res.map_into_boxed_body();
    };
    res.into_response(answer)
}

/// `GET /path`, as Express's page for an unknown route names it.
struct Requested<'a>(&'a actix_web::HttpRequest);

impl std::fmt::Display for Requested<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.0.method(), path::encode(self.0.uri().path()))
    }
}

/// Whether Node's parser would have let the request through: a method that it knows, and a `Host`
/// when HTTP/1.1 demands one.
fn is_http_to_node(req: &ServiceRequest) -> bool {
    let has_host = req.version() != Version::HTTP_11 || req.headers().contains_key(header::HOST);
    has_host && NODE_METHODS.contains(&req.method().as_str())
}

/// `http.METHODS` of Node 20.
const NODE_METHODS: [&str; 35] = [
    "GET",
    "POST",
    "OPTIONS",
    "HEAD",
    "PUT",
    "PATCH",
    "DELETE",
    "ACL",
    "BIND",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// Adds a header that a browser may only show to a page when it is named in
/// `Access-Control-Expose-Headers`.
pub fn insert_exposed(res: &mut HttpResponse, name: HeaderName, value: HeaderValue) {
    let exposed = HeaderValue::from_str(name.as_str()).expect("a header name is a header value");
    res.headers_mut().append(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    res.headers_mut().insert(name, value);
}
