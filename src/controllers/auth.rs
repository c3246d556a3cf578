//! `POST /api/auth/register` and `POST /api/auth/login`.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use tokio::time::Instant;

use super::json;
use crate::auth::{PasswordError, Passwords, Tokens, Verified};
use crate::casts::required_text;
use crate::config::{Config, ErrorMode};
use crate::error::ApiError;
use crate::js::{Fields, Js};
use crate::limits::Limits;
use crate::models::{Store, StoreError, UserId};
use crate::openapi::auth as api;

/// How long a failed login takes at least in `ERRORS=precise`. Longer than either kind of hash, so
/// that a stranger cannot tell from the time whether a user exists and by what the password is
/// hashed.
const FAILED_LOGIN: Duration = Duration::from_millis(250);

/// Stores a new user.
///
/// # Errors
/// The name is taken, a field is missing or cannot be cast, or too many passwords wait.
#[utoipa::path(
    post,
    path = "/api/auth/register",
    tag = "Users",
    description = "The name must be free.",
    request_body = api::Registration,
    responses(
        (status = 201, description = "The user is stored", body = api::Done),
        api::RegisterRefusals,
    ),
)]
pub async fn register(
    mut body: Fields,
    req: HttpRequest,
    limits: Data<Limits>,
    store: Data<Store>,
    passwords: Data<Passwords>,
) -> Result<HttpResponse, ApiError> {
    limits.login.take(limits.address_of(&req))?;
    let username = body.take("username");
    let username = required_text("username", &username)?;
    let Js::String(password) = body.take("password") else {
        return Err(ApiError::InvalidField { field: "password", problem: "must be a string" });
    };
    let hash = passwords.hash(password).await?;
    match store.users.insert(&username, &hash).await {
        Ok(_) => {}
        Err(StoreError::Duplicate) => return Err(ApiError::UsernameTaken),
        Err(error) => return Err(error.into()),
    }
    Ok(json(StatusCode::CREATED, r#"{"message":"User registered successfully"}"#))
}

/// Exchanges a name and a password for a token.
///
/// # Errors
/// Nobody has this name, the password is wrong or no string, or too many passwords wait.
#[utoipa::path(
    post,
    path = "/api/auth/login",
    tag = "Users",
    description = "With `ERRORS=precise` an unknown name and a wrong password cannot be told apart.",
    request_body = api::Login,
    responses(
        (status = 200, description = "The token of a session", body = api::Session),
        api::LoginRefusals,
    ),
)]
pub async fn login(
    mut body: Fields,
    req: HttpRequest,
    limits: Data<Limits>,
    config: Data<Config>,
    store: Data<Store>,
    passwords: Data<Passwords>,
    tokens: Data<Tokens>,
) -> Result<HttpResponse, ApiError> {
    let started = Instant::now();
    let address = limits.address_of(&req);
    limits.login.take(address)?;
    let username = body.take("username");
    let name = (address, username.to_text().unwrap_or_default().into());
    limits.login_name.check(&name)?;
    let password = body.take("password");
    let result = credentials(&username, &password, config.errors, &store, &passwords).await;
    if let Err(ApiError::UserNotFound | ApiError::InvalidCredentials) = result {
        // This one is answered as it is; the next one too many is not.
        let _ = limits.login_name.take(name);
    }
    if config.errors == ErrorMode::Precise
        && matches!(result, Err(ApiError::UserNotFound | ApiError::InvalidCredentials))
    {
        tokio::time::sleep_until(started + FAILED_LOGIN).await;
    }
    let user = result?;
    let token = tokens.issue(user);
    Ok(json(StatusCode::OK, format!(r#"{{"token":"{token}","userId":"{user}"}}"#)))
}

/// Finds the user and verifies the password.
async fn credentials(
    username: &Js,
    password: &Js,
    mode: ErrorMode,
    store: &Store,
    passwords: &Passwords,
) -> Result<UserId, ApiError> {
    let user = match username {
        username if username.is_nullish() => None,
        username => {
            // An object would be a query to the original; here it is a name that nobody has.
            let name = username.to_text().map_err(|_| ApiError::InvalidCredentials)?;
            if mode == ErrorMode::Precise && !matches!(password, Js::String(_)) {
                // The original says so only of users that exist, which tells that they do.
                return Err(ApiError::PasswordType(password.type_of(), "string"));
            }
            store.users.by_name(&name).await?
        }
    };
    let Some(user) = user else {
        if mode == ErrorMode::Precise {
            passwords.verify_nobody(text_or_empty(password)).await?;
        }
        return Err(ApiError::UserNotFound);
    };
    let (Js::String(password), Ok(hash)) = (password, &user.password) else {
        if mode == ErrorMode::Precise {
            // A user without a hash, of whom nobody may learn.
            passwords.verify_nobody(text_or_empty(password)).await?;
            return Err(ApiError::InvalidCredentials);
        }
        let hash = user.password.as_ref().map_or_else(|kind| *kind, |_| "string");
        return Err(ApiError::PasswordType(password.type_of(), hash));
    };
    match passwords.verify(password.clone(), hash.clone()).await? {
        Verified::No => return Err(ApiError::InvalidCredentials),
        Verified::Yes => {}
        Verified::Outdated => upgrade(store, passwords, user.id, hash, password.clone()).await,
    }
    Ok(user.id)
}

/// Replaces a hash of the other kind now that the password is known: bcrypt by argon2id, or, for
/// a deployment that goes back to Node, argon2id by bcrypt. The login has succeeded already, so a
/// failure here only means that the next login tries again.
async fn upgrade(
    store: &Store,
    passwords: &Passwords,
    user: UserId,
    old_hash: &str,
    password: String,
) {
    let replaced = match passwords.hash(password).await {
        Ok(hash) => {
            let replaced = store.users.replace_password(user, old_hash, &hash).await;
            replaced.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = replaced {
        log::warn!("The password hash of user {user} was not replaced: {error}");
    }
}

fn text_or_empty(value: &Js) -> String {
    match value {
        Js::String(text) => text.clone(),
        _ => String::new(),
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self::Busy,
            PasswordError::Failed => Self::Internal(error.to_string()),
        }
    }
}
