//! The JSON that clients get, the same over HTTP and on sockets.
//!
//! Written directly into a buffer, with the key order of the Node server. This module reads no
//! database and knows no route.

mod document;

use bson::oid::ObjectId;
use bson::{DateTime, RawDocument};

pub use document::{document, live_document, message_id};

use crate::models::revision::is_tombstone;
use crate::models::user::{Profile, Username};
use crate::models::{
    Mark, MembersRoom, Membership, Message, MessageId, Room, RoomId, RoomKind, UserId,
};
use crate::mongoose::Hydrated;
use crate::mongoose::date::{self, Civil};

/// The media type of every JSON answer, byte for byte as Express writes it.
pub const CONTENT_TYPE: &str = "application/json; charset=utf-8";

/// Appends `{name,_id,createdAt,updatedAt,__v}`: a room in the answer to its creation. `echo` is
/// the JSON of its name, if it differs from the stored one.
pub fn new_room(out: &mut Vec<u8>, room: &Room<'_>, echo: Option<&str>) {
    out.extend_from_slice(b"{\"name\":");
    push_echo(out, &room.name, echo);
    out.extend_from_slice(b",\"_id\":\"");
    push_id(out, room.id.0);
    out.push(b'"');
    push_stamps(out, room.created_at, room.updated_at, room.version);
    out.push(b'}');
}

/// Appends `{_id,name,createdAt,updatedAt,__v}`: a room in the list.
pub fn room(out: &mut Vec<u8>, room: &Room<'_>) {
    out.extend_from_slice(b"{\"_id\":\"");
    push_id(out, room.id.0);
    out.extend_from_slice(b"\",\"name\":");
    push_string(out, &room.name);
    push_stamps(out, room.created_at, room.updated_at, room.version);
    out.push(b'}');
}

/// Appends a room with members, as they see it:
/// `{_id,name,private,owner,members,createdAt,updatedAt, __v}` for a private room,
/// `{_id,direct,members,createdAt,updatedAt,__v}` for a conversation. The members are
/// `{_id,username}`, the one who is there longest first.
pub fn room_with_members(out: &mut Vec<u8>, room: &MembersRoom, members: &[Membership]) {
    out.extend_from_slice(b"{\"_id\":");
    push_quoted_id(out, room.id.0);
    match &room.kind {
        RoomKind::Private { name, owner } => {
            out.extend_from_slice(b",\"name\":");
            push_string(out, name);
            out.extend_from_slice(b",\"private\":true,\"owner\":");
            push_quoted_id(out, owner.0);
        }
        RoomKind::Direct(_) => out.extend_from_slice(b",\"direct\":true"),
    }
    out.extend_from_slice(b",\"members\":[");
    for (index, member) in members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_member(out, member.user, member.username.as_deref());
    }
    out.push(b']');
    push_stamps(out, Some(room.created_at), Some(room.updated_at), Some(room.version));
    out.push(b'}');
}

/// Appends `{room,user:{_id,username}}`: what `memberAdded` says.
pub fn member_added(out: &mut Vec<u8>, member: &Membership) {
    typing(out, member.room, member.user, member.username.as_deref());
}

/// Appends `{room,user:{_id,username}}`: what `typing` says.
pub fn typing(out: &mut Vec<u8>, room: RoomId, user: UserId, username: Option<&str>) {
    out.extend_from_slice(b"{\"room\":");
    push_quoted_id(out, room.0);
    out.extend_from_slice(b",\"user\":");
    push_member(out, user, username);
    out.push(b'}');
}

/// Appends `{user}`: what `userOnline` says.
pub fn user_online(out: &mut Vec<u8>, user: UserId) {
    out.extend_from_slice(b"{\"user\":");
    push_quoted_id(out, user.0);
    out.push(b'}');
}

