//! What is new in many rooms: the last message of each, and how many a user has not read.
//!
//! A list can have a thousand rooms. So each question is asked for many rooms at once, and reads
//! only the end of each room by its index.

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

/// How many messages of [`ROOMS_AT_ONCE`] rooms are read to count those that are unread. If there
/// are more, the last ones of each room are looked up, which costs more for each room.
const MAX_COUNTED: u32 = 5_000;

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
    /// The id behind which messages are unread.
    fn id(self) -> ObjectId {
        match self {
            Self::Mark(message) => message.0,
            Self::Date(date) => {
                // The last id of the second before.
                let seconds = u32::try_from(date.timestamp_millis() / 1000).unwrap_or_default();
                let [a, b, c, d] = seconds.saturating_sub(1).to_be_bytes();
                let [e, f, g, h, i, j, k, l] = [0xFF; 8];
                ObjectId::from_bytes([a, b, c, d, e, f, g, h, i, j, k, l])
            }
        }
    }

    /// The time behind which messages are unread, if the id alone does not say it.
    fn time(self) -> Option<DateTime> {
        match self {
            Self::Mark(_) => None,
            Self::Date(date) => Some(date),
        }
    }

    /// Whether a message is unread.
    fn is_before(self, id: ObjectId, message: &RawDocument) -> bool {
        let is_later =
            |time| message.get_datetime("createdAt").is_ok_and(|created_at| created_at > time);
        id > self.id() && self.time().is_none_or(is_later)
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
        // Those that were read up to the same time together, since they are read from the oldest
        // mark on.
        let mut rooms = rooms.to_vec();
        rooms.sort_by_key(|(_, since)| since.id());
        let counting = stream::iter(rooms.chunks(ROOMS_AT_ONCE)).map(|rooms| async move {
            Ok::<_, StoreError>((rooms, self.count_unread(user, rooms).await?))
        });
        let counted: Vec<_> = counting.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        let mut unread = HashMap::with_capacity(rooms.len());
        let mut many = Vec::new();
        for (rooms, counted) in counted {
            match counted {
                Some(counted) => unread.extend(counted),
                None => many.extend_from_slice(rooms),
            }
        }
        unread.extend(self.look_up_unread(user, &many).await?);
        Ok(unread)
    }

    /// Reads everything in these rooms that is behind the oldest mark; `None` if it is too much.
    async fn count_unread(
        &self,
        user: UserId,
        rooms: &[(RoomId, Since)],
    ) -> Result<Option<HashMap<RoomId, Unread>>, StoreError> {
        let since: HashMap<_, _> = rooms.iter().copied().collect();
        let none = Unread { count: 0, own: None };
        let mut unread: HashMap<_, _> = since.keys().map(|&room| (room, none)).collect();
        let Some(oldest) = since.values().map(|since| since.id()).min() else {
            return Ok(Some(unread));
        };
        let ids: Vec<_> = since.keys().map(|room| room.0).collect();
        let stages = [
            doc! { "$match": { "room": { "$in": ids }, "_id": { "$gt": oldest } } },
            doc! { "$sort": { "room": 1, "_id": 1 } },
            doc! { "$limit": i64::from(MAX_COUNTED) + 1 },
            doc! { "$project": {
                "room": 1,
                "createdAt": 1,
                "own": { "$eq": ["$sender", user.0] },
                // What a tombstone is known by.
                "content": { "$cond": [{ "$eq": ["$content", ""] }, "", "$$REMOVE"] },
                "deletedAt": 1,
                "deletedBy": 1,
            } },
        ];
        let found = self.collection.aggregate(stages).batch_size(MAX_COUNTED + 1);
        let mut found = found.await?;
        let mut left = MAX_COUNTED;
        while found.advance().await? {
            let Some(fewer) = left.checked_sub(1) else { return Ok(None) };
            left = fewer;
            let message = found.current();
            let Ok(id) = message.get_object_id("_id") else { continue };
            let Ok(room) = message.get_object_id("room").map(RoomId) else { continue };
            let is_unread = since.get(&room).is_some_and(|since| since.is_before(id, message));
            if is_unread
                && !is_tombstone(message)
                && let Some(unread) = unread.get_mut(&room)
            {
                match message.get_bool("own") {
                    Ok(true) => *unread = Unread { count: 0, own: Some(MessageId(id)) },
                    _ => unread.count = MAX_UNREAD.min(unread.count + 1),
                }
            }
        }
        Ok(Some(unread))
    }

    /// Looks up the last messages of each room.
    async fn look_up_unread(
        &self,
        user: UserId,
        rooms: &[(RoomId, Since)],
    ) -> Result<HashMap<RoomId, Unread>, StoreError> {
        let asked = rooms.iter().map(|&(room, since)| {
            doc! { "room": room.0, "id": since.id(), "time": since.time() }
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
