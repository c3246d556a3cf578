//! What a client asks for until it has an answer: by its socket or by REST, at any instance.
//!
//! Each attempt has the same idempotency key, so that it does not matter how often it is made and
//! whether an earlier one got through.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Wish {
    Send {
        room: String,
        content: String,
    },
    Edit {
        message: String,
        content: String,
        /// Only this version, if it says one.
        version: Option<i64>,
    },
    Delete {
        message: String,
    },
}

/// What the server says to a wish.
#[derive(Debug)]
pub enum Answer {
    /// Done; the message.
    Done(Value),
    /// It cannot be; the code says why.
    Never(String),
    /// Whether it was done is unknown, or it was too early.
    Again,
}

impl Wish {
    /// Its event on sockets.
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
        }
    }

    /// Its request to REST; `user` is the id of the one who has the token.
    pub fn request(
        &self,
        http: &reqwest::Client,
        addr: SocketAddr,
        token: &str,
        user: &str,
    ) -> reqwest::RequestBuilder {
        let one = |message| format!("http://{addr}/api/chat/message/{message}");
        let request = match self {
            Self::Send { room, content } => http
                .post(format!("http://{addr}/api/chat/message"))
                .header("Idempotency-Key", content)
                .json(&json!({ "room": room, "sender": user, "content": content })),
            Self::Edit { message, content, version } => http
                .patch(one(message))
                .header("Idempotency-Key", content)
                .json(&json!({ "content": content, "__v": version })),
            Self::Delete { message } => http.delete(one(message)),
        };
        request.bearer_auth(token)
    }

    /// Whether its answer says that it was done.
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
        }
    }
}

impl Answer {
    /// Reads an ack or the body of an answer.
    pub fn read(data: &Value) -> Self {
        if data["message"].is_object() {
            return Self::Done(data["message"].clone());
        }
        match data["code"].as_str() {
            Some(code @ ("message_deleted" | "edit_conflict" | "message_not_found")) => {
                Self::Never(code.to_owned())
            }
            _ => Self::Again,
        }
    }
}
