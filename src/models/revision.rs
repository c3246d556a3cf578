//! Messages that change: a stored message, and the documents that replace it.
//!
//! An edit or a deletion replaces the whole document. So the change stream contains everything that
//! clients are told, without a lookup. A replacement depends on what was read
//! ([`Messages::replace`]): if two requests change a message at the same time, one of them has to
//! read it again.

use bson::raw::RawElement;
use bson::spec::ElementType;
use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc};
use tokio::sync::MutexGuard;

use super::bulk::Replacement;
use super::message::integer;
use super::{MessageId, Messages, RoomId, StoreError, UserId};
use crate::mongoose::Hydrated;

/// The fields that must be unchanged when a document is replaced.
const GUARDS: [&str; 4] = ["room", "sender", "updatedAt", "__v"];

/// The fields of a message that a deletion keeps.
const KEPT: [&str; 4] = ["_id", "room", "sender", "createdAt"];

/// A message as it was read from the collection.
#[derive(Debug, Clone)]
pub struct Revision {
    document: RawDocumentBuf,
    /// Its room, as Mongoose casts it.
    pub room: RoomId,
    /// Its sender, as Mongoose casts it; `None` for a value that is no id.
    pub sender: Option<UserId>,
    /// `__v`; 0 where the document has none.
    pub version: i32,
}

impl Revision {
    /// Reads a document of `messages`. `None` when it has no room, or is broken BSON: such a
    /// document could not be written again without a loss.
    pub fn of(document: &RawDocument) -> Option<Self> {
        let message = Hydrated::message(document);
        if !message.is_whole() {
            return None;
        }
        let version = document.get("__v").ok()?.and_then(integer).unwrap_or_default();
        Some(Self {
            room: RoomId(message.id("room")?),
            sender: message.id("sender").map(UserId),
            version,
            document: document.to_owned(),
        })
    }

    /// The document as it is stored.
    pub fn document(&self) -> &RawDocument {
        &self.document
    }

    /// Whether the message was deleted.
    pub fn is_deleted(&self) -> bool {
        is_tombstone(&self.document)
    }

    /// The document with another content: `updatedAt` and `editedAt` are `at`, `__v` is one more.
    /// All other fields stay as they are, also those that only other programs know.
    pub fn edited(&self, content: &str, at: DateTime) -> RawDocumentBuf {
        let version = self.version.saturating_add(1);
        let mut document = RawDocumentBuf::new();
        for element in self.elements() {
            match element.key().as_str() {
                "content" => document.append(bson::cstr!("content"), content),
                "updatedAt" => document.append(bson::cstr!("updatedAt"), at),
                "__v" => document.append(bson::cstr!("__v"), version),
                "editedAt" => {}
                _ => copy(element, &mut document),
            }
        }
        if self.lacks("content") {
            document.append(bson::cstr!("content"), content);
        }
        if self.lacks("updatedAt") {
            document.append(bson::cstr!("updatedAt"), at);
        }
        if self.lacks("__v") {
            document.append(bson::cstr!("__v"), version);
        }
        document.append(bson::cstr!("editedAt"), at);
        document
    }

    /// What a deletion leaves of a message: `_id`, `room`, `sender` and `createdAt` as they are, an
    /// empty `content`, `updatedAt`, `__v`, `deletedAt` and `deletedBy`. No other field stays,
    /// since it may contain text.
    pub fn tombstone(&self, by: UserId, at: DateTime) -> RawDocumentBuf {
        let mut document = RawDocumentBuf::new();
        for element in self.elements() {
            if KEPT.contains(&element.key().as_str()) {
                copy(element, &mut document);
            }
        }
        document.append(bson::cstr!("content"), "");
        document.append(bson::cstr!("updatedAt"), at);
        document.append(bson::cstr!("__v"), self.version.saturating_add(1));
        document.append(bson::cstr!("deletedAt"), at);
        document.append(bson::cstr!("deletedBy"), by.0);
        document
    }

