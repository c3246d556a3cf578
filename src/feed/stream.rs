//! MongoDB's change stream, read one server reply at a time.
//!
//! Only this file knows the protocol: the pipeline, the events, the resume token and the meaning of
//! errors. It reads whole replies instead of using the driver's `ChangeStream`, for three reasons.
//! The feed resumes by cluster time and skips published events by position, so that all instances
//! count alike; the driver would resume by token. A reply shows how far the stream and the cluster
//! are, so a stalled stream can be told from a quiet one. And the driver retries errors by itself,
//! which would hide them. The feed decides when to open a stream and when to open it again.

use std::time::Duration;

use bson::{Document, RawBsonRef, RawDocument, RawDocumentBuf, Timestamp, doc};
use futures::StreamExt;
use mongodb::{
    Database,
    error::ErrorKind,
    options::{ReadConcern, ReadPreference, SelectionCriteria},
    raw_batch_cursor::RawBatchCursor,
};

use super::{
    PresenceChange,
    event::{Event, Removal},
    position::Position,
};
use crate::models::{
    Failure, Mark, MembersRoom, Membership, PresenceRow, Revocation, RoomId, RoomKind,
    failure::describe, message::Malformed, own, revision::is_tombstone,
};

/// A larger document is not delivered: it becomes a `resync` of its room. MongoDB sends only its
/// room.
pub const LARGEST_DOCUMENT: i32 = 256 * 1024;

/// Why a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// For new events.
    Live,
    /// For the events before the ring was opened.
    Backfill,
}

/// An open change stream.
pub(super) struct ChangeStream {
    cursor: RawBatchCursor,
    scope: Scope,
    /// Where it was opened.
    from: Timestamp,
    /// The position of its last change.
    last: Option<Position>,
}

/// A reply of the server.
#[derive(Debug)]
pub(super) struct Reply {
    /// The changes that were not published before, in stream order.
    pub changes: Vec<Change>,
    /// The position of the last change, even if it was published before.
    pub newest: Option<Position>,
    /// Everything before this time was read. More changes of this time may follow.
    pub progress: Timestamp,
    /// The newest cluster time that the server knows.
    pub cluster_time: Timestamp,
    /// A collection was dropped, renamed or replaced at this time; the stream ends here.
    pub ended: Option<Timestamp>,
    /// Changes that cannot become an event.
    pub poison: Vec<Poison>,
}

/// A change of a collection.
#[derive(Debug)]
pub(super) enum Change {
    /// An event for the members of a room, or for the sessions of a user.
    Event(Event),
    /// A document was removed. The change does not name its room.
    Removal(Removal),
    /// A user is connected to an instance, or not any more. It has no position.
    Presence(PresenceChange),
}

/// Which stream to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// That of the database, filtered to this server's collections.
    Database,
    /// That of `messages`, for a user who may not open the other one.
    Messages,
    /// That of the database, filtered to the members of rooms.
    Members,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// An error of the server or the driver.
    #[error("{}", describe(.0))]
    Database(#[from] mongodb::error::Error),
    /// A reply of an unknown shape.
    #[error("the answer of MongoDB cannot be read: {0}")]
    Unreadable(String),
    /// A standalone has no change streams.
    #[error("this MongoDB is a standalone")]
    Standalone,
    /// A member of a replica set that waits for `rs.initiate` or was removed.
    #[error("{}", Failure::NotInitiated)]
    NotInitiated,
}

impl StreamError {
    /// Whether the user may not open this stream.
    pub fn is_privilege(&self) -> bool {
        matches!(self, Self::Database(error) if Failure::of(error) == Failure::Privilege)
    }
}

/// A document in `messages` that is not a valid message.
#[derive(Debug)]
pub(super) struct Poison {
    /// The position of the change.
    pub position: Position,
    /// The problem.
    pub cause: Malformed,
}

/// What the feed does after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// Open the stream again at the same time.
    Retry,
    /// Open the stream again at the same time. After several failures, treat this as `Lost`.
    RetryBriefly,
    /// The stream cannot continue: the oplog no longer has this time, or an event cannot be read.
    Lost,
    /// This MongoDB has no change streams.
    Standalone,
}

