//! `GET /healthz` and `GET /readyz`: for orchestrators and load balancers.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;

use super::json;
use crate::models::Store;

/// How long MongoDB may take to answer before this instance is called unready.
const PING: Duration = Duration::from_secs(2);

/// Answers as long as the process serves requests at all.
pub async fn healthz() -> HttpResponse {
    json(StatusCode::OK, r#"{"status":"ok"}"#)
}

/// Answers 200 when requests can succeed, 503 with the reason when not.
pub async fn readyz(store: Data<Store>) -> HttpResponse {
    let reason = match tokio::time::timeout(PING, store.ping()).await {
        Ok(Ok(())) => return json(StatusCode::OK, r#"{"status":"ready"}"#),
        Ok(Err(_)) => "MongoDB cannot be reached",
        Err(_) => "MongoDB does not answer",
    };
    json(
        StatusCode::SERVICE_UNAVAILABLE,
        format!(r#"{{"status":"unavailable","reason":"{reason}"}}"#),
    )
}
