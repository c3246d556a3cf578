//! Rooms with members: who sees them, and that nobody gets anything after a removal.

mod collections;
mod leaks;
mod races;
mod removal;
mod rooms;
mod together;

use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::User;
use crate::helpers::socket::Socket;

impl User<'_> {
    /// Sends a request. Returns the status and the JSON of the answer.
    pub async fn ask(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let answer = self.request(method, path, Some(&body)).await;
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Makes a private room with these members. When it returns, all instances know of it: else a
    /// session that joins at once may hear of members that it was answered already.
    pub async fn private_room(&self, name: &str, members: &[&User<'_>]) -> Value {
        let mut told = self.sockets().await;
        for member in members {
            told.append(&mut member.sockets().await);
        }
        let members: Vec<_> = members.iter().map(|member| &member.id).collect();
        let body = json!({ "name": name, "private": true, "members": members });
        let (status, answer) = self.ask(Method::POST, "/api/chat/room", body).await;
        assert_eq!(status, 201, "{answer}");
        until_added(told, answer["room"]["_id"].as_str().unwrap()).await;
        answer["room"].clone()
    }

    /// Adds a member to a room.
    pub async fn add(&self, room: &str, member: &User<'_>) -> (u16, Value) {
        let path = format!("/api/chat/room/{room}/members");
        self.ask(Method::POST, &path, json!({ "user": member.id })).await
    }

    /// One socket of this user on each instance.
    async fn sockets(&self) -> Vec<Socket> {
        self.server.connect_to_all(&self.token).await
    }

    /// Removes a member from a room.
    pub async fn remove(&self, room: &str, member: &User<'_>) -> (u16, Value) {
        let path = format!("/api/chat/room/{room}/members/{}", member.id);
        self.ask(Method::DELETE, &path, json!({})).await
    }

    /// Sends a message.
    pub async fn say(&self, room: &str, content: &str) -> (u16, Value) {
        let body = json!({ "room": room, "sender": self.id, "content": content });
        self.ask(Method::POST, "/api/chat/message", body).await
    }
}

/// Waits until each of these sockets is told that its user is a member of a room.
async fn until_added(sockets: Vec<Socket>, room: &str) {
    for mut socket in sockets {
        loop {
            let told = socket.next().await;
            if told["event"] == "roomAdded" && told["data"]["room"] == room {
                break;
            }
        }
    }
}

pub fn id_of(room: &Value) -> String {
    room["_id"].as_str().unwrap().to_owned()
}

fn names(room: &Value) -> Vec<&str> {
    let members = room["members"].as_array().unwrap().iter();
    members.map(|member| member["username"].as_str().unwrap()).collect()
}