impl Reading {
    /// The maximum number of events in a reply. Live: 0, so the first reply is empty and comes
    /// before MongoDB searches for events, and later ones hold all that are there, up to 16 MiB.
    /// The backfill reads small portions, which do not delay live events.
    const fn batch_size(self) -> u32 {
        match self {
            Self::Live => 0,
            Self::Backfill => 500,
        }
    }

    /// How long the server waits for an event before it sends an empty reply. So a quiet stream
    /// shows at this interval that it is alive.
    const fn max_await(self) -> Duration {
        match self {
            Self::Live => Duration::from_millis(500),
            Self::Backfill => Duration::from_millis(5),
        }
    }
}

impl ChangeStream {
    /// Opens the stream at the first event of the cluster time `from`, which may be in the future.
    pub async fn open(
        database: &Database,
        scope: Scope,
        from: Timestamp,
        reading: Reading,
    ) -> Result<Self, StreamError> {
        let stages = pipeline(scope, from);
        let messages = database.collection::<RawDocumentBuf>(MESSAGES);
        let aggregate = match scope {
            Scope::Database | Scope::Members => database.aggregate(stages),
            Scope::Messages => messages.aggregate(stages),
        };
        let cursor = aggregate
            .read_concern(ReadConcern::majority())
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .batch_size(reading.batch_size())
            .max_await_time(reading.max_await())
            .batch()
            .await?;
        Ok(Self { cursor, scope, from, last: None })
    }

    /// Which stream it is.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The next reply, without the events up to `published`; `None` when the server has closed the
    /// stream. Not cancel-safe: drop the stream if this future is dropped.
    pub async fn next(
        &mut self,
        published: Option<Position>,
    ) -> Option<Result<Reply, StreamError>> {
        let reply = self.cursor.next().await?;
        Some(match reply {
            Ok(batch) => self.read(batch.as_raw_document(), published),
            Err(error) => Err(error.into()),
        })
    }

    fn read(
        &mut self,
        reply: &RawDocument,
        published: Option<Position>,
    ) -> Result<Reply, StreamError> {
        let reply = read_reply(reply, self.from, self.last, published)?;
        self.last = reply.newest.or(self.last);
        self.from = reply.progress;
        Ok(reply)
    }
}

/// The fields of a message that an update changes and clients see.
const IN_EVENT: [&str; 6] = ["content", "__v", "updatedAt", "editedAt", "deletedAt", "deletedBy"];

/// The collection of the messages.
const MESSAGES: &str = "messages";

