//! The events that sessions send to clients: a message was stored, edited or deleted, or messages
//! of a room may have been missed (`resync`).
//!
//! All workers share an [`Event`] in the ring, which holds its JSON once. Each worker encodes the
//! frames of each wire once for all of its members ([`Delivery`]), and drops them when the last of
//! them is written. So the ring keeps one text for each event, not one for each wire.

use std::{
    cell::OnceCell,
    fmt::Write,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bson::{DateTime, RawBsonRef, RawDocument, RawDocumentBuf, oid::ObjectId};
use bytestring::ByteString;

use super::position::Position;
use crate::{
    models::{
        Mark, Membership, Message, Revocation, RoomId, UserId, message::Malformed,
        revision::is_tombstone,
    },
    mongoose::Hydrated,
    views,
};

/// One event of one room.
#[derive(Debug)]
pub struct Event {
    kind: Kind,
    room: RoomId,
    /// The message; `None` for an event about no message.
    message: Option<MessageKey>,
    /// The sender of a message, the member who was added or removed, or the user who has read.
    user: Option<UserId>,
    /// `None` on a standalone MongoDB, which has no change stream.
    position: Option<Position>,
    /// The JSON of the event's data; empty for a `resync`, whose data is written when it is sent.
    data: Box<str>,
    /// What is revoked by a [`Kind::Revoked`].
    revocation: Option<Box<Revocation>>,
    /// The message was deleted later, so this event and its text are no longer delivered.
    withdrawn: AtomicBool,
}

/// The kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `receiveMessage`: a message was stored; the data is the message.
    Message,
    /// `messageEdited`: a message was replaced; the data is the message as it is now.
    Edited,
    /// `messageDeleted`: the data is `{room, message, deletedAt}`.
    Deleted,
    /// `memberAdded`: the data is `{room, user: {_id, username}}`.
    MemberAdded,
    /// `memberRemoved`: the data is `{room, user}`. Behind it that user is given nothing of the
    /// room.
    MemberRemoved,
    /// `roomChanged`: the data is `{room, name, owner}`.
    RoomChanged,
    /// `roomAdded`, to all sessions of the user who was added to a room: the data is `{room}`.
    RoomAdded,
    /// `roomRemoved`, to all sessions of the user who was removed from a room: the data is
    /// `{room}`.
    RoomRemoved,
    /// `messageRead`, to the members of the room: the data is `{room, user, message}`.
    Read,
    /// `messageRead`, to all sessions of the user who has read.
    OwnRead,
    /// `typing`: a user types; the data is `{room, user: {_id, username}}`.
    Typing,
    /// `stopTyping`: a user does not type any more; the data is `{room, user}`.
    StopTyping,
    /// `userOnline`, to those who watch the user: the data is `{user}`.
    UserOnline,
    /// `userOffline`, to those who watch the user: the data is `{user, lastSeen}`.
    UserOffline,
    /// `resync`: messages may have been missed, so the client fetches the history; the data is
    /// `{room, position}`.
    Resync,
    /// Tokens were revoked. No client is told; the sessions of these tokens end here.
    Revoked,
}

/// The `_id` of a message, whatever its type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MessageKey {
    /// An id of this server or of the Node server.
    Id(ObjectId),
    /// An id of another type: the bytes of a document with this value as its only field.
    Other(Box<[u8]>),
}

/// A message that another program removed from the collection. The change does not name its room.
#[derive(Debug)]
pub struct Removal {
    key: MessageKey,
    /// The `_id` of the message as JSON.
    id: Box<str>,
    position: Position,
}

/// How a frame is encoded. The text is complete: a WebSocket sends it unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Plain WebSocket: `{"event":"receiveMessage","data":{…},"position":"…"}`.
    Plain,
    /// Socket.IO, in Engine.IO's message packet: `42["receiveMessage",{…}]`.
    SocketIo,
    /// Socket.IO with the offset as the last argument, for a client that asked for it:
    /// `42["receiveMessage",{…},"<offset>"]`.
    SocketIoOffset,
}