/// Appends `{user,lastSeen}`: what `userOffline` says.
pub fn user_offline(out: &mut Vec<u8>, user: UserId, last_seen: Option<DateTime>) {
    out.extend_from_slice(b"{\"user\":");
    push_quoted_id(out, user.0);
    out.extend_from_slice(b",\"lastSeen\":");
    match last_seen {
        Some(at) => push_date(out, at),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
}

/// Appends `{online:[user],lastSeen:{user:date}}`: the answer to a session that watches users.
pub fn presence<'a>(
    out: &mut Vec<u8>,
    online: &[UserId],
    offline: impl Iterator<Item = (&'a UserId, &'a DateTime)>,
) {
    out.extend_from_slice(b"{\"online\":");
    push_users(out, online);
    out.extend_from_slice(b",\"lastSeen\":{");
    for (index, (user, at)) in offline.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_quoted_id(out, user.0);
        out.push(b':');
        push_date(out, *at);
    }
    out.extend_from_slice(b"}}");
}

/// Appends `{online:[user]}`: who has joined a room.
pub fn online(out: &mut Vec<u8>, users: &[UserId]) {
    out.extend_from_slice(b"{\"online\":");
    push_users(out, users);
    out.push(b'}');
}

fn push_users(out: &mut Vec<u8>, users: &[UserId]) {
    out.push(b'[');
    for (index, user) in users.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_quoted_id(out, user.0);
    }
    out.push(b']');
}

/// Appends `{room,user}`: what `memberRemoved` and `stopTyping` say.
pub fn member_removed(out: &mut Vec<u8>, room: RoomId, user: UserId) {
    out.extend_from_slice(b"{\"room\":");
    push_quoted_id(out, room.0);
    out.extend_from_slice(b",\"user\":");
    push_quoted_id(out, user.0);
    out.push(b'}');
}

/// Appends `{room,name,owner}`: what `roomChanged` says.
pub fn room_changed(out: &mut Vec<u8>, room: RoomId, name: &str, owner: UserId) {
    out.extend_from_slice(b"{\"room\":");
    push_quoted_id(out, room.0);
    out.extend_from_slice(b",\"name\":");
    push_string(out, name);
    out.extend_from_slice(b",\"owner\":");
    push_quoted_id(out, owner.0);
    out.push(b'}');
}

/// Appends `{room}`: what `roomAdded` and `roomRemoved` say.
pub fn room_alone(out: &mut Vec<u8>, room: RoomId) {
    out.extend_from_slice(b"{\"room\":");
    push_quoted_id(out, room.0);
    out.push(b'}');
}

/// Appends `{room,user,message}`: what `messageRead` says.
pub fn message_read(out: &mut Vec<u8>, mark: &Mark) {
    out.extend_from_slice(b"{\"room\":");
    push_quoted_id(out, mark.room.0);
    out.extend_from_slice(b",\"user\":");
    push_quoted_id(out, mark.user.0);
    out.extend_from_slice(b",\"message\":");
    push_quoted_id(out, mark.message.0);
    out.push(b'}');
}

/// Appends `{room,message}`: the answer to a mark.
pub fn marked(out: &mut Vec<u8>, mark: &Mark) {
    out.extend_from_slice(b"{\"room\":");
    push_quoted_id(out, mark.room.0);
    out.extend_from_slice(b",\"message\":");
    push_quoted_id(out, mark.message.0);
    out.push(b'}');
}

/// Appends `,"unread":…,"lastRead":…`: what a user has read of a room in the list.
pub fn reading(out: &mut Vec<u8>, unread: u32, last_read: Option<MessageId>) {
    out.extend_from_slice(b",\"unread\":");
    push_display(out, unread);
    out.extend_from_slice(b",\"lastRead\":");
    push_id_or_null(out, last_read.map(|message| message.0));
}

fn push_member(out: &mut Vec<u8>, user: UserId, username: Option<&str>) {
    out.extend_from_slice(b"{\"_id\":");
    push_quoted_id(out, user.0);
    if let Some(username) = username {
        out.extend_from_slice(b",\"username\":");
        push_string(out, username);
    }
    out.push(b'}');
}

