//! `GET /openapi.json`, and `GET /docs`, which shows it as a page that needs nothing from
//! elsewhere, with the pages of prose that belong to it.

use std::sync::{Arc, LazyLock};

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, ContentEncoding};
use actix_web::web::{Data, Path};
use utoipa_swagger_ui::Config;

use super::json;
use crate::error::ApiError;
use crate::openapi::{Document, docs as api, guide};

/// The page; its scripts and styles are files of Swagger UI below `/docs/`.
const PAGE: &str = include_str!("../docs/operations.html");

/// What the page may load: nothing that does not come from here.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; \
                      style-src 'self' 'unsafe-inline'";

/// Name below `/docs/`, content type and content of the files that the pages load, beside those of
/// Swagger UI.
const FILES: [(&str, &str, &str); 5] = [
    ("page.css", "text/css; charset=utf-8", include_str!("../docs/page.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("../docs/page.js")),
    ("look.js", "text/javascript; charset=utf-8", include_str!("../docs/look.js")),
    ("events.js", "text/javascript; charset=utf-8", include_str!("../docs/events.js")),
    ("events.json", "application/json; charset=utf-8", include_str!("../docs/events.json")),
];

/// Answers with the OpenAPI document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "Documentation",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)),
)]
pub async fn openapi(document: Data<&'static Document>) -> HttpResponse {
    json(StatusCode::OK, document.json())
}

/// Shows the document as an interactive page.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "Documentation",
    responses((status = 200, description = "A page", body = String, content_type = "text/html")),
)]
pub async fn page() -> HttpResponse {
    html(PAGE)
}

fn html(page: impl Into<String>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .content_type("text/html; charset=utf-8")
        .body(page.into())
}

/// The file of the page that is the document as it shows it.
const SHOWN: &str = "openapi.json";

/// Answers with a file of that page, or with a page of prose.
///
/// # Errors
/// There is neither.
#[utoipa::path(
    get,
    path = "/docs/{file}",
    tag = "Documentation",
    description = "`realtime`, `client` and `conventions` are pages to read, `events` is one to try \
                   events on. The others are scripts, styles and icons of `/docs`, and `openapi.json` with \
                   names in its examples that nobody has.",
    params(("file" = String, Path, example = "swagger-ui.css")),
    responses((status = 200, description = "The file", content_type = "*/*"), api::FileRefusals),
)]
pub async fn file(
    name: Path<String>,
    document: Data<&'static Document>,
) -> Result<HttpResponse, ApiError> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
        let config = Config::from(format!("/docs/{SHOWN}")).use_base_layout().validator_url("none");
        Arc::new(config.try_it_out_enabled(true).persist_authorization(true))
    });

    if *name == SHOWN {
        return Ok(json(StatusCode::OK, document.for_page()));
    }
    if let Some(page) = guide::page(&name) {
        return Ok(html(page));
    }
    if let Some((_, content_type, text)) = FILES.iter().find(|(known, ..)| *known == *name) {
        return Ok(HttpResponse::Ok().content_type(*content_type).body(*text));
    }
    let file = utoipa_swagger_ui::serve(&name, CONFIG.clone())
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .ok_or(ApiError::NotFound)?;
    let mut answer = HttpResponse::Ok();
    if file.gzpipped {
        answer.insert_header((header::CONTENT_ENCODING, ContentEncoding::Gzip));
    }
    Ok(answer.content_type(file.content_type).body(file.bytes.into_owned()))
}
