//! The pages that the server shows: `/docs`, and what belongs to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use realtime_chat_backend::sessions::RequestKind;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{markdown, page};
use crate::helpers::TestServer;
use crate::helpers::socket::Socket;
use crate::realtime::members::id_of;

/// What only the server says.
const TOLD: [&str; 14] = [
    "receiveMessage",
    "messageEdited",
    "messageDeleted",
    "memberAdded",
    "memberRemoved",
    "roomChanged",
    "roomAdded",
    "roomRemoved",
    "messageRead",
    "userOnline",
    "userOffline",
    "resync",
    "position",
    "error",
];

async fn text(server: &TestServer, path: &str) -> String {
    let answer = server.request(Method::GET, path, None, None).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operations_come_first_and_the_prose_has_pages_of_its_own() {
    let server = TestServer::start().await;
    let shown: Value = serde_json::from_str(&text(&server, "/docs/openapi.json").await).unwrap();
    let description = shown["info"]["description"].as_str().unwrap();
    assert!(description.lines().count() < 4, "{description}");
    for link in markdown::links(description) {
        let prose = text(&server, &link).await;
        assert!(prose.starts_with("<!DOCTYPE html>") && prose.contains("<h2"), "{prose}");
    }
    let whole: Value = serde_json::from_str(&text(&server, "/openapi.json").await).unwrap();
    assert!(whole["info"]["description"].as_str().unwrap().contains("## Conventions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_realtime_is_that_of_the_repository() {
    let server = TestServer::start().await;
    let shown = text(&server, "/docs/realtime").await;
    let ids: BTreeSet<&str> =
        shown.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    for anchor in markdown::anchors(&page("docs/realtime.md")) {
        assert!(ids.contains(&*anchor), "{anchor}");
    }
    for event in RequestKind::ALL.map(RequestKind::name).into_iter().chain(TOLD) {
        assert!(
            shown.contains(&format!("<td data-column=\"Event\"><code>{event}</code>")),
            "{event}"
        );
    }
    assert_eq!(shown.matches("<script").count(), 1);
    assert!(shown.contains("<script type=\"module\" src=\"/docs/page.js\">"));
    for foreign in ["https://", "<img", "@import"] {
        assert!(!shown.contains(foreign), "{foreign}: it needs nothing from elsewhere");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_operations_has_no_head() {
    let server = TestServer::start().await;
    let with_head = async |path: &str| {
        let document: Value = serde_json::from_str(&text(&server, path).await).unwrap();
        let paths = document["paths"].as_object().unwrap().clone();
        paths.values().filter(|item| item.get("head").is_some()).count()
    };
    assert!(with_head("/openapi.json").await > 10);
    assert_eq!(with_head("/docs/openapi.json").await, 0);
}

/// The names and types of a value, without its texts and numbers.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect()
        }
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::String(_) => "text".into(),
        Value::Number(_) => "number".into(),
        other => other.clone(),
    }
}

async fn examples(server: &TestServer, side: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(&text(server, "/docs/events.json").await).unwrap();
    all[side].as_array().unwrap().clone()
}

fn event(example: &Value) -> &str {
    example["event"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_has_an_example_that_the_server_takes_or_sends() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[]).await);
    let mut owner = Socket::connect(&server, &ada.token).await;
    let mut guest = Socket::connect(&server, &bob.token).await;
    let since = owner.join(&room).await;
    assert_eq!(ada.add(&room, &bob).await.0, 200);
    guest.join(&room).await;

    let sent = examples(&server, "sent").await;
    let names: BTreeSet<_> = sent.iter().map(event).collect();
    assert_eq!(names, RequestKind::ALL.map(RequestKind::name).into());
    let mut message = String::new();
    for example in &sent {
        let filled = example["data"]
            .to_string()
            .replace("676d2c41b1e8a27d9c0f4a15", &room)
            .replace("676d2c34b1e8a27d9c0f4a12", &bob.id)
            .replace("676d2c5fb1e8a27d9c0f4a1b", &message)
            .replace("1735208001.3", &since)
            .replace("TOKEN", &ada.token);
        let answer = owner.ask(event(example), serde_json::from_str(&filled).unwrap()).await;
        assert!(answer.is_object() && answer.get("error").is_none(), "{example}: {answer}");
        if let Some(sent) = answer["message"]["_id"].as_str() {
            message = sent.to_owned();
        }
        if event(example) == "markAsRead" {
            // One's own message is no mark that others are told.
            let mark = json!({ "room": room, "message": message });
            assert!(guest.ask("markAsRead", mark).await.get("error").is_none());
        }
    }

    owner.ask("leaveRoom", json!(room)).await;
    owner.join_since(&room, "1.1").await;
    owner.send_text(r#"{"event":"joinRoom","data":"general"}"#).await;
    let path = format!("/api/chat/room/{room}");
    assert_eq!(ada.ask(Method::PATCH, &path, json!({ "name": "vault" })).await.0, 200);
    let carol = server.register("carol").await;
    assert_eq!(ada.add(&room, &carol).await.0, 200);
    owner.ask("watchUsers", json!([carol.id])).await;
    drop(Socket::connect(&server, &carol.token).await);
    assert_eq!(ada.remove(&room, &bob).await.0, 200);

    let mut came = BTreeMap::new();
    let last = async |socket: &mut Socket, last: &str, came: &mut BTreeMap<String, Value>| {
        while !came.contains_key(last) {
            let frame = tokio::time::timeout(Duration::from_secs(60), socket.next());
            let frame = frame.await.unwrap_or_else(|_| panic!("no {last}: {:?}", came.keys()));
            came.insert(event(&frame).to_owned(), frame);
        }
    };
    last(&mut guest, "roomRemoved", &mut came).await;
    last(&mut owner, "userOffline", &mut came).await;
    let received = examples(&server, "received").await;
    for example in &received {
        let mut example = example.clone();
        example.as_object_mut().unwrap().remove("about");
        if event(&example) == "position" {
            assert!(!came.contains_key("position"), "only on Socket.IO");
            continue;
        }
        let frame = came.get(event(&example)).unwrap_or_else(|| panic!("none came: {example}"));
        assert_eq!(shape(frame), shape(&example));
    }
    let names: BTreeSet<_> = received.iter().map(event).collect();
    let both = ["typing", "stopTyping"];
    assert_eq!(names, TOLD.into_iter().chain(both).collect());
}
