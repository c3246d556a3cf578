//! The records of Socket.IO sessions, with which a client can resume its session at any instance.
//!
//! A record is created at the first join, and written by a majority before the session enters a
//! room, so that no instance can forget a room that its client has joined. It belongs to one
//! connection at a time, the newest; writes of an older connection match no record. Positions are
//! opaque texts here.
//!
//! When a server or a proxy restarts, all clients resume at the same time. So what they need is
//! read, and taken over, for many of them in one operation.

use std::collections::{HashMap, HashSet};

use bson::oid::ObjectId;
use bson::raw::RawArrayBuf;
use bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use mongodb::Collection;
use mongodb::options::ReturnDocument;

use super::batcher::Batcher;
use super::bulk::{encode, update_all};
use super::own::{FIELD, MARK, Own, SOCKETS};
use super::{RoomId, StoreError, UserId};

/// The most bytes of a private id that is looked up; ours have 20. The records of many clients are
/// looked up together, and MongoDB limits the size of the operation.
const MAX_PID: usize = 64;

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
/// `{_id: pid, app, sid, user, owner, expires, rooms: {<id>: <position>}}`, where `owner` is
/// `{instance, generation}` and, after it was taken over, the id `claim` of the operation that did.
pub struct Sockets {
    records: Own<Document>,
    instances: Batcher<Session, Option<ObjectId>>,
    claims: Batcher<Claim, Result<Claimed, StoreError>>,
}

/// The session that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    pid: String,
    user: UserId,
}

/// What a connection asks for that takes a record over.
#[derive(Debug, Clone)]
struct Claim {
    session: Session,
    instance: ObjectId,
    expires: DateTime,
}

/// The result of a [claim](Sockets::claim).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The record, as its new owner has it.
    Record(SocketRecord),
    /// At the same time, another connection has taken the record over or stored it. The client
    /// should try again.
    Superseded,
    /// There is no such record, or it has expired or belongs to another user.
    Nothing,
}

