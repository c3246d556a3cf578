//! `POST /api/chat/room` and `GET /api/chat/rooms`, and what rooms with members have: their
//! members, their owner, direct conversations.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use bson::RawDocument;
use futures::TryStreamExt;
use mongodb::raw_batch_cursor::RawBatchCursor;

use super::list::{self, Broken, List, SharedLists};
use super::messages::Item;
use super::{id, json};
use crate::casts::required_text;
use crate::chat::{Chat, ListedRoom, MarkAsRead, Reading, RoomChange, RoomOverview};
use crate::config::{Config, ErrorMode};
use crate::error::ApiError;
use crate::js::{Fields, Js};
use crate::limits::Limits;
use crate::middleware::auth::CurrentUser;
use crate::models::{Room, Store, StoreError};
use crate::mongoose::Hydrated;
use crate::openapi::rooms as api;
use crate::openapi::values::IdParameter;
use crate::views;

/// Creates a room.
///
/// # Errors
/// A room of this name exists, or the name is missing or cannot be cast.
#[utoipa::path(
    post,
    path = "/api/chat/room",
    tag = "Rooms",
    description = "The name must be free. With `private: true` the room is known to its members \
                   only, its name need not be free, and the answer has its owner and members; its \
                   errors are precise in both modes.",
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
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    if body.take("private") == Js::Bool(true) {
        let (name, members) = (body.take("name"), body.take("members"));
        let room = chat.create_private_room(&name, &members, user.0).await?;
        let mut body = br#"{"message":"Room created successfully","room":"#.to_vec();
        room.write(&mut body);
        body.push(b'}');
        return Ok(json(StatusCode::CREATED, body));
    }
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
/// The database failed, or a parameter cannot be read.
#[utoipa::path(
    get,
    path = "/api/chat/rooms",
    tag = "Rooms",
    description = "All public rooms, or with `mine=true` the rooms with members that the user is in \
                   and the public ones that the user has marked as read, by pages in the order of \
                   their ids, each with its last message, how many messages are unread, and the \
                   last one that was read. Without it, `limit` and `before` have no effect. An invalid value is refused with `mine=true` or `ERRORS=precise`, and \
                   otherwise counts as absent. A list beyond 1 MiB is streamed, without `ETag`.",
    params(api::Rooms),
    responses(
        (status = 200, description = "The rooms", body = Vec<api::RoomWithMembers>),
        api::GetAllRoomsRefusals,
    ),
)]
pub async fn get_all_rooms(
    req: HttpRequest,
    user: CurrentUser,
    config: Data<Config>,
    store: Data<Store>,
    chat: Data<Chat>,
    lists: Data<Lists>,
) -> Result<HttpResponse, ApiError> {
    let query = Query::<Vec<(String, String)>>::from_query(req.query_string());
    let query = query.map(Query::into_inner).unwrap_or_default();
    let value = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
    let invalid = |field, problem| ApiError::InvalidField { field, problem };
    let mine = match value("mine").map(str::parse) {
        None => false,
        Some(Ok(mine)) => mine,
        Some(Err(_)) if config.errors == ErrorMode::Original => false,
        Some(Err(_)) => return Err(invalid("mine", "must be true or false")),
    };
    if !mine && config.errors == ErrorMode::Original {
        return lists.all(store).await;
    }
    let limit = match value("limit").map(str::parse) {
        None => DEFAULT_LIMIT,
        Some(Ok(limit)) if (1..=MAX_LIMIT).contains(&limit) => limit,
        Some(_) => return Err(invalid("limit", "must be a whole number from 1 to 1000")),
    };
    let before = match value("before").map(str::parse) {
        None => None,
        Some(Ok(room)) => Some(room),
        Some(Err(_)) => return Err(invalid("before", "must be the id of a room")),
    };
    if !mine {
        return lists.all(store).await;
    }
    let rooms = chat.rooms_of_user(user.0, limit, before).await?;
    let mut broken = Broken::default();
    let last = rooms
        .iter()
        .map(|room| room.last_message.as_deref().map(|message| Item::read(message, &mut broken)));
    let last: Vec<_> = last.collect();
    broken.warn("messages");
    let names = store.users.names_of(last.iter().flatten().filter_map(Item::sender)).await?;
    let mut body = vec![b'['];
    for (room, last) in rooms.iter().zip(&last) {
        write_overview(&mut body, room, |body| match last {
            Some(message) => message.write(body, &names),
            None => body.extend_from_slice(b"null"),
        });
        body.push(b',');
    }
    list::close(&mut body);
    Ok(json(StatusCode::OK, body))
}

