//! Messages: reads and writes the document of Mongoose's `Message` model, byte for byte.

use std::borrow::Cow;

use bson::oid::ObjectId;
use bson::{DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc, rawdoc};
use mongodb::error::ErrorKind;
use mongodb::raw_batch_cursor::RawBatchCursor;
use mongodb::{Collection, Database};

use super::batcher::Batcher;
use super::bulk::{Replacement, read_all, replace_all};
use super::failure::{DUPLICATE_KEY, Failure, RefusingIndex};
use super::idempotency::{Action, Prepared};
use super::ordinary::Fields;
use super::revision::not_deleted;
use super::turns::Turns;
use super::{Idempotency, IdempotencyKey, MessageId, RoomId, StoreError, UserId};

/// A message as the collection `messages` holds it.
///
/// The content is borrowed where it comes from a document, so that a page of messages becomes
/// JSON without a copy of each text.
#[derive(Debug, Clone, PartialEq)]
pub struct Message<'a> {
    /// `_id`, made by the application that stored the message.
    pub id: MessageId,
    /// `room`: the room that it was sent to.
    pub room: RoomId,
    /// `sender`: the id of a user, who may no longer exist.
    pub sender: UserId,
    /// `content`: never empty when stored by this program or by the original.
    pub content: Cow<'a, str>,
    /// `createdAt`; missing in documents that were written by hand.
    pub created_at: Option<DateTime>,
    /// `updatedAt`, equal to `created_at` at insert.
    pub updated_at: Option<DateTime>,
    /// `__v`, Mongoose's version key: 0 at insert.
    pub version: Option<i32>,
}

/// A document in `messages` that is no valid message: a field is missing or of the wrong type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the field {0} is missing or of the wrong type")]
pub struct Malformed(pub &'static str);

impl<'a> Message<'a> {
    /// A new message with a fresh id, stored now.
    pub fn new(room: RoomId, sender: UserId, content: impl Into<Cow<'a, str>>) -> Self {
        let now = DateTime::now();
        Self {
            id: MessageId::new(),
            room,
            sender,
            content: content.into(),
            created_at: Some(now),
            updated_at: Some(now),
            version: Some(0),
        }
    }

    /// Reads an ordinary document, as this program and the original store it: exactly these fields,
    /// types and order; only the last three may be missing. `None` for any other document, which
    /// [`Hydrated`](crate::mongoose::Hydrated) reads.
    pub fn ordinary(document: &'a RawDocument) -> Option<Self> {
        let mut fields = Fields::of(document);
        let id = MessageId(fields.id("_id")?);
        let room = RoomId(fields.id("room")?);
        let sender = UserId(fields.id("sender")?);
        let content = fields.text("content")?.into();
        let (created_at, updated_at, version) = fields.stamps()?;
        Some(Self { id, room, sender, content, created_at, updated_at, version })
    }

    /// Reads a stored document. Order and additional fields do not matter; `_id`, `room` and
    /// `sender` must be ids and `content` a string, the rest may be missing.
    pub fn from_document(document: &'a RawDocument) -> Result<Self, Malformed> {
        let (mut id, mut room, mut sender, mut content) = (None, None, None, None);
        let (mut created_at, mut updated_at, mut version) = (None, None, None);
        for element in document {
            // Invalid BSON: nothing after it can be read either.
            let Ok((key, value)) = element else { break };
            match (key.as_str(), value) {
                ("_id", RawBsonRef::ObjectId(value)) => id = Some(MessageId(value)),
                ("room", RawBsonRef::ObjectId(value)) => room = Some(RoomId(value)),
                ("sender", RawBsonRef::ObjectId(value)) => sender = Some(UserId(value)),
                ("content", RawBsonRef::String(value)) => content = Some(value),
                ("createdAt", RawBsonRef::DateTime(value)) => created_at = Some(value),
                ("updatedAt", RawBsonRef::DateTime(value)) => updated_at = Some(value),
                ("__v", value) => version = integer(value),
                _ => {}
            }
        }
        Ok(Self {
            id: id.ok_or(Malformed("_id"))?,
            room: room.ok_or(Malformed("room"))?,
            sender: sender.ok_or(Malformed("sender"))?,
            content: content.ok_or(Malformed("content"))?.into(),
            created_at,
            updated_at,
            version,
        })
    }

    /// The document to store: Mongoose's fields in Mongoose's order.
    pub fn to_document(&self) -> RawDocumentBuf {
        let mut document = rawdoc! {
            "_id": self.id.0,
            "room": self.room.0,
            "sender": self.sender.0,
            "content": self.content.as_ref(),
        };
        if let Some(created_at) = self.created_at {
            document.append(bson::cstr!("createdAt"), created_at);
        }
        if let Some(updated_at) = self.updated_at {
            document.append(bson::cstr!("updatedAt"), updated_at);
        }
        if let Some(version) = self.version {
            document.append(bson::cstr!("__v"), version);
        }
        document
    }

    /// The same message without a borrow.
    pub fn into_owned(self) -> Message<'static> {
        Message { content: Cow::Owned(self.content.into_owned()), ..self }
    }
}

