//! `GET /metrics`: what Prometheus reads.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use crate::auth::Passwords;
use crate::config::Config;
use crate::error::ApiError;
use crate::limits::Limits;
use crate::metrics::{CONTENT_TYPE, Metrics, Sources};
use crate::openapi::refusals;
use crate::realtime::engine_io::Registry;
use crate::realtime::worker::Worker;

/// Answers with everything that is counted; with `METRICS_TOKEN` only to who has it.
///
/// # Errors
/// The token is missing or another one.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operation",
    description = "Prometheus' text format. With `METRICS_TOKEN` it asks for that as bearer token.",
    responses(
        (status = 200, description = "The metrics", body = String, content_type = "text/plain"),
        refusals::Metrics,
    ),
)]
pub async fn metrics(
    req: HttpRequest,
    config: Data<Config>,
    worker: Data<Worker>,
    connections: Data<Registry>,
    limits: Data<Limits>,
    passwords: Data<Passwords>,
    metrics: Data<Metrics>,
) -> Result<HttpResponse, ApiError> {
    if let Some(token) = &config.metrics_token {
        let given = req.headers().get("Authorization").ok_or(ApiError::TokenMissing)?;
        let wanted = format!("Bearer {}", token.expose_secret());
        // Of hashes, the time of a comparison tells nothing.
        if Sha256::digest(given.as_bytes()) != Sha256::digest(wanted.as_bytes()) {
            return Err(ApiError::TokenInvalid("not METRICS_TOKEN"));
        }
    }
    let text = metrics.render(&Sources {
        feed: &worker.feed,
        process: &worker.process,
        connections: &connections,
        limits: &limits,
        refusals: &worker.refusals,
        passwords: &passwords,
    });
    Ok(HttpResponse::Ok().content_type(CONTENT_TYPE).body(text))
}
