//! The users: their passwords, and the tokens of their last logins.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use mongodb::Database;
use realtime_chat_backend::auth::Tokens;
use serde_json::{Value, json};

use crate::cluster::SECRET;

/// The password of everybody.
const PASSWORD: &str = "of everybody";
/// The lowest cost that there is: in a debug build, a hash takes long enough.
const COST: u32 = 4;

/// A user. Clones share the token.
#[derive(Debug, Clone)]
pub struct Account {
    /// The id.
    pub user: String,
    name: String,
    token: Arc<Mutex<String>>,
}

impl Account {
    /// Stores users, and issues a token for each.
    pub async fn make(database: &Database, count: usize) -> Vec<Self> {
        let tokens = Tokens::new(&SECRET.into());
        let hash = bcrypt::hash(PASSWORD, COST).unwrap();
        let ids: Vec<_> = (0..count).map(|_| ObjectId::new()).collect();
        let name = |number| format!("user {number}");
        let now = DateTime::now();
        let users = ids.iter().enumerate().map(|(number, id)| {
            doc! {
                "_id": id, "username": name(number), "password": &hash,
                "createdAt": now, "updatedAt": now, "__v": 0,
            }
        });
        database.collection::<Document>("users").insert_many(users).await.unwrap();
        let account = |(number, id): (usize, ObjectId)| {
            let user = id.to_hex();
            let token = Arc::new(Mutex::new(tokens.issue(user.parse().unwrap())));
            Self { user, name: name(number), token }
        };
        ids.into_iter().enumerate().map(account).collect()
    }

    /// Name and password.
    pub fn credentials(&self) -> (&str, &'static str) {
        (&self.name, PASSWORD)
    }

    /// The token of the last login.
    pub fn token(&self) -> String {
        self.token.lock().unwrap().clone()
    }

    /// The second since 1970 in which the token was issued.
    pub fn issued(&self) -> u64 {
        let tokens = Tokens::new(&SECRET.into());
        tokens.verify(&self.token()).expect("a token of the server").issued
    }

    /// Logs in at an instance. Returns whether it is done.
    pub async fn log_in(&self, http: &reqwest::Client, addr: SocketAddr) -> bool {
        let body = json!({ "username": self.name, "password": PASSWORD });
        let request = http.post(format!("http://{addr}/api/auth/login")).json(&body);
        let Ok(answer) = request.send().await else { return false };
        let Ok(answer) = answer.json::<Value>().await else { return false };
        let Some(token) = answer["token"].as_str() else { return false };
        *self.token.lock().unwrap() = token.to_owned();
        true
    }

    /// The request that revokes all tokens.
    pub fn log_out(&self, http: &reqwest::Client, addr: SocketAddr) -> reqwest::RequestBuilder {
        http.post(format!("http://{addr}/api/auth/logout-all")).bearer_auth(self.token())
    }
}
