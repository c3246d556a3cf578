//! Documents of unusual shape, as `res.json` writes them after Mongoose has read them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bson::RawDocument;

use super::{push_date, push_display, push_quoted_id, push_sender, push_string};
use crate::models::user::Username;
use crate::models::{RoomId, UserId};
use crate::mongoose::value::{Object, Value};
use crate::mongoose::{Hydrated, Shown};

/// The order of the fields of a live message. Other fields follow.
const LIVE: [&str; 7] = ["room", "sender", "content", "_id", "createdAt", "updatedAt", "__v"];

/// Appends a document of a list. `name` returns the name of a sender, `None` if this user does not
/// exist any more.
pub fn document<'a>(
    out: &mut Vec<u8>,
    document: &Hydrated,
    name: impl Fn(UserId) -> Option<&'a Username>,
) {
    push_object(out, document.fields(), |out, shown| match shown {
        Shown::Value(value) => push_value(out, value),
        Shown::Reference(id) => push_sender(out, UserId(*id), name(UserId(*id))),
    });
}

/// Appends a message as in `receiveMessage`, with the sender as a plain id. Returns its room.
/// Without a room, appends nothing and returns `None`.
pub fn live_document(out: &mut Vec<u8>, document: &Hydrated) -> Option<RoomId> {
    let room = RoomId(document.id("room")?);
    let rank = |name: &str| LIVE.iter().position(|known| *known == name).unwrap_or(LIVE.len());
    let mut fields = Vec::from_iter(document.fields());
    fields.sort_by_key(|(name, _)| rank(name));
    push_object(out, fields.into_iter(), |out, shown| match shown {
        Shown::Value(value) => push_value(out, value),
        Shown::Reference(id) => push_quoted_id(out, *id),
    });
    Some(room)
}

/// Appends the `_id` of a message, as in a history.
pub fn message_id(out: &mut Vec<u8>, document: &RawDocument) {
    let message = Hydrated::message(document);
    match message.fields().find(|(name, _)| *name == "_id") {
        Some((_, Shown::Value(value))) => push_value(out, value),
        Some((_, Shown::Reference(id))) => push_quoted_id(out, *id),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends a value as `JSON.stringify` writes it. `undefined` is `null`, as in an array.
fn push_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Undefined | Value::Null | Value::Date(None) => out.extend_from_slice(b"null"),
        Value::Bool(value) => push_display(out, value),
        Value::Number(value) if value.is_finite() => {
            out.extend_from_slice(ryu_js::Buffer::new().format(*value).as_bytes());
        }
        Value::Number(_) => out.extend_from_slice(b"null"),
        Value::Text(text) => push_string(out, text),
        Value::Date(Some(millis)) => push_date(out, bson::DateTime::from_millis(*millis)),
        Value::ObjectId(id) => push_quoted_id(out, *id),
        Value::Uuid(_) => push_string(out, &value.print().unwrap_or_default()),
        Value::Decimal(value) => {
            out.extend_from_slice(b"{\"$numberDecimal\":\"");
            push_display(out, value);
            out.extend_from_slice(b"\"}");
        }
        Value::Timestamp(value) => {
            out.extend_from_slice(b"{\"$timestamp\":\"");
            push_display(out, value);
            out.extend_from_slice(b"\"}");
        }
        Value::Long(value) => {
            let (low, high) = (*value as i32, (*value >> 32) as i32);
            push_display(out, format_args!("{{\"low\":{low},\"high\":{high},\"unsigned\":false}}"));
        }
        Value::Binary(bytes) => push_string(out, &BASE64_STANDARD.encode(bytes)),
        Value::RegExp { .. } | Value::Key => out.extend_from_slice(b"{}"),
        Value::Code { code, scope } => {
            out.extend_from_slice(b"{\"code\":");
            push_string(out, code);
            if let Some(scope) = scope {
                out.extend_from_slice(b",\"scope\":");
                push_properties(out, scope);
            }
            out.push(b'}');
        }
        Value::DbRef(object) | Value::Object(object) => push_properties(out, object),
        Value::Array(elements) => {
            out.push(b'[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                push_value(out, element);
            }
            out.push(b']');
        }
    }
}

fn push_properties(out: &mut Vec<u8>, object: &Object) {
    let defined = object.fields().filter(|(_, value)| !matches!(value, Value::Undefined));
    push_object(out, defined, push_value);
}

fn push_object<'a, T: 'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a str, &'a T)>,
    push: impl Fn(&mut Vec<u8>, &'a T),
) {
    out.push(b'{');
    for (index, (name, value)) in fields.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_string(out, name);
        out.push(b':');
        push(out, value);
    }
    out.push(b'}');
}
