//! What the database has in the end: the change stream and the collections.
//!
//! This reads the change stream independently of the server, and counts positions by the same rule.

use std::collections::{HashMap, HashSet};

use bson::{Bson, Document, Timestamp, doc};
use mongodb::Database;
use mongodb::change_stream::event::{ChangeStreamEvent, OperationType};
use realtime_chat_backend::feed::position::Position;
use tokio::time::timeout;

use crate::transcript::Text;
use crate::wire::{Change, Told};

/// The collections of the members of private rooms, of these rooms, of revoked tokens, and of read
/// marks.
pub const MEMBERS: &str = "realtime_chat_backend_members";
const ROOMS: &str = "realtime_chat_backend_rooms";
const REVOCATIONS: &str = "realtime_chat_backend_revocations";
const MARKS: &str = "realtime_chat_backend_marks";
/// Only this program writes to this collection, when everything else is written.
const MARK: &str = "chaos";

/// What the database has.
pub struct Stored {
    /// The changes that members are told, in the order of the change stream.
    pub changes: Vec<Place>,
    /// Messages that were stored after their sender was removed from the room.
    pub refused: HashSet<String>,
    /// Messages that were removed from the collection.
    pub removed: HashSet<String>,
    /// The final messages of each room.
    pub texts: HashMap<String, HashMap<String, Text>>,
    private: HashSet<String>,
    /// The changes of each member of a private room, by room and user.
    memberships: HashMap<(String, String), Vec<MemberChange>>,
    /// When all tokens of a user were revoked that were issued before a second since 1970.
    revocations: HashMap<String, Vec<(Position, u64)>>,
    /// The message up to which each user has read each room, by room and user.
    marks: HashMap<(String, String), String>,
    /// Marks that went back.
    pub backward: Vec<String>,
}

/// A change in the stream.
#[derive(Debug, Clone)]
pub struct Place {
    pub told: Told,
    pub position: Position,
}

#[derive(Debug)]
struct MemberChange {
    position: Position,
    /// For an addition: when it was requested at the earliest, in milliseconds since 1970.
    added: Option<u64>,
}

impl Stored {
    /// Reads everything since a cluster time.
    pub async fn read(database: &Database, since: Timestamp) -> Self {
        let mut stored = Self {
            changes: Vec::new(),
            refused: HashSet::new(),
            removed: HashSet::new(),
            texts: read_texts(database).await,
            private: HashSet::new(),
            memberships: HashMap::new(),
            revocations: HashMap::new(),
            marks: HashMap::new(),
            backward: Vec::new(),
        };
        database.collection::<Document>(MARK).insert_one(doc! {}).await.unwrap();
        let ours = ["messages", MEMBERS, ROOMS, REVOCATIONS, MARKS, MARK];
        let ours = doc! { "$match": { "ns.coll": { "$in": ours.as_slice() } } };
        let stream = database.watch().pipeline([ours]).start_at_operation_time(since);
        let mut stream = stream.await.unwrap();
        let mut last = None;
        let reading = async {
            loop {
                let Some(event) = stream.next_if_any().await.unwrap() else { continue };
                let collection = event.ns.as_ref().and_then(|ns| ns.coll.clone());
                match collection.as_deref() {
                    Some(MARK) => return,
                    Some(MEMBERS) => stored.take_member(event, &mut last),
                    Some(MARKS) => stored.take_mark(event, &mut last),
                    Some(REVOCATIONS) => stored.take_revocation(event, &mut last),
                    Some(ROOMS) if event.operation_type != OperationType::Replace => {}
                    Some(ROOMS) => _ = next_position(&event, &mut last),
                    _ => stored.take_message(event, &mut last),
                }
            }
        };
        timeout(crate::CALM, reading).await.expect("the change stream has all that is stored");
        stored
    }

    fn take_message(&mut self, event: ChangeStreamEvent<Document>, last: &mut Option<Position>) {
        let position = next_position(&event, last);
        if event.operation_type == OperationType::Delete {
            let key = event.document_key.expect("a removal has a key");
            self.removed.insert(hex(&key, "_id"));
            return;
        }
        let document = event.full_document.expect("messages are inserted and replaced");
        let (is_new, text) = (event.operation_type == OperationType::Insert, text_of(&document));
        let told = Told {
            change: match text.content {
                None => Change::Deleted,
                Some(_) if is_new => Change::Sent,
                Some(_) => Change::Edited,
            },
            room: hex(&document, "room"),
            id: hex(&document, "_id"),
            content: text.content.unwrap_or_default(),
            version: text.version,
        };
        let sender = hex(&document, "sender");
        if told.change == Change::Sent && !self.is_member(&told.room, &sender, position) {
            self.refused.insert(told.id);
        } else {
            // After it was taken back, it can be sent again.
            if told.change == Change::Sent {
                self.refused.remove(&told.id);
            }
            self.changes.push(Place { told, position });
        }
    }

    fn take_member(&mut self, event: ChangeStreamEvent<Document>, last: &mut Option<Position>) {
        let id = event.document_key.as_ref().and_then(|key| key.get_document("_id").ok());
        // The marker of the collection has another id.
        let Some(id) = id else { return };
        let (room, user) = (hex(id, "room"), hex(id, "user"));
        let position = next_position(&event, last);
        // The event for the sessions of the user has the next one.
        *last = Some(position.next_of_same_time());
        let added = event
            .full_document
            .map(|member| member.get_datetime("joinedAt").unwrap().timestamp_millis() as u64);
        let change = if added.is_some() { Change::MemberAdded } else { Change::MemberRemoved };
        self.private.insert(room.clone());
        let changes = self.memberships.entry((room.clone(), user.clone())).or_default();
        changes.push(MemberChange { position, added });
        self.changes.push(Place { told: Told::of_member(change, room, user), position });
    }

