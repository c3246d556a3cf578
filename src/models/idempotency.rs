//! Idempotency keys: a retry finds the message that the first attempt prepared.
//!
//! The key is written first and holds the whole message, its id included. Whoever comes with the
//! same key, on any instance and after any failure in between, stores that same message; its `_id`
//! makes sure that there is one. The message documents themselves stay as the original's.

use bson::{DateTime, RawDocument, RawDocumentBuf, doc, rawdoc};

use super::message::Malformed;
use super::own::{self, KEYS, Own};
use super::{Message, StoreError, UserId};

/// How often a key is claimed that expires whenever it is looked for.
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

/// The [own] collection of [`KEYS`]: `{_id: {user, key}, message, createdAt, app}`, gone
/// after a day.
#[derive(Clone)]
pub struct Idempotency {
    pub(super) keys: Own<RawDocumentBuf>,
}

impl Idempotency {
    /// Claims a key for a message. Gives `None` when the key is new, else the message that the
    /// first attempt prepared.
    pub(super) async fn claim(
        &self,
        user: UserId,
        key: &IdempotencyKey,
        message: &Message<'_>,
    ) -> Result<Option<Message<'static>>, StoreError> {
        let keys = self.keys.get().await?;
        let mut record = rawdoc! {
            "_id": { "user": user.0, "key": key.0.as_str() },
            "message": message.to_document(),
            "createdAt": DateTime::now(),
        };
        own::mark(&mut record);
        for _ in 0..CLAIMS {
            match keys.insert_one(&record).await {
                Ok(_) => return Ok(None),
                Err(error) => match StoreError::from(error).or_duplicate_id() {
                    StoreError::Duplicate => {}
                    error => return Err(error),
                },
            }
            let used = doc! { "_id": { "user": user.0, "key": &key.0 } };
            if let Some(record) = keys.find_one(used).await? {
                return Ok(Some(prepared(&record)?));
            }
            // It expired in this moment: the same as a key that was never used.
        }
        let cause = "a key is there and is not there".to_owned();
        Err(StoreError::Unavailable(mongodb::error::Error::custom(cause)))
    }
}

fn prepared(record: &RawDocument) -> Result<Message<'static>, StoreError> {
    let malformed = || StoreError::Malformed(KEYS.collection, "message");
    let message = record.get_document("message").map_err(|_| malformed())?;
    let message = Message::from_document(message);
    message.map(Message::into_owned).map_err(|Malformed(_)| malformed())
}
