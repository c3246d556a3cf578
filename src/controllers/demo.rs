//! `GET /demo`: a page to try the server with.

use actix_web::HttpResponse;
use actix_web::web::Data;

use crate::config::Config;
use crate::error::ApiError;
use crate::openapi::docs as api;

/// One file, which loads `/chat.js` and nothing else: what it loads and sends is this server's.
const PAGE: &str = include_str!("../demo/index.html");

/// Nothing but this server's scripts, styles and connections.
const POLICY: &str = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; \
                      img-src data:; connect-src 'self' ws: wss:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// Shows the page, unless `DEMO=false`.
///
/// # Errors
/// It is switched off.
#[utoipa::path(
    get,
    path = "/demo",
    tag = "Documentation",
    description = "A page to try the server with; `DEMO=false` switches it off.",
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        api::DemoRefusals,
    ),
)]
pub async fn demo(config: Data<Config>) -> Result<HttpResponse, ApiError> {
    if !config.demo {
        return Err(ApiError::NotFound);
    }
    Ok(HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header(("Content-Security-Policy", POLICY))
        .insert_header(("X-Content-Type-Options", "nosniff"))
        .body(PAGE))
}
