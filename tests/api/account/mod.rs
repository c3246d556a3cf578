//! Accounts: refreshing, logging out, new passwords, and the users of a search.

mod passwords;
mod refreshing;
mod revoking;
mod users;

use bson::oid::ObjectId;
use bson::{Document, doc};
use mongodb::Collection;
use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::mongod::connect;
use crate::helpers::{TestServer, client};

/// What a login gives.
#[derive(Debug, Clone)]
struct Tokens {
    token: String,
    refresh: String,
}

impl Tokens {
    fn of(answer: &Value) -> Self {
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        Self { token: text("token"), refresh: text("refreshToken") }
    }
}

/// Sends a body. Returns the status and the JSON of the answer.
async fn post(server: &TestServer, path: &str, token: &str, body: Value) -> (u16, Value) {
    let token = Some(token).filter(|token| !token.is_empty());
    let answer = server.request(Method::POST, &format!("/api/{path}"), token, Some(&body)).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn get(server: &TestServer, path: &str, token: &str) -> (u16, Value) {
    let answer = server.request(Method::GET, &format!("/api/{path}"), Some(token), None).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The code of a refusal of this token; empty if it is accepted.
async fn refusal(server: &TestServer, token: &str) -> String {
    let (_, answer) = get(server, "users/me", token).await;
    answer["code"].as_str().unwrap_or_default().to_owned()
}

/// Logs in with a refresh token.
async fn log_in(server: &TestServer, name: &str) -> Tokens {
    let body = json!({
        "username": name,
        "password": format!("password of {name}"),
        "refresh": true,
    });
    let (status, answer) = post(server, "auth/login", "", body).await;
    assert_eq!(status, 200, "{answer}");
    Tokens::of(&answer)
}

async fn refresh(server: &TestServer, refresh: &str) -> (u16, Value) {
    post(server, "auth/refresh-token", "", json!({ "refreshToken": refresh })).await
}

/// Refreshes, which must succeed.
async fn refreshed(server: &TestServer, token: &str) -> Tokens {
    let (status, answer) = refresh(server, token).await;
    assert_eq!(status, 200, "{answer}");
    Tokens::of(&answer)
}

/// The names of the fields of an object, sorted.
fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn payload(token: &str) -> Value {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

async fn families(uri: &str) -> Collection<Document> {
    connect(uri).await.collection("realtime_chat_backend_refresh")
}

/// Lets the refresh tokens of a user be older than they are.
async fn age(uri: &str, user: &str, seconds: i64) {
    let user: ObjectId = user.parse().unwrap();
    let older = doc! { "$subtract": ["$rotatedAt", seconds * 1000] };
    let update = vec![doc! { "$set": { "rotatedAt": older } }];
    let aged = families(uri).await.update_many(doc! { "user": user }, update).await.unwrap();
    assert!(aged.modified_count > 0);
}

/// Waits for the next second, so that the next token is another one.
async fn next_second() {
    let millis = bson::DateTime::now().timestamp_millis() % 1000;
    tokio::time::sleep(std::time::Duration::from_millis(1020 - millis as u64)).await;
}

/// A value of a metric with a label, of one server.
async fn count(server: &TestServer, metric: &str) -> u64 {
    let text = client().get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse().ok());
    value.unwrap_or(0)
}
