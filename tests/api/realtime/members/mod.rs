//! Rooms with members: who sees them, and that nobody gets anything after a removal.

mod collections;
mod leaks;
mod removal;
mod rooms;

use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::User;

impl User<'_> {
    /// Sends a request. Returns the status and the JSON of the answer.
    pub async fn ask(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let answer = self.request(method, path, Some(&body)).await;
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Makes a private room with these members.
    pub async fn private_room(&self, name: &str, members: &[&User<'_>]) -> Value {
        let members: Vec<_> = members.iter().map(|member| &member.id).collect();
        let body = json!({ "name": name, "private": true, "members": members });
        let (status, answer) = self.ask(Method::POST, "/api/chat/room", body).await;
        assert_eq!(status, 201, "{answer}");
        answer["room"].clone()
    }

    /// Adds a member to a room.
    pub async fn add(&self, room: &str, member: &User<'_>) -> (u16, Value) {
        let path = format!("/api/chat/room/{room}/members");
        self.ask(Method::POST, &path, json!({ "user": member.id })).await
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

pub fn id_of(room: &Value) -> String {
    room["_id"].as_str().unwrap().to_owned()
}

fn names(room: &Value) -> Vec<&str> {
    let members = room["members"].as_array().unwrap().iter();
    members.map(|member| member["username"].as_str().unwrap()).collect()
}