/// Appends `{room,sender,content,_id,createdAt,updatedAt,__v}`: a message in the answer of
/// `POST /message` and in `receiveMessage`. The sender is a plain id.
/// [`live_document`] does the same for a document of unusual shape.
pub fn message(out: &mut Vec<u8>, message: &Message<'_>) {
    new_message(out, message, None);
}

/// The same for the answer to its sender. `echo` is the JSON of its content, if it differs from the
/// stored one.
pub fn new_message(out: &mut Vec<u8>, message: &Message<'_>, echo: Option<&str>) {
    out.extend_from_slice(b"{\"room\":\"");
    push_id(out, message.room.0);
    out.extend_from_slice(b"\",\"sender\":\"");
    push_id(out, message.sender.0);
    out.extend_from_slice(b"\",\"content\":");
    push_echo(out, &message.content, echo);
    out.extend_from_slice(b",\"_id\":\"");
    push_id(out, message.id.0);
    out.push(b'"');
    push_stamps(out, message.created_at, message.updated_at, message.version);
    out.push(b'}');
}

/// Appends `{_id,username,createdAt}`: what everybody may know about a user.
pub fn profile(out: &mut Vec<u8>, profile: &Profile) {
    out.extend_from_slice(b"{\"_id\":");
    push_quoted_id(out, profile.id.0);
    push_username(out, &profile.name);
    push_stamps(out, profile.created_at, None, None);
    out.push(b'}');
}

/// Appends `{_id,room,sender:{_id,username},content,createdAt,updatedAt,__v}`: a message in a
/// history. `sender` is the name of its sender, `None` if this user does not exist any more.
pub fn message_in_history(out: &mut Vec<u8>, message: &Message<'_>, sender: Option<&Username>) {
    out.extend_from_slice(b"{\"_id\":\"");
    push_id(out, message.id.0);
    out.extend_from_slice(b"\",\"room\":\"");
    push_id(out, message.room.0);
    out.extend_from_slice(b"\",\"sender\":");
    push_sender(out, message.sender, sender);
    out.extend_from_slice(b",\"content\":");
    push_string(out, &message.content);
    push_stamps(out, message.created_at, message.updated_at, message.version);
    out.push(b'}');
}

/// Appends a message after a change: a tombstone, or the edited message as in `receiveMessage` with
/// `editedAt`. The sender is a plain id.
pub fn changed_message(out: &mut Vec<u8>, document: &RawDocument) {
    if is_tombstone(document) {
        deleted_message(out, document, |out, sender| push_quoted_id(out, sender.0));
    } else {
        live_document(out, &Hydrated::message(document));
    }
}

/// Appends `{_id,room,sender,content:"",createdAt,updatedAt,deletedAt}`: the tombstone of a deleted
/// message. `push_sender` appends its sender; without a sender, `null` is appended.
pub fn deleted_message(
    out: &mut Vec<u8>,
    document: &RawDocument,
    push_sender: impl FnOnce(&mut Vec<u8>, UserId),
) {
    let message = Hydrated::message(document);
    let date = |field| document.get_datetime(field).ok();
    out.extend_from_slice(b"{\"_id\":");
    push_id_or_null(out, message.id("_id"));
    out.extend_from_slice(b",\"room\":");
    push_id_or_null(out, message.id("room"));
    out.extend_from_slice(b",\"sender\":");
    match message.id("sender") {
        Some(sender) => push_sender(out, UserId(sender)),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"content\":\"\"");
    push_stamps(out, date("createdAt"), date("updatedAt"), None);
    if let Some(at) = date("deletedAt") {
        out.extend_from_slice(b",\"deletedAt\":");
        push_date(out, at);
    }
    out.push(b'}');
}

/// Appends `{room,message,deletedAt}`: the data of `messageDeleted`. `id` is the JSON of the
/// message's id.
pub fn deletion(out: &mut Vec<u8>, room: RoomId, id: &str, at: DateTime) {
    out.extend_from_slice(b"{\"room\":");
    push_quoted_id(out, room.0);
    out.extend_from_slice(b",\"message\":");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b",\"deletedAt\":");
    push_date(out, at);
    out.push(b'}');
}

