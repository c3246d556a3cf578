//! The handlers, with the names they had in Express: parse, ask a model, answer.

pub mod auth;
pub mod client;
pub mod demo;
pub mod docs;
pub mod health;
mod list;
pub mod messages;
pub mod metrics;
pub mod presence;
pub mod rooms;
mod shared_reads;
pub mod users;

use std::str::FromStr;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;

use crate::error::{ApiError, NO_ID};
use crate::views;

/// A JSON answer.
fn json(status: StatusCode, body: impl Into<bytes::Bytes>) -> HttpResponse {
    HttpResponse::build(status).content_type(views::CONTENT_TYPE).body(body.into())
}

/// The id that stands in a path as the parameter `field`.
fn id<T: FromStr>(text: &str, field: &'static str) -> Result<T, ApiError> {
    text.parse().map_err(|_| ApiError::InvalidField { field, problem: NO_ID })
}
