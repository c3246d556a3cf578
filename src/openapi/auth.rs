//! Registration and login.

use utoipa::ToSchema;

use super::refusals::{BOTH, body, database, field, insertion, refusals};
use super::values::{ObjectId, Text};
use crate::error::ApiError;

refusals! {
    /// `POST /api/auth/register`.
    RegisterRefusals(BOTH) = body(), database(), insertion(), [
        ApiError::UsernameTaken,
        field("username", "is required"),
        field("username", "must not be empty"),
        field("username", "must be a string"),
        field("password", "must be a string"),
        ApiError::Busy,
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `POST /api/auth/login`.
    LoginRefusals(BOTH) = body(), database(), [
        ApiError::UserNotFound,
        ApiError::InvalidCredentials,
        ApiError::PasswordType("number", "string"),
        ApiError::Busy,
        ApiError::RateLimited { seconds: 60 },
    ];
}

/// Who wants to register.
#[derive(ToSchema)]
#[schema(example = json!({ "username": "ann", "password": "correct horse" }))]
pub struct Registration {
    /// A name that nobody has.
    #[schema(value_type = Text)]
    pub username: Text,
    /// Of any length; every byte counts.
    pub password: String,
}

/// Who wants to log in.
#[derive(ToSchema)]
#[schema(example = json!({ "username": "ann", "password": "correct horse" }))]
pub struct Login {
    /// The name of the registration.
    #[schema(value_type = Text)]
    pub username: Text,
    /// The password of the registration.
    pub password: String,
}

/// A login that succeeded.
#[derive(ToSchema)]
pub struct Session {
    /// Goes into `Authorization: Bearer <token>`; valid for one hour.
    #[schema(pattern = r"^[\w-]+\.[\w-]+\.[\w-]+$")]
    pub token: String,
    /// The `sender` of this user's messages.
    #[schema(value_type = ObjectId, rename = "userId")]
    pub user_id: ObjectId,
}

/// What was done, for people.
#[derive(ToSchema)]
pub struct Done {
    /// One sentence.
    #[schema(example = "User registered successfully")]
    pub message: String,
}
