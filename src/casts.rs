//! Fields of a request as the values that a model takes, or the refusal to answer with.
//!
//! The rules are Mongoose's ([`crate::js`]); this file only names the field that breaks one.

use std::borrow::Cow;
use std::str::FromStr;

use crate::error::ApiError;
use crate::js::Js;
use crate::models::NotAnId;

/// What is said of a value that is no id.
pub const NO_ID: &str = "must be an id of 24 hexadecimal digits";

/// A text that Mongoose's `required` accepts: there, castable and not empty.
///
/// # Errors
/// [`ApiError::InvalidField`].
pub fn required_text<'a>(field: &'static str, value: &'a Js) -> Result<Cow<'a, str>, ApiError> {
    if value.is_nullish() {
        return Err(ApiError::InvalidField { field, problem: "is required" });
    }
    match value.to_text() {
        Ok(text) if text.is_empty() => {
            Err(ApiError::InvalidField { field, problem: "must not be empty" })
        }
        Ok(text) => Ok(text),
        Err(_) => Err(ApiError::InvalidField { field, problem: "must be a string" }),
    }
}

/// An id that Mongoose would cast.
///
/// # Errors
/// [`ApiError::InvalidField`].
pub fn required_id<Id: FromStr<Err = NotAnId>>(
    field: &'static str,
    value: &Js,
) -> Result<Id, ApiError> {
    if value.is_nullish() {
        return Err(ApiError::InvalidField { field, problem: "is required" });
    }
    value.to_id().map_err(|_| ApiError::InvalidField { field, problem: NO_ID })
}