/// How many documents a batch of a long list has at most; the server also ends a batch at 16 MiB.
pub(super) const BATCH: u32 = 500;

/// By how many seconds the clocks of senders and of the cluster may differ.
const CLOCK_SLACK: u32 = 10;

/// The collection `messages`.
#[derive(Clone)]
pub struct Messages {
    pub(super) database: Database,
    pub(super) collection: Collection<RawDocumentBuf>,
    pub(super) idempotency: Idempotency,
    pub(super) turns: Turns,
    inserts: Batcher<RawDocumentBuf, Result<(), StoreError>>,
    pub(super) replacements: Batcher<Replacement, Result<bool, StoreError>>,
    pub(super) reads: Batcher<MessageId, Option<RawDocumentBuf>>,
}

/// A message that is stored by a majority of the replica set.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored<'a> {
    /// The message; if the idempotency key was used before, the first message.
    pub message: Message<'a>,
    /// True when the key was used before.
    pub replayed: bool,
    /// True when this request has stored it.
    pub inserted: bool,
}

/// Why a message was not stored.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The key was used by this user for another request.
    #[error("the idempotency key was used for another request")]
    Conflict,
    /// The database failed. Whether the message is stored is unknown.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A part of a history: the newest messages before an id, the oldest after an id, or those between
/// two ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Page {
    /// How many messages at most.
    pub limit: u16,
    /// Only messages with a lower id.
    pub before: Option<MessageId>,
    /// Only messages with a higher id; the page then has the oldest of them.
    pub after: Option<MessageId>,
}

/// Whether a history shows deleted messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deleted {
    /// It leaves them out.
    Hidden,
    /// It shows them, without a text.
    Shown,
}

impl Deleted {
    /// A filter for the messages of a room.
    fn in_room(self, room: RoomId) -> Document {
        let mut filter = doc! { "room": room.0 };
        if self == Self::Hidden {
            filter.extend(not_deleted());
        }
        filter
    }
}

impl Messages {
    pub(super) fn new(database: Database, idempotency: Idempotency, turns: Turns) -> Self {
        let collection: Collection<RawDocumentBuf> = database.collection("messages");
        let written = collection.clone();
        let inserts = Batcher::new(move |documents| insert_all(written.clone(), documents));
        let (on, changed) = (database.clone(), collection.clone());
        let replacements = Batcher::new(move |all| replace_all(on.clone(), changed.clone(), all));
        let read = collection.clone();
        let reads = Batcher::new(move |ids| read_all(read.clone(), ids));
        Self { database, collection, idempotency, turns, inserts, replacements, reads }
    }

    /// Stores a message, for REST and sockets alike.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when a document with this `_id` exists; or the database failed.
    pub async fn insert(&self, message: &Message<'_>) -> Result<(), StoreError> {
        self.inserts.call_one(message.to_document()).await?
    }

