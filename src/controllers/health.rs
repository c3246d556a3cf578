//! `GET /healthz` and `GET /readyz`: for orchestrators and load balancers.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;

use super::json;
use crate::feed::Phase;
use crate::models::Store;
use crate::openapi::health as api;
use crate::sessions::registry::Worker;
use crate::views;

/// How long MongoDB may take to answer before this instance is called unready.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers as long as the process serves requests at all.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "Operation",
    responses((status = 200, description = "The process is up", body = api::Health)),
)]
pub async fn healthz() -> HttpResponse {
    json(StatusCode::OK, r#"{"status":"ok"}"#)
}

/// Answers 200 when reads and writes can succeed and messages are delivered, 503 with the reason
/// when not.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Operation",
    responses(
        (status = 200, description = "Requests can succeed", body = api::Health),
        (status = 503, description = "They cannot, for this reason", body = api::Health),
    ),
)]
pub async fn readyz(store: Data<Store>, worker: Data<Worker>) -> HttpResponse {
    match readiness(&store, &worker).await {
        Ok(Phase::Local) => json(StatusCode::OK, r#"{"status":"ready","realtime":"local"}"#),
        Ok(_) => json(StatusCode::OK, r#"{"status":"ready","realtime":"cluster"}"#),
        Err(reason) => unavailable(&reason),
    }
}

/// The answer of `/readyz` while the name in the connection string is not resolved.
pub async fn unresolved() -> HttpResponse {
    unavailable("the name of MongoDB cannot be resolved")
}

fn unavailable(reason: &str) -> HttpResponse {
    let mut body = br#"{"status":"unavailable","reason":"#.to_vec();
    views::push_string(&mut body, reason);
    body.push(b'}');
    json(StatusCode::SERVICE_UNAVAILABLE, body)
}

async fn readiness(store: &Store, worker: &Worker) -> Result<Phase, String> {
    if worker.registry.is_draining() {
        return Err("the server stops".to_owned());
    }
    let live = || worker.feed.live().map_err(|error| error.to_string());
    match tokio::time::timeout(PATIENCE, store.ready()).await {
        Ok(Ok(())) => live(),
        Ok(Err(unready)) => Err(unready.to_string()),
        // The feed has asked for longer, and may know why.
        Err(_) => live().and(Err("MongoDB does not answer".to_owned())),
    }
}