/// The stages of the pipeline: changes of documents, and events that end the stream of a
/// collection, each reduced to the fields that are read here.
fn pipeline(scope: Scope, from: Timestamp) -> Vec<Document> {
    let is_larger = |document| doc! { "$gt": [{ "$bsonSize": document }, LARGEST_DOCUMENT] };
    let updated = "$updateDescription.updatedFields";
    let is_large = doc! { "$or": [is_larger("$fullDocument"), is_larger(updated)] };
    let set =
        IN_EVENT.iter().map(|field| ((*field).to_owned(), format!("{updated}.{field}").into()));
    let set: Document = set.collect();
    let is_update = doc! { "$eq": ["$operationType", "update"] };
    let has_set = doc! { "$and": [is_update, { "$not": [&is_large] }] };
    let room_is_id = doc! { "$eq": [{ "$type": "$fullDocument.room" }, "objectId"] };
    let documents = doc! { "$in": ["insert", "update", "replace", "delete"] };
    let (rooms, members) = (own::ROOMS.collection, own::MEMBERS.collection);
    let messages = doc! { "ns.coll": MESSAGES, "operationType": documents };
    // Not the marker of the collection, whose `_id` is a text.
    let of_members = doc! {
        "ns.coll": members,
        "operationType": { "$in": ["insert", "delete"] },
        "documentKey._id.room": { "$exists": true },
    };
    // Events that end the stream must pass, or the stream would stall without a reason.
    let passes = match scope {
        Scope::Database => {
            // Nobody is a member any more when these collections are gone.
            let collections = doc! { "$in": [MESSAGES, members, rooms] };
            vec![
                messages,
                of_members,
                doc! { "ns.coll": rooms, "operationType": "replace" },
                doc! {
                    "ns.coll": own::MARKS.collection,
                    "operationType": { "$in": ["insert", "replace"] },
                    "documentKey._id.room": { "$exists": true },
                },
                doc! {
                    "ns.coll": own::PRESENCE.collection,
                    "operationType": { "$in": ["insert", "delete"] },
                    "documentKey._id.u": { "$exists": true },
                },
                doc! {
                    "ns.coll": own::REVOCATIONS.collection,
                    "operationType": { "$in": ["insert", "update", "replace"] },
                    "documentKey._id.user": { "$exists": true },
                },
                doc! { "ns.coll": &collections, "operationType": { "$in": ["drop", "rename"] } },
                doc! { "to.coll": collections, "operationType": "rename" },
                doc! { "operationType": { "$in": ["dropDatabase", "invalidate"] } },
            ]
        }
        Scope::Messages => {
            let ends = doc! { "$in": ["drop", "rename", "dropDatabase", "invalidate"] };
            vec![messages, doc! { "operationType": ends }]
        }
        Scope::Members => vec![of_members, doc! { "operationType": "invalidate" }],
    };
    vec![
        // An `update` event has only the changed fields, so MongoDB looks the document up.
        doc! { "$changeStream": { "startAtOperationTime": from, "fullDocument": "updateLookup" } },
        doc! { "$match": { "$or": passes } },
        doc! { "$project": {
            "operationType": 1,
            "clusterTime": 1,
            "ns.coll": 1,
            "documentKey": 1,
            "fullDocument": { "$cond": [&is_large, "$$REMOVE", "$fullDocument"] },
            "large": { "$cond": [
                &is_large,
                { "room": { "$cond": [room_is_id, "$fullDocument.room", null] } },
                "$$REMOVE",
            ] },
            "set": { "$cond": [has_set, set, "$$REMOVE"] },
        } },
    ]
}

/// Reads a reply of `aggregate` or `getMore`. `from` is the progress before it, `last` the
/// position of the last change that this stream has brought.
fn read_reply(
    reply: &RawDocument,
    from: Timestamp,
    last: Option<Position>,
    published: Option<Position>,
) -> Result<Reply, StreamError> {
    let cursor = reply.get_document("cursor").map_err(unreadable)?;
    let events = cursor.get_array("nextBatch").or_else(|_| cursor.get_array("firstBatch"));
    let mut read = Reply {
        changes: Vec::new(),
        newest: None,
        progress: from,
        cluster_time: from,
        ended: None,
        poison: Vec::new(),
    };
    let mut last = last;
    for event in events.map_err(unreadable)? {
        let event = event.map_err(unreadable)?;
        let event = event.as_document().ok_or_else(|| unreadable("an event is no document"))?;
        let time = event.get_timestamp("clusterTime").map_err(unreadable)?;
        read.progress = read.progress.max(time);
        match event.get_str("operationType").map_err(unreadable)? {
            operation @ ("insert" | "update" | "replace" | "delete") => {
                let collection = event.get_document("ns").and_then(|ns| ns.get_str("coll"));
                let collection = collection.unwrap_or_default();
                if collection == own::PRESENCE.collection {
                    read.take_presence(operation, event);
                    continue;
                }
                // Count every other change, even if it is not delivered, so that all instances
                // count alike.
                let position = position_after(last, time);
                // A change of a member and a mark are told twice: to the room, and to the user.
                let is_of_members = collection == own::MEMBERS.collection;
                let is_mark = collection == own::MARKS.collection;
                let is_told_twice = is_of_members || is_mark;
                let end = if is_told_twice { position.next_of_same_time() } else { position };
                last = Some(end);
                read.newest = last;
                if last > published {
                    if is_of_members {
                        read.take_member(event, [position, end]);
                    } else if is_mark {
                        read.take_mark(event, [position, end]);
                    } else if collection == own::ROOMS.collection {
                        read.take_room(event, position);
                    } else if collection == own::REVOCATIONS.collection {
                        read.take_revocation(event, position);
                    } else {
                        read.take(operation, event, position);
                    }
                }
            }
            _ => read.ended = read.ended.max(Some(time)),
        }
    }
    read.progress = read.progress.max(token_time(cursor).unwrap_or(from));
    read.cluster_time = cluster_time(reply).unwrap_or(read.progress);
    Ok(read)
}

