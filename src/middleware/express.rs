//! The steps of Express around every handler, in its order.
//!
//! Node's parser refuses invalid requests, `cors` answers preflights, `express.json` reads the body
//! for every path, the router finds the handler, `res.json` adds the entity tag, and the final
//! handler makes an error page for an unknown route. Each step has its own file beside this one,
//! which only calls them. Sockets do not pass through here: in the original, too, they were handled
//! before.

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{ConnectionType, Method, Version};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpResponse};

use super::path::{self, Matched, Paths};
use super::{body, entity_tag};
use crate::config::{Config, ErrorMode};
use crate::error::ApiError;
use crate::limits::Limits;
use crate::protocols::cors;
use crate::refusals::Refusals;

/// The allowed methods, for preflight responses of every path.
const METHODS: &str = "GET,HEAD,PUT,PATCH,POST,DELETE";

/// The middleware, for `from_fn`.
///
/// # Errors
/// Only errors of actix itself; our own errors are already responses.
pub async fn express(
    config: Data<Config>,
    refusals: Data<Refusals>,
    paths: Data<&'static Paths>,
    mut req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if !is_valid_for_node(&req) {
        // Node answers these before any handler: without a header of ours, and it closes the
        // connection.
        return Ok(req.into_response(HttpResponse::BadRequest().force_close().finish()));
    }
    let origin = req.headers().get(header::ORIGIN).cloned();
    let mut res = if req.method() == Method::OPTIONS {
        // Only browsers send a preflight. This one is for a page of a foreign origin, which the
        // browser then blocks.
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
        // Older clients do not know chunks: the end of the connection ends the body.
        let head = res.response_mut().head_mut();
        head.no_chunking(true);
        head.set_connection_type(ConnectionType::Close);
    }
    Ok(res)
}

/// The steps before the router. The path is looked for before the body is read, since its mode also
/// holds for errors of the body. An unknown path is only reported afterwards.
async fn prepare(paths: &Paths, req: &mut ServiceRequest) -> Result<(), ApiError> {
    let found = paths.find(req.uri().path());
    if let Some(matched) = found.matched {
        req.extensions_mut().insert(matched);
    }
    body::read(req).await?;
    match found.rewritten? {
        Some(path) => path::rewrite(req, &path),
        None => Ok(()),
    }
}

/// Turns an [`ApiError`] of any step into the response of the mode of its request, else of the mode
/// of its path, or else of the configured mode.
fn render<B: MessageBody + 'static>(
    config: &Config,
    res: ServiceResponse<B>,
) -> ServiceResponse<BoxBody> {
    let Some(answer) = res.response().error().and_then(|error| {
        let error = error.as_error::<ApiError>()?;
        if let Some(limits) = res.request().app_data::<Data<Limits>>() {
            limits.note(error);
        }
        let extensions = res.request().extensions();
        let of_path = || extensions.get::<Matched>().and_then(|matched| matched.errors);
        let chosen = extensions.get::<ErrorMode>().copied().or_else(of_path);
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

/// Whether Node's parser accepts the request: it knows the method, and HTTP/1.1 has a `Host`.
fn is_valid_for_node(req: &ServiceRequest) -> bool {
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

/// Adds a header, and names it in `Access-Control-Expose-Headers`: otherwise a browser hides it
/// from the page.
pub fn insert_exposed(res: &mut HttpResponse, name: HeaderName, value: HeaderValue) {
    let exposed = HeaderValue::from_str(name.as_str()).expect("a header name is a header value");
    res.headers_mut().append(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    res.headers_mut().insert(name, value);
}
