//! Signals from instance to instance, in bundles.
//!
//! Each bundle is a document of a capped collection, `{_id, app, t, i, s}`: the server's time, the
//! instance, and the signals. The others follow the end of the collection. A bundle that gets lost
//! is not sent again.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{RawDocument, RawDocumentBuf, Timestamp, doc, rawdoc};
use futures::StreamExt;
use mongodb::options::{CursorType, WriteConcern};
use mongodb::raw_batch_cursor::RawBatchCursor;

use super::indexes::has_code;
use super::own::{Own, mark};
use super::{RoomId, StoreError, UserId};

/// How long the server waits for a bundle before it sends an empty reply.
const MAX_AWAIT: Duration = Duration::from_secs(1);

/// `BadValue`: of this query it means that the collection is not capped.
const BAD_VALUE: i32 = 2;

/// The [own](super::own) collection of bundles.
#[derive(Debug, Clone)]
pub struct SignalBundles {
    pub(super) bundles: Own<RawDocumentBuf>,
}

/// What an instance tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bundled {
    /// A user types in a room.
    Typing(RoomId, UserId, Option<String>),
    /// A user does not type any more.
    Stopped(RoomId, UserId),
    /// Who has joined this room? The id is that of the question.
    Question(ObjectId, RoomId),
    /// Users who have joined the room of a question.
    Answer(ObjectId, Vec<UserId>),
}

/// The bundles of others from a time on.
pub struct BundleCursor {
    cursor: RawBatchCursor,
    /// The last bundle that is not to be read again.
    after: Timestamp,
}

impl Bundled {
    fn to_document(&self) -> RawDocumentBuf {
        match self {
            Self::Typing(room, user, name) => {
                let mut document = rawdoc! { "k": "t", "r": room.0, "u": user.0 };
                if let Some(name) = name {
                    document.append(bson::cstr!("n"), name.as_str());
                }
                document
            }
            Self::Stopped(room, user) => rawdoc! { "k": "s", "r": room.0, "u": user.0 },
            Self::Question(id, room) => rawdoc! { "k": "q", "q": *id, "r": room.0 },
            Self::Answer(id, users) => {
                let users: bson::RawArrayBuf = users.iter().map(|user| user.0).collect();
                rawdoc! { "k": "a", "q": *id, "us": users }
            }
        }
    }

    fn read(document: &RawDocument) -> Option<Self> {
        let id = |field| document.get_object_id(field).ok();
        match document.get_str("k").ok()? {
            "t" => {
                let name = document.get_str("n").ok().map(str::to_owned);
                Some(Self::Typing(RoomId(id("r")?), UserId(id("u")?), name))
            }
            "s" => Some(Self::Stopped(RoomId(id("r")?), UserId(id("u")?))),
            "q" => Some(Self::Question(id("q")?, RoomId(id("r")?))),
            "a" => {
                let users = document.get_array("us").ok()?.into_iter();
                let users = users.filter_map(|user| Some(UserId(user.ok()?.as_object_id()?)));
                Some(Self::Answer(id("q")?, users.collect()))
            }
            _ => None,
        }
    }
}

impl SignalBundles {
    /// Sends a bundle. It is not waited for a majority, since a bundle may get lost.
    ///
    /// # Errors
    /// The database failed.
    pub async fn send(&self, instance: ObjectId, signals: &[Bundled]) -> Result<(), StoreError> {
        let mut bundle = rawdoc! {
            "_id": ObjectId::new(),
            // The server puts its time here.
            "t": Timestamp { time: 0, increment: 0 },
            "i": instance,
            "s": signals.iter().map(Bundled::to_document).collect::<bson::RawArrayBuf>(),
        };
        mark(&mut bundle);
        let w1 = WriteConcern::nodes(1);
        self.bundles.get().await?.insert_one(bundle).write_concern(w1).await?;
        Ok(())
    }

    /// Follows the bundles of all instances but this one, from now on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn follow(&self, instance: ObjectId) -> Result<BundleCursor, StoreError> {
        let bundles = self.bundles.get().await?;
        let last = bundles.find_one(doc! { "t": { "$type": "timestamp" } });
        let last = last.sort(doc! { "$natural": -1 }).projection(doc! { "t": 1 }).await?;
        let after = last.and_then(|last| last.get_timestamp("t").ok());
        let after = after.unwrap_or(Timestamp { time: 0, increment: 0 });
        // The last one is read again, because a cursor that finds nothing at first may be dead.
        let news = doc! { "t": { "$gte": after }, "i": { "$ne": instance } };
        let found = bundles.find(news).cursor_type(CursorType::TailableAwait);
        match found.max_await_time(MAX_AWAIT).batch().await {
            Ok(cursor) => Ok(BundleCursor { cursor, after }),
            Err(error) if has_code(&error, &[BAD_VALUE]) => {
                self.bundles.purpose().make_capped(self.bundles.database()).await?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl BundleCursor {
    /// The signals of the next reply, perhaps none; `None` when the cursor is dead: it was lapped,
    /// or the collection was dropped.
    ///
    /// # Errors
    /// The database failed.
    pub async fn next(&mut self) -> Option<Result<Vec<Bundled>, StoreError>> {
        let reply = match self.cursor.next().await? {
            Ok(reply) => reply,
            Err(error) => return Some(Err(error.into())),
        };
        let documents = match reply.doc_slices() {
            Ok(documents) => documents,
            Err(error) => return Some(Err(error.into())),
        };
        let mut signals = Vec::new();
        for bundle in documents.into_iter().flatten().filter_map(|bundle| bundle.as_document()) {
            if bundle.get_timestamp("t").is_ok_and(|time| time <= self.after) {
                continue;
            }
            let bundled = bundle.get_array("s").into_iter().flatten().flatten();
            signals.extend(bundled.filter_map(|signal| Bundled::read(signal.as_document()?)));
        }
        Some(Ok(signals))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_read_back() {
        let (room, user, id) = (RoomId::new(), UserId::new(), ObjectId::new());
        for signal in [
            Bundled::Typing(room, user, Some("ada".to_owned())),
            Bundled::Typing(room, user, None),
            Bundled::Stopped(room, user),
            Bundled::Question(id, room),
            Bundled::Answer(id, vec![user, UserId::new()]),
        ] {
            assert_eq!(Bundled::read(&signal.to_document()), Some(signal));
        }
        assert_eq!(Bundled::read(&rawdoc! { "k": "other" }), None);
        assert_eq!(Bundled::read(&rawdoc! { "k": "t", "r": 1 }), None);
    }
}