/// Appends a room with `lastMessage`, `unread` and `lastRead`.
fn write_overview(
    body: &mut Vec<u8>,
    overview: &RoomOverview,
    write_last: impl FnOnce(&mut Vec<u8>),
) {
    match &overview.room {
        ListedRoom::WithMembers(room) => room.write(body),
        ListedRoom::Public(document) => write_public(body, document),
    }
    // The fields follow those of the room in the same object.
    if body.last() == Some(&b'}') {
        body.pop();
    }
    body.extend_from_slice(b",\"lastMessage\":");
    write_last(body);
    if let Some(Reading { unread, last_read }) = overview.reading {
        views::reading(body, unread, last_read);
    }
    body.push(b'}');
}

fn write_public(body: &mut Vec<u8>, document: &RawDocument) {
    match Room::ordinary(document) {
        Some(room) => views::room(body, &room),
        None => views::document(body, &Hydrated::room(document), |_| None),
    }
}

/// How many rooms a page of `?mine=true` has.
const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 1000;

/// Finds or makes the conversation of two users.
///
/// # Errors
/// Those of [`Chat::direct_room`].
#[utoipa::path(
    post,
    path = "/api/chat/direct",
    tag = "Rooms",
    description = "The room of this user and another one, which both are members of. Two requests \
                   at the same time make one room.",
    request_body = api::Member,
    responses(
        (status = 201, description = "The room is new", body = api::OneRoomWithMembers),
        (status = 200, description = "The room was there", body = api::OneRoomWithMembers),
        api::DirectRefusals,
    ),
)]
pub async fn direct(
    mut body: Fields,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let (room, is_new) = chat.direct_room(&body.take("user"), user.0).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(status, room.to_json()))
}

/// Answers with one room.
///
/// # Errors
/// The room does not exist for this user.
#[utoipa::path(
    get,
    path = "/api/chat/room/{room}",
    tag = "Rooms",
    description = "A public room, or one with its members.",
    params(("room" = inline(IdParameter), Path, description = "The room")),
    responses(
        (status = 200, description = "The room", body = api::OneRoomWithMembers),
        api::GetRoomRefusals,
    ),
)]
pub async fn get_room(
    path: Path<String>,
    user: CurrentUser,
    store: Data<Store>,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let room = id(&path, "room")?;
    if let Some(document) = store.rooms.find(room).await? {
        let mut body = br#"{"room":"#.to_vec();
        write_public(&mut body, &document);
        body.push(b'}');
        return Ok(json(StatusCode::OK, body));
    }
    Ok(json(StatusCode::OK, chat.room_of_member(room, user.0).await?.to_json()))
}

/// Changes a private room.
///
/// # Errors
/// Those of [`Chat::change_room`].
#[utoipa::path(
    patch,
    path = "/api/chat/room/{room}",
    tag = "Rooms",
    description = "Its name, or its owner, who must be a member. Only the owner may.",
    params(("room" = inline(IdParameter), Path, description = "The room")),
    request_body = api::RoomChange,
    responses(
        (status = 200, description = "The room is changed", body = api::OneRoomWithMembers),
        api::ChangeRoomRefusals,
    ),
)]
pub async fn change_room(
    path: Path<String>,
    mut body: Fields,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let change = RoomChange::take(&mut body);
    let room = chat.change_room(id(&path, "room")?, change, user.0).await?;
    Ok(json(StatusCode::OK, room.to_json()))
}

