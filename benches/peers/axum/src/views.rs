//! What requests and answers look like in JSON.

use std::sync::Arc;

use bson::DateTime;
use bson::oid::ObjectId;
use chrono::SecondsFormat;
use serde::{Deserialize, Serialize, Serializer};

use crate::store::{Message, Names, Room};

#[derive(Deserialize)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

#[derive(Deserialize)]
pub struct NewRoom {
    pub name: String,
}

#[derive(Deserialize)]
pub struct NewMessage {
    #[serde(with = "hex")]
    pub room: ObjectId,
    #[serde(with = "hex")]
    pub sender: ObjectId,
    pub content: String,
}

#[derive(Serialize)]
pub struct Done {
    pub message: &'static str,
}

#[derive(Serialize)]
pub struct LoggedIn {
    pub token: String,
    #[serde(rename = "userId", with = "hex")]
    pub user: ObjectId,
}

#[derive(Serialize)]
pub struct RoomView {
    #[serde(rename = "_id", with = "hex")]
    id: ObjectId,
    name: String,
    #[serde(rename = "createdAt", serialize_with = "iso")]
    created_at: DateTime,
    #[serde(rename = "updatedAt", serialize_with = "iso")]
    updated_at: DateTime,
    #[serde(rename = "__v")]
    version: i32,
}

#[derive(Serialize)]
pub struct CreatedRoom {
    pub message: &'static str,
    pub room: RoomView,
}

/// A message as its sender and the room get it.
#[derive(Serialize)]
pub struct MessageView {
    #[serde(with = "hex")]
    pub room: ObjectId,
    #[serde(with = "hex")]
    sender: ObjectId,
    content: String,
    #[serde(rename = "_id", with = "hex")]
    id: ObjectId,
    #[serde(rename = "createdAt", serialize_with = "iso")]
    created_at: DateTime,
    #[serde(rename = "updatedAt", serialize_with = "iso")]
    updated_at: DateTime,
    #[serde(rename = "__v")]
    version: i32,
}

#[derive(Serialize)]
pub struct Sent {
    pub message: MessageView,
}

#[derive(Serialize)]
struct Sender {
    #[serde(rename = "_id", with = "hex")]
    id: ObjectId,
    username: Arc<str>,
}

/// A message as a history has it.
#[derive(Serialize)]
pub struct HistoryView {
    #[serde(rename = "_id", with = "hex")]
    id: ObjectId,
    #[serde(with = "hex")]
    room: ObjectId,
    sender: Option<Sender>,
    content: String,
    #[serde(rename = "createdAt", serialize_with = "iso")]
    created_at: DateTime,
    #[serde(rename = "updatedAt", serialize_with = "iso")]
    updated_at: DateTime,
    #[serde(rename = "__v")]
    version: i32,
}

impl From<Room> for RoomView {
    fn from(room: Room) -> Self {
        let Room { id, name, created_at, updated_at, version } = room;
        Self { id, name, created_at, updated_at, version }
    }
}

impl From<Message> for MessageView {
    fn from(message: Message) -> Self {
        let Message { id, room, sender, content, created_at, updated_at, version } = message;
        Self { room, sender, content, id, created_at, updated_at, version }
    }
}

impl HistoryView {
    pub fn new(message: Message, names: &Names) -> Self {
        let Message { id, room, sender, content, created_at, updated_at, version } = message;
        let name = names.get(&sender).cloned();
        let sender = name.map(|username| Sender { id: sender, username });
        Self { id, room, sender, content, created_at, updated_at, version }
    }
}

fn iso<S: Serializer>(at: &DateTime, serializer: S) -> Result<S::Ok, S::Error> {
    let at = chrono::DateTime::from_timestamp_millis(at.timestamp_millis()).unwrap_or_default();
    serializer.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// An id as text.
pub mod hex {
    use std::borrow::Cow;

    use bson::oid::ObjectId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(id: &ObjectId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&id.to_hex())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectId, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        ObjectId::parse_str(text).map_err(D::Error::custom)
    }
}
