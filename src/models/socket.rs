//! The records of Socket.IO sessions, with which a client can resume its session at any instance.
//!
//! A record is created at the first join, and written by a majority before the session enters a
//! room, so that no instance can forget a room that its client has joined. It belongs to one
//! connection at a time, the newest; writes of an older connection match no record. Positions are
//! opaque texts here.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use mongodb::options::ReturnDocument;

use super::own::{FIELD, MARK, Own, SOCKETS};
use super::{RoomId, StoreError, UserId};

/// The connection that a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The id of the process, which it creates at its start.
    pub instance: ObjectId,
    /// How often the record was taken over.
    pub generation: i64,
}

/// The state of a session that a client can resume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketRecord {
    /// The private id, which the client sends to resume.
    pub pid: String,
    /// The public id of the socket, which stays the same.
    pub sid: String,
    /// The user of the session.
    pub user: UserId,
    /// The connection that the record belongs to.
    pub owner: Owner,
    /// The rooms of the session, each with the position of its join.
    pub rooms: Vec<(RoomId, String)>,
}

/// The [own](super::own) collection of [`SOCKETS`]:
/// `{_id: pid, app, sid, user, owner, expires, rooms: {<id>: <position>}}`.
#[derive(Debug, Clone)]
pub struct Sockets {
    pub(super) records: Own<Document>,
}

impl Sockets {
    /// Whether records can be stored.
    ///
    /// # Errors
    /// The database failed.
    pub async fn are_on(&self) -> Result<bool, StoreError> {
        match self.records.get().await {
            Ok(_) => Ok(true),
            Err(StoreError::Off(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates the record of a session that joins its first room.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when a record with this `pid` exists; or the database failed.
    pub async fn insert(&self, record: &SocketRecord, expires: DateTime) -> Result<(), StoreError> {
        let rooms: Document = record
            .rooms
            .iter()
            .map(|(room, position)| (room.to_string(), Bson::from(position)))
            .collect();
        let records = self.records.get().await?;
        records
            .insert_one(doc! {
                "_id": &record.pid,
                FIELD: MARK,
                "sid": &record.sid,
                "user": record.user.0,
                "owner": {
                    "instance": record.owner.instance,
                    "generation": record.owner.generation,
                },
                "expires": expires,
                "rooms": rooms,
            })
            .await
            .map_err(|error| StoreError::from(error).or_duplicate_id())?;
        Ok(())
    }

    /// Records that the session has joined a room, with its position. Returns false if the record
    /// belongs to another connection or no longer exists.
    ///
    /// # Errors
    /// The database failed.
    pub async fn join(
        &self,
        pid: &str,
        owner: Owner,
        room: RoomId,
        position: &str,
    ) -> Result<bool, StoreError> {
        self.change(pid, owner, doc! { "$set": { format!("rooms.{room}"): position } }).await
    }

    /// Records that the session has left a room.
    ///
    /// # Errors
    /// The database failed.
    pub async fn leave(&self, pid: &str, owner: Owner, room: RoomId) -> Result<bool, StoreError> {
        self.change(pid, owner, doc! { "$unset": { format!("rooms.{room}"): "" } }).await
    }

    /// Sets when the record expires: with the token while the client is connected, after the
    /// recovery window once the connection has ended.
    ///
    /// # Errors
    /// The database failed.
    pub async fn keep_until(
        &self,
        pid: &str,
        owner: Owner,
        expires: DateTime,
    ) -> Result<bool, StoreError> {
        self.change(pid, owner, doc! { "$set": { "expires": expires } }).await
    }

    /// Removes the record of a session that cannot or need not be resumed.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove(&self, pid: &str, owner: Owner) -> Result<(), StoreError> {
        self.records.get().await?.delete_one(owned(pid, owner)).await?;
        Ok(())
    }

    /// Takes a record over for a new connection of the same user, whichever connection had it
    /// before. `None` if there is no such record, or it has expired or belongs to another user.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim(
        &self,
        pid: &str,
        user: UserId,
        instance: ObjectId,
        expires: DateTime,
    ) -> Result<Option<SocketRecord>, StoreError> {
        let claimed = self
            .records
            .get()
            .await?
            .find_one_and_update(
                unexpired(pid, user),
                doc! {
                    "$set": { "owner.instance": instance, "expires": expires },
                    "$inc": { "owner.generation": 1_i64 },
                },
            )
            .return_document(ReturnDocument::After)
            .await?;
        claimed.map(|document| read(pid, user, &document)).transpose()
    }

    /// Which instance owns a record; `None` if there is no such record, or it has expired or
    /// belongs to another user.
    ///
    /// # Errors
    /// The database failed.
    pub async fn instance_of(
        &self,
        pid: &str,
        user: UserId,
    ) -> Result<Option<ObjectId>, StoreError> {
        let record = self
            .records
            .get()
            .await?
            .find_one(unexpired(pid, user))
            .projection(doc! { "owner.instance": 1 })
            .await?;
        let owner = record.as_ref().and_then(|record| record.get_document("owner").ok());
        Ok(owner.and_then(|owner| owner.get_object_id("instance").ok()))
    }

    /// Those of these records, all once owned by `instance`, that now belong to another instance,
    /// each with its generation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn taken_over(
        &self,
        pids: &[String],
        instance: ObjectId,
    ) -> Result<Vec<(String, i64)>, StoreError> {
        let mut found = self
            .records
            .get()
            .await?
            .find(doc! { "_id": { "$in": pids }, "owner.instance": { "$ne": instance } })
            .projection(doc! { "owner.generation": 1 })
            .await?;
        let mut taken = Vec::new();
        while found.advance().await? {
            let record = found.current();
            let owner = record.get_document("owner");
            let generation = owner.and_then(|owner| owner.get_i64("generation"));
            if let (Ok(pid), Ok(generation)) = (record.get_str("_id"), generation) {
                taken.push((pid.to_owned(), generation));
            }
        }
        Ok(taken)
    }

    async fn change(&self, pid: &str, owner: Owner, update: Document) -> Result<bool, StoreError> {
        let changed = self.records.get().await?.update_one(owned(pid, owner), update).await?;
        Ok(changed.matched_count == 1)
    }
}

fn unexpired(pid: &str, user: UserId) -> Document {
    doc! { "_id": pid, "user": user.0, "expires": { "$gt": DateTime::now() } }
}

fn owned(pid: &str, owner: Owner) -> Document {
    doc! {
        "_id": pid,
        "owner.instance": owner.instance,
        "owner.generation": owner.generation,
    }
}

fn read(pid: &str, user: UserId, document: &Document) -> Result<SocketRecord, StoreError> {
    let malformed = |field| move |_| StoreError::Malformed(SOCKETS.collection, field);
    let owner = document.get_document("owner").map_err(malformed("owner"))?;
    let rooms = document.get_document("rooms").map_err(malformed("rooms"))?;
    let rooms = rooms.iter().map(|(room, position)| {
        let room = room.parse().map_err(|_| StoreError::Malformed(SOCKETS.collection, "rooms"))?;
        let position =
            position.as_str().ok_or(StoreError::Malformed(SOCKETS.collection, "rooms"))?;
        Ok((room, position.to_owned()))
    });
    Ok(SocketRecord {
        pid: pid.to_owned(),
        sid: document.get_str("sid").map_err(malformed("sid"))?.to_owned(),
        user,
        owner: Owner {
            instance: owner.get_object_id("instance").map_err(malformed("owner"))?,
            generation: owner.get_i64("generation").map_err(malformed("owner"))?,
        },
        rooms: rooms.collect::<Result<_, StoreError>>()?,
    })
}