    fn take_revocation(&mut self, event: ChangeStreamEvent<Document>, last: &mut Option<Position>) {
        let id = event.document_key.as_ref().and_then(|key| key.get_document("_id").ok());
        // The marker of the collection has another id.
        let Some(id) = id else { return };
        let user = hex(id, "user");
        let position = next_position(&event, last);
        let updated = event.update_description.map(|update| update.updated_fields);
        let revocation = event.full_document.or(updated).expect("revocations are not removed");
        let before = revocation.get_i64("before").unwrap() as u64;
        self.revocations.entry(user).or_default().push((position, before));
    }

    fn take_mark(&mut self, event: ChangeStreamEvent<Document>, last: &mut Option<Position>) {
        let id = event.document_key.as_ref().and_then(|key| key.get_document("_id").ok());
        // The marker of the collection has another id.
        let Some(id) = id else { return };
        let (room, user) = (hex(id, "room"), hex(id, "user"));
        let position = next_position(&event, last);
        // The event for the sessions of the user has the next one.
        *last = Some(position.next_of_same_time());
        let message =
            hex(&event.full_document.expect("marks are inserted and replaced"), "message");
        let told = Told::of_mark(room.clone(), &user, &message);
        // The members are not told of a mark that is stored after its user was removed.
        if self.is_member(&room, &user, position) {
            self.changes.push(Place { told, position });
        }
        let before = self.marks.insert((room, user), message.clone());
        if before.as_ref().is_some_and(|before| *before >= message) {
            self.backward.push(format!("a mark went from {before:?} to {message} at {position}"));
        }
    }

    /// The message up to which a user has read a room.
    pub fn mark(&self, room: &str, user: &str) -> Option<&str> {
        self.marks.get(&(room.to_owned(), user.to_owned())).map(String::as_str)
    }

    /// How often all tokens of a user were revoked.
    pub fn revocations(&self) -> usize {
        self.revocations.values().map(Vec::len).sum()
    }

    /// Where a user's token was revoked that was issued in a second since 1970.
    pub fn revoked(&self, user: &str, issued: u64) -> Option<Position> {
        let revocations = self.revocations.get(user)?.iter();
        let mut covering = revocations.filter(|(_, before)| issued < *before);
        covering.next().map(|(position, _)| *position)
    }

    /// Whether only members may see this room.
    pub fn is_private(&self, room: &str) -> bool {
        self.private.contains(room)
    }

    /// Whether a user could send to a room at a position.
    pub fn is_member(&self, room: &str, user: &str, position: Position) -> bool {
        !self.is_private(room)
            || self
                .member_changes(room, user)
                .iter()
                .rev()
                .find(|change| change.position <= position)
                .is_some_and(|change| change.added.is_some())
    }

    /// Whether a user could see a change of a room at a time, in milliseconds since 1970: as a
    /// member at its position, or because the user was added again later.
    pub fn may_see(&self, room: &str, user: &str, position: Position, at: u64) -> bool {
        let changes = self.member_changes(room, user);
        let is_own_removal = changes.iter().any(|change| change.position == position);
        let mut later = changes.iter().filter(|change| change.position > position);
        self.is_member(room, user, position)
            || is_own_removal
            || later.any(|change| change.added.is_some_and(|added| added <= at))
    }

    fn member_changes(&self, room: &str, user: &str) -> &[MemberChange] {
        let key = (room.to_owned(), user.to_owned());
        self.memberships.get(&key).map_or(&[], Vec::as_slice)
    }
}

/// The position of the next change, which the server counts.
fn next_position(event: &ChangeStreamEvent<Document>, last: &mut Option<Position>) -> Position {
    let Timestamp { time, increment } = event.cluster_time.expect("a change has a cluster time");
    let first = Position::first_of(time, increment);
    let position = match *last {
        Some(last) if last.time() == first.time() => last.next_of_same_time(),
        _ => first,
    };
    *last = Some(position);
    position
}

async fn read_texts(database: &Database) -> HashMap<String, HashMap<String, Text>> {
    let mut texts: HashMap<_, HashMap<_, _>> = HashMap::new();
    let mut messages = database.collection::<Document>("messages").find(doc! {}).await.unwrap();
    while messages.advance().await.unwrap() {
        let document = messages.deserialize_current().unwrap();
        let room = texts.entry(hex(&document, "room")).or_default();
        room.insert(hex(&document, "_id"), text_of(&document));
    }
    texts
}

fn hex(document: &Document, key: &str) -> String {
    document.get_object_id(key).unwrap().to_hex()
}

/// The text of a message. An event of a deletion has no version.
fn text_of(message: &Document) -> Text {
    if !matches!(message.get("deletedAt"), None | Some(Bson::Null)) {
        return Text { version: 0, content: None };
    }
    Text {
        version: message.get_i32("__v").unwrap().into(),
        content: Some(message.get_str("content").unwrap().to_owned()),
    }
}
