//! Lists of any length: an answer with an entity tag while they are short, a stream beyond.
//!
//! A list is read from its cursor in batches, each of which becomes a chunk. When its JSON outgrows [`BUFFERED`], what is there is
//! sent and the rest follows chunk by chunk, at the pace of the client, in constant memory.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use bson::RawDocument;
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::json;
use crate::error::ApiError;
use crate::middleware::deadline::DEADLINE;
use crate::models::message::Malformed;
use crate::models::{Message, Room, StoreError, Users};
use crate::views;

/// The longest list that is not streamed, in bytes of JSON.
const BUFFERED: usize = 1 << 20;

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

/// Ends a list whose items have a comma behind them.
pub(super) fn close(out: &mut Vec<u8>) {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b']');
}

/// The rooms, in the order of their cursor.
pub(super) struct RoomList(RawBatchCursor);

impl RoomList {
    pub(super) fn new(cursor: RawBatchCursor) -> Self {
        Self(cursor)
    }
}

impl Source for RoomList {
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, StoreError> {
        let Some(batch) = self.0.try_next().await? else { return Ok(false) };
        for document in documents(&batch)? {
            match Room::from_document(document) {
                Ok(room) => {
                    views::room(out, &room);
                    out.push(b',');
                }
                Err(error) => skip("rooms", document, error),
            }
        }
        Ok(true)
    }
}

/// The messages of a room, with the names of their senders.
pub(super) struct History {
    cursor: RawBatchCursor,
    users: Users,
}

impl History {
    pub(super) fn new(cursor: RawBatchCursor, users: Users) -> Self {
        Self { cursor, users }
    }
}

impl Source for History {
    async fn write_chunk(&mut self, out: &mut Vec<u8>) -> Result<bool, StoreError> {
        let Some(batch) = self.cursor.try_next().await? else { return Ok(false) };
        write_history(out, documents(&batch)?, &self.users).await?;
        Ok(true)
    }
}

/// Appends messages with the names of their senders, each with a comma behind it.
///
/// # Errors
/// The names could not be read.
pub(super) async fn write_history<'a>(
    out: &mut Vec<u8>,
    documents: impl Iterator<Item = &'a RawDocument>,
    users: &Users,
) -> Result<(), StoreError> {
    let messages: Vec<Message<'_>> = documents
        .filter_map(|document| match Message::from_document(document) {
            Ok(message) => Some(message),
            Err(error) => {
                skip("messages", document, error);
                None
            }
        })
        .collect();
    let names = users.names_of(messages.iter().map(|message| message.sender)).await?;
    for message in &messages {
        let name = names.get(&message.sender).and_then(|name| name.as_deref());
        views::message_in_history(out, message, name);
        out.push(b',');
    }
    Ok(())
}

/// The documents of a batch, where they lie: no copy of each.
fn documents(batch: &RawBatch) -> Result<impl Iterator<Item = &RawDocument>, StoreError> {
    let documents = batch.doc_slices()?.into_iter();
    Ok(documents.filter_map(|document| document.ok()?.as_document()))
}

/// A document that nothing can be made of does not hide the others.
fn skip(collection: &str, document: &RawDocument, error: Malformed) {
    log::debug!("Skipped {:?} of {collection}: {error}", document.get("_id"));
}
