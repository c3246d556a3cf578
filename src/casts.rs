//! Casts fields of a request to the values of a model, or to the error for the client.
//!
//! The rules are Mongoose's ([`crate::js`]). This file adds the name of the field to the error.

use std::borrow::Cow;
use std::str::FromStr;

use crate::error::{ApiError, NO_ID};
use crate::js::Js;
use crate::models::NotAnId;

/// A text that Mongoose's `required` accepts: present, castable and not empty.
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

/// An id that Mongoose can cast.
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
