//! Histories: whole, in pages, and longer than memory should hold. Sending again with an
//! `Idempotency-Key`: a retry finds the first message, everywhere and after anything.

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use futures::future::join_all;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::helpers::{TestServer, User, client, mongod};

fn contents(messages: &Value) -> Vec<&str> {
    let messages = messages.as_array().unwrap();
    messages.iter().map(|message| message["content"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_lie_behind_or_before_a_message_in_order() {
    let server = TestServer::start().await;
    let ann = server.register("ann").await;
    let room = ann.create_room("pages").await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let message = ann.send(&room, &number.to_string()).await;
        ids.push(message["_id"].as_str().unwrap().to_owned());
    }
    let path = |query: String| format!("/api/chat/messages/{room}?{query}");
    for (query, expected) in [
        ("limit=3".to_owned(), vec!["4", "5", "6"]),
        (format!("before={}&limit=2", ids[4]), vec!["2", "3"]),
        (format!("after={}&limit=2", ids[4]), vec!["5", "6"]),
        (format!("after={}", ids[5]), vec!["6"]),
        (format!("after={}&before={}", ids[1], ids[4]), vec!["2", "3"]),
        (format!("before={}", ids[0]), vec![]),
        ("limit=0".to_owned(), vec!["0", "1", "2", "3", "4", "5", "6"]),
    ] {
        assert_eq!(contents(&ann.get(&path(query.clone())).await), expected, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_page_is_refused_in_precise_mode() {
    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("pages").await;
    for query in ["limit=0", "limit=1001", "limit=ten", "before=x", "after="] {
        let path = format!("/api/chat/messages/{room}?{query}");
        let answer = ann.request(Method::GET, &path, None).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{query}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["code"], "invalid_field", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_beyond_the_buffer_is_streamed_whole_and_without_a_tag() {
    let uri = mongod::fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("long").await;
    ann.send(&room, "short").await;
    let path = format!("/api/chat/messages/{room}");
    let short = ann.request(Method::GET, &path, None).await;
    assert!(short.headers().contains_key("etag"));

    let now = DateTime::now();
    let messages = (0..3_000).map(|number| {
        doc! {
            "_id": ObjectId::new(), "room": ObjectId::parse_str(&room).unwrap(),
            "sender": ObjectId::parse_str(&ann.id).unwrap(),
            "content": format!("{number} {}", "x".repeat(1_000)),
            "createdAt": now, "updatedAt": now, "__v": 0,
        }
    });
    let database = mongod::connect(&uri).await;
    database.collection("messages").insert_many(messages).await.unwrap();

    let long = ann.request(Method::GET, &path, None).await;
    assert_eq!(long.status(), StatusCode::OK);
    assert!(!long.headers().contains_key("etag"));
    let history: Value = long.json().await.unwrap();
    let history = contents(&history);
    assert_eq!(history.len(), 3_001);
    for (number, content) in history[1..].iter().enumerate() {
        assert!(content.starts_with(&format!("{number} ")), "{number}: {}", &content[..10]);
    }

    // Each of many who ask at the same time gets all of it.
    let asked = (0..8).map(async |_| ann.get(&path).await);
    for whole in join_all(asked).await {
        assert_eq!(contents(&whole).len(), 3_001);
    }

    // A client of HTTP/1.0 knows no chunks.
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", ann.token);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    let whole: Value = serde_json::from_str(body).expect("the body is the list and no more");
    assert_eq!(contents(&whole).len(), 3_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_of_a_person_do_not_hide_the_others() {
    let uri = mongod::fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("odd").await;
    let room_id = ObjectId::parse_str(&room).unwrap();
    let sender = ObjectId::parse_str(&ann.id).unwrap();
    let messages = mongod::connect(&uri).await.collection("messages");
    messages
        .insert_many([
            doc! { "room": room_id, "sender": sender, "content": 5 },
            doc! { "content": "bare", "sender": sender, "room": room_id, "extra": [1] },
            doc! { "room": room_id, "content": "no sender" },
            doc! { "room": room_id, "sender": ObjectId::new(), "content": "gone", "__v": 0_i64 },
        ])
        .await
        .unwrap();
    let history = ann.history(&room).await;
    assert_eq!(history.len(), 4, "{history:?}");
    assert_eq!(history[0]["content"], "5");
    assert_eq!(history[1]["content"], "bare");
    assert!(history[1].get("createdAt").is_none());
    assert_eq!(history[1]["extra"], json!([1]));
    assert!(history[2].get("sender").is_none());
    assert_eq!(history[3]["sender"], Value::Null);
    assert_eq!(history[3]["__v"], 0);
}

/// Sends with a key.
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

/// Whether the answer says that it is repeated, and its message.
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
    let messages = mongod::connect(&uri).await.collection::<Document>("messages");
    assert_eq!(messages.delete_many(doc! {}).await.unwrap().deleted_count, 1);
    let (replayed, again) = message(send(&server, &ann, "k", &room, "hello").await).await;
    assert!(replayed);
    assert_eq!(again, first);
    assert_eq!(ann.history(&room).await.len(), 1);
}
