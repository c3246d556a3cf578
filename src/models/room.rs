//! Rooms: the document that Mongoose's `Room` model writes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, RawDocument, RawDocumentBuf, doc, rawdoc};
use moka::sync::Cache;
use mongodb::Collection;
use mongodb::raw_batch_cursor::RawBatchCursor;

use super::batcher::Batcher;
use super::message::BATCH;
use super::ordinary::Fields;
use super::{RoomId, StoreError, UniqueIndex};

/// How long a room that was found counts as existing. No client can remove a room. If a person
/// removes its document, messages may still be stored for it for this long.
const CACHE_AGE: Duration = Duration::from_secs(1);
/// How many rooms are cached.
const CACHE_SIZE: u64 = 10_000;

/// Rooms that existed a moment ago, shared by all workers: most messages go to few rooms.
pub type Seen = Cache<RoomId, ()>;

/// An empty cache of rooms, bounded in number and age.
pub(super) fn seen() -> Seen {
    Cache::builder().max_capacity(CACHE_SIZE).time_to_live(CACHE_AGE).build()
}

/// A room as the collection `rooms` holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Room<'a> {
    /// `_id`.
    pub id: RoomId,
    /// `name`, unique.
    pub name: Cow<'a, str>,
    /// `createdAt`; missing in documents that were written by hand.
    pub created_at: Option<DateTime>,
    /// `updatedAt`.
    pub updated_at: Option<DateTime>,
    /// `__v`.
    pub version: Option<i32>,
}

impl<'a> Room<'a> {
    /// Reads an ordinary document, as this program and the original store it: exactly these fields,
    /// types and order; only the last three may be missing. `None` for any other document, which
    /// [`Hydrated`](crate::mongoose::Hydrated) reads.
    pub fn ordinary(document: &'a RawDocument) -> Option<Self> {
        let mut fields = Fields::of(document);
        let id = RoomId(fields.id("_id")?);
        let name = fields.text("name")?.into();
        let (created_at, updated_at, version) = fields.stamps()?;
        Some(Self { id, name, created_at, updated_at, version })
    }
}

/// The collection `rooms`.
#[derive(Clone)]
pub struct Rooms {
    collection: Collection<RawDocumentBuf>,
    pub(super) name_index: UniqueIndex,
    existence: Batcher<RoomId, bool>,
    seen: Seen,
}

impl Rooms {
    pub(super) fn new(
        collection: Collection<RawDocumentBuf>,
        name_index: UniqueIndex,
        seen: Seen,
    ) -> Self {
        let asked = collection.clone();
        let existence = Batcher::new(move |ids| which_exist(asked.clone(), ids));
        Self { collection, name_index, existence, seen }
    }

    /// Stores a new room.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when a room of this name exists.
    pub async fn insert<'a>(&self, name: &'a str) -> Result<Room<'a>, StoreError> {
        // The index may be missing, for example after the database was dropped.
        if self.is_taken(name).await? {
            return Err(StoreError::Duplicate);
        }
        let (id, now) = (RoomId::new(), DateTime::now());
        let room = rawdoc! {
            "_id": id.0,
            "name": name,
            "createdAt": now,
            "updatedAt": now,
            "__v": 0_i32,
        };
        match self.collection.insert_one(room).await.map_err(StoreError::from) {
            Ok(_) => {}
            Err(StoreError::Refused(refusing))
                if self.name_index.is(&refusing.index) && self.is_taken(name).await? =>
            {
                return Err(StoreError::Duplicate);
            }
            Err(error) => return Err(error),
        }
        Ok(Room {
            id,
            name: name.into(),
            created_at: Some(now),
            updated_at: Some(now),
            version: Some(0),
        })
    }

    async fn is_taken(&self, name: &str) -> Result<bool, StoreError> {
        let same = self.collection.find_one(doc! { "name": name });
        Ok(same.projection(doc! { "_id": 1 }).await?.is_some())
    }

    /// The document of a room.
    ///
    /// # Errors
    /// The database failed.
    pub async fn find(&self, id: RoomId) -> Result<Option<RawDocumentBuf>, StoreError> {
        Ok(self.collection.find_one(doc! { "_id": id.0 }).await?)
    }

    /// The documents of those of these rooms that exist, of the last ones by id at most `most`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn last_of(
        &self,
        ids: &[RoomId],
        most: usize,
    ) -> Result<HashMap<RoomId, RawDocumentBuf>, StoreError> {
        let mut rooms = HashMap::new();
        if ids.is_empty() {
            return Ok(rooms);
        }
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let found = self.collection.find(doc! { "_id": { "$in": ids } });
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut found = found.sort(doc! { "_id": -1 }).limit(most).await?;
        while found.advance().await? {
            let room = found.current();
            rooms.extend(room.get_object_id("_id").ok().map(|id| (RoomId(id), room.to_owned())));
        }
        Ok(rooms)
    }

    /// Whether a room exists.
    ///
    /// # Errors
    /// The database failed.
    pub async fn exists(&self, id: RoomId) -> Result<bool, StoreError> {
        self.any_exists(&[id]).await
    }

    /// Whether at least one of these rooms exists.
    ///
    /// # Errors
    /// The database failed.
    pub async fn any_exists(&self, ids: &[RoomId]) -> Result<bool, StoreError> {
        if ids.iter().any(|id| self.seen.contains_key(id)) {
            return Ok(true);
        }
        let found = self.existence.call(ids.to_vec()).await?;
        for (id, _) in ids.iter().zip(&found).filter(|(_, exists)| **exists) {
            self.seen.insert(*id, ());
        }
        Ok(found.contains(&true))
    }

    /// All rooms, in stored order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn all(&self) -> Result<RawBatchCursor, StoreError> {
        Ok(self.collection.find(doc! {}).batch_size(BATCH).batch().await?)
    }
}

/// Returns for each of these rooms whether it exists.
async fn which_exist(
    collection: Collection<RawDocumentBuf>,
    ids: Vec<RoomId>,
) -> Result<Vec<bool>, StoreError> {
    let distinct: HashSet<ObjectId> = ids.iter().map(|id| id.0).collect();
    let distinct = Vec::from_iter(distinct);
    let filter = match &*distinct {
        [id] => doc! { "_id": id },
        ids => doc! { "_id": { "$in": ids } },
    };
    let mut found = collection.find(filter).projection(doc! { "_id": 1 }).await?;
    let mut existing = HashSet::new();
    while found.advance().await? {
        existing.extend(found.current().get_object_id("_id"));
    }
    Ok(ids.iter().map(|id| existing.contains(&id.0)).collect())
}
