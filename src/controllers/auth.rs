//! Registration and login, and the end of a login.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use tokio::time::Instant;

use super::json;
use crate::auth::{PasswordError, Passwords, Verified};
use crate::casts::required_text;
use crate::chat::{Accounts, Login};
use crate::config::{Config, ErrorMode};
use crate::error::ApiError;
use crate::js::{Fields, Js};
use crate::limits::Limits;
use crate::middleware::auth::{CurrentToken, CurrentUser};
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
    description = "With `ERRORS=precise` an unknown name and a wrong password cannot be told apart. \
                   With `refresh: true`, the answer has a refresh token, too.",
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
    accounts: Data<Accounts>,
) -> Result<HttpResponse, ApiError> {
    let (began, refresh) = (accounts.now(), body.take("refresh") == Js::Bool(true));
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
    let (user, hash) = result?;
    let logged_in = accounts.log_in(Login { user, hash, began }, refresh).await?;
    Ok(json(StatusCode::OK, logged_in.to_json()))
}

/// Exchanges a refresh token for a new token and the next refresh token.
///
/// # Errors
/// Those of [`Accounts::refresh`].
#[utoipa::path(
    post,
    path = "/api/auth/refresh-token",
    tag = "Users",
    description = "A refresh token is valid for 30 days and for one use. If the answer was lost, the \
                   same token gets the same answer for 10 s. After that, a second use ends the login: \
                   its tokens are revoked, and its sockets are closed.",
    request_body = api::RefreshToken,
    responses(
        (status = 200, description = "The next tokens", body = api::Refreshed),
        api::RefreshRefusals,
    ),
)]
pub async fn refresh_token(
    mut body: Fields,
    req: HttpRequest,
    limits: Data<Limits>,
    accounts: Data<Accounts>,
) -> Result<HttpResponse, ApiError> {
    let address = limits.address_of(&req);
    let logged_in = accounts.refresh(&body.take("refreshToken"), address).await?;
    Ok(json(StatusCode::OK, logged_in.to_json()))
}

/// Ends the token of the request.
///
/// # Errors
/// Those of [`Accounts::log_out`].
#[utoipa::path(
    post,
    path = "/api/auth/logout",
    tag = "Users",
    description = "The token is refused from now on, and its sockets are closed, on every instance \
                   within a second. A token that came with a refresh token ends together with it and \
                   with all tokens of the same login. `refreshToken` ends another login of the user.",
    request_body(content = api::Logout, description = "May be empty"),
    responses(
        (status = 200, description = "The token is revoked", body = api::Done),
        api::LogoutRefusals,
    ),
)]
pub async fn logout(
    mut body: Fields,
    token: CurrentToken,
    accounts: Data<Accounts>,
) -> Result<HttpResponse, ApiError> {
    accounts.log_out(token.0, &body.take("refreshToken")).await?;
    Ok(json(StatusCode::OK, r#"{"message":"Logged out successfully"}"#))
}

/// Ends all tokens of the user.
///
/// # Errors
/// The database failed.
#[utoipa::path(
    post,
    path = "/api/auth/logout-all",
    tag = "Users",
    description = "All tokens and refresh tokens of the user are refused from now on, and all sockets \
                   of the user are closed.",
    responses(
        (status = 200, description = "All tokens are revoked", body = api::Done),
        api::LogoutAllRefusals,
    ),
)]
pub async fn logout_all(
    user: CurrentUser,
    accounts: Data<Accounts>,
) -> Result<HttpResponse, ApiError> {
    accounts.log_out_everywhere(user.0).await?;
    Ok(json(StatusCode::OK, r#"{"message":"Logged out everywhere"}"#))
}

/// Changes the password of the user.
///
/// # Errors
/// Those of [`Accounts::change_password`].
#[utoipa::path(
    post,
    path = "/api/auth/change-password",
    tag = "Users",
    description = "All earlier tokens and refresh tokens of the user are refused from now on. The \
                   answer has a new token, and a new refresh token if the token of the request came \
                   with one, or if the request has one.",
    request_body = api::PasswordChange,
    responses(
        (status = 200, description = "The password is changed", body = api::Session),
        api::ChangePasswordRefusals,
    ),
)]
pub async fn change_password(
    mut body: Fields,
    req: HttpRequest,
    token: CurrentToken,
    limits: Data<Limits>,
    accounts: Data<Accounts>,
) -> Result<HttpResponse, ApiError> {
    let fields = ["password", "newPassword", "refreshToken"].map(|field| body.take(field));
    let address = limits.address_of(&req);
    let logged_in = accounts.change_password(token.0, fields.each_ref(), address).await?;
    Ok(json(StatusCode::OK, logged_in.to_json()))
}

/// Finds the user and verifies the password. Returns the user and the stored hash.
async fn credentials(
    username: &Js,
    password: &Js,
    mode: ErrorMode,
    store: &Store,
    passwords: &Passwords,
) -> Result<(UserId, String), ApiError> {
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
    let upgraded = match passwords.verify(password.clone(), hash.clone()).await? {
        Verified::No => return Err(ApiError::InvalidCredentials),
        Verified::Yes => None,
        Verified::Outdated => upgrade(store, passwords, user.id, hash, password.clone()).await,
    };
    Ok((user.id, upgraded.unwrap_or_else(|| hash.clone())))
}

/// Replaces a hash of the other kind now that the password is known: bcrypt by argon2id, or, for
/// a deployment that goes back to Node, argon2id by bcrypt. Returns the new one. The login has
/// succeeded already, so a failure here only means that the next login tries again.
async fn upgrade(
    store: &Store,
    passwords: &Passwords,
    user: UserId,
    old_hash: &str,
    password: String,
) -> Option<String> {
    let replaced = match passwords.hash(password).await {
        Ok(hash) => {
            let replaced = store.users.replace_password(user, old_hash, &hash).await;
            replaced.map(|was| was.then_some(hash)).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    replaced.unwrap_or_else(|error| {
        log::warn!("The password hash of user {user} was not replaced: {error}");
        None
    })
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