    fn elements(&self) -> impl Iterator<Item = RawElement<'_>> {
        // `of` has read the document to its end.
        self.document.iter_elements().flatten()
    }

    fn lacks(&self, field: &str) -> bool {
        !matches!(self.document.get(field), Ok(Some(_)))
    }

    /// Matches the document unless it has been written since.
    fn guard(&self) -> Result<Document, StoreError> {
        let mut guard = doc! { "_id": self.value("_id")? };
        for field in GUARDS {
            let condition = if self.lacks(field) {
                doc! { "$exists": false }
            } else {
                doc! { "$eq": self.value(field)? }
            };
            guard.insert(field, condition);
        }
        Ok(guard)
    }

    fn value(&self, field: &'static str) -> Result<Bson, StoreError> {
        let value = self.document.get(field).ok().flatten();
        let value = value.and_then(|value| Bson::try_from(value).ok());
        value.ok_or(StoreError::Malformed("messages", field))
    }
}

fn copy(element: RawElement<'_>, to: &mut RawDocumentBuf) {
    if let Ok(value) = element.value() {
        to.append(element.key(), value);
    }
}

/// Whether a document of `messages` is a tombstone, as a deletion leaves it. The fields must have
/// the types that this server writes, since another program may use the same names.
pub fn is_tombstone(document: &RawDocument) -> bool {
    let kind = |field| document.get(field).ok().flatten().map(|value| value.element_type());
    kind("deletedAt") == Some(ElementType::DateTime)
        && kind("deletedBy") == Some(ElementType::ObjectId)
        && document.get_str("content").is_ok_and(str::is_empty)
}

/// Matches every document of `messages` except tombstones.
pub(super) fn not_deleted() -> Document {
    doc! { "$nor": [{
        "content": "",
        "deletedAt": { "$type": "date" },
        "deletedBy": { "$type": "objectId" },
    }] }
}

impl Messages {
    /// Waits until no other change of this message is running in this process.
    pub async fn turn(&self, message: MessageId) -> MutexGuard<'_, ()> {
        self.turns.of(message.0).await
    }

    /// A message as a majority of the replica set has it, deleted or not: what it says may be
    /// acknowledged to somebody who asks for it again.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when the document cannot be replaced without a loss; or the
    /// database failed.
    pub async fn revision(&self, id: MessageId) -> Result<Option<Revision>, StoreError> {
        let Some(document) = self.reads.call_one(id).await? else { return Ok(None) };
        let revision = Revision::of(&document);
        revision.map(Some).ok_or(StoreError::Malformed("messages", "room"))
    }

    /// Whether the primary has a message just so, or does not have it (`None`). After a failover,
    /// a new primary does not know for a moment that a majority has the newest changes, so
    /// [`revision`](Self::revision) can be behind.
    ///
    /// # Errors
    /// The database failed.
    pub async fn is_newest(
        &self,
        id: MessageId,
        revision: Option<&Revision>,
    ) -> Result<bool, StoreError> {
        match revision {
            Some(revision) => self.any(revision.guard()?).await,
            None => Ok(!self.any(doc! { "_id": id.0 }).await?),
        }
    }

    /// Replaces a message, confirmed by a majority of the replica set. Returns false if it has
    /// changed since it was read: then nothing is written.
    ///
    /// # Errors
    /// The database failed. Whether the message was replaced is unknown.
    pub async fn replace(&self, old: &Revision, new: &RawDocument) -> Result<bool, StoreError> {
        let id = old.document.get_object_id("_id");
        let id = id.map_err(|_| StoreError::Malformed("messages", "_id"))?;
        let replacement = Replacement { id, guard: old.guard()?, new: new.to_owned() };
        self.replacements.call_one(replacement).await?
    }
}

#[cfg(test)]
mod tests {
    use bson::oid::ObjectId;
    use bson::{RawBsonRef, rawdoc};

    use super::*;

    fn keys(document: &RawDocument) -> Vec<&str> {
        document.iter_elements().map(|element| element.unwrap().key().as_str()).collect()
    }

