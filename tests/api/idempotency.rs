//! `Idempotency-Key`: a retry finds the first message, everywhere and after anything.

use bson::doc;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::helpers::{TestServer, User, client, mongod};

async fn send(server: &TestServer, user: &User<'_>, key: &str, room: &str, text: &str) -> Response {
    client()
        .post(server.url("/api/chat/message"))
        .bearer_auth(&user.token)
        .header("Idempotency-Key", key)
        .json(&json!({ "room": room, "sender": user.id, "content": text }))
        .send()
        .await
        .unwrap()
}

async fn message(answer: Response) -> (bool, Value) {
    assert_eq!(answer.status(), StatusCode::CREATED);
    let replayed = answer.headers().get("idempotency-replayed").is_some_and(|v| v == "true");
    (replayed, answer.json::<Value>().await.unwrap()["message"].take())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_answers_with_the_first_message_on_any_instance() {
    let uri = mongod::fresh_database().await;
    let one = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let two = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = one.register("ann").await;
    let room = ann.create_room("keys").await;
    let (replayed, first) = message(send(&one, &ann, "k1", &room, "hello").await).await;
    assert!(!replayed);
    for server in [&one, &two] {
        let (replayed, again) = message(send(server, &ann, "k1", &room, "hello").await).await;
        assert!(replayed);
        assert_eq!(again, first);
    }
    one.stop().await;
    let restarted = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = restarted.login("ann").await;
    assert_eq!(message(send(&restarted, &ann, "k1", &room, "hello").await).await.1, first);
    assert_eq!(ann.history(&room).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_one_message_of_one_user() {
    let server = TestServer::start().await;
    let (ann, bob) = (server.register("ann").await, server.register("bob").await);
    let room = ann.create_room("keys").await;
    let (_, first) = message(send(&server, &ann, "k", &room, "hello").await).await;
    let conflict = send(&server, &ann, "k", &room, "other").await;
    assert_eq!(conflict.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let body: Value = conflict.json().await.unwrap();
    assert_eq!(body, json!({ "error": "Idempotency key was used for another message" }));
    let (replayed, bobs) = message(send(&server, &bob, "k", &room, "hello").await).await;
    assert!(!replayed);
    assert_ne!(bobs["_id"], first["_id"]);
    for key in ["", &"k".repeat(256)] {
        let refused = send(&server, &ann, key, &room, "hello").await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{}", key.len());
    }
    assert!(send(&server, &ann, &"k".repeat(255), &room, "x").await.status().is_success());
    assert_eq!(ann.history(&room).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_retries_at_once_store_one_message() {
    let server = TestServer::start().await;
    let ann = server.register("ann").await;
    let room = ann.create_room("race").await;
    let sends = (0..20).map(|_| send(&server, &ann, "same", &room, "once"));
    let answers = futures::future::join_all(sends).await;
    let mut ids = Vec::new();
    for answer in answers {
        ids.push(message(answer).await.1["_id"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(ann.history(&room).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_attempt_that_died_between_its_writes_is_completed() {
    let uri = mongod::fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("crash").await;
    let (_, first) = message(send(&server, &ann, "k", &room, "hello").await).await;
    // What a crash after the first write leaves: the record of the key, but no message.
    let messages = mongod::connect(&uri).await.collection::<bson::Document>("messages");
    assert_eq!(messages.delete_many(doc! {}).await.unwrap().deleted_count, 1);
    let (replayed, again) = message(send(&server, &ann, "k", &room, "hello").await).await;
    assert!(replayed);
    assert_eq!(again, first);
    assert_eq!(ann.history(&room).await.len(), 1);
}
