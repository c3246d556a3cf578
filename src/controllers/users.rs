//! What users may know of each other.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Query};

use super::list;
use super::{id, json};
use crate::chat::Accounts;
use crate::error::ApiError;
use crate::middleware::auth::CurrentUser;
use crate::models::user::Profile;
use crate::openapi::users as api;
use crate::openapi::values::IdParameter;
use crate::views;

/// Searches users by the beginning of their names.
///
/// # Errors
/// Those of [`Accounts::search`].
#[utoipa::path(
    get,
    path = "/api/users",
    tag = "Users",
    description = "The first 20 users whose names begin with the text, sorted by name. Case and \
                   accents make no difference.",
    params(api::Search),
    responses(
        (status = 200, description = "The users", body = Vec<api::User>),
        api::SearchRefusals,
    ),
)]
pub async fn search_users(
    query: Query<Vec<(String, String)>>,
    user: CurrentUser,
    accounts: Data<Accounts>,
) -> Result<HttpResponse, ApiError> {
    let beginning = query.iter().find(|(name, _)| name == "search").map(|(_, text)| text.as_str());
    let found = accounts.search(beginning.unwrap_or_default(), user.0).await?;
    let mut body = vec![b'['];
    for profile in found {
        views::profile(&mut body, &profile);
        body.push(b',');
    }
    list::close(&mut body);
    Ok(json(StatusCode::OK, body))
}

/// Answers with the user of the token.
///
/// # Errors
/// Those of [`Accounts::profile`].
#[utoipa::path(
    get,
    path = "/api/users/me",
    tag = "Users",
    description = "The user of the token.",
    responses(
        (status = 200, description = "The user", body = api::User),
        api::MeRefusals,
    ),
)]
pub async fn me(user: CurrentUser, accounts: Data<Accounts>) -> Result<HttpResponse, ApiError> {
    Ok(shown(&accounts.profile(user.0, user.0).await?))
}

/// Answers with a user.
///
/// # Errors
/// Those of [`Accounts::profile`].
#[utoipa::path(
    get,
    path = "/api/users/{user}",
    tag = "Users",
    description = "A user.",
    params(("user" = inline(IdParameter), Path, description = "The user")),
    responses(
        (status = 200, description = "The user", body = api::User),
        api::UserRefusals,
    ),
)]
pub async fn get_user(
    path: Path<String>,
    user: CurrentUser,
    accounts: Data<Accounts>,
) -> Result<HttpResponse, ApiError> {
    Ok(shown(&accounts.profile(id(&path, "user")?, user.0).await?))
}

fn shown(profile: &Profile) -> HttpResponse {
    let mut body = Vec::new();
    views::profile(&mut body, profile);
    json(StatusCode::OK, body)
}