    #[test]
    fn an_edit_changes_the_content_and_keeps_what_others_wrote() {
        let (id, at) = (ObjectId::new(), DateTime::from_millis(5));
        let document = rawdoc! {
            "_id": id, "room": id, "likes": [1, 2], "sender": id, "content": "old",
            "createdAt": DateTime::from_millis(1), "updatedAt": DateTime::from_millis(1), "__v": 3_i64,
        };
        let edited = Revision::of(&document).unwrap().edited("new", at);
        let expected = [
            "_id",
            "room",
            "likes",
            "sender",
            "content",
            "createdAt",
            "updatedAt",
            "__v",
            "editedAt",
        ];
        assert_eq!(keys(&edited), expected);
        assert_eq!(edited.get_str("content").unwrap(), "new");
        assert_eq!(edited.get("__v").unwrap().and_then(integer), Some(4));
        assert_eq!(edited.get_datetime("editedAt").unwrap(), at);
        // An edit of an edit has the field once, at the same place.
        let again = Revision::of(&edited).unwrap().edited("newer", DateTime::from_millis(6));
        assert_eq!(keys(&again), expected);
        assert_eq!(again.get_datetime("editedAt").unwrap(), DateTime::from_millis(6));
    }

    #[test]
    fn an_edit_adds_what_a_document_lacks() {
        let id = ObjectId::new();
        let document = rawdoc! { "_id": id, "room": id.to_hex() };
        let revision = Revision::of(&document).unwrap();
        assert_eq!((revision.room, revision.sender, revision.version), (RoomId(id), None, 0));
        let edited = revision.edited("new", DateTime::from_millis(5));
        assert_eq!(keys(&edited), ["_id", "room", "content", "updatedAt", "__v", "editedAt"]);
        assert_eq!(edited.get("room").unwrap(), Some(RawBsonRef::String(&id.to_hex())));
    }

    #[test]
    fn a_deletion_leaves_no_text() {
        let (id, by) = (ObjectId::new(), UserId::new());
        let document = rawdoc! {
            "_id": id, "room": id, "sender": id, "content": "secret", "files": ["secret.png"],
            "createdAt": DateTime::from_millis(1), "__v": 1, "editedAt": DateTime::from_millis(2),
        };
        assert!(!is_tombstone(&document));
        let tombstone = Revision::of(&document).unwrap().tombstone(by, DateTime::from_millis(5));
        assert!(is_tombstone(&tombstone));
        assert_eq!(
            keys(&tombstone),
            [
                "_id",
                "room",
                "sender",
                "createdAt",
                "content",
                "updatedAt",
                "__v",
                "deletedAt",
                "deletedBy"
            ]
        );
        let bytes = String::from_utf8_lossy(tombstone.as_bytes());
        assert!(!bytes.contains("secret"));
    }

    #[test]
    fn what_another_program_calls_deleted_is_no_tombstone() {
        let id = ObjectId::new();
        for document in [
            rawdoc! { "_id": id, "room": id, "content": "text", "deletedAt": DateTime::now() },
            rawdoc! { "_id": id, "content": "", "deletedAt": DateTime::now() },
            rawdoc! { "_id": id, "content": "", "deletedAt": true, "deletedBy": id },
            rawdoc! { "_id": id, "content": "x", "deletedAt": DateTime::now(), "deletedBy": id },
        ] {
            assert!(!is_tombstone(&document), "{document:?}");
        }
    }

    #[test]
    fn a_replacement_is_guarded_by_what_was_read() {
        let id = ObjectId::new();
        let document = rawdoc! { "_id": id, "room": id, "sender": id, "content": "x", "__v": 2 };
        let guard = Revision::of(&document).unwrap().guard().unwrap();
        assert_eq!(
            guard,
            doc! {
                "_id": id,
                "room": { "$eq": id },
                "sender": { "$eq": id },
                "updatedAt": { "$exists": false },
                "__v": { "$eq": 2 },
            }
        );
    }
}