    /// Stores messages in this order, which the change stream keeps. Returns for each message
    /// whether it is stored.
    pub async fn insert_all(&self, messages: &[&Message<'_>]) -> Vec<Result<(), StoreError>> {
        let documents = messages.iter().map(|message| message.to_document()).collect();
        let stored = self.inserts.call(documents).await;
        stored.unwrap_or_else(|error| messages.iter().map(|_| Err(error.clone())).collect())
    }

    /// Stores a message under a key: a retry by the same user stores nothing new. Calls
    /// `before_insert` with the message that is about to be stored, which may be that of the first
    /// attempt.
    ///
    /// # Errors
    /// The key belongs to another request, or the database failed.
    pub async fn insert_once<'a>(
        &self,
        message: Message<'a>,
        user: UserId,
        key: &IdempotencyKey,
        before_insert: impl FnOnce(&Message<'_>),
    ) -> Result<Stored<'a>, SendError> {
        let prepared = Prepared::new(Action::Send, message.to_document());
        let (message, replayed) = match self.idempotency.claim(user, key, &prepared).await? {
            None => (message, false),
            Some(first) if first.action != Action::Send => return Err(SendError::Conflict),
            Some(first) => {
                let prepared_message = first.message()?;
                let is_same = if first.forgotten {
                    (prepared_message.room, prepared_message.sender)
                        == (message.room, message.sender)
                } else {
                    prepared_message.has_same_content_as(&message)
                };
                if !is_same {
                    return Err(SendError::Conflict);
                }
                if first.forgotten {
                    // It was stored and has been deleted since, so it must not be stored again.
                    let message = prepared_message;
                    return Ok(Stored { message, replayed: true, inserted: false });
                }
                (prepared_message, true)
            }
        };
        before_insert(&message);
        let inserted = match self.insert(&message).await {
            Ok(()) => true,
            // Stored by the first attempt.
            Err(StoreError::Duplicate) if self.has(&message).await? => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Stored { message, replayed, inserted })
    }

    /// The document that a key has prepared for an edit of this message to this content.
    ///
    /// # Errors
    /// The key was used for another request, or the database failed.
    pub async fn prepared_edit(
        &self,
        edit: &RawDocument,
        user: UserId,
        key: &IdempotencyKey,
    ) -> Result<Option<RawDocumentBuf>, SendError> {
        match self.idempotency.find(user, key).await? {
            Some(first) if !first.is_edit_like(edit) => Err(SendError::Conflict),
            first => Ok(first.map(|first| first.document)),
        }
    }

    /// Prepares an edit under a key, and replaces what was prepared before. Returns false if
    /// another request was faster: then nothing was written.
    ///
    /// # Errors
    /// The database failed.
    pub async fn prepare_edit(
        &self,
        edit: &RawDocument,
        before: Option<RawDocumentBuf>,
        user: UserId,
        key: &IdempotencyKey,
    ) -> Result<bool, StoreError> {
        let prepared = Prepared::new(Action::Edit, edit.to_owned());
        match before {
            None => Ok(self.idempotency.claim(user, key, &prepared).await?.is_none()),
            Some(before) => self.idempotency.replace_prepared(user, key, &before, &prepared).await,
        }
    }

