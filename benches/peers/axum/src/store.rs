//! MongoDB: the documents as Mongoose writes them.

use std::collections::HashMap;
use std::sync::Arc;

use bson::oid::ObjectId;
use bson::{DateTime, doc};
use futures::TryStreamExt;
use mongodb::error::{Error, ErrorKind, Result, WriteFailure};
use mongodb::options::{ClientOptions, IndexOptions, WriteConcern};
use mongodb::{Client, Collection, IndexModel};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

const MAX_REMEMBERED: usize = 100_000;
/// As many connections as the driver for Node has. This one's default of 10 holds writes back.
const CONNECTIONS: u32 = 100;
const DUPLICATE_KEY: i32 = 11000;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    #[serde(rename = "_id")]
    pub id: ObjectId,
    pub username: String,
    pub password: String,
    created_at: DateTime,
    updated_at: DateTime,
    #[serde(rename = "__v")]
    version: i32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    #[serde(rename = "_id")]
    pub id: ObjectId,
    pub name: String,
    pub created_at: DateTime,
    pub updated_at: DateTime,
    #[serde(rename = "__v")]
    pub version: i32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    #[serde(rename = "_id")]
    pub id: ObjectId,
    pub room: ObjectId,
    pub sender: ObjectId,
    pub content: String,
    pub created_at: DateTime,
    pub updated_at: DateTime,
    #[serde(rename = "__v")]
    pub version: i32,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "_id")]
    id: ObjectId,
    username: Arc<str>,
}

/// The names of the users that are there.
pub type Names = HashMap<ObjectId, Arc<str>>;

pub struct Store {
    users: Collection<User>,
    rooms: Collection<Room>,
    messages: Collection<Message>,
    // Nothing here renames a user or removes a room, so both can be remembered.
    usernames: Cache<ObjectId, Arc<str>>,
    known_rooms: Cache<ObjectId, ()>,
}

impl Store {
    pub async fn open(uri: &str) -> Result<Self> {
        let mut options = ClientOptions::parse(uri).await?;
        options.write_concern = Some(WriteConcern::majority());
        options.max_pool_size = Some(CONNECTIONS);
        let client = Client::with_options(options)?;
        let database = client.default_database().unwrap_or_else(|| client.database("chat"));
        let store = Self {
            users: database.collection("users"),
            rooms: database.collection("rooms"),
            messages: database.collection("messages"),
            usernames: Cache::new(MAX_REMEMBERED),
            known_rooms: Cache::new(MAX_REMEMBERED),
        };
        let index = |keys, is_unique| {
            let options = IndexOptions::builder().unique(is_unique).build();
            IndexModel::builder().keys(keys).options(options).build()
        };
        store.users.create_index(index(doc! { "username": 1 }, true)).await?;
        store.rooms.create_index(index(doc! { "name": 1 }, true)).await?;
        store.messages.create_index(index(doc! { "room": 1, "_id": 1 }, false)).await?;
        Ok(store)
    }

    pub async fn add_user(&self, username: String, password: String) -> Result<()> {
        let (id, now) = (ObjectId::new(), DateTime::now());
        let user = User { id, username, password, created_at: now, updated_at: now, version: 0 };
        self.users.insert_one(user).await?;
        Ok(())
    }

    pub async fn user(&self, username: &str) -> Result<Option<User>> {
        self.users.find_one(doc! { "username": username }).await
    }

    pub async fn add_room(&self, name: String) -> Result<Room> {
        let (id, now) = (ObjectId::new(), DateTime::now());
        let room = Room { id, name, created_at: now, updated_at: now, version: 0 };
        self.rooms.insert_one(&room).await?;
        Ok(room)
    }

    pub async fn rooms(&self) -> Result<Vec<Room>> {
        self.rooms.find(doc! {}).await?.try_collect().await
    }

    pub async fn has_room(&self, id: ObjectId) -> Result<bool> {
        if self.known_rooms.get(&id).is_some() {
            return Ok(true);
        }
        let is_there = self.rooms.find_one(doc! { "_id": id }).await?.is_some();
        if is_there {
            self.known_rooms.insert(id, ());
        }
        Ok(is_there)
    }

    pub async fn add_message(
        &self,
        room: ObjectId,
        sender: ObjectId,
        content: String,
    ) -> Result<Message> {
        let (id, now) = (ObjectId::new(), DateTime::now());
        let message =
            Message { id, room, sender, content, created_at: now, updated_at: now, version: 0 };
        self.messages.insert_one(&message).await?;
        Ok(message)
    }

    pub async fn history(&self, room: ObjectId) -> Result<(Vec<Message>, Names)> {
        let found = self.messages.find(doc! { "room": room }).sort(doc! { "_id": 1 }).await?;
        let messages: Vec<Message> = found.try_collect().await?;
        let (mut names, mut unknown) = (Names::new(), Vec::new());
        for &Message { sender, .. } in &messages {
            if names.contains_key(&sender) || unknown.contains(&sender) {
                continue;
            }
            match self.usernames.get(&sender) {
                Some(name) => {
                    names.insert(sender, name);
                }
                None => unknown.push(sender),
            }
        }
        if unknown.is_empty() {
            return Ok((messages, names));
        }
        let users = self.users.clone_with_type::<Named>();
        let users = users.find(doc! { "_id": { "$in": unknown } });
        let mut users = users.projection(doc! { "username": 1 }).await?;
        while let Some(Named { id, username }) = users.try_next().await? {
            self.usernames.insert(id, Arc::clone(&username));
            names.insert(id, username);
        }
        Ok((messages, names))
    }
}

/// Whether a name is taken.
pub fn is_duplicate(error: &Error) -> bool {
    match &*error.kind {
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == DUPLICATE_KEY,
        _ => false,
    }
}
