//! What must be there before anything can be measured: users, rooms and messages.
//!
//! A little is made through the server, as its clients do; a lot goes straight to the database.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use mongodb::{Client, Collection};
use serde_json::Value;

use crate::Result;
use crate::http::{Connection, request};

/// How many users there are.
const USERS: usize = 5;
/// How many rooms: few, as in the rows of the table.
const ROOMS: usize = 5;
/// How many messages the first room has.
pub const MESSAGES: usize = 50;
/// The password of all of them.
const PASSWORD: &str = "correct horse battery";
/// How many documents are inserted at once.
const BATCH: usize = 5_000;

/// How old a token may become; they last an hour.
const TOKEN_AGE: Duration = Duration::from_secs(20 * 60);

/// What a server knows.
#[derive(Debug, Clone)]
pub struct Seed {
    /// What tells the names of this run from those of another.
    mark: String,
    logged_in: Instant,
    /// Users who are logged in.
    pub users: Vec<User>,
    /// Rooms, the first with [`MESSAGES`] messages by all users.
    pub rooms: Vec<String>,
}

/// A user who is logged in.
#[derive(Debug, Clone)]
pub struct User {
    /// The user's id.
    pub id: String,
    /// The user's token.
    pub token: String,
}

impl Seed {
    /// Registers, logs in, makes rooms and sends messages through the server.
    pub async fn plant(addr: SocketAddr) -> Result<Self> {
        let mut server = Connection::open(addr).await?;
        let (mut users, mut rooms) = (Vec::new(), Vec::new());
        // Another run may have been here.
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

    /// Names for a server that has no database.
    pub fn imaginary() -> Self {
        let id = || ObjectId::new().to_hex();
        let user = || User { id: id(), token: "none".to_owned() };
        Self {
            mark: String::new(),
            logged_in: Instant::now(),
            users: (0..USERS).map(|_| user()).collect(),
            rooms: (0..ROOMS).map(|_| id()).collect(),
        }
    }

    /// The same with fresh tokens, if it is time.
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

    /// The user who sends what one user sends.
    pub fn user(&self) -> Result<&User> {
        self.users.first().ok_or_else(|| "no users".into())
    }

    /// The request that sends a message to a room as a user, both by number.
    pub fn send(&self, room: usize, user: usize, content: &str) -> Result<Vec<u8>> {
        let room = self.rooms.get(room % ROOMS).ok_or("no rooms")?;
        let user = self.users.get(user % USERS).ok_or("no users")?;
        let sender = &user.id;
        let body = format!(r#"{{"room":"{room}","sender":"{sender}","content":"{content}"}}"#);
        Ok(request("POST", "/api/chat/message", Some(&user.token), Some(&body)))
    }

    /// The request by which a user logs in, and the user's registration.
    pub async fn login(addr: SocketAddr) -> Result<Vec<u8>> {
        let name = format!("login {}", ObjectId::new());
        let mut server = Connection::open(addr).await?;
        server.json(&credentials("/api/auth/register", &name), 201).await?;
        Ok(credentials("/api/auth/login", &name))
    }
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

/// The database behind a server, for what would take too long through it.
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

    /// Makes rooms.
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

    /// Takes rooms away again, so that lists of rooms stay short.
    pub async fn remove_rooms(&self, rooms: &[String]) -> Result<()> {
        for rooms in rooms.chunks(BATCH) {
            let ids: Vec<_> = rooms.iter().flat_map(ObjectId::parse_str).collect();
            self.rooms.delete_many(doc! { "_id": { "$in": ids } }).await?;
        }
        Ok(())
    }

    /// Stores messages in one insert each batch, with contents by number; gives their ids.
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