impl Reply {
    fn take_member(&mut self, event: &RawDocument, positions: [Position; 2]) {
        let events = match event.get_document("fullDocument") {
            Ok(member) => {
                Membership::read(member).map(|member| Event::member_added(&member, Some(positions)))
            }
            Err(_) => Membership::removed(event)
                .map(|(room, user)| Event::member_removed(room, user, Some(positions))),
        };
        self.changes.extend(events.into_iter().flatten().map(Change::Event));
    }

    fn take_presence(&mut self, operation: &str, event: &RawDocument) {
        let Some(row) = PresenceRow::of_change(event) else { return };
        let change = match operation {
            "delete" => PresenceChange::Removed(row),
            _ => PresenceChange::Added(row),
        };
        self.changes.push(Change::Presence(change));
    }

    fn take_mark(&mut self, event: &RawDocument, positions: [Position; 2]) {
        let mark = event.get_document("fullDocument").ok().and_then(Mark::read);
        let events = mark.map(|mark| Event::read(&mark, Some(positions)));
        self.changes.extend(events.into_iter().flatten().map(Change::Event));
    }

    fn take_room(&mut self, event: &RawDocument, position: Position) {
        let room = event.get_document("fullDocument").ok().and_then(MembersRoom::read);
        if let Some(MembersRoom {
            id,
            kind: RoomKind::Private { name, owner },
            is_ended: false,
            ..
        }) = room
        {
            let changed = Event::room_changed(id, &name, owner, Some(position));
            self.changes.push(Change::Event(changed));
        }
    }

    fn take_revocation(&mut self, event: &RawDocument, position: Position) {
        let revocation = event.get_document("fullDocument").ok().and_then(Revocation::read);
        let revoked = revocation.map(|revocation| Event::revoked(Some(revocation), Some(position)));
        self.changes.extend(revoked.map(Change::Event));
    }

    fn take(&mut self, operation: &str, event: &RawDocument, position: Position) {
        match read_change(operation, event, position) {
            Ok(Some(change)) => self.changes.push(change),
            Ok(None) => {}
            Err(cause) => self.poison.push(Poison { position, cause }),
        }
    }
}

impl Change {
    /// Its position in the stream.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Event(event) => event.position(),
            Self::Removal(removal) => Some(removal.position()),
            Self::Presence(_) => None,
        }
    }
}

/// Reads a change of a document; `None` if nobody has to be told.
fn read_change(
    operation: &str,
    event: &RawDocument,
    position: Position,
) -> Result<Option<Change>, Malformed> {
    if operation == "delete" {
        let key = event.get_document("documentKey").map_err(|_| Malformed("documentKey"))?;
        return Ok(Removal::new(key, position).map(Change::Removal));
    }
    if let Ok(large) = event.get_document("large") {
        let room = large.get_object_id("room").map_err(|_| Malformed("room"))?;
        return Ok(Some(Change::Event(Event::resync(RoomId(room), Some(position)))));
    }
    let document = match event.get("fullDocument") {
        Ok(Some(RawBsonRef::Document(document))) => document,
        // The document was removed before MongoDB looked it up. Its `delete` event follows.
        _ if operation == "update" => return Ok(None),
        _ => return Err(Malformed("fullDocument")),
    };
    let event = match operation {
        "insert" => Event::inserted(document, Some(position))?,
        "update" if is_of_members(document) => match as_updated(event, document)? {
            Some(document) => Some(Event::changed(&document, Some(position))?),
            None => None,
        },
        _ => Some(Event::changed(document, Some(position))?),
    };
    Ok(event.map(Change::Event))
}

fn is_of_members(message: &RawDocument) -> bool {
    message.get_object_id("room").is_ok_and(|room| RoomId(room).may_have_members())
}

