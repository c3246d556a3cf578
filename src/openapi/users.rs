//! Users.

use utoipa::{IntoParams, ToSchema};

use super::refusals::{PRECISE, database, field, parameter, refusals, token};
use super::values::{Date, ObjectId};
use crate::error::{ApiError, NO_ID};

refusals! {
    /// `GET /api/users`.
    SearchRefusals(PRECISE) = token(), database(), [
        field("search", "must have 1 to 100 characters"),
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `GET /api/users/me`.
    MeRefusals(PRECISE) = token(), database(), [
        ApiError::NoSuchUser,
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `GET /api/users/{user}`.
    UserRefusals(PRECISE) = token(), parameter(), database(), [
        field("user", NO_ID),
        ApiError::NoSuchUser,
        ApiError::RateLimited { seconds: 60 },
    ];
}

/// Whom to search.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Search {
    /// The beginning of a name.
    #[param(min_length = 1, max_length = 100, example = "an")]
    pub search: String,
}

/// A user. One that another program wrote may lack name or date.
#[derive(ToSchema)]
pub struct User {
    /// The user's id.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// The user's name.
    #[schema(required = false, example = "ann")]
    pub username: String,
    /// When the user registered.
    #[schema(value_type = Date, rename = "createdAt", required = false)]
    pub created_at: Date,
}
