//! Rooms with members: who sees them, and that nobody hears anything behind a removal.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::helpers::mongod::{connect, fresh_database, standalone};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, User, eventually_within};

impl User<'_> {
    pub async fn ask(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let answer = self.request(method, path, Some(&body)).await;
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub async fn private_room(&self, name: &str, members: &[&User<'_>]) -> Value {
        let members: Vec<_> = members.iter().map(|member| &member.id).collect();
        let body = json!({ "name": name, "private": true, "members": members });
        let (status, answer) = self.ask(Method::POST, "/api/chat/room", body).await;
        assert_eq!(status, 201, "{answer}");
        answer["room"].clone()
    }

    pub async fn add(&self, room: &str, member: &User<'_>) -> (u16, Value) {
        let path = format!("/api/chat/room/{room}/members");
        self.ask(Method::POST, &path, json!({ "user": member.id })).await
    }

    pub async fn remove(&self, room: &str, member: &User<'_>) -> (u16, Value) {
        let path = format!("/api/chat/room/{room}/members/{}", member.id);
        self.ask(Method::DELETE, &path, json!({})).await
    }

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

#[tokio::test(flavor = "multi_thread")]
async fn a_private_room_exists_for_its_members_only() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob, eve) =
        (one.register("ada").await, one.register("bob").await, one.register("eve").await);
    let room = ada.private_room("cellar", &[&bob]).await;
    let mut members = names(&room);
    members.sort_unstable();
    assert_eq!(members, ["ada", "bob"]);
    assert_eq!((&room["private"], &room["owner"]), (&json!(true), &json!(ada.id)));
    let id = id_of(&room);
    let unknown = "6b0bd1279c726f6f6d000001";
    let (status, sent) = bob.say(&id, "hello").await;
    assert_eq!(status, 201, "{sent}");
    let message = sent["message"]["_id"].as_str().unwrap();
    assert_eq!(ada.history(&id).await[0]["content"], "hello");

    // Its name is free for others, and no list has it.
    ada.private_room("cellar", &[]).await;
    ada.create_room("cellar").await;
    let rooms = ada.get("/api/chat/rooms").await;
    assert_eq!(rooms.as_array().unwrap().len(), 1);
    let mut mine = bob.get("/api/chat/rooms?mine=true").await;
    for field in ["lastMessage", "unread", "lastRead"] {
        assert!(mine[0].as_object_mut().unwrap().remove(field).is_some(), "{field}");
    }
    assert_eq!(mine, json!([room]));
    assert_eq!(eve.get("/api/chat/rooms?mine=true").await, json!([]));

    // For everybody else each answer is that of a room that does not exist.
    let requests = |room: &str| {
        let message = format!("/api/chat/message/{message}");
        vec![
            (Method::GET, format!("/api/chat/room/{room}"), json!({})),
            (Method::PATCH, format!("/api/chat/room/{room}"), json!({ "name": "x" })),
            (Method::DELETE, format!("/api/chat/room/{room}"), json!({})),
            (Method::POST, format!("/api/chat/room/{room}/members"), json!({ "user": eve.id })),
            (Method::DELETE, format!("/api/chat/room/{room}/members/{}", eve.id), json!({})),
            (Method::GET, format!("/api/chat/messages/{room}"), json!({})),
            (Method::GET, format!("/api/chat/messages/{room}?limit=5&deleted=true"), json!({})),
            (
                Method::POST,
                "/api/chat/message".to_owned(),
                json!({ "room": room, "sender": eve.id, "content": "x" }),
            ),
            (Method::PATCH, message.clone(), json!({ "content": "x" })),
            (Method::DELETE, message, json!({})),
        ]
    };
    for server in [&one, &other] {
        let eve = server.login("eve").await;
        for ((method, path, body), (_, other_path, other_body)) in
            requests(&id).into_iter().zip(requests(unknown))
        {
            let foreign = eve.ask(method.clone(), &path, body).await;
            if path.contains("/message/") {
                assert_eq!((foreign.0, &foreign.1["code"]), (404, &json!("message_not_found")));
                continue;
            }
            let missing = eve.ask(method.clone(), &other_path, other_body).await;
            assert_eq!(foreign, missing, "{method} {path}");
        }
        let mut socket = Socket::connect(server, &eve.token).await;
        for room in [id.as_str(), unknown] {
            let refused = socket.ask("joinRoom", json!(room)).await;
            assert_eq!(refused["code"], "room_not_found");
            let refused = socket.ask("joinRoom", json!({ "room": room, "since": "1.1" })).await;
            assert_eq!(refused["code"], "room_not_found");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_anything_behind_a_removal() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut plain = Socket::connect(&other, &bob.token).await;
    let since = plain.join(&id).await;
    let mut caller = Caller::connect(other.addr, &bob.token).await;
    caller.join(&id).await;
    let mut owner = Socket::connect(&other, &ada.token).await;
    owner.join(&id).await;
    let mut elsewhere = Socket::connect(&one, &bob.token).await;

    ada.say(&id, "before").await;
    assert_eq!(ada.remove(&id, &bob).await.0, 200);
    ada.say(&id, "behind").await;

    assert_eq!(owner.heard().await.content, "before");
    let removed = owner.next().await;
    assert_eq!(removed["event"], "memberRemoved");
    assert_eq!(removed["data"], json!({ "room": id, "user": bob.id }));
    assert_eq!(owner.heard().await.content, "behind");

    assert_eq!(plain.heard().await.content, "before");
    assert_eq!(plain.next().await["event"], "memberRemoved");
    let told = plain.next().await;
    assert_eq!((&told["event"], &told["data"]), (&json!("roomRemoved"), &json!({ "room": id })));
    plain.assert_silent(Duration::from_millis(300)).await;
    assert_eq!(caller.heard().await.1, "before");
    assert_eq!(caller.event().await[0], "memberRemoved");
    assert_eq!(caller.event().await[0], "roomRemoved");
    caller.assert_nothing_came().await;
    assert_eq!(elsewhere.next().await["event"], "roomRemoved");

    // Not by a position, not by the history, and not by a message either.
    let refused = plain.ask("joinRoom", json!({ "room": id, "since": since })).await;
    assert_eq!(refused["code"], "room_not_found");
    assert!(bob.history(&id).await.is_empty());
    assert_eq!(bob.say(&id, "still here?").await.0, 400);

    // Back again: everything from then on.
    assert_eq!(ada.add(&id, &bob).await.0, 200);
    assert_eq!(owner.next().await["event"], "memberAdded");
    assert_eq!(plain.next().await["event"], "roomAdded");
    plain.recover(&id, &since).await;
    let told: Vec<_> = [plain.next().await, plain.next().await, plain.next().await]
        .map(|told| told["event"].as_str().unwrap().to_owned())
        .into();
    assert_eq!(told, ["receiveMessage", "memberRemoved", "receiveMessage"]);
    assert_eq!(plain.next().await["event"], "memberAdded");
    ada.say(&id, "again").await;
    assert_eq!(plain.heard().await.content, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_comes_back_hears_of_its_removal_and_nothing_behind_it() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    let lounge = ada.create_room("lounge").await;
    let mut caller = Caller::connect(one.addr, &bob.token).await;
    caller.join(&id).await;
    caller.join(&lounge).await;
    ada.say(&id, "an offset").await;
    assert_eq!(caller.heard().await.1, "an offset");
    let memory = caller.cut();
    ada.remove(&id, &bob).await;
    ada.say(&id, "behind").await;
    ada.say(&lounge, "for all").await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    let mut caller = Caller::recover(other.addr, &bob.token, &memory).await;
    let mut told = [caller.event().await, caller.event().await];
    told.sort_by_key(|event| event[0].as_str().unwrap().to_owned());
    assert_eq!(told[0][1]["content"], "for all");
    assert_eq!((&told[1][0], &told[1][1]["room"]), (&json!("roomRemoved"), &json!(id)));
    caller.assert_nothing_came().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_of_two_is_one_room() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let mut socket = Socket::connect(&other, &bob.token).await;
    let asking = (0..10).map(|n| {
        let server = if n % 2 == 0 { &one } else { &other };
        let (from, to) = if n % 4 < 2 { (&ada, &bob) } else { (&bob, &ada) };
        let body = json!({ "user": to.id });
        async move {
            let path = "/api/chat/direct";
            let answer = server.request(Method::POST, path, Some(&from.token), Some(&body)).await;
            (answer.status(), answer.json::<Value>().await.unwrap())
        }
    });
    let answers = join_all(asking).await;
    let new = answers.iter().filter(|(status, _)| *status == StatusCode::CREATED).count();
    assert_eq!(new, 1, "{answers:?}");
    let room = &answers[0].1["room"];
    let id = id_of(room);
    assert!(answers.iter().all(|(_, answer)| id_of(&answer["room"]) == id));
    assert_eq!((&room["direct"], room.get("name")), (&json!(true), None));
    let told = socket.next().await;
    assert_eq!((&told["event"], &told["data"]["room"]), (&json!("roomAdded"), &json!(id)));

    socket.join(&id).await;
    assert_eq!(ada.say(&id, "hello").await.0, 201);
    assert_eq!(socket.heard().await.content, "hello");
    let path = format!("/api/chat/room/{id}");
    assert_eq!(ada.ask(Method::PATCH, &path, json!({ "name": "x" })).await.0, 403);
    assert_eq!(ada.ask(Method::DELETE, &path, json!({})).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_decides_and_hands_over() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob, eve) =
        (server.register("ada").await, server.register("bob").await, server.register("eve").await);
    let id = id_of(&ada.private_room("cellar", &[]).await);
    let path = format!("/api/chat/room/{id}");
    assert_eq!(ada.add(&id, &bob).await.0, 200);
    let mut socket = Socket::connect(&server, &bob.token).await;
    socket.join(&id).await;
    assert_eq!(bob.add(&id, &eve).await.1["code"], "not_the_owner");
    assert_eq!(bob.remove(&id, &ada).await.1["code"], "not_the_owner");
    assert_eq!(bob.ask(Method::PATCH, &path, json!({ "name": "x" })).await.0, 403);
    assert_eq!(bob.ask(Method::DELETE, &path, json!({})).await.0, 403);
    let ghost = json!({ "user": ObjectId::new().to_hex() });
    let (status, answer) = ada.ask(Method::POST, &format!("{path}/members"), ghost).await;
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")));

    let (status, answer) = ada.ask(Method::PATCH, &path, json!({ "name": "vault" })).await;
    assert_eq!((status, &answer["room"]["name"]), (200, &json!("vault")));
    let told = socket.next().await;
    let changed = json!({ "room": id, "name": "vault", "owner": ada.id });
    assert_eq!((&told["event"], &told["data"]), (&json!("roomChanged"), &changed));

    // The owner may delete what others said.
    let (_, said) = bob.say(&id, "rude").await;
    assert_eq!(socket.heard().await.content, "rude");
    let message = format!("/api/chat/message/{}", said["message"]["_id"].as_str().unwrap());
    assert_eq!(ada.ask(Method::DELETE, &message, json!({})).await.0, 200);
    assert_eq!(socket.next().await["event"], "messageDeleted");

    // Twice changes nothing.
    assert_eq!(ada.add(&id, &bob).await.0, 200);
    assert_eq!(ada.remove(&id, &eve).await.0, 200);
    // An owner who leaves hands over; the last member ends the room.
    let (status, answer) = ada.remove(&id, &ada).await;
    assert_eq!((status, &answer["room"]["owner"]), (200, &json!(bob.id)));
    let told = [socket.next().await, socket.next().await];
    assert_eq!(told.map(|told| told["event"].clone()), ["roomChanged", "memberRemoved"]);
    assert_eq!(ada.ask(Method::GET, &path, json!({})).await.0, 404);
    assert_eq!(bob.remove(&id, &bob).await.0, 200);
    assert_eq!(bob.ask(Method::GET, &path, json!({})).await.0, 404);
    let database = connect(&uri).await;
    eventually_within(Duration::from_secs(20), "the messages are removed", async || {
        let room = doc! { "room": id.parse::<ObjectId>().unwrap() };
        let messages = database.collection::<Document>("messages");
        let rooms = database.collection::<Document>("realtime_chat_backend_rooms");
        messages.count_documents(room).await.unwrap() == 0
            && rooms.count_documents(doc! { "ended": true }).await.unwrap() == 0
    })
    .await;
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_a_member_is_removed_is_delivered_before_or_refused() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut owner = Socket::connect(&one, &ada.token).await;
    owner.join(&id).await;
    for round in 0..10 {
        ada.add(&id, &bob).await;
        let mut socket = Socket::connect(&other, &bob.token).await;
        let mut sent = Vec::new();
        for n in 0..40 {
            let message = json!({ "room": id, "content": format!("{round} {n}") });
            sent.push(socket.send("sendMessage", message).await);
        }
        ada.remove(&id, &bob).await;
        let mut acked = Vec::new();
        while acked.len() < sent.len() {
            let frame = socket.next().await;
            if frame.get("ack").is_some() {
                acked.push(frame);
            }
        }
        let stored = acked.iter().filter(|frame| frame["data"].get("message").is_some()).count();
        // The owner hears exactly what was acknowledged, all of it before the removal.
        let mut heard = 0;
        loop {
            let frame = owner.next().await;
            match frame["event"].as_str().unwrap() {
                "receiveMessage" => heard += 1,
                "memberRemoved" => break,
                "memberAdded" => {}
                other => panic!("{other}"),
            }
        }
        assert_eq!(heard, stored, "round {round}");
        let history = ada.history(&id).await;
        let of_round = history.iter().filter(|message| {
            message["content"].as_str().unwrap().starts_with(&format!("{round} "))
        });
        assert_eq!(of_round.count(), stored);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standalone_members_are_told_within_the_process() {
    let mongod = standalone().await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongod.uri("chat"))]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let mut socket = Socket::connect(&server, &bob.token).await;
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    assert_eq!(socket.next().await["event"], "roomAdded");
    assert_eq!(socket.ask("joinRoom", json!(id)).await["room"], json!(id));
    ada.say(&id, "hello").await;
    assert_eq!(socket.next().await["data"]["content"], "hello");
    ada.remove(&id, &bob).await;
    ada.say(&id, "behind").await;
    assert_eq!(socket.next().await["event"], "memberRemoved");
    assert_eq!(socket.next().await["event"], "roomRemoved");
    socket.assert_silent(Duration::from_millis(200)).await;
    server.stop().await;
}