/// Deletes a private room with its messages.
///
/// # Errors
/// Those of [`Chat::delete_room`].
#[utoipa::path(
    delete,
    path = "/api/chat/room/{room}",
    tag = "Rooms",
    description = "It is gone for all members at once; its messages are removed in the background. \
                   Only the owner may.",
    params(("room" = inline(IdParameter), Path, description = "The room")),
    responses(
        (status = 200, description = "The room is gone", body = crate::openapi::auth::Done),
        api::OwnerRefusals,
    ),
)]
pub async fn delete_room(
    path: Path<String>,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    chat.delete_room(id(&path, "room")?, user.0).await?;
    Ok(json(StatusCode::OK, br#"{"message":"Room deleted successfully"}"#.to_vec()))
}

/// Marks a room as read.
///
/// # Errors
/// Those of [`Chat::mark_as_read`].
#[utoipa::path(
    post,
    path = "/api/chat/room/{room}/read",
    tag = "Rooms",
    description = "Up to a message of this room. All sessions of the user receive `messageRead`, and \
                   so do other members of the room, unless it is large. The mark never goes back: \
                   an earlier message changes nothing and gets the same answer.",
    params(("room" = inline(IdParameter), Path, description = "The room")),
    request_body = api::MarkAsRead,
    responses(
        (status = 200, description = "The mark is accepted", body = api::Marked),
        api::MarkAsReadRefusals,
    ),
)]
pub async fn mark_as_read(
    path: Path<String>,
    mut body: Fields,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let request = MarkAsRead::take(&mut body).in_room(&path);
    let marked = chat.mark_as_read(request, Some(user.0)).await?;
    Ok(json(StatusCode::OK, marked.to_json()))
}

/// Adds a member to a private room.
///
/// # Errors
/// Those of [`Chat::add_member`].
#[utoipa::path(
    post,
    path = "/api/chat/room/{room}/members",
    tag = "Rooms",
    description = "Only the owner may. A member who is there stays.",
    params(("room" = inline(IdParameter), Path, description = "The room")),
    request_body = api::Member,
    responses(
        (status = 200, description = "The user is a member", body = api::OneRoomWithMembers),
        api::AddMemberRefusals,
    ),
)]
pub async fn add_member(
    path: Path<String>,
    mut body: Fields,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let room = chat.add_member(id(&path, "room")?, &body.take("user"), user.0).await?;
    Ok(json(StatusCode::OK, room.to_json()))
}

/// Removes a member from a room.
///
/// # Errors
/// Those of [`Chat::remove_member`].
#[utoipa::path(
    delete,
    path = "/api/chat/room/{room}/members/{user}",
    tag = "Rooms",
    description = "The owner may remove everybody, everybody else only themselves. An owner who \
                   leaves hands over to the member who is there longest; with the last member the \
                   room ends.",
    params(
        ("room" = inline(IdParameter), Path, description = "The room"),
        ("user" = inline(IdParameter), Path, description = "The member"),
    ),
    responses(
        (status = 200, description = "The user is no member", body = api::OneRoomWithMembers),
        api::RemoveMemberRefusals,
    ),
)]
pub async fn remove_member(
    path: Path<(String, String)>,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let (room, member) = path.into_inner();
    let room = chat.remove_member(id(&room, "room")?, &Js::String(member), user.0).await?;
    Ok(json(StatusCode::OK, room.to_json()))
}

/// The lists of rooms that are read at this moment.
#[derive(Default)]
pub struct Lists(SharedLists<(), RoomList>);

impl Lists {
    /// Answers with all public rooms.
    async fn all(&self, store: Data<Store>) -> Result<HttpResponse, ApiError> {
        let read = move || {
            let store = store.clone();
            async move { List::read(RoomList(store.rooms.all().await?)).await }
        };
        list::respond(&self.0, (), read).await
    }
}

/// The rooms, in the order of their cursor.
struct RoomList(RawBatchCursor);

impl list::Source for RoomList {
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, ApiError> {
        let Some(batch) = self.0.try_next().await.map_err(StoreError::from)? else {
            return Ok(false);
        };
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
