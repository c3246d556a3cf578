//! What others do to the collections: drop and rename, and privileges that come and go.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::Database;
use reqwest::Method;
use serde_json::{Value, json};

use super::id_of;
use crate::helpers::mongod::{Guarded, Neighbour, connect, fresh_database};
use crate::helpers::socket::{Closed, SOON, Socket};
use crate::helpers::{TestServer, eventually, eventually_within};
use realtime_chat_backend::models::own;

/// The close code of a session that must connect again.
const TRY_AGAIN: u16 = 1013;

/// Reads until the server closes the socket.
async fn closed(socket: &mut Socket) -> Closed {
    loop {
        if let Err(closed) = socket.next_or_closed().await {
            return closed;
        }
    }
}

/// Sends to the room until a member that waits for `content` has it.
async fn hears(socket: &mut Socket, content: &str) {
    loop {
        let frame = socket.next().await;
        match frame["event"].as_str().unwrap() {
            "resync" | "roomAdded" | "memberAdded" => {}
            "receiveMessage" if frame["data"]["content"] == content => return,
            other => panic!("{other}: {frame}"),
        }
    }
}

async fn rename(database: &Database, from: &str, to: &str) {
    let name = database.name();
    let rename = doc! {
        "renameCollection": format!("{name}.{from}"), "to": format!("{name}.{to}"),
        "dropTarget": true,
    };
    let admin = database.client().database("admin");
    // Refused while an index is built.
    eventually("it is renamed", async || admin.run_command(rename.clone()).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_a_member_when_the_collection_of_members_is_gone() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let database = connect(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let lounge = ada.create_room("lounge").await;
    for end in ["drop", "rename"] {
        let mut room = String::new();
        eventually("a room is made", async || {
            let body = json!({ "name": "cellar", "private": true, "members": [bob.id] });
            let (status, answer) = ada.ask(Method::POST, "/api/chat/room", body).await;
            room = answer["room"]["_id"].as_str().unwrap_or_default().to_owned();
            status == 201
        })
        .await;
        let mut inside = Vec::new();
        let mut outside = Vec::new();
        for server in [&one, &other] {
            let mut socket = Socket::connect(server, &bob.token).await;
            socket.join(&room).await;
            socket.join(&lounge).await;
            inside.push(socket);
            let mut socket = Socket::connect(server, &ada.token).await;
            socket.join(&lounge).await;
            outside.push(socket);
        }
        let members = own::MEMBERS.collection;
        match end {
            "drop" => database.collection::<Document>(members).drop().await.unwrap(),
            _ => rename(&database, members, "archive").await,
        }
        for socket in &mut inside {
            let (code, reason) = closed(socket).await.expect("a close frame");
            assert_eq!(code, TRY_AGAIN, "{end}: {reason}");
        }
        for socket in &mut outside {
            socket.resync(&lounge).await;
        }
        for server in [&one, &other] {
            let mut socket = Socket::connect(server, &bob.token).await;
            assert_eq!(socket.ask("joinRoom", json!(room)).await["code"], "room_not_found");
        }
        assert!(bob.history(&room).await.is_empty());
        assert_eq!(bob.say(&room, "hello").await.0, 400);
        ada.send(&lounge, end).await;
        for socket in &mut outside {
            hears(socket, end).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_collection_that_becomes_messages_is_a_resync() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let neighbour = Neighbour::connect(&uri).await;
    let database = connect(&uri).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let lounge = ada.create_room("lounge").await;
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut public = Socket::connect(&server, &ada.token).await;
    public.join(&lounge).await;
    let mut private = Socket::connect(&server, &bob.token).await;
    private.join(&room).await;
    let backup = database.collection::<Document>("backup");
    backup.insert_one(neighbour.document(&lounge, "restored")).await.unwrap();
    rename(&database, "backup", "messages").await;
    public.resync(&lounge).await;
    assert_eq!(ada.history(&lounge).await[0]["content"], "restored");
    assert_eq!(closed(&mut private).await.unwrap().0, TRY_AGAIN);
    let mut private = Socket::connect(&server, &bob.token).await;
    private.join(&room).await;
    ada.send(&lounge, "public").await;
    hears(&mut public, "public").await;
    ada.say(&room, "private").await;
    hears(&mut private, "private").await;
    // The collection of the rooms. Its members are members still.
    database.collection::<Document>(own::ROOMS.collection).drop().await.unwrap();
    assert_eq!(closed(&mut private).await.unwrap().0, TRY_AGAIN);
    public.resync(&lounge).await;
    ada.send(&lounge, "again").await;
    hears(&mut public, "again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_rooms_are_off_while_the_stream_of_the_database_is_not_allowed() {
    let all = ["find", "insert", "update", "remove", "createIndex", "listIndexes", "changeStream"];
    let on = |collection: &str| {
        doc! { "resource": { "db": "chat", "collection": collection }, "actions": all.to_vec() }
    };
    let wide = on("");
    let names = ["users", "rooms", "messages"].into_iter();
    let names = names.chain(own::ALL.iter().map(|purpose| purpose.collection));
    let both: Vec<_> = names.map(on).chain([wide.clone()]).collect();
    let mongo = Guarded::start(&[
        ("chat", doc! { "privileges": both }),
        ("admin", doc! { "role": "userAdmin" }),
    ])
    .await;
    let uri = mongo.uri("chat", "chat");
    let admin = connect(&mongo.uri("admin", "admin")).await;
    let change = async |command: &str| {
        let change = doc! { command: "role of chat", "privileges": [&wide] };
        admin.run_command(change).await.unwrap();
    };
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let lounge = ada.create_room("lounge").await;
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut private = Socket::connect(&server, &bob.token).await;
    private.join(&room).await;
    let mut public = Socket::connect(&server, &ada.token).await;
    let since = public.join(&lounge).await;
    ada.say(&room, "before").await;
    hears(&mut private, "before").await;

    change("revokePrivilegesFromRole").await;
    let (code, _) = tokio::time::timeout(SOON, closed(&mut private)).await.unwrap().unwrap();
    assert_eq!(code, TRY_AGAIN);
    let off = |answer: &Value| answer["code"] == "private_rooms_unavailable";
    let mut private = Socket::connect(&server, &bob.token).await;
    assert!(off(&private.ask("joinRoom", json!(room)).await));
    assert!(off(&private.ask("sendMessage", json!({ "room": room, "content": "x" })).await));
    for (method, path) in [
        (Method::GET, format!("/api/chat/room/{room}")),
        (Method::GET, "/api/chat/rooms?mine=true".to_owned()),
        (Method::DELETE, format!("/api/chat/room/{room}/members/{}", bob.id)),
    ] {
        let (status, answer) = bob.ask(method, &path, json!({})).await;
        assert!(status == 503 && off(&answer), "{path}: {answer}");
    }
    assert_eq!(bob.ask(Method::GET, &format!("/api/chat/messages/{room}"), json!({})).await.0, 503);
    ada.send(&lounge, "public").await;
    hears(&mut public, "public").await;

    change("grantPrivilegesToRole").await;
    eventually_within(Duration::from_secs(40), "private rooms are on again", async || {
        private.ask("joinRoom", json!(room)).await["room"] == json!(room)
    })
    .await;
    ada.say(&room, "after").await;
    hears(&mut private, "after").await;
    ada.send(&lounge, "still public").await;
    hears(&mut public, "still public").await;
    // What the narrow stream left out is no gap that is taken for recovered.
    let mut back = Socket::connect(&server, &ada.token).await;
    let ack = back.join_since(&room, &since).await;
    let told = back.next().await;
    match ack["recovered"] == json!(true) {
        true => assert_eq!(told["data"]["content"], "before"),
        false => assert_eq!(told["event"], "resync"),
    }
}