impl Kind {
    /// The event's name on every wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Message => "receiveMessage",
            Self::Edited => "messageEdited",
            Self::Deleted => "messageDeleted",
            Self::MemberAdded => "memberAdded",
            Self::MemberRemoved => "memberRemoved",
            Self::RoomChanged => "roomChanged",
            Self::RoomAdded => "roomAdded",
            Self::RoomRemoved => "roomRemoved",
            Self::Read | Self::OwnRead => "messageRead",
            Self::Typing => "typing",
            Self::StopTyping => "stopTyping",
            Self::UserOnline => "userOnline",
            Self::UserOffline => "userOffline",
            Self::Resync => "resync",
            Self::Revoked => "revoked",
        }
    }
}

impl MessageKey {
    fn of(id: RawBsonRef<'_>) -> Self {
        match id {
            RawBsonRef::ObjectId(id) => Self::Id(id),
            other => {
                let mut document = RawDocumentBuf::new();
                document.append(bson::cstr!(""), other);
                Self::Other(document.as_bytes().into())
            }
        }
    }

    fn of_document(document: &RawDocument) -> Option<Self> {
        document.get("_id").ok().flatten().map(Self::of)
    }
}

impl Removal {
    /// The removal of the document with this key (`{_id}`) at this position. `None` for an `_id`
    /// that no client can know.
    pub fn new(key: &RawDocument, position: Position) -> Option<Self> {
        let id = text(|json| views::message_id(json, key));
        if &*id == "null" {
            return None;
        }
        Some(Self { key: MessageKey::of_document(key)?, id, position })
    }

    /// The removed message.
    pub fn key(&self) -> &MessageKey {
        &self.key
    }

    /// Its position in the stream.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The event `messageDeleted` for the members of the message's room.
    pub fn in_room(self, room: RoomId) -> Event {
        let at = DateTime::from_millis(i64::from(self.position.seconds()) * 1000);
        let data = text(|json| views::deletion(json, room, &self.id, at));
        Event::new(Kind::Deleted, room, Some(self.key), Some(self.position), data)
    }
}

impl Event {
    fn new(
        kind: Kind,
        room: RoomId,
        message: Option<MessageKey>,
        position: Option<Position>,
        data: Box<str>,
    ) -> Self {
        let withdrawn = AtomicBool::new(false);
        Self { kind, room, message, user: None, position, data, revocation: None, withdrawn }
    }

    fn of_user(self, user: Option<UserId>) -> Self {
        Self { user, ..self }
    }

    /// The two events of a member who was added: for the members of the room, and for the sessions
    /// of that user.
    pub fn member_added(member: &Membership, positions: Option<[Position; 2]>) -> [Self; 2] {
        let (room, user) = (member.room, member.user);
        let data = text(|json| views::member_added(json, member));
        Self::of_membership([Kind::MemberAdded, Kind::RoomAdded], room, user, positions, data)
    }

    /// The two events of a member who was removed.
    pub fn member_removed(
        room: RoomId,
        user: UserId,
        positions: Option<[Position; 2]>,
    ) -> [Self; 2] {
        let data = text(|json| views::member_removed(json, room, user));
        Self::of_membership([Kind::MemberRemoved, Kind::RoomRemoved], room, user, positions, data)
    }

    fn of_membership(
        [of_room, of_user]: [Kind; 2],
        room: RoomId,
        user: UserId,
        positions: Option<[Position; 2]>,
        data: Box<str>,
    ) -> [Self; 2] {
        let [first, second] = positions.map_or([None, None], |[a, b]| [Some(a), Some(b)]);
        let alone = text(|json| views::room_alone(json, room));
        [
            Self::new(of_room, room, None, first, data).of_user(Some(user)),
            Self::new(of_user, user.own_room(), None, second, alone).of_user(Some(user)),
        ]
    }

    /// A private room has another name or owner.
    pub fn room_changed(
        room: RoomId,
        name: &str,
        owner: UserId,
        position: Option<Position>,
    ) -> Self {
        let data = text(|json| views::room_changed(json, room, name, owner));
        Self::new(Kind::RoomChanged, room, None, position, data)
    }

