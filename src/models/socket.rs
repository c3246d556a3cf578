//! Sockets that may come back: what a Socket.IO session leaves for whichever instance its client
//! reaches next.
//!
//! A record is made at the first join and written by a majority before the session enters a room,
//! so that no instance can forget a room that its client believes to be in. It belongs to one
//! connection at a time, the newest; every write of an older one finds nothing to change. The
//! position texts are opaque here.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use mongodb::options::ReturnDocument;

use super::own::{FIELD, MARK, Own, SOCKETS};
use super::{RoomId, StoreError, UserId};

/// The connection that a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The process, by an id that it makes at start.
    pub instance: ObjectId,
    /// How often the record has changed hands.
    pub generation: i64,
}

/// What a client that comes back gets again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketRecord {
    /// The private id that the client proves itself with.
    pub pid: String,
    /// The public id of its socket, which it keeps.
    pub sid: String,
    /// Whose session it is.
    pub user: UserId,
    /// Which connection it belongs to.
    pub owner: Owner,
    /// The rooms that it is in, and how it came into each.
    pub rooms: Vec<(RoomId, String)>,
}

/// The [own](super::own) collection of [`SOCKETS`]:
/// `{_id: pid, app, sid, user, owner, expires, rooms: {<id>: <position>}}`.
#[derive(Debug, Clone)]
pub struct Sockets {
    pub(super) records: Own<Document>,
}

impl Sockets {
    /// Whether sessions can leave records at all.
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

    /// Makes the record of a session that joins its first room.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when there is one; or the database failed.
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

    /// Writes down that the session is in a room from a position on. False when the record
    /// belongs to another connection, or is gone.
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

    /// Writes down that the session left a room.
    ///
    /// # Errors
    /// The database failed.
    pub async fn leave(&self, pid: &str, owner: Owner, room: RoomId) -> Result<bool, StoreError> {
        self.change(pid, owner, doc! { "$unset": { format!("rooms.{room}"): "" } }).await
    }

    /// Sets when the record ends: with the token while connected, the recovery window after a
    /// clean end.
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

    /// Removes the record of a session that cannot or need not come back.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove(&self, pid: &str, owner: Owner) -> Result<(), StoreError> {
        self.records.get().await?.delete_one(owned(pid, owner)).await?;
        Ok(())
    }

    /// Takes a record over for a new connection of the same user, whoever owned it before. `None`
    /// when there is none, it has ended or it is another user's.
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
                living(pid, user),
                doc! {
                    "$set": { "owner.instance": instance, "expires": expires },
                    "$inc": { "owner.generation": 1_i64 },
                },
            )
            .return_document(ReturnDocument::After)
            .await?;
        claimed.map(|document| read(pid, user, &document)).transpose()
    }

    /// Which instance owns a record; `None` when there is none, it has ended or it is another
    /// user's.
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
            .find_one(living(pid, user))
            .projection(doc! { "owner.instance": 1 })
            .await?;
        let owner = record.as_ref().and_then(|record| record.get_document("owner").ok());
        Ok(owner.and_then(|owner| owner.get_object_id("instance").ok()))
    }

    /// Which of these records, all once owned by `instance`, belong to another one now, and how
    /// often they have changed hands.
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

fn living(pid: &str, user: UserId) -> Document {
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
