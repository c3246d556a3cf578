//! Metrics.

use super::refusals::{PRECISE, refusals};
use crate::error::ApiError;

refusals! {
    /// `GET /metrics`.
    MetricsRefusals(PRECISE) =
        [ApiError::TokenMissing, ApiError::TokenInvalid("not METRICS_TOKEN")];
}
