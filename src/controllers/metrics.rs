//! `GET /metrics`: what Prometheus reads.

use std::sync::atomic::{AtomicU64, Ordering};

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use crate::auth::Passwords;
use crate::config::Config;
use crate::error::ApiError;
use crate::feed::Feed;
use crate::limits::Limits;
use crate::metrics::{CONTENT_TYPE, FeedReadings, Metrics, Readings};
use crate::openapi::metrics as api;
use crate::protocols::engine_io::Registry;
use crate::sessions::registry::Worker;

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
        api::MetricsRefusals,
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
    let registry = &worker.registry;
    let exchange = worker.exchange.stats();
    let text = metrics.render(&Readings {
        feed: read_feed(&worker.feed),
        bundles: [("sent", read(&exchange.sent)), ("dropped", read(&exchange.dropped))],
        signals: read(&exchange.received),
        signal_restarts: read(&exchange.restarts),
        online: worker.presence.count(),
        instances: 1 + *worker.presence.others().borrow(),
        sessions: registry.sessions(),
        engine_io_connections: connections.len(),
        connections: registry.connections().count(),
        password_queue: passwords.waiting(),
        panics: connections.panics() + registry.panics(),
        unread: connections.unread(),
        revocations: worker.feed.revoked().len(),
        limits: limits.refused().into_iter().chain(registry.refused()).collect(),
        refusals: worker.refusals.counts().to_vec(),
    });
    Ok(HttpResponse::Ok().content_type(CONTENT_TYPE).body(text))
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn read_feed(feed: &Feed) -> FeedReadings {
    let stats = feed.stats();
    let (ring_events, ring_bytes) = feed.ring().size();
    FeedReadings {
        is_live: feed.live().is_ok(),
        lag: read(&stats.lag),
        events: read(&stats.events),
        poison: read(&stats.poison),
        oversized: read(&stats.oversized),
        restarts: read(&stats.restarts),
        losses: read(&stats.losses),
        panics: read(&stats.panics),
        ring_events,
        ring_bytes,
    }
}