/// The message as this update left it; `None` if neither its text nor its deletion is of this
/// update. MongoDB looks the message up later, when it may have a text that was stored behind the
/// removal of a member who is to get this change.
fn as_updated(
    event: &RawDocument,
    found: &RawDocument,
) -> Result<Option<RawDocumentBuf>, Malformed> {
    let set = event.get_document("set").map_err(|_| Malformed("set"))?;
    let has = |field| matches!(set.get(field), Ok(Some(_)));
    if !has("content") {
        // A tombstone has no text.
        return Ok((has("deletedAt") && is_tombstone(found)).then(|| found.to_owned()));
    }
    let is_later = |field| ["editedAt", "deletedAt", "deletedBy"].contains(&field) || has(field);
    let mut updated = RawDocumentBuf::new();
    let kept = found.iter().flatten().filter(|(field, _)| !is_later(field.as_str()));
    for (field, value) in kept.chain(set.iter().flatten()) {
        updated.append(field, value);
    }
    Ok(Some(updated))
}

/// The position of a change at `time` that comes after one at `last`.
fn position_after(last: Option<Position>, time: Timestamp) -> Position {
    let first = Position::first_of(time.time, time.increment);
    match last {
        Some(last) if last.time() == first.time() => last.next_of_same_time(),
        _ => first,
    }
}

/// The cluster time up to which the server has searched the oplog, even if it found nothing. The
/// text of the token is opaque by contract, but since MongoDB 4.0 it begins with `82`, then seconds
/// and increment; other programs rely on this, too. If it ever changes, a quiet stream only seems
/// to stay at its last event.
fn token_time(cursor: &RawDocument) -> Option<Timestamp> {
    let token = cursor.get_document("postBatchResumeToken").ok()?.get_str("_data").ok()?;
    let time = token.strip_prefix("82")?;
    let number = |from, to| u32::from_str_radix(time.get(from..to)?, 16).ok();
    Some(Timestamp { time: number(0, 8)?, increment: number(8, 16)? })
}

fn cluster_time(reply: &RawDocument) -> Option<Timestamp> {
    reply.get_document("$clusterTime").ok()?.get_timestamp("clusterTime").ok()
}

/// The state of the cluster, as `hello` answers it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cluster {
    /// `false` for a standalone.
    pub has_change_streams: bool,
    /// The newest write that a majority has. No failover can roll it back.
    pub committed: Timestamp,
    /// The newest write.
    pub latest: Timestamp,
}

impl Cluster {
    /// Asks the primary.
    pub async fn ask(database: &Database) -> Result<Self, StreamError> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let hello = database.run_command(doc! { "hello": 1 }).selection_criteria(primary);
        Self::read(&hello.await?)
    }

    fn read(hello: &Document) -> Result<Self, StreamError> {
        let is_member = hello.contains_key("setName");
        let is_router = hello.get_str("msg").is_ok_and(|message| message == "isdbgrid");
        if !is_member && !is_router {
            if hello.get_bool("isreplicaset").unwrap_or(false) {
                return Err(StreamError::NotInitiated);
            }
            let never = Timestamp { time: 0, increment: 0 };
            return Ok(Self { has_change_streams: false, committed: never, latest: never });
        }
        let latest = hello.get_timestamp("operationTime").map_err(unreadable)?;
        let last_write = hello.get_document("lastWrite");
        let majority = last_write.and_then(|last| last.get_document("majorityOpTime"));
        let committed = majority.and_then(|last| last.get_timestamp("ts")).unwrap_or(latest);
        Ok(Self { has_change_streams: true, committed, latest })
    }
}

impl ErrorClass {
    /// Classifies an error of [`ChangeStream::open`] or [`ChangeStream::next`].
    pub fn of(error: &StreamError) -> Self {
        let error = match error {
            StreamError::Database(error) => error,
            StreamError::Unreadable(_) => return Self::RetryBriefly,
            StreamError::NotInitiated => return Self::Retry,
            StreamError::Standalone => return Self::Standalone,
        };
        let ErrorKind::Command(command) = error.kind.as_ref() else { return Self::Retry };
        match command.code {
            // "The $changeStream stage is only supported on replica sets".
            40573 => Self::Standalone,
            // CappedPositionLost, ChangeStreamFatalError, ChangeStreamHistoryLost,
            // BSONObjectTooLarge.
            136 | 280 | 286 | 10334 => Self::Lost,
            _ if error.contains_label("NonResumableChangeStreamError") => Self::Lost,
            _ if error.contains_label("ResumableChangeStreamError") => Self::Retry,
            _ => Self::RetryBriefly,
        }
    }
}

