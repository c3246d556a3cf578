//! How far users have read: a mark for each user and room, which never goes back.
//!
//! A mark is a document whose `_id` is `{room, user}`. It is always replaced as a whole, so the
//! change stream says everything about it without a look-up.

use std::collections::HashMap;

use bson::{DateTime, Document, RawDocument, doc};

use super::members::{in_room, member_id};
use super::own::{FIELD, MARK, Own};
use super::{MessageId, RoomId, StoreError, UserId};

/// A user has read a room up to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The room.
    pub room: RoomId,
    /// The user.
    pub user: UserId,
    /// The last message that was read.
    pub message: MessageId,
}

/// The [own](super::own) collection of marks: `{_id: {room, user}, app, message, updatedAt}`.
#[derive(Debug, Clone)]
pub struct Marks {
    pub(super) marks: Own<Document>,
}

impl Mark {
    /// Reads a document of the collection; `None` for one that is none of this program's.
    pub fn read(document: &RawDocument) -> Option<Self> {
        let id = document.get_document("_id").ok()?;
        Some(Self {
            room: RoomId(id.get_object_id("room").ok()?),
            user: UserId(id.get_object_id("user").ok()?),
            message: MessageId(document.get_object_id("message").ok()?),
        })
    }

    fn to_document(self) -> Document {
        doc! {
            "_id": member_id(self.room, self.user),
            FIELD: MARK,
            "message": self.message.0,
            "updatedAt": DateTime::now(),
        }
    }
}

impl Marks {
    /// Stores a mark, unless the stored one is at the same message or a later one. Returns whether
    /// it was stored.
    ///
    /// # Errors
    /// The database failed. Whether the mark is stored is unknown.
    pub async fn advance(&self, mark: Mark) -> Result<bool, StoreError> {
        match self.replace(mark, true).await.map_err(StoreError::or_duplicate_id) {
            // There is a mark, which is either not behind this one or was made a moment ago.
            Err(StoreError::Duplicate) => self.replace(mark, false).await,
            result => result,
        }
    }

    async fn replace(&self, mark: Mark, upsert: bool) -> Result<bool, StoreError> {
        let marks = self.marks.get().await?;
        let behind = doc! {
            "_id": member_id(mark.room, mark.user),
            "message": { "$lt": mark.message.0 },
        };
        let replaced = marks.replace_one(behind, mark.to_document()).upsert(upsert).await?;
        Ok(replaced.matched_count > 0 || replaced.upserted_id.is_some())
    }

    /// The marks of a user, by room.
    ///
    /// # Errors
    /// The database failed.
    pub async fn of_user(&self, user: UserId) -> Result<HashMap<RoomId, MessageId>, StoreError> {
        let mut found = self.marks.get().await?.find(doc! { "_id.user": user.0 }).await?;
        let mut marks = HashMap::new();
        while found.advance().await? {
            marks.extend(Mark::read(found.current()).map(|mark| (mark.room, mark.message)));
        }
        Ok(marks)
    }

    /// Removes the marks of a room that has ended.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_all(&self, room: RoomId) -> Result<(), StoreError> {
        self.marks.get().await?.delete_many(in_room(room)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bson::RawDocumentBuf;

    use super::*;

    #[test]
    fn a_mark_reads_back() {
        let mark = Mark { room: RoomId::new(), user: UserId::new(), message: MessageId::new() };
        let document = RawDocumentBuf::try_from(&mark.to_document()).unwrap();
        assert_eq!(Mark::read(&document), Some(mark));
        assert_eq!(Mark::read(&bson::rawdoc! { "_id": MARK, "app": MARK }), None);
    }
}
