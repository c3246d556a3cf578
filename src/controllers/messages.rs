//! `GET /api/chat/messages/:room`, `POST /api/chat/message`, and `PATCH` and `DELETE
//! /api/chat/message/:message`.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use bson::RawDocument;
use futures::TryStreamExt;
use mongodb::raw_batch_cursor::RawBatchCursor;

use super::list::{self, Broken, List, Reading, SharedLists};
use super::{id, json};
use crate::chat::{Chat, Draft, Edit};
use crate::config::{Config, ErrorMode};
use crate::error::ApiError;
use crate::js::{Fields, Js};
use crate::middleware::auth::CurrentUser;
use crate::middleware::express::insert_exposed;
use crate::models::message::{Deleted, Page};
use crate::models::revision::is_tombstone;
use crate::models::user::Username;
use crate::models::{IdempotencyKey, Message, RoomId, Store, StoreError, UserId, Users};
use crate::mongoose::Hydrated;
use crate::openapi::messages as api;
use crate::openapi::values::IdParameter;
use crate::views;

/// Lists the messages of a room: all of them, or a page when the query asks for one.
///
/// # Errors
/// The path holds no id, or (in `ERRORS=precise`) the query no valid page.
#[utoipa::path(
    get,
    path = "/api/chat/messages/{room}",
    tag = "Messages",
    description = "In the order of their ids. With `limit`, `before` or `after` a page: with `after` \
                   the oldest messages behind it, otherwise the newest before it. An invalid value \
                   counts as absent, with `ERRORS=precise` it is refused. A list beyond 1 MiB is \
                   streamed, without `ETag`. A room that does not exist has no messages.",
    params(
        ("room" = inline(IdParameter), Path, description = "The room"),
        api::Page,
    ),
    responses(
        (status = 200, description = "The messages", body = Vec<api::HistoryMessage>),
        api::GetMessagesRefusals,
    ),
)]
pub async fn get_messages(
    path: Path<String>,
    req: HttpRequest,
    user: CurrentUser,
    config: Data<Config>,
    store: Data<Store>,
    chat: Data<Chat>,
    histories: Data<Histories>,
) -> Result<HttpResponse, ApiError> {
    let room: RoomId = id(&path, "room")?;
    let (page, deleted) = page(req.query_string(), config.errors)?;
    let reader = Reader { chat, room, user: user.0 };
    if !reader.may_read().await? {
        // The history of a room that does not exist.
        return Ok(json(StatusCode::OK, b"[]".to_vec()));
    }
    let part = Part { room, page, deleted, member: room.may_have_members().then_some(user.0) };
    histories.respond(store, part, reader).await
}

/// Stores a message. Everyone in its room gets it from the change stream, not from here.
///
/// # Errors
/// Those of [`Chat::send`], and an idempotency key that is none.
#[utoipa::path(
    post,
    path = "/api/chat/message",
    tag = "Messages",
    summary = "Stores a message.",
    description = "Everyone in its room receives it as `receiveMessage`. With an `Idempotency-Key` a \
                   retry stores nothing new, for a day and on every instance.",
    params(api::Retry),
    request_body = api::NewMessage,
    responses(
        (
            status = 201, description = "The message is stored", body = api::SentMessage,
            headers((
                "Idempotency-Replayed" = String,
                description = "`true` when the key was used before"
            )),
        ),
        api::SendMessageRefusals,
    ),
)]
pub async fn send_message(
    mut body: Fields,
    req: HttpRequest,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let key = idempotency_key(&req)?;
    let sent = chat.send(Draft::take(&mut body), Some(user.0), key.as_ref()).await?;
    let mut answer = json(StatusCode::CREATED, sent.to_json());
    if sent.replayed {
        insert_exposed(&mut answer, REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(answer)
}

/// Changes the content of a message.
///
/// # Errors
/// Those of [`Chat::edit`], and an idempotency key that is none.
#[utoipa::path(
    patch,
    path = "/api/chat/message/{message}",
    tag = "Messages",
    summary = "Changes the content of a message.",
    description = "Everyone in its room receives it as `messageEdited`. Only its sender may. The \
                   message keeps its place in the history and gets `editedAt`, its `__v` is one \
                   more. With `__v` the edit is refused when the message has another one. With an \
                   `Idempotency-Key` a retry changes nothing more.",
    params(
        ("message" = inline(IdParameter), Path, description = "The message"),
        api::Retry,
    ),
    request_body = api::Edit,
    responses(
        (
            status = 200, description = "The message is changed", body = api::EditedMessage,
            headers((
                "Idempotency-Replayed" = String,
                description = "`true` when the key was used before"
            )),
        ),
        api::EditMessageRefusals,
    ),
)]
pub async fn edit_message(
    path: Path<String>,
    mut body: Fields,
    req: HttpRequest,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let key = idempotency_key(&req)?;
    let edit = Edit::take(&mut body).of_message(&path);
    let edited = chat.edit(edit, Some(user.0), key.as_ref()).await?;
    let mut answer = json(StatusCode::OK, edited.to_json());
    if edited.replayed {
        insert_exposed(&mut answer, REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(answer)
}

/// Deletes a message.
///
/// # Errors
/// Those of [`Chat::delete`].
#[utoipa::path(
    delete,
    path = "/api/chat/message/{message}",
    tag = "Messages",
    summary = "Deletes a message.",
    description = "Everyone in its room receives `messageDeleted`. Only its sender may. Its text is \
                   gone for good; histories leave it out unless they are asked for with \
                   `deleted=true`. A second deletion answers as the first.",
    params(("message" = inline(IdParameter), Path, description = "The message")),
    responses(
        (status = 200, description = "The message is deleted", body = api::DeletedMessage),
        api::DeleteMessageRefusals,
    ),
)]
pub async fn delete_message(
    path: Path<String>,
    user: CurrentUser,
    chat: Data<Chat>,
) -> Result<HttpResponse, ApiError> {
    let deleted = chat.delete(&Js::String(path.into_inner()), Some(user.0)).await?;
    Ok(json(StatusCode::OK, deleted.to_json()))
}