    /// The two events of a user who has read: for the members of the room, and for the sessions of
    /// that user.
    pub fn read(mark: &Mark, positions: Option<[Position; 2]>) -> [Self; 2] {
        let (room, user) = (mark.room, Some(mark.user));
        let [first, second] = positions.map_or([None, None], |[a, b]| [Some(a), Some(b)]);
        let data = text(|json| views::message_read(json, mark));
        let own = Self::new(Kind::OwnRead, mark.user.own_room(), None, second, data.clone());
        [Self::new(Kind::Read, room, None, first, data).of_user(user), own.of_user(user)]
    }

    /// A user types.
    pub fn typing(room: RoomId, user: UserId, name: Option<&str>) -> Self {
        let data = text(|json| views::typing(json, room, user, name));
        Self::new(Kind::Typing, room, None, None, data).of_user(Some(user))
    }

    /// A user does not type any more.
    pub fn stopped_typing(room: RoomId, user: UserId) -> Self {
        let data = text(|json| views::member_removed(json, room, user));
        Self::new(Kind::StopTyping, room, None, None, data).of_user(Some(user))
    }

    /// A user came.
    pub fn user_online(user: UserId) -> Self {
        let data = text(|json| views::user_online(json, user));
        Self::new(Kind::UserOnline, user.own_room(), None, None, data).of_user(Some(user))
    }

    /// A user went.
    pub fn user_offline(user: UserId, last_seen: Option<DateTime>) -> Self {
        let data = text(|json| views::user_offline(json, user, last_seen));
        Self::new(Kind::UserOffline, user.own_room(), None, None, data).of_user(Some(user))
    }

    /// A message that was stored.
    pub fn message(message: &Message<'_>, position: Option<Position>) -> Self {
        let mut json = Vec::with_capacity(message.content.len() + 256);
        views::message(&mut json, message);
        let json = String::from_utf8(json).expect("views write UTF-8");
        let key = MessageKey::Id(message.id.0);
        Self::new(Kind::Message, message.room, Some(key), position, json.into())
            .of_user(Some(message.sender))
    }

    /// The event of an inserted document: `receiveMessage`. A document that is not an ordinary
    /// message is cast as in the history. `None` for a tombstone that another program has inserted
    /// again.
    ///
    /// # Errors
    /// The document has no valid room.
    pub fn inserted(
        document: &RawDocument,
        position: Option<Position>,
    ) -> Result<Option<Self>, Malformed> {
        if let Some(message) = Message::ordinary(document) {
            return Ok(Some(Self::message(&message, position)));
        }
        if is_tombstone(document) {
            return Ok(None);
        }
        Self::live(Kind::Message, document, position).map(Some)
    }

    /// The event of a replaced or updated document: `messageEdited`, or `messageDeleted` for a
    /// tombstone.
    ///
    /// # Errors
    /// The document has no valid room.
    pub fn changed(document: &RawDocument, position: Option<Position>) -> Result<Self, Malformed> {
        if !is_tombstone(document) {
            return Self::live(Kind::Edited, document, position);
        }
        let room = Hydrated::message(document).id("room").ok_or(Malformed("room"))?;
        let at = document.get_datetime("deletedAt").map_err(|_| Malformed("deletedAt"))?;
        let id = text(|json| views::message_id(json, document));
        let data = text(|json| views::deletion(json, RoomId(room), &id, at));
        let key = MessageKey::of_document(document);
        Ok(Self::new(Kind::Deleted, RoomId(room), key, position, data))
    }

    fn live(
        kind: Kind,
        document: &RawDocument,
        position: Option<Position>,
    ) -> Result<Self, Malformed> {
        let mut json = Vec::new();
        let message = Hydrated::message(document);
        let room = views::live_document(&mut json, &message).ok_or(Malformed("room"))?;
        let json = String::from_utf8(json).expect("views write UTF-8");
        let key = MessageKey::of_document(document);
        let sender = message.id("sender").map(UserId);
        Ok(Self::new(kind, room, key, position, json.into()).of_user(sender))
    }

