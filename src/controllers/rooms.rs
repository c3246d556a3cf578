//! `POST /api/chat/room` and `GET /api/chat/rooms`.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use futures::TryStreamExt;
use mongodb::raw_batch_cursor::RawBatchCursor;

use super::json;
use super::list::{self, Broken};
use crate::casts::required_text;
use crate::error::ApiError;
use crate::js::Fields;
use crate::limits::Limits;
use crate::middleware::auth::CurrentUser;
use crate::models::{Room, Store, StoreError};
use crate::mongoose::Hydrated;
use crate::openapi::rooms as api;
use crate::views;

/// Creates a room.
///
/// # Errors
/// A room of this name exists, or the name is missing or cannot be cast.
#[utoipa::path(
    post,
    path = "/api/chat/room",
    tag = "Rooms",
    description = "The name must be free.",
    request_body = api::NewRoom,
    responses(
        (status = 201, description = "The room is stored", body = api::CreatedRoom),
        api::CreateRoomRefusals,
    ),
)]
pub async fn create_room(
    mut body: Fields,
    user: CurrentUser,
    limits: Data<Limits>,
    store: Data<Store>,
) -> Result<HttpResponse, ApiError> {
    limits.room.take(user.0)?;
    let (name, echo) = (body.take("name"), body.take_echo("name"));
    let name = required_text("name", &name)?;
    let room = match store.rooms.insert(&name).await {
        Ok(room) => room,
        Err(StoreError::Duplicate) => return Err(ApiError::RoomExists),
        Err(error) => return Err(error.into()),
    };
    let mut body = br#"{"message":"Room created successfully","room":"#.to_vec();
    views::new_room(&mut body, &room, echo.as_deref());
    body.push(b'}');
    Ok(json(StatusCode::CREATED, body))
}

/// Lists all rooms, in the order stored.
///
/// # Errors
/// The database failed.
#[utoipa::path(
    get,
    path = "/api/chat/rooms",
    tag = "Rooms",
    description = "A list beyond 1 MiB is streamed, without `ETag`.",
    responses(
        (status = 200, description = "All rooms", body = Vec<api::Room>),
        api::GetAllRoomsRefusals,
    ),
)]
pub async fn get_all_rooms(store: Data<Store>) -> Result<HttpResponse, ApiError> {
    list::respond(RoomList::new(store.rooms.all().await?)).await
}

/// The rooms, in the order of their cursor.
struct RoomList(RawBatchCursor);

impl RoomList {
    fn new(cursor: RawBatchCursor) -> Self {
        Self(cursor)
    }
}

impl list::Source for RoomList {
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, StoreError> {
        let Some(batch) = self.0.try_next().await? else { return Ok(false) };
        let mut broken = Broken::default();
        for document in list::documents(&batch)? {
            match Room::ordinary(document) {
                Some(room) => views::room(out, &room),
                None => {
                    let room = Hydrated::room(document);
                    broken.count(&room);
                    views::document(out, &room, |_| None);
                }
            }
            out.push(b',');
        }
        broken.warn("rooms");
        Ok(true)
    }
}
