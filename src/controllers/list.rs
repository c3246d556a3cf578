//! Lists of any length: an answer with an entity tag while they are short, a stream beyond.
//!
//! A list is read from its cursor in chunks. When its JSON outgrows [`BUFFERED`], what is there is
//! sent and the rest follows chunk by chunk, at the pace of the client, in constant memory.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use bson::{RawDocument, RawDocumentBuf};
use bytes::Bytes;
use futures::stream;
use mongodb::Cursor;

use super::json;
use crate::error::ApiError;
use crate::middleware::deadline::DEADLINE;
use crate::models::message::Malformed;
use crate::models::{Message, Room, StoreError, Users};
use crate::views;

/// The longest list that is not streamed, in bytes of JSON.
const BUFFERED: usize = 1 << 20;
/// How many documents a chunk has: enough that the names of their senders are one query.
const CHUNK: usize = 100;

/// A list that is read chunk by chunk.
pub(super) trait Source: 'static {
    /// Appends the items of the next chunk, each with a comma behind it; false when there was
    /// nothing left.
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, StoreError>;
}

/// Answers with the whole list.
///
/// # Errors
/// The database failed before the answer began. When it fails later, the answer breaks off
/// without its end, which every client notices.
pub(super) async fn respond(mut source: impl Source) -> Result<HttpResponse, ApiError> {
    let mut body = vec![b'['];
    while source.write_chunk(&mut body).await? {
        if body.len() > BUFFERED {
            return Ok(HttpResponse::Ok()
                .content_type(views::CONTENT_TYPE)
                .streaming(rest(body, source)));
        }
    }
    close(&mut body);
    Ok(json(StatusCode::OK, body))
}

/// What was read already, and then the rest. The last comma of a chunk is held back until it is
/// known that something follows.
fn rest(
    read: Vec<u8>,
    source: impl Source,
) -> impl futures::Stream<Item = Result<Bytes, ApiError>> {
    stream::try_unfold(Some((read, source)), |state| async move {
        let Some((mut chunk, mut source)) = state else { return Ok(None) };
        let mut next = Vec::new();
        let more = tokio::time::timeout(DEADLINE, source.write_chunk(&mut next));
        let more = more.await.map_err(|_| ApiError::Unavailable("a slow batch".to_owned()))?;
        if more.inspect_err(|error| log::error!("A list broke off: {error}"))? {
            return Ok(Some((Bytes::from(chunk), Some((next, source)))));
        }
        close(&mut chunk);
        Ok(Some((Bytes::from(chunk), None)))
    })
}

fn close(out: &mut Vec<u8>) {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b']');
}

/// The rooms, in the order of their cursor.
pub(super) struct RoomList(Cursor<RawDocumentBuf>);

impl RoomList {
    pub(super) fn new(cursor: Cursor<RawDocumentBuf>) -> Self {
        Self(cursor)
    }
}

impl Source for RoomList {
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, StoreError> {
        for read in 0..CHUNK {
            if !self.0.advance().await? {
                return Ok(read > 0);
            }
            match Room::from_document(self.0.current()) {
                Ok(room) => {
                    views::room(out, &room);
                    out.push(b',');
                }
                Err(error) => skip("rooms", self.0.current(), error),
            }
        }
        Ok(true)
    }
}

/// The messages of a room, with the names of their senders.
pub(super) struct History {
    cursor: Cursor<RawDocumentBuf>,
    users: Users,
}

impl History {
    pub(super) fn new(cursor: Cursor<RawDocumentBuf>, users: Users) -> Self {
        Self { cursor, users }
    }
}

impl Source for History {
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, StoreError> {
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK && self.cursor.advance().await? {
            chunk.push(self.cursor.current().to_owned());
        }
        write_history(out, &chunk, &self.users).await?;
        if !chunk.is_empty() {
            out.push(b',');
        }
        Ok(!chunk.is_empty())
    }
}

/// Appends messages with the names of their senders, separated by commas.
///
/// # Errors
/// The names could not be read.
pub(super) async fn write_history(
    out: &mut Vec<u8>,
    documents: &[RawDocumentBuf],
    users: &Users,
) -> Result<(), StoreError> {
    let messages: Vec<Message<'_>> = documents
        .iter()
        .filter_map(|document| match Message::from_document(document) {
            Ok(message) => Some(message),
            Err(error) => {
                skip("messages", document, error);
                None
            }
        })
        .collect();
    let names = users.names_of(messages.iter().map(|message| message.sender)).await?;
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let name = names.get(&message.sender).and_then(|name| name.as_deref());
        views::message_in_history(out, message, name);
    }
    Ok(())
}

/// A document that nothing can be made of does not hide the others.
fn skip(collection: &str, document: &RawDocument, error: Malformed) {
    log::debug!("Skipped {:?} of {collection}: {error}", document.get("_id"));
}
