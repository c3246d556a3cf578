//! `GET /api/chat/room/:room/online`.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Path};

use super::{id, json};
use crate::chat::Chat;
use crate::error::ApiError;
use crate::limits::Limits;
use crate::middleware::auth::CurrentUser;
use crate::models::RoomId;
use crate::openapi::presence as api;
use crate::openapi::values::IdParameter;
use crate::sessions::registry::Worker;
use crate::views;

/// Lists who has joined a room.
///
/// # Errors
/// The room does not exist for this user, the rate limit is reached, or the server has
/// `PRESENCE=false`.
#[utoipa::path(
    get,
    path = "/api/chat/room/{room}/online",
    tag = "Rooms",
    description = "The users with a socket that has joined the room, on all instances, in the order \
                   of their ids. An instance that does not answer within a second is left out.",
    params(("room" = inline(IdParameter), Path, description = "The room")),
    responses(
        (status = 200, description = "The users", body = api::Online),
        api::OnlineRefusals,
    ),
)]
pub async fn online(
    path: Path<String>,
    user: CurrentUser,
    limits: Data<Limits>,
    worker: Data<Worker>,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let room: RoomId = id(&path, "room")?;
    if !worker.presence.is_on() {
        return Err(ApiError::NoPresence);
    }
    limits.signals.take(user.0)?;
    chat.check_visible(room, Some(user.0)).await?;
    let mut users = Vec::from_iter(worker.exchange.joined(room).await);
    // Removed meanwhile?
    chat.check_still_readable(room, user.0).await?;
    users.sort_unstable();
    let mut body = Vec::new();
    views::online(&mut body, &users);
    Ok(json(StatusCode::OK, body))
}