/// Says that the key was used before, as other services with idempotency keys do.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

fn idempotency_key(req: &HttpRequest) -> Result<Option<IdempotencyKey>, ApiError> {
    let Some(value) = req.headers().get("Idempotency-Key") else { return Ok(None) };
    let key = value.to_str().ok().and_then(IdempotencyKey::new);
    key.map(Some).ok_or(ApiError::IdempotencyKey)
}

/// How many messages a page has when it is asked for by a neighbour only.
const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 1000;

/// The page that a query asks for, and whether deleted messages are shown; `None` is the whole
/// list, as the original always answers.
fn page(query: &str, mode: ErrorMode) -> Result<(Option<Page>, Deleted), ApiError> {
    let parameters = Query::<Vec<(String, String)>>::from_query(query);
    let parameters = parameters.map(Query::into_inner).unwrap_or_default();
    let (mut limit, mut before, mut after) = (None, None, None);
    let mut deleted = Deleted::Hidden;
    for (name, value) in &parameters {
        let invalid = match name.as_str() {
            "limit" => {
                limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                limit.is_none().then_some(("limit", "must be a whole number from 1 to 1000"))
            }
            "before" => {
                before = value.parse().ok();
                before.is_none().then_some(("before", "must be the id of a message"))
            }
            "after" => {
                after = value.parse().ok();
                after.is_none().then_some(("after", "must be the id of a message"))
            }
            "deleted" => {
                let shown = value.parse();
                deleted = if shown == Ok(true) { Deleted::Shown } else { Deleted::Hidden };
                shown.is_err().then_some(("deleted", "must be true or false"))
            }
            _ => None,
        };
        if let (Some((field, problem)), ErrorMode::Precise) = (invalid, mode) {
            return Err(ApiError::InvalidField { field, problem });
        }
    }
    if limit.is_none() && before.is_none() && after.is_none() {
        return Ok((None, deleted));
    }
    let page = Page { limit: limit.unwrap_or(DEFAULT_LIMIT), before, after };
    Ok((Some(page), deleted))
}

/// The histories that are read at this moment.
#[derive(Default)]
pub struct Histories(SharedLists<Part, History>);

/// The part of a history that a request asks for; without a page all of it. The history of a room
/// with members is read for each of them, because one can be removed meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Part {
    room: RoomId,
    page: Option<Page>,
    deleted: Deleted,
    member: Option<UserId>,
}

impl Histories {
    async fn respond(
        &self,
        store: Data<Store>,
        part: Part,
        reader: Reader,
    ) -> Result<HttpResponse, ApiError> {
        list::respond(&self.0, part, move || read(store.clone(), part, reader.clone())).await
    }
}

async fn read(store: Data<Store>, part: Part, reader: Reader) -> Reading<History> {
    let Part { room, page, deleted, .. } = part;
    let users = store.users.clone();
    let Some(page) = page else {
        let cursor = store.messages.in_room(room, deleted).await?;
        return List::read(History { cursor, users, reader }).await;
    };
    let mut messages = store.messages.page(room, page, deleted).await?;
    if !reader.may_read().await? {
        messages.clear();
    }
    let mut body = vec![b'['];
    write_history(&mut body, messages.iter().map(AsRef::as_ref), &users).await?;
    Ok(List::whole(body))
}

