//! Messages: the document that Mongoose's `Message` model writes, read and made byte for byte.

use std::borrow::Cow;

use bson::{DateTime, RawBsonRef, RawDocument, RawDocumentBuf, rawdoc};

use super::{MessageId, RoomId, UserId};

/// A message as the collection `messages` holds it.
///
/// The content is borrowed where it comes from a document, so that a page of messages becomes
/// JSON without a copy of each text.
#[derive(Debug, Clone, PartialEq)]
pub struct Message<'a> {
    /// `_id`, made by the application that stored the message.
    pub id: MessageId,
    /// `room`: the room that it was sent to.
    pub room: RoomId,
    /// `sender`: a user, who may be gone.
    pub sender: UserId,
    /// `content`: never empty when stored by this program or by the original.
    pub content: Cow<'a, str>,
    /// `createdAt`; missing in documents that a person wrote.
    pub created_at: Option<DateTime>,
    /// `updatedAt`, equal to `created_at` at insert.
    pub updated_at: Option<DateTime>,
    /// `__v`, Mongoose's version key: 0 at insert.
    pub version: Option<i32>,
}

/// A document in `messages` that no message can be made of: a field that is missing or of the
/// wrong type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the field {0} is missing or of the wrong type")]
pub struct Malformed(pub &'static str);

impl<'a> Message<'a> {
    /// A new message with a fresh id, stored now.
    pub fn new(room: RoomId, sender: UserId, content: impl Into<Cow<'a, str>>) -> Self {
        let now = DateTime::now();
        Self {
            id: MessageId::new(),
            room,
            sender,
            content: content.into(),
            created_at: Some(now),
            updated_at: Some(now),
            version: Some(0),
        }
    }

    /// Reads a stored document. Order and additional fields do not matter; `_id`, `room` and
    /// `sender` must be ids and `content` a string, the rest may be missing.
    pub fn from_document(document: &'a RawDocument) -> Result<Self, Malformed> {
        let (mut id, mut room, mut sender, mut content) = (None, None, None, None);
        let (mut created_at, mut updated_at, mut version) = (None, None, None);
        for element in document {
            // Bytes that are no BSON at all: nothing behind them can be read either.
            let Ok((key, value)) = element else { break };
            match (key.as_str(), value) {
                ("_id", RawBsonRef::ObjectId(value)) => id = Some(MessageId(value)),
                ("room", RawBsonRef::ObjectId(value)) => room = Some(RoomId(value)),
                ("sender", RawBsonRef::ObjectId(value)) => sender = Some(UserId(value)),
                ("content", RawBsonRef::String(value)) => content = Some(value),
                ("createdAt", RawBsonRef::DateTime(value)) => created_at = Some(value),
                ("updatedAt", RawBsonRef::DateTime(value)) => updated_at = Some(value),
                ("__v", value) => version = integer(value),
                _ => {}
            }
        }
        Ok(Self {
            id: id.ok_or(Malformed("_id"))?,
            room: room.ok_or(Malformed("room"))?,
            sender: sender.ok_or(Malformed("sender"))?,
            content: content.ok_or(Malformed("content"))?.into(),
            created_at,
            updated_at,
            version,
        })
    }

    /// The document to store: Mongoose's fields in Mongoose's order.
    pub fn to_document(&self) -> RawDocumentBuf {
        let mut document = rawdoc! {
            "_id": self.id.0,
            "room": self.room.0,
            "sender": self.sender.0,
            "content": self.content.as_ref(),
        };
        if let Some(created_at) = self.created_at {
            document.append(bson::cstr!("createdAt"), created_at);
        }
        if let Some(updated_at) = self.updated_at {
            document.append(bson::cstr!("updatedAt"), updated_at);
        }
        if let Some(version) = self.version {
            document.append(bson::cstr!("__v"), version);
        }
        document
    }

    /// The same message without a borrow.
    pub fn into_owned(self) -> Message<'static> {
        Message { content: Cow::Owned(self.content.into_owned()), ..self }
    }
}

/// A whole number, in whichever of BSON's number types a shell or a driver stored it.
fn integer(value: RawBsonRef<'_>) -> Option<i32> {
    match value {
        RawBsonRef::Int32(value) => Some(value),
        RawBsonRef::Int64(value) => i32::try_from(value).ok(),
        RawBsonRef::Double(value) if value.fract() == 0.0 => Some(value as i32),
        _ => None,
    }
}
