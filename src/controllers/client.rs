//! `GET /chat.js`: the client for front ends, one ES module, and its types.

use std::sync::LazyLock;

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};

use crate::protocols::asset::Asset;

static MODULE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new(include_str!("../client/chat.js").as_bytes()));
static TYPES: LazyLock<Asset> =
    LazyLock::new(|| Asset::new(include_str!("../client/chat.d.ts").as_bytes()));

/// Answers with the module.
#[utoipa::path(
    get,
    path = "/chat.js",
    tag = "Documentation",
    description = "The client for front ends: one ES module without dependencies. \
                   `docs/client.md` describes it.",
    responses((
        status = 200,
        description = "An ES module; `X-TypeScript-Types` names its types",
        body = String,
        content_type = "text/javascript",
    )),
)]
pub async fn client_module(req: HttpRequest) -> HttpResponse {
    let mut answer = MODULE.respond(&req, "text/javascript; charset=utf-8");
    let types = HeaderValue::from_static("./chat.d.ts");
    let name = HeaderName::from_static("x-typescript-types");
    answer.headers_mut().insert(name, types);
    answer
}

/// Answers with the types of the module.
#[utoipa::path(
    get,
    path = "/chat.d.ts",
    tag = "Documentation",
    description = "The types of `/chat.js`, for TypeScript.",
    responses((
        status = 200,
        description = "Declarations",
        body = String,
        content_type = "application/typescript",
    )),
)]
pub async fn client_types(req: HttpRequest) -> HttpResponse {
    TYPES.respond(&req, "application/typescript; charset=utf-8")
}