    /// Messages of `room` up to `position` may have been missed.
    pub fn resync(room: RoomId, position: Option<Position>) -> Self {
        Self::new(Kind::Resync, room, None, position, Box::default())
    }

    /// Tokens of a user were revoked; `None`: any may have been, so every session is checked.
    pub fn revoked(revocation: Option<Revocation>, position: Option<Position>) -> Self {
        let room = revocation
            .map_or(RoomId(ObjectId::from_bytes([0; 12])), |revocation| revocation.user.own_room());
        let event = Self::new(Kind::Revoked, room, None, position, Box::default());
        Self { revocation: revocation.map(Box::new), ..event }
    }

    /// What is revoked by an event of [`Kind::Revoked`].
    pub fn revocation(&self) -> Option<&Revocation> {
        self.revocation.as_deref()
    }

    /// The kind of event.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The sender of a message, the member who was added or removed, or the user who has read.
    pub fn user(&self) -> Option<UserId> {
        self.user
    }

    /// Whether this is for all sessions of a user, whatever rooms they are in.
    pub fn is_of_user(&self) -> bool {
        matches!(self.kind, Kind::RoomAdded | Kind::RoomRemoved | Kind::OwnRead)
    }

    /// Whether this has no place in the stream: it is passed on at once and never kept.
    pub fn is_signal(&self) -> bool {
        matches!(self.kind, Kind::Typing | Kind::StopTyping | Kind::UserOnline | Kind::UserOffline)
    }

    /// The user whose sessions are told the same by another event, and are not told by this one.
    pub fn passes_over(&self) -> Option<UserId> {
        self.user.filter(|_| self.kind == Kind::Read)
    }

    /// The user who is given nothing of the room behind this.
    pub fn removes(&self) -> Option<UserId> {
        self.user.filter(|_| self.kind == Kind::MemberRemoved)
    }

    /// The message; `None` for an event about no message.
    pub fn key(&self) -> Option<&MessageKey> {
        self.message.as_ref()
    }

    /// Whether this event has the text of a message.
    pub fn has_text(&self) -> bool {
        matches!(self.kind, Kind::Message | Kind::Edited)
    }

    /// Marks this event as withdrawn if it has the text of a message: the message was deleted, and
    /// this event is not delivered any more.
    pub fn withdraw(&self) {
        if self.has_text() {
            self.withdrawn.store(true, Ordering::Relaxed);
        }
    }

    /// Whether this event must not be delivered.
    pub fn is_withdrawn(&self) -> bool {
        self.kind == Kind::Revoked || self.withdrawn.load(Ordering::Relaxed)
    }

    /// The room whose members get this event.
    pub fn room(&self) -> RoomId {
        self.room
    }

    /// Its position in the stream; `None` on a standalone MongoDB.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether this is a `resync`.
    pub fn is_resync(&self) -> bool {
        self.kind == Kind::Resync
    }

    /// The length of its JSON, in bytes.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether it has no JSON.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frame for `wire`, with the event's position as the offset.
    pub fn encode(&self, wire: Wire) -> ByteString {
        match (wire, self.position) {
            (Wire::Plain, _) => self.encode_plain(),
            (Wire::SocketIoOffset, Some(position)) => self.encode_with_offset(position),
            (Wire::SocketIo | Wire::SocketIoOffset, _) => self.encode_socket_io(|_| Ok(())),
        }
    }

    /// The Socket.IO frame with the offset of one session.
    pub fn encode_with_offset(&self, offset: impl std::fmt::Display) -> ByteString {
        self.encode_socket_io(|text| write!(text, ",\"{offset}\""))
    }