/// The messages of a room, with the names of their senders.
struct History {
    cursor: RawBatchCursor,
    users: Users,
    reader: Reader,
}

/// The user who reads a history.
#[derive(Clone)]
struct Reader {
    chat: Data<Chat>,
    room: RoomId,
    user: UserId,
}

impl Reader {
    /// Whether the room exists for this user, if it may have members. Ask again after each read:
    /// the user may have been removed meanwhile, and then must not get what was stored since.
    async fn may_read(&self) -> Result<bool, ApiError> {
        if !self.room.may_have_members() {
            return Ok(true);
        }
        match self.chat.check_still_readable(self.room, self.user).await {
            Ok(()) => Ok(true),
            Err(ApiError::RoomNotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl list::Source for History {
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, ApiError> {
        let Some(batch) = self.cursor.try_next().await.map_err(StoreError::from)? else {
            return Ok(false);
        };
        if !self.reader.may_read().await? {
            return Ok(false);
        }
        write_history(out, list::documents(&batch)?, &self.users).await?;
        Ok(true)
    }
}

/// Appends messages with the names of their senders, each with a comma behind it.
///
/// # Errors
/// The names could not be read.
async fn write_history<'a>(
    out: &mut Vec<u8>,
    documents: impl Iterator<Item = &'a RawDocument>,
    users: &Users,
) -> Result<(), StoreError> {
    let mut broken = Broken::default();
    let messages = Vec::from_iter(documents.map(|document| Item::read(document, &mut broken)));
    broken.warn("messages");
    let names = users.names_of(messages.iter().filter_map(Item::sender)).await?;
    for message in &messages {
        message.write(out, &names);
        out.push(b',');
    }
    Ok(())
}

/// A message of a history.
pub(super) enum Item<'a> {
    Ordinary(Message<'a>),
    Odd(Hydrated),
    Deleted(&'a RawDocument),
}

impl<'a> Item<'a> {
    /// Reads a document, which is counted if it is broken.
    pub fn read(document: &'a RawDocument, broken: &mut Broken) -> Self {
        match Message::ordinary(document) {
            Some(message) => Self::Ordinary(message),
            None if is_tombstone(document) => Self::Deleted(document),
            None => {
                let message = Hydrated::message(document);
                broken.count(&message);
                Self::Odd(message)
            }
        }
    }

    /// Appends it with the name of its sender.
    pub fn write(&self, out: &mut Vec<u8>, names: &HashMap<UserId, Option<Username>>) {
        let name = |sender: UserId| names.get(&sender).and_then(Option::as_ref);
        match self {
            Self::Ordinary(message) => {
                views::message_in_history(out, message, name(message.sender));
            }
            Self::Odd(message) => views::document(out, message, name),
            Self::Deleted(document) => views::deleted_message(out, document, |out, sender| {
                views::push_sender(out, sender, name(sender));
            }),
        }
    }

    /// Its sender.
    pub fn sender(&self) -> Option<UserId> {
        match self {
            Self::Ordinary(message) => Some(message.sender),
            Self::Odd(message) => message.id("sender").map(UserId),
            Self::Deleted(document) => Hydrated::message(document).id("sender").map(UserId),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_asked_for_by_any_valid_parameter() {
        let id = "0123456789abcdef01234567";
        let original = |query: &str| page(query, ErrorMode::Original).unwrap().0;
        assert_eq!(original(""), None);
        assert_eq!(original("limit=0&room=zz"), None);
        assert_eq!(original("before=x"), None);
        assert_eq!(original("limit=1000").unwrap().limit, 1000);
        let both = original(&format!("before={id}&after={id}&limit=x")).unwrap();
        assert_eq!(both.limit, 50);
        assert!(both.before.is_some() && both.after.is_some());
        let deleted = |query: &str| page(query, ErrorMode::Original).unwrap().1;
        assert_eq!(deleted("deleted=true"), Deleted::Shown);
        for query in ["", "deleted=false", "deleted=1", "deleted=", "Deleted=true"] {
            assert_eq!(deleted(query), Deleted::Hidden, "{query}");
        }
        for query in
            ["limit=0", "limit=1001", "limit=", "before=x", "after=1", "deleted=", "deleted=1"]
        {
            assert!(page(query, ErrorMode::Precise).is_err(), "{query}");
        }
        assert_eq!(page("other=1", ErrorMode::Precise).unwrap(), (None, Deleted::Hidden));
    }
}
