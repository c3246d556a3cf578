//! Idempotency keys: a retry finds the message that the first attempt prepared.
//!
//! The key is written first, with the whole message, including its id. A retry with the same key
//! stores that same message, on any instance and after any failure in between; the unique `_id`
//! ensures that it is stored only once. An edit with a key is prepared in the same way; the version
//! of the prepared document tells whether it was stored. The message documents themselves contain
//! nothing of this.

use bson::{DateTime, Document, RawDocument, RawDocumentBuf, doc, rawdoc};

use super::message::Malformed;
use super::own::{self, KEYS, Own};
use super::{Message, MessageId, StoreError, UserId};

/// How often a claim is tried if the key expires between the insert and the lookup.
const CLAIMS: u32 = 3;

/// The longest key, in bytes.
const MAX_KEY: usize = 255;

/// A key that a client chose for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Checks a key: 1 to 255 bytes.
    pub fn new(key: &str) -> Option<Self> {
        (1..=MAX_KEY).contains(&key.len()).then(|| Self(key.to_owned()))
    }
}

/// What a key was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// To send a message.
    Send,
    /// To edit one.
    Edit,
}

/// What a request is about to store.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub action: Action,
    /// The whole document of the message.
    pub document: RawDocumentBuf,
    /// The message was deleted since, and its text was removed from the record, too.
    pub forgotten: bool,
}

/// The [own] collection of [`KEYS`]:
/// `{_id: {user, key}, message, edit?, forgotten?, createdAt, app}`, removed after a day. `edit` is
/// true when the key was used to edit the message, `forgotten` when the message was deleted since.
#[derive(Clone)]
pub struct Idempotency {
    pub(super) keys: Own<RawDocumentBuf>,
}

impl Prepared {
    /// A document that is about to be stored.
    pub fn new(action: Action, document: RawDocumentBuf) -> Self {
        Self { action, document, forgotten: false }
    }

    /// The message.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when the record contains none.
    pub fn message(&self) -> Result<Message<'static>, StoreError> {
        let message = Message::from_document(&self.document);
        message.map(Message::into_owned).map_err(|Malformed(_)| malformed())
    }

    /// Whether this is an edit of the same message to the same content.
    pub fn is_edit_like(&self, edit: &RawDocument) -> bool {
        let same = |field| {
            let (one, other) = (self.document.get(field), edit.get(field));
            matches!((one, other), (Ok(Some(one)), Ok(Some(other))) if one == other)
        };
        self.action == Action::Edit && same("_id") && (self.forgotten || same("content"))
    }

    fn of(record: &RawDocument) -> Result<Self, StoreError> {
        let is = |field| record.get_bool(field).unwrap_or(false);
        let document = record.get_document("message").map_err(|_| malformed())?.to_owned();
        let action = if is("edit") { Action::Edit } else { Action::Send };
        Ok(Self { action, document, forgotten: is("forgotten") })
    }
}

impl Idempotency {
    /// Claims a key for a request. Returns `None` if the key is new, else what the first attempt
    /// prepared.
    pub(super) async fn claim(
        &self,
        user: UserId,
        key: &IdempotencyKey,
        prepared: &Prepared,
    ) -> Result<Option<Prepared>, StoreError> {
        let keys = self.keys.get().await?;
        let mut record = rawdoc! {
            "_id": { "user": user.0, "key": key.0.as_str() },
            "message": prepared.document.clone(),
        };
        if prepared.action == Action::Edit {
            record.append(bson::cstr!("edit"), true);
        }
        record.append(bson::cstr!("createdAt"), DateTime::now());
        own::mark(&mut record);
        for _ in 0..CLAIMS {
            match keys.insert_one(&record).await {
                Ok(_) => return Ok(None),
                Err(error) => match StoreError::from(error).or_duplicate_id() {
                    StoreError::Duplicate => {}
                    error => return Err(error),
                },
            }
            if let Some(first) = self.find(user, key).await? {
                return Ok(Some(first));
            }
            // The key has just expired, so it counts as one that was never used.
        }
        let cause = "an idempotency key exists, but cannot be found".to_owned();
        Err(StoreError::Unavailable(mongodb::error::Error::custom(cause)))
    }

    /// What was prepared under a key.
    pub(super) async fn find(
        &self,
        user: UserId,
        key: &IdempotencyKey,
    ) -> Result<Option<Prepared>, StoreError> {
        let record = doc! { "_id": { "user": user.0, "key": &key.0 } };
        let record = self.keys.get().await?.find_one(record).await?;
        record.map(|record| Prepared::of(&record)).transpose()
    }

    /// Replaces the document that was prepared before. Returns false if the record no longer has
    /// that document.
    pub(super) async fn replace_prepared(
        &self,
        user: UserId,
        key: &IdempotencyKey,
        before: &RawDocument,
        prepared: &Prepared,
    ) -> Result<bool, StoreError> {
        let keys = self.keys.get().await?;
        let document = |document| Document::try_from(document).map_err(|_| malformed());
        let record = doc! {
            "_id": { "user": user.0, "key": &key.0 },
            "message": document(before)?,
        };
        let message = document(&prepared.document)?;
        let updated = keys.update_one(record, doc! { "$set": { "message": message } }).await?;
        Ok(updated.matched_count > 0)
    }

    /// Removes the text of a deleted message from every record.
    pub(super) async fn forget(&self, message: MessageId) -> Result<(), StoreError> {
        let keys = match self.keys.get().await {
            // The collection is not ours, so nothing was ever written there.
            Err(StoreError::Off(_)) => return Ok(()),
            keys => keys?,
        };
        let forgotten = doc! { "$set": { "message.content": "", "forgotten": true } };
        keys.update_many(doc! { "message._id": message.0 }, forgotten).await?;
        Ok(())
    }
}

fn malformed() -> StoreError {
    StoreError::Malformed(KEYS.collection, "message")
}
