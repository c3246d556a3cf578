//! Metrics.

use super::refusals::{BOTH, refusals};
use crate::error::ApiError;

refusals! {
    /// `GET /metrics`.
    MetricsRefusals(BOTH) = [ApiError::TokenMissing, ApiError::TokenInvalid("not METRICS_TOKEN")];
}
