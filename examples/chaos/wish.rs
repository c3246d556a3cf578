//! What a client requests until it has an answer: by its socket or by REST, at any instance.
//!
//! All attempts have the same idempotency key, so the number of attempts does not matter, nor
//! whether an earlier one succeeded.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::account::Account;

/// A request that is repeated until it is answered.
#[derive(Debug, Clone)]
pub enum Wish {
    Send {
        room: String,
        content: String,
    },
    Edit {
        message: String,
        content: String,
        /// The `__v` that the message must have.
        version: Option<i64>,
    },
    Delete {
        message: String,
    },
    /// A read mark.
    Mark {
        room: String,
        message: String,
    },
}

/// The answer to a wish.
#[derive(Debug)]
pub enum Answer {
    /// Done; the message, or the mark.
    Done(Value),
    /// Refused for good; the code says why.
    Never(String),
    /// Not answered, or refused for now. Whether it was done is unknown.
    Again,
}

impl Wish {
    /// The event and its data on sockets.
    pub fn event(&self) -> (&'static str, Value) {
        match self {
            Self::Send { room, content } => {
                ("sendMessage", json!({ "room": room, "content": content, "clientId": content }))
            }
            Self::Edit { message, content, version } => (
                "editMessage",
                json!({
                    "message": message, "content": content, "__v": version, "clientId": content,
                }),
            ),
            Self::Delete { message } => ("deleteMessage", json!({ "message": message })),
            Self::Mark { room, message } => {
                ("markAsRead", json!({ "room": room, "message": message }))
            }
        }
    }

    /// The REST request of a user.
    pub fn request(
        &self,
        http: &reqwest::Client,
        addr: SocketAddr,
        account: &Account,
    ) -> reqwest::RequestBuilder {
        let one = |message| format!("http://{addr}/api/chat/message/{message}");
        let request = match self {
            Self::Send { room, content } => http
                .post(format!("http://{addr}/api/chat/message"))
                .header("Idempotency-Key", content)
                .json(&json!({ "room": room, "sender": account.user, "content": content })),
            Self::Edit { message, content, version } => http
                .patch(one(message))
                .header("Idempotency-Key", content)
                .json(&json!({ "content": content, "__v": version })),
            Self::Delete { message } => http.delete(one(message)),
            Self::Mark { room, message } => http
                .post(format!("http://{addr}/api/chat/room/{room}/read"))
                .json(&json!({ "message": message })),
        };
        request.bearer_auth(account.token())
    }

    /// Whether this message or mark is the result of the wish.
    pub fn is_done_by(&self, message: &Value) -> bool {
        match self {
            Self::Send { content, room } => {
                message["content"] == **content && message["room"] == **room
            }
            Self::Edit { message: id, content, .. } => {
                message["content"] == **content && message["_id"] == **id
            }
            Self::Delete { message: id } => {
                message["_id"] == **id && message["deletedAt"].is_string()
            }
            Self::Mark { room, message: id } => {
                message["room"] == **room && message["message"] == **id
            }
        }
    }
}

impl Answer {
    /// Reads an ack or the body of an answer.
    pub fn read(data: &Value) -> Self {
        if data["message"].is_object() {
            return Self::Done(data["message"].clone());
        }
        if data["message"].is_string() && data["room"].is_string() {
            return Self::Done(data.clone());
        }
        if data["error"] == "Room not found" {
            // Without a code, as the original answers.
            return Self::Never("room_not_found".to_owned());
        }
        match data["code"].as_str() {
            Some(code @ ("message_deleted" | "edit_conflict" | "message_not_found")) => {
                Self::Never(code.to_owned())
            }
            _ => Self::Again,
        }
    }
}
