//! Histories: whole, in pages, and longer than memory should hold.

use bson::oid::ObjectId;
use bson::{DateTime, doc};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::helpers::{TestServer, mongod};

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