    fn encode_plain(&self) -> ByteString {
        let mut text = String::with_capacity(self.len() + 112);
        let position = self.position.filter(|_| !self.is_resync());
        let written = write!(text, r#"{{"event":"{}","data":"#, self.kind.name())
            .and_then(|()| self.write_data(&mut text))
            .and_then(|()| match position {
                Some(position) => write!(text, r#","position":"{position}"}}"#),
                None => text.write_char('}'),
            });
        written.expect(STRINGS_GROW);
        text.into()
    }

    fn encode_socket_io(
        &self,
        write_offset: impl FnOnce(&mut String) -> std::fmt::Result,
    ) -> ByteString {
        let mut text = String::with_capacity(self.len() + 112);
        let written = write!(text, r#"42["{}","#, self.kind.name())
            .and_then(|()| self.write_data(&mut text))
            .and_then(|()| write_offset(&mut text))
            .and_then(|()| text.write_char(']'));
        written.expect(STRINGS_GROW);
        text.into()
    }

    fn write_data(&self, text: &mut String) -> std::fmt::Result {
        if !self.is_resync() {
            return text.write_str(&self.data);
        }
        write!(text, r#"{{"room":"{}","position":"#, self.room)?;
        match self.position {
            Some(position) => write!(text, r#""{position}"}}"#),
            None => text.write_str("null}"),
        }
    }
}

/// Runs a view and returns its JSON.
fn text(write: impl FnOnce(&mut Vec<u8>)) -> Box<str> {
    let mut json = Vec::new();
    write(&mut json);
    String::from_utf8(json).expect("views write UTF-8").into()
}

const STRINGS_GROW: &str = "writing to a string cannot fail";

/// The Socket.IO frame with only an offset, `42["position","<offset>"]`. The offset covers
/// everything that was written before it. socket.io-client stores the last argument of any event as
/// its offset, if that argument is a string.
pub fn encode_offset(offset: impl std::fmt::Display) -> ByteString {
    format!(r#"42["position","{offset}"]"#).into()
}

/// An event for the members of one worker, with the frames that they share.
#[derive(Debug)]
pub struct Delivery {
    event: Arc<Event>,
    frames: [OnceCell<ByteString>; 3],
    offset_frame: OnceCell<ByteString>,
}

impl Delivery {
    /// An event without frames yet.
    pub fn new(event: Arc<Event>) -> Rc<Self> {
        Rc::new(Self { event, frames: Default::default(), offset_frame: OnceCell::new() })
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The frame for `wire`, encoded when the first member asks for it.
    pub fn frame(&self, wire: Wire) -> ByteString {
        let [plain, socket_io, socket_io_offset] = &self.frames;
        let frame = match wire {
            Wire::Plain => plain,
            Wire::SocketIo => socket_io,
            Wire::SocketIoOffset => socket_io_offset,
        };
        frame.get_or_init(|| self.event.encode(wire)).clone()
    }

    /// The [frame](encode_offset) of the event's own position as an offset, encoded when the first
    /// member asks for it; `None` on a standalone MongoDB.
    pub fn offset_frame(&self) -> Option<ByteString> {
        let position = self.event.position()?;
        Some(self.offset_frame.get_or_init(|| encode_offset(position)).clone())
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::models::UserId;

    fn hello(position: Option<Position>) -> (Event, String) {
        let room = RoomId::new();
        let message = Message::new(room, UserId::new(), "say \"hi\"");
        let mut json = Vec::new();
        views::message(&mut json, &message);
        (Event::message(&message, position), String::from_utf8(json).unwrap())
    }

    #[test]
    fn a_message_is_written_for_each_wire() {
        let (event, json) = hello(Some(Position::first_of(5, 2).next_of_same_time()));
        assert_eq!(
            event.encode(Wire::Plain),
            format!(r#"{{"event":"receiveMessage","data":{json},"position":"5.2.1"}}"#)
        );
        assert_eq!(event.encode(Wire::SocketIo), format!(r#"42["receiveMessage",{json}]"#));
        assert_eq!(
            event.encode(Wire::SocketIoOffset),
            format!(r#"42["receiveMessage",{json},"5.2.1"]"#)
        );
        assert_eq!(
            event.encode_with_offset("5.2;x"),
            format!(r#"42["receiveMessage",{json},"5.2;x"]"#)
        );
    }

    #[test]
    fn a_message_without_position_carries_none() {
        let (event, json) = hello(None);
        assert_eq!(
            event.encode(Wire::Plain),
            format!(r#"{{"event":"receiveMessage","data":{json}}}"#)
        );
        assert_eq!(event.encode(Wire::SocketIoOffset), format!(r#"42["receiveMessage",{json}]"#));
    }

    #[test]
    fn a_resync_names_room_and_position() {
        let room = RoomId::new();
        let event = Event::resync(room, Some(Position::first_of(5, 2)));
        let data = format!(r#"{{"room":"{room}","position":"5.2"}}"#);
        assert_eq!(event.encode(Wire::Plain), format!(r#"{{"event":"resync","data":{data}}}"#));
        assert_eq!(event.encode(Wire::SocketIo), format!(r#"42["resync",{data}]"#));
        assert_eq!(event.encode(Wire::SocketIoOffset), format!(r#"42["resync",{data},"5.2"]"#));
        let local = Event::resync(room, None);
        assert_eq!(
            local.encode(Wire::Plain),
            format!(r#"{{"event":"resync","data":{{"room":"{room}","position":null}}}}"#)
        );
    }

    fn changed(document: &RawDocument) -> Event {
        Event::changed(document, Some(Position::first_of(5, 2))).unwrap()
    }

    #[test]
    fn a_change_is_encoded_with_the_name_of_its_event() {
        let (id, at) = (ObjectId::new(), DateTime::from_millis(0));
        let edited = rawdoc! { "_id": id, "room": id, "content": "x", "__v": 1, "editedAt": at };
        let date = "1970-01-01T00:00:00.000Z";
        assert_eq!(
            changed(&edited).encode(Wire::Plain),
            format!(
                r#"{{"event":"messageEdited","data":{{"room":"{id}","content":"x","_id":"{id}","__v":1,"editedAt":"{date}"}},"position":"5.2"}}"#
            )
        );
        let deleted =
            rawdoc! { "_id": id, "room": id, "content": "", "deletedAt": at, "deletedBy": id };
        let data = format!(r#"{{"room":"{id}","message":"{id}","deletedAt":"{date}"}}"#);
        assert_eq!(
            changed(&deleted).encode(Wire::SocketIoOffset),
            format!(r#"42["messageDeleted",{data},"5.2"]"#)
        );
        assert!(Event::inserted(&deleted, None).unwrap().is_none());
        // Another program removed the message: `deletedAt` is the cluster time.
        let removal = Removal::new(&rawdoc! { "_id": id }, Position::first_of(0, 2)).unwrap();
        assert_eq!(
            removal.in_room(RoomId(id)).encode(Wire::SocketIo),
            format!(r#"42["messageDeleted",{data}]"#)
        );
    }

    #[test]
    fn a_message_is_known_by_its_id_of_any_type() {
        let keys = [
            rawdoc! { "_id": ObjectId::new() },
            rawdoc! { "_id": 1 },
            rawdoc! { "_id": 1.0 },
            rawdoc! { "_id": "1" },
        ];
        let keys: Vec<_> = keys.iter().map(|key| MessageKey::of_document(key).unwrap()).collect();
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(index));
        }
        assert!(Removal::new(&rawdoc! { "_id": "1" }, Position::ZERO).is_none());
    }

    #[test]
    fn only_events_with_a_text_are_withdrawn() {
        let (message, _) = hello(None);
        let resync = Event::resync(RoomId::new(), None);
        message.withdraw();
        resync.withdraw();
        assert!(message.is_withdrawn() && !resync.is_withdrawn());
    }

    #[test]
    fn members_share_one_frame() {
        let (event, _) = hello(Some(Position::first_of(1, 1)));
        let delivery = Delivery::new(Arc::new(event));
        let (one, other) = (delivery.frame(Wire::Plain), delivery.frame(Wire::Plain));
        assert_eq!(one.as_bytes().as_ptr(), other.as_bytes().as_ptr());
        let (one, other) = (delivery.offset_frame().unwrap(), delivery.offset_frame().unwrap());
        assert_eq!(one, r#"42["position","1.1"]"#);
        assert_eq!(one.as_bytes().as_ptr(), other.as_bytes().as_ptr());
    }

    #[test]
    fn without_a_position_there_is_no_offset() {
        let (event, _) = hello(None);
        assert_eq!(Delivery::new(Arc::new(event)).offset_frame(), None);
    }
}
