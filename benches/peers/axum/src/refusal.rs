//! What a client reads when something is refused.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A status and a text.
#[derive(Debug, Clone, Copy)]
pub struct Refusal(pub StatusCode, pub &'static str);

/// The body of a refusal.
#[derive(Serialize)]
pub struct Body {
    error: &'static str,
}

impl Refusal {
    pub const SERVER_ERROR: Self = Self(StatusCode::INTERNAL_SERVER_ERROR, "Server error");

    pub fn body(self) -> Body {
        Body { error: self.1 }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(self.body())).into_response()
    }
}

impl From<mongodb::error::Error> for Refusal {
    fn from(error: mongodb::error::Error) -> Self {
        eprintln!("{error}");
        Self::SERVER_ERROR
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        match rejection {
            // JSON, but without the fields: as the original, whose models refuse it.
            JsonRejection::JsonDataError(_) => Self::SERVER_ERROR,
            other => Self(other.status(), "Malformed JSON"),
        }
    }
}
