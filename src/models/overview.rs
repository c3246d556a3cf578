//! What is new in many rooms: the last message of each, and how many a user has not read.
//!
//! A list can have a thousand rooms. So each question is asked for many rooms at once, in
//! aggregations that read only the end of each room by its index.

use std::collections::HashMap;

use bson::oid::ObjectId;
use bson::{DateTime, Document, RawDocument, RawDocumentBuf, doc};
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
    fn filter(self) -> Document {
        match self {
            Self::Mark(message) => doc! { "_id": { "$gt": message.0 } },
            Self::Date(date) => {
                let seconds = u32::try_from(date.timestamp_millis() / 1000).unwrap_or(0);
                let [a, b, c, d] = seconds.to_be_bytes();
                let first = ObjectId::from_bytes([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]);
                doc! { "_id": { "$gte": first }, "createdAt": { "$gt": date } }
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
                deleted.push(newest(room, Document::new(), 1).to_vec());
            } else {
                last.insert(room, document.to_owned());
            }
        }
        let before = self.of_each(deleted).await?;
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
        let behind = |&(room, since): &(RoomId, Since)| {
            let mut stages = newest(room, since.filter(), MAX_UNREAD).to_vec();
            stages.push(doc! { "$group": {
                "_id": "$room",
                "ids": { "$push": "$_id" },
                "own": { "$push": { "$eq": ["$sender", user.0] } },
            } });
            stages.push(doc! { "$project": {
                "ids": 1,
                "size": { "$size": "$ids" },
                "own": { "$indexOfArray": ["$own", true] },
            } });
            stages.push(doc! { "$project": {
                "count": { "$cond": [{ "$lt": ["$own", 0] }, "$size", "$own"] },
                "own": { "$cond": [
                    { "$lt": ["$own", 0] },
                    null,
                    { "$arrayElemAt": ["$ids", "$own"] },
                ] },
            } });
            stages
        };
        let found = self.of_each(rooms.iter().map(behind).collect()).await?;
        let read = |found: RawDocumentBuf| {
            let room = RoomId(found.get_object_id("_id").ok()?);
            let count = u32::try_from(found.get_i32("count").ok()?).ok()?;
            let own = found.get_object_id("own").ok().map(MessageId);
            Some((room, Unread { count, own }))
        };
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// The results of several pipelines over the messages.
    async fn of_each(
        &self,
        pipelines: Vec<Vec<Document>>,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let groups: Vec<_> = pipelines.chunks(ROOMS_AT_ONCE).map(union).collect();
        let asking = stream::iter(groups).map(|stages| async move {
            let mut found = self.collection.aggregate(stages).await?;
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

/// The newest messages of a room that match a filter and are not deleted, the newest first.
fn newest(room: RoomId, mut filter: Document, most: u32) -> [Document; 3] {
    filter.insert("room", room.0);
    filter.extend(not_deleted());
    [
        doc! { "$match": filter },
        doc! { "$sort": { "room": -1, "_id": -1 } },
        doc! { "$limit": most },
    ]
}

/// One pipeline with the results of all of these.
fn union(pipelines: &[Vec<Document>]) -> Vec<Document> {
    let mut pipelines = pipelines.iter().cloned();
    let mut stages = pipelines.next().unwrap_or_default();
    stages.extend(pipelines.map(|pipeline| {
        doc! { "$unionWith": { "coll": "messages", "pipeline": pipeline } }
    }));
    stages
}
