//! The JSON that clients see, the same over HTTP and on sockets.
//!
//! Written straight into a buffer, with the key order of the original. Nothing here reads a
//! database or knows a route.

use bson::DateTime;

use crate::models::{Message, Room, UserId};

/// The media type of every JSON answer, byte for byte as Express writes it.
pub const CONTENT_TYPE: &str = "application/json; charset=utf-8";

/// Appends `{name,_id,createdAt,updatedAt,__v}`: a room as the answer to its creation has it.
/// `echo` is the JSON of its name where that differs from what was stored.
pub fn new_room(out: &mut Vec<u8>, room: &Room<'_>, echo: Option<&str>) {
    out.extend_from_slice(b"{\"name\":");
    push_echo(out, &room.name, echo);
    out.extend_from_slice(b",\"_id\":\"");
    push_display(out, room.id);
    out.push(b'"');
    push_stamps(out, room.created_at, room.updated_at, room.version);
    out.push(b'}');
}

/// Appends `{_id,name,createdAt,updatedAt,__v}`: a room of the list.
pub fn room(out: &mut Vec<u8>, room: &Room<'_>) {
    out.extend_from_slice(b"{\"_id\":\"");
    push_display(out, room.id);
    out.extend_from_slice(b"\",\"name\":");
    push_string(out, &room.name);
    push_stamps(out, room.created_at, room.updated_at, room.version);
    out.push(b'}');
}

/// Appends `{room,sender,content,_id,createdAt,updatedAt,__v}`: a message as `POST /message`
/// answers it and as `receiveMessage` carries it, the sender a plain id.
pub fn message(out: &mut Vec<u8>, message: &Message<'_>) {
    new_message(out, message, None);
}

/// The same for the answer to its sender. `echo` is the JSON of its content where that differs
/// from what was stored.
pub fn new_message(out: &mut Vec<u8>, message: &Message<'_>, echo: Option<&str>) {
    out.extend_from_slice(b"{\"room\":\"");
    push_display(out, message.room);
    out.extend_from_slice(b"\",\"sender\":\"");
    push_display(out, message.sender);
    out.extend_from_slice(b"\",\"content\":");
    push_echo(out, &message.content, echo);
    out.extend_from_slice(b",\"_id\":\"");
    push_display(out, message.id);
    out.push(b'"');
    push_stamps(out, message.created_at, message.updated_at, message.version);
    out.push(b'}');
}

/// Appends `{_id,room,sender:{_id,username},content,createdAt,updatedAt,__v}`: a message of a
/// history. `sender` is the name of its sender, `None` when that user is gone.
pub fn message_in_history(out: &mut Vec<u8>, message: &Message<'_>, sender: Option<&str>) {
    out.extend_from_slice(b"{\"_id\":\"");
    push_display(out, message.id);
    out.extend_from_slice(b"\",\"room\":\"");
    push_display(out, message.room);
    out.extend_from_slice(b"\",\"sender\":");
    push_sender(out, message.sender, sender);
    out.extend_from_slice(b",\"content\":");
    push_string(out, &message.content);
    push_stamps(out, message.created_at, message.updated_at, message.version);
    out.push(b'}');
}

fn push_sender(out: &mut Vec<u8>, id: UserId, name: Option<&str>) {
    let Some(name) = name else { return out.extend_from_slice(b"null") };
    out.extend_from_slice(b"{\"_id\":\"");
    push_display(out, id);
    out.extend_from_slice(b"\",\"username\":");
    push_string(out, name);
    out.push(b'}');
}

/// Appends `,"createdAt":…,"updatedAt":…,"__v":…`, without those that the document lacks.
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

/// Appends a date as `Date.prototype.toJSON` writes it: `"2026-01-02T03:04:05.678Z"`, or `null`
/// for one that JavaScript cannot print in four digits of year.
pub(crate) fn push_date(out: &mut Vec<u8>, at: DateTime) {
    use std::io::Write;

    let nanos = i128::from(at.timestamp_millis()) * 1_000_000;
    match time::OffsetDateTime::from_unix_timestamp_nanos(nanos) {
        Ok(at) if (0..=9999).contains(&at.year()) => write!(
            out,
            "\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z\"",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.millisecond()
        )
        .expect("writing into a vector cannot fail"),
        _ => out.extend_from_slice(b"null"),
    }
}

pub(crate) fn push_display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    use std::io::Write;
    write!(out, "{value}").expect("writing into a vector cannot fail");
}
