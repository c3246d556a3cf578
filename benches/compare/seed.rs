//! The data for the measurements: users, rooms and messages.
//!
//! A few are created through the server, many directly in the database.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use mongodb::{Client, Collection};
use serde_json::Value;

use crate::Result;
use crate::http::{Connection, request};

/// The number of users.
const USERS: usize = 5;
/// The number of rooms.
const ROOMS: usize = 5;
/// The number of messages in the first room.
pub const MESSAGES: usize = 50;
/// The password of all users.
const PASSWORD: &str = "correct horse battery";
/// The number of documents in one insert.
const BATCH: usize = 5_000;

/// The maximum age of a token. Tokens expire after an hour.
const TOKEN_AGE: Duration = Duration::from_secs(20 * 60);

/// The data of a server.
#[derive(Debug, Clone)]
pub struct Seed {
    /// A part of all names, different in each run.
    mark: String,
    logged_in: Instant,
    /// The users, logged in.
    pub users: Vec<User>,
    /// The rooms. The first one has [`MESSAGES`] messages by all users.
    pub rooms: Vec<String>,
}

/// A logged-in user.
#[derive(Debug, Clone)]
pub struct User {
    /// The user's id.
    pub id: String,
    /// The user's token.
    pub token: String,
}

impl Seed {
    /// Registers, logs in, makes rooms and sends messages through the server.
    pub async fn create(addr: SocketAddr) -> Result<Self> {
        let mut server = Connection::open(addr).await?;
        let (mut users, mut rooms) = (Vec::new(), Vec::new());
        // The database may have the names of another run.
        let mark = ObjectId::new().to_hex();
        for number in 0..USERS {
            let name = username(number, &mark);
            server.json(&credentials("/api/auth/register", &name), 201).await?;
            users.push(log_in(&mut server, &name).await?);
        }
        let token = |number: usize| users.get(number % USERS).map(|user| user.token.as_str());
        for number in 0..ROOMS {
            let body = format!(r#"{{"name":"room {number} {mark}"}}"#);
            let create = request("POST", "/api/chat/room", token(0), Some(&body));
            rooms.push(text(server.json(&create, 201).await?.pointer("/room/_id"))?);
        }
        let seed = Self { mark, logged_in: Instant::now(), users, rooms };
        for number in 0..MESSAGES {
            let send = seed.send(0, number, &format!("message {number} of a page to read"))?;
            server.json(&send, 201).await?;
        }
        Ok(seed)
    }

    /// Placeholders for a server without a database.
    pub fn placeholder() -> Self {
        let id = || ObjectId::new().to_hex();
        let user = || User { id: id(), token: "none".to_owned() };
        Self {
            mark: String::new(),
            logged_in: Instant::now(),
            users: (0..USERS).map(|_| user()).collect(),
            rooms: (0..ROOMS).map(|_| id()).collect(),
        }
    }

    /// The same with new tokens, if the old ones are too old.
    pub async fn refresh(mut self, addr: SocketAddr) -> Result<Self> {
        if self.mark.is_empty() || self.logged_in.elapsed() < TOKEN_AGE {
            return Ok(self);
        }
        let mut server = Connection::open(addr).await?;
        for (number, user) in self.users.iter_mut().enumerate() {
            *user = log_in(&mut server, &username(number, &self.mark)).await?;
        }
        self.logged_in = Instant::now();
        Ok(self)
    }

    /// The user for loads of a single user.
    pub fn user(&self) -> Result<&User> {
        self.users.first().ok_or_else(|| "no users".into())
    }

    /// The request that sends a message, with the numbers of the room and the user.
    pub fn send(&self, room: usize, user: usize, content: &str) -> Result<Vec<u8>> {
        let room = self.rooms.get(room % ROOMS).ok_or("no rooms")?;
        let user = self.users.get(user % USERS).ok_or("no users")?;
        Ok(message(room, user, content))
    }

    /// Registers a user and returns the request of its login.
    pub async fn login(addr: SocketAddr) -> Result<Vec<u8>> {
        let name = format!("login {}", ObjectId::new());
        let mut server = Connection::open(addr).await?;
        server.json(&credentials("/api/auth/register", &name), 201).await?;
        Ok(credentials("/api/auth/login", &name))
    }
}

/// The request that sends a message.
pub fn message(room: &str, user: &User, content: &str) -> Vec<u8> {
    let sender = &user.id;
    let body = format!(r#"{{"room":"{room}","sender":"{sender}","content":"{content}"}}"#);
    request("POST", "/api/chat/message", Some(&user.token), Some(&body))
}

/// Creates private rooms, of which the user is the only member. Returns their ids.
pub async fn private_rooms(addr: SocketAddr, user: &User, number: usize) -> Result<Vec<String>> {
    let mut server = Connection::open(addr).await?;
    let mut rooms = Vec::new();
    for number in 0..number {
        let body = format!(r#"{{"name":"private room {number}","private":true}}"#);
        let create = request("POST", "/api/chat/room", Some(&user.token), Some(&body));
        rooms.push(text(server.json(&create, 201).await?.pointer("/room/_id"))?);
    }
    Ok(rooms)
}

/// Sends messages to a room. Returns their ids.
pub async fn messages(
    addr: SocketAddr,
    user: &User,
    room: &str,
    number: usize,
) -> Result<Vec<String>> {
    let mut server = Connection::open(addr).await?;
    let mut ids = Vec::new();
    for number in 0..number {
        let send = message(room, user, &format!("message {number} of many to change"));
        ids.push(text(server.json(&send, 201).await?.pointer("/message/_id"))?);
    }
    Ok(ids)
}

fn username(number: usize, mark: &str) -> String {
    format!("user {number} {mark}")
}

async fn log_in(server: &mut Connection, name: &str) -> Result<User> {
    let answer = server.json(&credentials("/api/auth/login", name), 200).await?;
    Ok(User { id: text(answer.get("userId"))?, token: text(answer.get("token"))? })
}

fn credentials(path: &str, name: &str) -> Vec<u8> {
    let body = format!(r#"{{"username":"{name}","password":"{PASSWORD}"}}"#);
    request("POST", path, None, Some(&body))
}

fn text(value: Option<&Value>) -> Result<String> {
    let text = value.and_then(Value::as_str).ok_or("the answer lacks a field")?;
    Ok(text.to_owned())
}

/// The database of a server, for data that would take too long through the server.
pub struct Bulk {
    rooms: Collection<Document>,
    messages: Collection<Document>,
}

impl Bulk {
    /// Connects to the database of this connection string.
    pub async fn connect(uri: &str) -> Result<Self> {
        let database = Client::with_uri_str(uri).await?;
        let database = database.default_database().ok_or("the URI names no database")?;
        Ok(Self { rooms: database.collection("rooms"), messages: database.collection("messages") })
    }

    /// Inserts rooms.
    pub async fn add_rooms(&self, number: usize) -> Result<Vec<String>> {
        let ids: Vec<ObjectId> = (0..number).map(|_| ObjectId::new()).collect();
        for ids in ids.chunks(BATCH) {
            let now = DateTime::now();
            let room = |id: &ObjectId| {
                let name = format!("room {id}");
                doc! { "_id": id, "name": name, "createdAt": now, "updatedAt": now, "__v": 0 }
            };
            self.rooms.insert_many(ids.iter().map(room)).await?;
        }
        Ok(ids.into_iter().map(ObjectId::to_hex).collect())
    }

    /// Removes rooms, so that lists of rooms stay short.
    pub async fn remove_rooms(&self, rooms: &[String]) -> Result<()> {
        for rooms in rooms.chunks(BATCH) {
            let ids: Vec<_> = rooms.iter().flat_map(ObjectId::parse_str).collect();
            self.rooms.delete_many(doc! { "_id": { "$in": ids } }).await?;
        }
        Ok(())
    }

    /// Inserts messages in batches, with the content for each number. Returns their ids.
    pub async fn add_messages(
        &self,
        room: &str,
        sender: &str,
        number: usize,
        content: impl Fn(usize) -> String,
    ) -> Result<Vec<ObjectId>> {
        let (room, sender) = (ObjectId::parse_str(room)?, ObjectId::parse_str(sender)?);
        let ids: Vec<ObjectId> = (0..number).map(|_| ObjectId::new()).collect();
        for (batch, ids) in ids.chunks(BATCH).enumerate() {
            let now = DateTime::now();
            let message = |(nth, id): (usize, &ObjectId)| {
                doc! {
                    "_id": id,
                    "room": room,
                    "sender": sender,
                    "content": content(batch * BATCH + nth),
                    "createdAt": now,
                    "updatedAt": now,
                    "__v": 0,
                }
            };
            self.messages.insert_many(ids.iter().enumerate().map(message)).await?;
        }
        Ok(ids)
    }
}
