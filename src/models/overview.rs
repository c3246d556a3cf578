//! What is new in many rooms: the last message of each, and how many a user has not read.
//!
//! A list can have a thousand rooms. So each question is asked for many rooms at once, in
//! aggregations that read only the end of each room by its index.

use std::collections::HashMap;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::revision::{is_tombstone, not_deleted};
use super::{MessageId, Messages, RoomId, StoreError, UserId};

/// How many unread messages are counted at most in a room.
pub const MAX_UNREAD: u32 = 100;

/// How many rooms one aggregation reads.
const ROOMS_AT_ONCE: usize = 125;

/// How many aggregations run at the same time.
const AT_ONCE: usize = 4;

/// From where on messages of a room are unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Behind the message that the user's mark names.
    Mark(MessageId),
    /// From this time on: the user was added to the room then, and has no mark yet.
    Date(DateTime),
}

/// What a user has not read of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    /// How many messages of others; at most [`MAX_UNREAD`].
    pub count: u32,
    /// The user's own last message, if it is before those.
    pub own: Option<MessageId>,
}

impl Since {
    /// The id and, if the id alone does not say it, the time behind which messages are unread.
    fn bounds(self) -> (Bson, Bson) {
        match self {
            Self::Mark(message) => (message.0.into(), Bson::Null),
            Self::Date(date) => {
                // The last id of the second before.
                let seconds = u32::try_from(date.timestamp_millis() / 1000).unwrap_or_default();
                let [a, b, c, d] = seconds.saturating_sub(1).to_be_bytes();
                let [e, f, g, h, i, j, k, l] = [0xFF; 8];
                (ObjectId::from_bytes([a, b, c, d, e, f, g, h, i, j, k, l]).into(), date.into())
            }
        }
    }
}

impl Messages {
    /// The last message of each of these rooms that is not deleted.
    ///
    /// # Errors
    /// The database failed.
    pub async fn last_of(
        &self,
        rooms: &[RoomId],
    ) -> Result<HashMap<RoomId, RawDocumentBuf>, StoreError> {
        let mut last = HashMap::with_capacity(rooms.len());
        if rooms.is_empty() {
            return Ok(last);
        }
        let ids: Vec<_> = rooms.iter().map(|room| room.0).collect();
        // MongoDB reads one key of the index for each room, unless it is filtered by another field.
        let stages = [
            doc! { "$match": { "room": { "$in": ids } } },
            doc! { "$sort": { "room": -1, "_id": -1 } },
            doc! { "$group": { "_id": "$room", "last": { "$first": "$$ROOT" } } },
            doc! { "$replaceWith": "$last" },
        ];
        let room = |document: &RawDocument| document.get_object_id("room").ok().map(RoomId);
        let mut deleted = Vec::new();
        let mut found = self.collection.aggregate(stages).await?;
        while found.advance().await? {
            let document = found.current();
            let Some(room) = room(document) else { continue };
            if is_tombstone(document) {
                deleted.push(doc! { "room": room.0 });
            } else {
                last.insert(room, document.to_owned());
            }
        }
        let stages = [
            newest(doc! {}, [], 1, None),
            doc! { "$unwind": "$newest" },
            doc! { "$replaceWith": "$newest" },
        ];
        let before = self.for_each(&deleted, &stages).await?;
        last.extend(before.into_iter().filter_map(|last| Some((room(&last)?, last))));
        Ok(last)
    }

    /// What `user` has not read of each of these rooms. Messages of the user's own are read, and so
    /// is everything before them.
    ///
    /// # Errors
    /// The database failed.
    pub async fn unread(
        &self,
        user: UserId,
        rooms: &[(RoomId, Since)],
    ) -> Result<HashMap<RoomId, Unread>, StoreError> {
        let asked = rooms.iter().map(|&(room, since)| {
            let (id, time) = since.bounds();
            doc! { "room": room.0, "id": id, "time": time }
        });
        // `$expr` compares ids of different types, too.
        let filter = doc! { "_id": { "$type": "objectId" } };
        let is_unread = [
            doc! { "$gt": ["$_id", "$$id"] },
            doc! { "$or": [{ "$eq": ["$$time", null] }, { "$gt": ["$createdAt", "$$time"] }] },
        ];
        let is_own = doc! { "own": { "$eq": ["$sender", user.0] } };
        let stages = [
            newest(filter, is_unread, MAX_UNREAD, Some(is_own)),
            doc! { "$project": {
                "room": 1,
                "newest._id": 1,
                "size": { "$size": "$newest" },
                "own": { "$indexOfArray": ["$newest.own", true] },
            } },
            doc! { "$project": {
                "room": 1,
                "count": { "$cond": [{ "$lt": ["$own", 0] }, "$size", "$own"] },
                "own": { "$cond": [
                    { "$lt": ["$own", 0] },
                    null,
                    { "$arrayElemAt": ["$newest._id", "$own"] },
                ] },
            } },
        ];
        let found = self.for_each(&asked.collect::<Vec<_>>(), &stages).await?;
        let read = |found: RawDocumentBuf| {
            let room = RoomId(found.get_object_id("room").ok()?);
            let count = u32::try_from(found.get_i32("count").ok()?).ok()?;
            let own = found.get_object_id("own").ok().map(MessageId);
            Some((room, Unread { count, own }))
        };
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// The results of these stages, whose input is these documents.
    async fn for_each(
        &self,
        rooms: &[Document],
        stages: &[Document],
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let pipeline = |rooms: &[Document]| {
            let documents = doc! { "$documents": rooms };
            Vec::from_iter([documents].into_iter().chain(stages.iter().cloned()))
        };
        let pipelines = Vec::from_iter(rooms.chunks(ROOMS_AT_ONCE).map(pipeline));
        let asking = stream::iter(pipelines).map(|stages| async move {
            let mut found = self.database.aggregate(stages).await?;
            let mut documents = Vec::new();
            while found.advance().await? {
                documents.push(found.current().to_owned());
            }
            Ok::<_, StoreError>(documents)
        });
        let documents: Vec<_> = asking.buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(documents.concat())
    }
}

/// A stage that adds to each document with a `room` an array `newest`: the newest messages of the
/// room, the newest first, that are not deleted and match `filter` and `conditions`. These are
/// expressions, in which `$$id` and `$$time` are fields of the document. `fields` says what the
/// array has of each message; all of it if there are none.
fn newest<const N: usize>(
    mut filter: Document,
    conditions: [Document; N],
    most: u32,
    fields: Option<Document>,
) -> Document {
    let mut all = vec![doc! { "$eq": ["$room", "$$room"] }];
    all.extend(conditions);
    filter.insert("$expr", doc! { "$and": all });
    filter.extend(not_deleted());
    let mut pipeline = vec![
        doc! { "$match": filter },
        doc! { "$sort": { "room": -1, "_id": -1 } },
        doc! { "$limit": most },
    ];
    pipeline.extend(fields.map(|fields| doc! { "$project": fields }));
    doc! { "$lookup": {
        "from": "messages",
        "let": { "room": "$room", "id": "$id", "time": "$time" },
        "pipeline": pipeline,
        "as": "newest",
    } }
}