    /// Removes the text of a deleted message from the records of idempotency keys.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget(&self, message: MessageId) -> Result<(), StoreError> {
        self.idempotency.forget(message).await
    }

    /// Removes a message that must not have been stored.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_back(&self, message: MessageId) -> Result<(), StoreError> {
        self.collection.delete_one(doc! { "_id": message.0 }).await?;
        Ok(())
    }

    /// Removes at most `most` messages of a room. Returns false if none is left.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_some(&self, room: RoomId, most: i64) -> Result<bool, StoreError> {
        let found = self.collection.find(doc! { "room": room.0 }).limit(most);
        let mut found = found.projection(doc! { "_id": 1 }).await?;
        let mut ids = Vec::new();
        while found.advance().await? {
            ids.extend(found.current().get_object_id("_id"));
        }
        if ids.is_empty() {
            return Ok(false);
        }
        self.collection.delete_many(doc! { "_id": { "$in": ids } }).await?;
        Ok(true)
    }

    /// Whether a room has this message, deleted or not.
    ///
    /// # Errors
    /// The database failed.
    pub async fn is_in(&self, room: RoomId, message: MessageId) -> Result<bool, StoreError> {
        self.any(doc! { "_id": message.0, "room": room.0 }).await
    }

    /// Whether the document with the `_id` of a message is that message. Its content may have been
    /// edited since.
    async fn has(&self, message: &Message<'_>) -> Result<bool, StoreError> {
        let fields = doc! { "room": 1, "sender": 1, "createdAt": 1 };
        let found = self.collection.find_one(doc! { "_id": message.id.0 }).projection(fields);
        let Some(stored) = found.await? else { return Ok(false) };
        Ok(stored.get_object_id("room").ok() == Some(message.room.0)
            && stored.get_object_id("sender").ok() == Some(message.sender.0)
            && stored.get_datetime("createdAt").ok() == message.created_at)
    }

    /// The whole history of a room, in `_id` order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn in_room(
        &self,
        room: RoomId,
        deleted: Deleted,
    ) -> Result<RawBatchCursor, StoreError> {
        let history = self.collection.find(deleted.in_room(room));
        Ok(history.sort(doc! { "_id": 1 }).batch_size(BATCH).batch().await?)
    }

    /// Whether a room may have got a message, an edit or a deletion since a time, in seconds since
    /// 1970. Ids and dates come from the clocks of the servers that store, so changes shortly
    /// before that time count, too. Documents that another program has removed, or changed without
    /// a higher `__v`, are not detected.
    ///
    /// # Errors
    /// The database failed.
    pub async fn any_since(&self, room: RoomId, seconds: u32) -> Result<bool, StoreError> {
        let since = seconds.saturating_sub(CLOCK_SLACK);
        let [a, b, c, d] = since.to_be_bytes();
        let first_id = ObjectId::from_bytes([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]);
        let sent = doc! { "room": room.0, "_id": { "$gte": first_id } };
        if self.any(sent).await? {
            return Ok(true);
        }
        let since = DateTime::from_millis(i64::from(since) * 1000);
        // This must imply the filter of the index of changes.
        let changed = doc! { "room": room.0, "updatedAt": { "$gte": since }, "__v": { "$gte": 1 } };
        self.any(changed).await
    }

    pub(super) async fn any(&self, filter: Document) -> Result<bool, StoreError> {
        let found = self.collection.find_one(filter).projection(doc! { "_id": 1 });
        Ok(found.await?.is_some())
    }

    /// One page of the history of a room, in `_id` order. Hidden deleted messages do not count
    /// towards the limit.
    ///
    /// # Errors
    /// The database failed.
    pub async fn page(
        &self,
        room: RoomId,
        page: Page,
        deleted: Deleted,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let mut filter = deleted.in_room(room);
        // `$expr` compares ids of all types, in the order of the index. A plain `$lt` would skip
        // ids that are no `ObjectId`.
        let mut bounds = Vec::new();
        if let Some(before) = page.before {
            bounds.push(doc! { "$lt": ["$_id", before.0] });
        }
        if let Some(after) = page.after {
            bounds.push(doc! { "$gt": ["$_id", after.0] });
        }
        if !bounds.is_empty() {
            filter.insert("$expr", doc! { "$and": bounds });
        }
        let oldest_first = page.after.is_some();
        let mut found = self
            .collection
            .find(filter)
            .sort(doc! { "_id": if oldest_first { 1 } else { -1 } })
            .limit(i64::from(page.limit))
            .await?;
        let mut messages = Vec::new();
        while found.advance().await? {
            messages.push(found.current().to_owned());
        }
        if !oldest_first {
            messages.reverse();
        }
        Ok(messages)
    }
}