fn push_id_or_null(out: &mut Vec<u8>, id: Option<ObjectId>) {
    match id {
        Some(id) => push_quoted_id(out, id),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends an id as a JSON string.
pub(crate) fn push_quoted_id(out: &mut Vec<u8>, id: ObjectId) {
    out.push(b'"');
    push_id(out, id);
    out.push(b'"');
}

/// Appends the sender of a message in a history: `{_id,username}`, or `null` without a name.
pub(crate) fn push_sender(out: &mut Vec<u8>, id: UserId, name: Option<&Username>) {
    let Some(name) = name else { return out.extend_from_slice(b"null") };
    out.extend_from_slice(b"{\"_id\":\"");
    push_id(out, id.0);
    out.push(b'"');
    push_username(out, name);
    out.push(b'}');
}

fn push_username(out: &mut Vec<u8>, name: &Username) {
    match name {
        Username::Text(name) => {
            out.extend_from_slice(b",\"username\":");
            push_string(out, name);
        }
        Username::Null => out.extend_from_slice(b",\"username\":null"),
        Username::Missing => {}
    }
}

/// Appends `,"createdAt":…,"updatedAt":…,"__v":…`, without missing fields.
pub(crate) fn push_stamps(
    out: &mut Vec<u8>,
    created_at: Option<DateTime>,
    updated_at: Option<DateTime>,
    version: Option<i32>,
) {
    if let Some(at) = created_at {
        out.extend_from_slice(b",\"createdAt\":");
        push_date(out, at);
    }
    if let Some(at) = updated_at {
        out.extend_from_slice(b",\"updatedAt\":");
        push_date(out, at);
    }
    if let Some(version) = version {
        out.extend_from_slice(b",\"__v\":");
        push_display(out, version);
    }
}

fn push_echo(out: &mut Vec<u8>, text: &str, echo: Option<&str>) {
    match echo {
        Some(json) => out.extend_from_slice(json.as_bytes()),
        None => push_string(out, text),
    }
}

/// Appends `text` as `JSON.stringify` writes it.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string always serialises into a vector");
}

/// Appends a date as `Date.prototype.toJSON` writes it: `"2026-01-02T03:04:05.678Z"`. The year has
/// a sign and six digits if it needs more than four digits. A date beyond the range of JavaScript
/// is `null`.
pub(crate) fn push_date(out: &mut Vec<u8>, at: DateTime) {
    let Some(millis) = date::clip(at.timestamp_millis() as f64) else {
        return out.extend_from_slice(b"null");
    };
    let Civil { year, month, day, hour, minute, second, millisecond, .. } = Civil::of(millis);
    out.push(b'"');
    let digits = match year {
        0..=9999 => 4,
        _ => {
            out.push(if year < 0 { b'-' } else { b'+' });
            6
        }
    };
    push_digits(out, year.unsigned_abs() as u32, digits);
    // Digit by digit, because `write!` took a fifth of the time of a page of messages.
    for (before, value, digits) in [
        (b'-', month, 2),
        (b'-', day, 2),
        (b'T', hour, 2),
        (b':', minute, 2),
        (b':', second, 2),
        (b'.', millisecond, 3),
    ] {
        out.push(before);
        push_digits(out, value, digits);
    }
    out.extend_from_slice(b"Z\"");
}

fn push_digits(out: &mut Vec<u8>, value: u32, digits: u32) {
    for digit in (0..digits).rev() {
        out.push(b'0' + (value / 10_u32.pow(digit) % 10) as u8);
    }
}

/// Appends an id: 24 hexadecimal digits.
fn push_id(out: &mut Vec<u8>, id: ObjectId) {
    const fn digit(half: u8) -> u8 {
        if half < 10 { b'0' + half } else { b'a' + half - 10 }
    }
    out.extend(id.bytes().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

pub(crate) fn push_display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    use std::io::Write;
    write!(out, "{value}").expect("writing into a vector cannot fail");
}
