//! Pages and their files.

use super::refusals::{BOTH, parameter, refusals};
use crate::error::ApiError;

refusals! {
    /// `GET /docs/{file}`.
    FileRefusals(BOTH) = parameter();
    /// `GET /demo`.
    DemoRefusals(BOTH) = [ApiError::NotFound];
}