/// Inserts documents in one operation. Returns for each whether it was inserted. Documents of one
/// shard keep their order in the change stream.
async fn insert_all(
    collection: Collection<RawDocumentBuf>,
    documents: Vec<RawDocumentBuf>,
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    if let [document] = &*documents {
        let inserted = collection.insert_one(document).await.map(drop);
        return Ok(vec![inserted.map_err(|error| StoreError::from(error).or_duplicate_id())]);
    }
    // Documents after one that cannot be stored are stored nevertheless, in the same order.
    let error = match collection.insert_many(&documents).ordered(false).await {
        Ok(_) => return Ok(documents.iter().map(|_| Ok(())).collect()),
        Err(error) => error,
    };
    let ErrorKind::InsertMany(failed) = error.kind.as_ref() else { return Err(error.into()) };
    let mut results: Vec<_> = match failed.write_concern_error {
        Some(_) => documents.iter().map(|_| Err(StoreError::from(error.clone()))).collect(),
        None => documents.iter().map(|_| Ok(())).collect(),
    };
    for refused in failed.write_errors.iter().flatten() {
        if let Some(result) = results.get_mut(refused.index) {
            *result = Err(match refused.code {
                DUPLICATE_KEY => StoreError::Refused(RefusingIndex::of_message(&refused.message))
                    .or_duplicate_id(),
                code if Failure::of_code(code) != Failure::Other => {
                    StoreError::Unavailable(error.clone())
                }
                _ => StoreError::from(error.clone()),
            });
        }
    }
    Ok(results)
}

impl Message<'_> {
    /// Whether room, sender and content are equal.
    fn has_same_content_as(&self, other: &Message<'_>) -> bool {
        (self.room, self.sender, &self.content) == (other.room, other.sender, &other.content)
    }
}

/// A whole number of any of BSON's number types.
pub(super) fn integer(value: RawBsonRef<'_>) -> Option<i32> {
    match value {
        RawBsonRef::Int32(value) => Some(value),
        RawBsonRef::Int64(value) => i32::try_from(value).ok(),
        RawBsonRef::Double(value) if value.fract() == 0.0 => Some(value as i32),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A document that the original wrote.
    const ORIGINAL: &str = "80000000075f6964006b02dadd9a22e5a0e1b8e38c07726f6f6d006b02dadd9a22e5a0e1b8e3890773656e646572006b02dadd9a22e5a0e1b8e38502636f6e74656e74000800000070657273697374000963726561746564417400e0ef2603a20100000975706461746564417400e0ef2603a2010000105f5f76000000000000";

    fn original() -> RawDocumentBuf {
        let bytes = (0..ORIGINAL.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&ORIGINAL[at..at + 2], 16).unwrap())
            .collect();
        RawDocumentBuf::from_bytes(bytes).unwrap()
    }

    #[test]
    fn a_document_of_the_original_is_read_and_written_byte_for_byte() {
        let document = original();
        let message = Message::from_document(&document).unwrap();
        assert_eq!(message.content, "persist");
        assert_eq!(message.version, Some(0));
        assert_eq!(message.to_document().as_bytes(), document.as_bytes());
        let new = Message::new(message.room, message.sender, "persist");
        let keys = |document: &RawDocument| {
            document
                .iter()
                .map(|element| element.unwrap().0.as_str().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&new.to_document()), keys(&document));
        assert_eq!(new.created_at, new.updated_at);
    }

    #[test]
    fn any_order_extra_fields_and_missing_stamps_are_read() {
        let id = bson::oid::ObjectId::new();
        let document = rawdoc! {
            "extra": { "a": [1, 2] }, "content": "x", "sender": id, "room": id, "__v": 0_i64, "_id": id,
        };
        let message = Message::from_document(&document).unwrap();
        assert_eq!((message.created_at, message.version), (None, Some(0)));
        for (field, wrong) in [
            ("_id", rawdoc! { "_id": 1, "room": id, "sender": id, "content": "x" }),
            ("room", rawdoc! { "_id": id, "room": "x", "sender": id, "content": "x" }),
            ("sender", rawdoc! { "_id": id, "room": id, "content": "x" }),
            ("content", rawdoc! { "_id": id, "room": id, "sender": id, "content": 5 }),
        ] {
            assert_eq!(Message::from_document(&wrong), Err(Malformed(field)));
        }
    }
}