impl Sockets {
    pub(super) fn new(records: Own<Document>) -> Self {
        let (read, claimed) = (records.clone(), records.clone());
        let instances = Batcher::new(move |sessions| instances_of(read.clone(), sessions));
        let claims = Batcher::new(move |claims| claim_all(claimed.clone(), claims));
        Self { records, instances, claims }
    }

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
    /// before.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim(
        &self,
        pid: &str,
        user: UserId,
        instance: ObjectId,
        expires: DateTime,
    ) -> Result<Claimed, StoreError> {
        let Some(session) = Session::new(pid, user) else { return Ok(Claimed::Nothing) };
        self.claims.call_one(Claim { session, instance, expires }).await?
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
        let Some(session) = Session::new(pid, user) else { return Ok(None) };
        self.instances.call_one(session).await
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

async fn instances_of(
    records: Own<Document>,
    sessions: Vec<Session>,
) -> Result<Vec<Option<ObjectId>>, StoreError> {
    let collection = records.get().await?;
    let stored = unexpired(collection, &sessions, doc! { "user": 1, "owner": 1 }).await?;
    let instance_of = |session| {
        let owner = stored.get(session)?.get_document("owner").ok()?;
        owner.get_object_id("instance").ok()
    };
    Ok(sessions.iter().map(instance_of).collect())
}

/// Takes many records over in two operations: `update` does not say which documents it has matched,
/// so it writes an id of this operation into each record, and `find` then says who has which.
async fn claim_all(
    records: Own<Document>,
    claims: Vec<Claim>,
) -> Result<Vec<Result<Claimed, StoreError>>, StoreError> {
    if let [claim] = &*claims {
        return Ok(vec![claim_one(&records, claim).await]);
    }
    let collection = records.get().await?;
    let (id, mut statements) = (ObjectId::new(), RawArrayBuf::new());
    let (mut asked, mut seen) = (Vec::with_capacity(claims.len()), HashSet::new());
    // Of two connections that take the same record over, the later one gets it.
    for (index, claim) in claims.iter().enumerate().rev() {
        if !seen.insert(&claim.session) {
            continue;
        }
        let mut filter = claim.session.unexpired();
        // Not again, if the statements are run twice.
        filter.insert("owner.claim", doc! { "$ne": id });
        statements.push(rawdoc! { "q": encode(&filter)?, "u": encode(&claim.update(id))? });
        asked.push((index, claim));
    }
    let updated = update_all(records.database(), collection.name(), statements).await?;

    let sessions: Vec<_> = claims.iter().map(|claim| claim.session.clone()).collect();
    let stored = unexpired(collection, &sessions, doc! {}).await?;
    let mut claimed: Vec<_> = sessions
        .iter()
        .map(|session| Ok(stored.get(session).map_or(Claimed::Nothing, |_| Claimed::Superseded)))
        .collect();
    for (number, (index, claim)) in asked.into_iter().enumerate() {
        let Some(result) = claimed.get_mut(index) else { continue };
        if updated.failed.contains(&number) {
            // Alone, so that the error is the driver's own.
            *result = claim_one(&records, claim).await;
        } else if let Some(record) = stored.get(&claim.session)
            && claim.has_taken(record, id)
        {
            *result = read(record).map(Claimed::Record);
        }
    }
    Ok(claimed)
}

async fn claim_one(records: &Own<Document>, claim: &Claim) -> Result<Claimed, StoreError> {
    let claimed = records
        .get()
        .await?
        .clone_with_type::<RawDocumentBuf>()
        .find_one_and_update(claim.session.unexpired(), claim.update(ObjectId::new()))
        .return_document(ReturnDocument::After)
        .await?;
    claimed.map_or(Ok(Claimed::Nothing), |record| read(&record).map(Claimed::Record))
}

/// The records of those of these sessions that have one, with these fields or, by `{}`, all.
async fn unexpired(
    collection: &Collection<Document>,
    sessions: &[Session],
    fields: Document,
) -> Result<HashMap<Session, RawDocumentBuf>, StoreError> {
    let pids: Vec<_> = sessions.iter().map(|session| session.pid.as_str()).collect();
    let unexpired = doc! { "_id": { "$in": pids }, "expires": { "$gt": DateTime::now() } };
    let mut found = collection.find(unexpired).projection(fields).await?;
    let mut records = HashMap::with_capacity(sessions.len());
    while found.advance().await? {
        let record = found.current();
        if let (Ok(pid), Ok(user)) = (record.get_str("_id"), record.get_object_id("user"))
            && let Some(session) = Session::new(pid, UserId(user))
        {
            records.insert(session, record.to_owned());
        }
    }
    Ok(records)
}

impl Session {
    /// `None` for an id that no session has.
    fn new(pid: &str, user: UserId) -> Option<Self> {
        (pid.len() <= MAX_PID).then(|| Self { pid: pid.to_owned(), user })
    }

    fn unexpired(&self) -> Document {
        doc! { "_id": &self.pid, "user": self.user.0, "expires": { "$gt": DateTime::now() } }
    }
}

impl Claim {
    fn update(&self, id: ObjectId) -> Document {
        doc! {
            "$set": {
                "owner.instance": self.instance,
                "owner.claim": id,
                "expires": self.expires,
            },
            "$inc": { "owner.generation": 1_i64 },
        }
    }

    /// Whether the operation with this id, and none after it, has taken the record over.
    fn has_taken(&self, record: &RawDocument, id: ObjectId) -> bool {
        let Ok(owner) = record.get_document("owner") else { return false };
        let is = |field, id| owner.get_object_id(field).is_ok_and(|found| found == id);
        // A version of this server that knows no claims leaves the id of an earlier one.
        is("claim", id) && is("instance", self.instance)
    }
}

fn owned(pid: &str, owner: Owner) -> Document {
    doc! {
        "_id": pid,
        "owner.instance": owner.instance,
        "owner.generation": owner.generation,
    }
}

fn read(record: &RawDocument) -> Result<SocketRecord, StoreError> {
    fn malformed<E>(field: &'static str) -> impl FnOnce(E) -> StoreError {
        move |_| StoreError::Malformed(SOCKETS.collection, field)
    }
    let owner = record.get_document("owner").map_err(malformed("owner"))?;
    let rooms = record.get_document("rooms").map_err(malformed("rooms"))?;
    let rooms = rooms.iter().map(|entry| {
        let (room, position) = entry.map_err(malformed("rooms"))?;
        let room = room.as_str().parse().map_err(malformed("rooms"))?;
        let position = position.as_str().ok_or(()).map_err(malformed("rooms"))?;
        Ok((room, position.to_owned()))
    });
    Ok(SocketRecord {
        pid: record.get_str("_id").map_err(malformed("_id"))?.to_owned(),
        sid: record.get_str("sid").map_err(malformed("sid"))?.to_owned(),
        user: UserId(record.get_object_id("user").map_err(malformed("user"))?),
        owner: Owner {
            instance: owner.get_object_id("instance").map_err(malformed("owner"))?,
            generation: owner.get_i64("generation").map_err(malformed("owner"))?,
        },
        rooms: rooms.collect::<Result<_, StoreError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_of_the_operation_and_the_instance_that_wrote_it_last() {
        let (instance, id) = (ObjectId::new(), ObjectId::new());
        let session = Session::new("pid", UserId::new()).unwrap();
        let claim = Claim { session, instance, expires: DateTime::now() };
        let has = |owner| claim.has_taken(&rawdoc! { "owner": owner }, id);
        assert!(has(rawdoc! { "instance": instance, "generation": 1_i64, "claim": id }));
        let another = ObjectId::new();
        assert!(!has(rawdoc! { "instance": instance, "generation": 2_i64, "claim": another }));
        // It was taken over by a version that knows no claims.
        assert!(!has(rawdoc! { "instance": another, "generation": 2_i64, "claim": id }));
        assert!(!has(rawdoc! { "instance": instance, "generation": 0_i64 }));
    }
}
