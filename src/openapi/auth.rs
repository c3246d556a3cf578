//! Registration and login, and the end of a login.

use utoipa::ToSchema;

use super::refusals::{BOTH, PRECISE, body, database, field, insertion, refusals, token};
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
    /// `POST /api/auth/refresh-token`.
    RefreshRefusals(PRECISE) = body(), database(), [
        field("refreshToken", "must be a string"),
        ApiError::RefreshInvalid,
        ApiError::RefreshReused,
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `POST /api/auth/logout`.
    LogoutRefusals(PRECISE) = body(), token(), database(), [
        field("refreshToken", "must be a string"),
    ];
    /// `POST /api/auth/logout-all`.
    LogoutAllRefusals(PRECISE) = body(), token(), database();
    /// `POST /api/auth/change-password`.
    ChangePasswordRefusals(PRECISE) = body(), token(), database(), [
        field("password", "must be a string"),
        field("newPassword", "must be a string"),
        field("refreshToken", "must be a string"),
        ApiError::InvalidCredentials,
        ApiError::NoSuchUser,
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
    /// Whether the answer has a refresh token.
    #[schema(required = false)]
    pub refresh: bool,
}

/// A login that succeeded; with a refresh token if one was asked for.
#[derive(ToSchema)]
pub struct Session {
    /// Goes into `Authorization: Bearer <token>`; valid for one hour.
    #[schema(pattern = r"^[\w-]+\.[\w-]+\.[\w-]+$")]
    pub token: String,
    /// The `sender` of this user's messages.
    #[schema(value_type = ObjectId, rename = "userId")]
    pub user_id: ObjectId,
    /// Is exchanged for the next tokens; valid for 30 days and for one use.
    #[schema(required = false, rename = "refreshToken", pattern = r"^[\w-]+\.[\w-]+$")]
    pub refresh_token: String,
    /// When the refresh token expires, in seconds since 1970.
    #[schema(required = false, rename = "refreshExpires", example = 1_738_000_000)]
    pub refresh_expires: i64,
}

/// The next tokens.
#[derive(ToSchema)]
pub struct Refreshed {
    /// Goes into `Authorization: Bearer <token>`; valid for one hour.
    #[schema(pattern = r"^[\w-]+\.[\w-]+\.[\w-]+$")]
    pub token: String,
    /// The user.
    #[schema(value_type = ObjectId, rename = "userId")]
    pub user_id: ObjectId,
    /// Replaces the refresh token of the request.
    #[schema(rename = "refreshToken", pattern = r"^[\w-]+\.[\w-]+$")]
    pub refresh_token: String,
    /// When it expires, in seconds since 1970.
    #[schema(rename = "refreshExpires", example = 1_738_000_000)]
    pub refresh_expires: i64,
}

/// A refresh token.
#[derive(ToSchema)]
pub struct RefreshToken {
    /// That of a login with `refresh: true`, or of the last refresh.
    #[schema(rename = "refreshToken")]
    pub refresh_token: String,
}

/// What else to end.
#[derive(ToSchema)]
pub struct Logout {
    /// A refresh token of the same user, which ends, too.
    #[schema(required = false, rename = "refreshToken")]
    pub refresh_token: String,
}

/// A new password.
#[derive(ToSchema)]
#[schema(example = json!({ "password": "correct horse", "newPassword": "battery staple" }))]
pub struct PasswordChange {
    /// The password so far.
    pub password: String,
    /// The password from now on. Of any length; every byte counts.
    #[schema(rename = "newPassword")]
    pub new_password: String,
    /// A refresh token of the user: the answer has a new one.
    #[schema(required = false, rename = "refreshToken")]
    pub refresh_token: String,
}

/// What was done, for people.
#[derive(ToSchema)]
pub struct Done {
    /// One sentence.
    #[schema(example = "User registered successfully")]
    pub message: String,
}
