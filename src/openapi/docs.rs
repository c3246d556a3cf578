//! Pages and their files.

use super::refusals::{PRECISE, parameter, refusals};
use crate::error::ApiError;

refusals! {
    /// `GET /docs/{file}`.
    FileRefusals(PRECISE) = parameter();
    /// `GET /demo`.
    DemoRefusals(PRECISE) = [ApiError::NotFound];
}
