//! Which users are connected to which instance, which instances live, and when users were last
//! online.
//!
//! A row is a document whose `_id` is `{i, u}`: a session of the user `u` is connected to the
//! instance `i`. An instance writes a row with the first session of a user and removes it after the
//! last one, not for each session. A heartbeat is a document of the same collection whose `_id` is
//! the id of the instance, with the server's time. An instance that does not write it any more is
//! dead, and any other instance removes its rows.

use std::collections::HashMap;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, RawDocument, doc};

use super::members::only_duplicates;
use super::own::{FIELD, MARK, Own};
use super::{StoreError, UserId};

/// How long a query may take.
const MAX_TIME: Duration = Duration::from_secs(5);

/// A session of the user is connected to the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PresenceRow {
    /// The instance, which has another id after each start.
    pub instance: ObjectId,
    /// The user.
    pub user: UserId,
}

/// The [own](super::own) collections of rows and heartbeats, `{_id: {i, u}, app}` and
/// `{_id, app, at}`, and of the times at which users were last online, `{_id, app, at}`.
#[derive(Debug, Clone)]
pub struct Presence {
    pub(super) rows: Own<Document>,
    pub(super) seen: Own<Document>,
}

impl PresenceRow {
    /// The row that a change event is about.
    pub fn of_change(event: &RawDocument) -> Option<Self> {
        Self::read(event.get_document("documentKey").ok()?)
    }

    fn read(document: &RawDocument) -> Option<Self> {
        let id = document.get_document("_id").ok()?;
        let instance = id.get_object_id("i").ok()?;
        Some(Self { instance, user: UserId(id.get_object_id("u").ok()?) })
    }

    fn id(self) -> Document {
        doc! { "i": self.instance, "u": self.user.0 }
    }
}

impl Presence {
    /// Writes rows. Those that are there stay.
    ///
    /// # Errors
    /// The database failed. Some may have been written.
    pub async fn add(&self, rows: &[PresenceRow]) -> Result<(), StoreError> {
        let documents = rows.iter().map(|row| doc! { "_id": row.id(), FIELD: MARK });
        match self.rows.get().await?.insert_many(documents).ordered(false).await {
            Err(error) if !only_duplicates(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes rows.
    ///
    /// # Errors
    /// The database failed. Some may have been removed.
    pub async fn remove(&self, rows: &[PresenceRow]) -> Result<(), StoreError> {
        let ids: Vec<_> = rows.iter().map(|row| row.id()).collect();
        self.rows.get().await?.delete_many(doc! { "_id": { "$in": ids } }).await?;
        Ok(())
    }

    /// All rows.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rows(&self) -> Result<Vec<PresenceRow>, StoreError> {
        let rows = self.rows.get().await?;
        let mut found = rows.find(doc! { "_id": { "$type": "object" } }).max_time(MAX_TIME).await?;
        let mut rows = Vec::new();
        while found.advance().await? {
            rows.extend(PresenceRow::read(found.current()));
        }
        Ok(rows)
    }

    /// Says that an instance lives.
    ///
    /// # Errors
    /// The database failed.
    pub async fn beat(&self, instance: ObjectId) -> Result<(), StoreError> {
        let beat = doc! { "$currentDate": { "at": true }, "$setOnInsert": { FIELD: MARK } };
        self.rows.get().await?.update_one(doc! { "_id": instance }, beat).upsert(true).await?;
        Ok(())
    }

    /// When each instance last said that it lives, by the server's clock.
    ///
    /// # Errors
    /// The database failed.
    pub async fn beats(&self) -> Result<HashMap<ObjectId, DateTime>, StoreError> {
        let rows = self.rows.get().await?;
        let beats = rows.find(doc! { "_id": { "$type": "objectId" } });
        let mut found = beats.max_time(MAX_TIME).await?;
        let mut beats = HashMap::new();
        while found.advance().await? {
            let beat = found.current();
            beats.extend(beat.get_object_id("_id").ok().zip(beat.get_datetime("at").ok()));
        }
        Ok(beats)
    }

    /// Removes the rows of a dead instance, and then its heartbeat, unless it has said since that
    /// it lives.
    ///
    /// # Errors
    /// The database failed. Some may have been removed.
    pub async fn bury(
        &self,
        instance: ObjectId,
        last_beat: Option<DateTime>,
    ) -> Result<(), StoreError> {
        let rows = self.rows.get().await?;
        let of_instance = doc! { "_id": {
            "$gte": { "i": instance, "u": Bson::MinKey },
            "$lte": { "i": instance, "u": Bson::MaxKey },
        } };
        rows.delete_many(of_instance).await?;
        if let Some(at) = last_beat {
            rows.delete_one(doc! { "_id": instance, "at": at }).await?;
        }
        Ok(())
    }

    /// Stores when users were last online. A later time that is stored already stays.
    ///
    /// # Errors
    /// The database failed. Some may have been stored.
    pub async fn set_seen(&self, users: &[(UserId, DateTime)]) -> Result<(), StoreError> {
        if users.is_empty() {
            return Ok(());
        }
        self.seen.get().await?;
        let update = |(user, at): &(UserId, DateTime)| {
            let seen = doc! { "$max": { "at": at }, "$setOnInsert": { FIELD: MARK } };
            doc! { "q": { "_id": user.0 }, "u": seen, "upsert": true }
        };
        // The driver has many updates in one command only for MongoDB 8.
        let command = doc! {
            "update": self.seen.name(),
            "updates": users.iter().map(update).collect::<Vec<_>>(),
            "ordered": false,
            "writeConcern": { "w": "majority" },
        };
        self.seen.database().run_command(command).await?;
        Ok(())
    }

    /// When these users were last online, where that is known.
    ///
    /// # Errors
    /// The database failed.
    pub async fn seen(&self, users: &[UserId]) -> Result<HashMap<UserId, DateTime>, StoreError> {
        let mut seen = HashMap::new();
        if users.is_empty() {
            return Ok(seen);
        }
        let ids: Vec<_> = users.iter().map(|user| user.0).collect();
        let found = self.seen.get().await?.find(doc! { "_id": { "$in": ids } });
        let mut found = found.max_time(MAX_TIME).await?;
        while found.advance().await? {
            let document = found.current();
            let user = document.get_object_id("_id").ok().map(UserId);
            seen.extend(user.zip(document.get_datetime("at").ok()));
        }
        Ok(seen)
    }
}