fn unreadable(cause: impl ToString) -> StreamError {
    StreamError::Unreadable(cause.to_string())
}

#[cfg(test)]
mod tests {
    use bson::{DateTime, cstr, oid::ObjectId, rawdoc};

    use super::*;

    fn time(time: u32, increment: u32) -> Timestamp {
        Timestamp { time, increment }
    }

    fn insert(at: Timestamp) -> RawDocumentBuf {
        let id = ObjectId::new();
        let message = rawdoc! { "_id": id, "room": id, "sender": id, "content": "x" };
        rawdoc! { "operationType": "insert", "clusterTime": at, "fullDocument": message }
    }

    fn reply(events: Vec<RawDocumentBuf>, token: &str) -> RawDocumentBuf {
        let mut batch = bson::RawArrayBuf::new();
        events.into_iter().for_each(|event| batch.push(event));
        rawdoc! {
            "cursor": { "nextBatch": batch, "postBatchResumeToken": { "_data": token } },
            "$clusterTime": { "clusterTime": time(50, 1) },
        }
    }

    fn texts(reply: &Reply) -> Vec<String> {
        reply.changes.iter().map(|change| change.position().unwrap().to_string()).collect()
    }

    #[test]
    fn an_update_in_a_room_with_members_has_the_text_of_its_position() {
        let id = ObjectId::new();
        let private: ObjectId = "6b0bd1279c726f6f6d000001".parse().unwrap();
        let update = |room: ObjectId, set: RawDocumentBuf, later: Option<&str>| {
            let mut found = rawdoc! { "_id": id, "room": room, "__v": 2 };
            match later {
                Some(text) => found.append(cstr!("content"), text),
                None => {
                    found.append(cstr!("content"), "");
                    found.append(cstr!("deletedAt"), DateTime::now());
                    found.append(cstr!("deletedBy"), id);
                }
            }
            let event = rawdoc! {
                "operationType": "update", "clusterTime": time(7, 1), "fullDocument": found,
                "set": set,
            };
            let read = read_reply(&reply(vec![event], "8200"), time(7, 0), None, None).unwrap();
            assert_eq!(read.newest, Some(Position::first_of(7, 1)), "it counts in any case");
            let [Change::Event(event)] = &*read.changes else { return None };
            Some(event.encode(crate::feed::event::Wire::Plain).to_string())
        };
        let now = || rawdoc! { "content": "now", "__v": 1 };
        for later in [Some("later"), None] {
            let changed = update(private, now(), later).unwrap();
            assert!(changed.contains("messageEdited"), "{changed}");
            assert!(changed.contains(r#""content":"now""#) && changed.contains(r#""__v":1"#));
            assert!(!changed.contains("later") && !changed.contains("deletedAt"), "{changed}");
        }
        assert_eq!(update(private, rawdoc! { "__v": 1 }, Some("later")), None);
        let deletion = || rawdoc! { "deletedAt": DateTime::now(), "deletedBy": id };
        assert!(update(private, deletion(), None).unwrap().contains("messageDeleted"));
        assert_eq!(update(private, deletion(), Some("later")), None);
        let mut deleted = deletion();
        deleted.append(cstr!("content"), "");
        assert!(update(private, deleted, Some("later")).unwrap().contains("messageDeleted"));
        assert!(update(id, now(), Some("later")).unwrap().contains("later"));
    }

    #[test]
    fn inserts_of_one_cluster_time_are_counted_in_stream_order() {
        let shared = time(7, 2);
        let events = vec![insert(time(7, 1)), insert(shared), insert(shared)];
        let first = read_reply(&reply(events, "8200"), time(7, 0), None, None).unwrap();
        assert_eq!(texts(&first), ["7.1", "7.2", "7.2.1"]);
        // The count goes on in the next reply.
        let events = vec![insert(shared), insert(time(7, 3))];
        let second =
            read_reply(&reply(events, "8200"), first.progress, first.newest, None).unwrap();
        assert_eq!(texts(&second), ["7.2.2", "7.3"]);
    }

    #[test]
    fn undelivered_changes_are_counted_too() {
        let shared = time(7, 2);
        let poison = rawdoc! {
            "operationType": "insert", "clusterTime": shared, "fullDocument": { "content": 5 },
        };
        let room = ObjectId::new();
        let large = rawdoc! {
            "operationType": "insert", "clusterTime": shared, "large": { "room": room },
        };
        let large_poison = rawdoc! {
            "operationType": "insert", "clusterTime": shared, "large": { "room": null },
        };
        let events = vec![poison, large, large_poison, insert(shared)];
        let reply = read_reply(&reply(events, "8200"), shared, None, None).unwrap();
        assert_eq!(texts(&reply), ["7.2.1", "7.2.3"]);
        let Change::Event(first) = &reply.changes[0] else { panic!("{:?}", reply.changes) };
        assert!(first.is_resync() && first.room() == RoomId(room));
        assert_eq!(reply.poison.len(), 2);
    }

    #[test]
    fn published_changes_are_skipped_by_position() {
        let shared = time(7, 2);
        let events = vec![insert(shared), insert(shared), insert(shared)];
        let published = Some(Position::first_of(7, 2).next_of_same_time());
        let reply = read_reply(&reply(events, "8200"), shared, None, published).unwrap();
        assert_eq!(texts(&reply), ["7.2.2"]);
    }

    #[test]
    fn an_empty_reply_shows_progress() {
        let token = "8200000009000000032B0229296E04";
        let empty = read_reply(&reply(vec![], token), time(7, 1), None, None).unwrap();
        assert_eq!((empty.progress, empty.cluster_time), (time(9, 3), time(50, 1)));
        for unknown in ["", "82", "82000000", "8200000009zzzzzzzz", "9900000009000000032B"] {
            let empty = read_reply(&reply(vec![], unknown), time(7, 1), None, None).unwrap();
            assert_eq!(empty.progress, time(7, 1), "{unknown:?}");
        }
        // A stream that was opened in the future does not go back.
        let empty = read_reply(&reply(vec![], token), time(10, 1), None, None).unwrap();
        assert_eq!(empty.progress, time(10, 1));
    }

    #[test]
    fn the_end_of_the_collection_ends_the_stream() {
        let at = time(8, 1);
        let end = |operation| rawdoc! { "operationType": operation, "clusterTime": at };
        let events = vec![insert(time(7, 1)), end("drop"), end("invalidate")];
        let reply = read_reply(&reply(events, "8200"), time(7, 0), None, None).unwrap();
        assert_eq!((texts(&reply).len(), reply.ended), (1, Some(at)));
    }

    #[test]
    fn an_answer_of_another_shape_is_an_error() {
        let answers = [
            rawdoc! {},
            rawdoc! { "cursor": 1 },
            rawdoc! { "cursor": { "nextBatch": [5] } },
            rawdoc! { "cursor": { "nextBatch": [{}] } },
            rawdoc! { "cursor": { "nextBatch": [{ "clusterTime": time(1, 1) }] } },
        ];
        for answer in answers {
            assert!(read_reply(&answer, time(1, 1), None, None).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn hello_shows_the_kind_of_server() {
        let standalone = Cluster::read(&doc! { "isWritablePrimary": true }).unwrap();
        assert!(!standalone.has_change_streams);
        let member = doc! {
            "setName": "rs0", "operationTime": time(9, 2),
            "lastWrite": { "majorityOpTime": { "ts": time(9, 1), "t": 1_i64 } },
        };
        let member = Cluster::read(&member).unwrap();
        assert_eq!((member.committed, member.latest), (time(9, 1), time(9, 2)));
        let router = doc! { "msg": "isdbgrid", "operationTime": time(9, 2) };
        assert_eq!(Cluster::read(&router).unwrap().committed, time(9, 2));
        let waiting = Cluster::read(&doc! { "isreplicaset": true });
        assert!(matches!(waiting, Err(StreamError::NotInitiated)));
    }
}
