//! Rooms with members by REST: who sees them, owners, conversations of two, many members and
//! messages.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{id_of, names};
use crate::helpers::mongod::{Neighbour, connect, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::{TestServer, eventually_within};

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
    let mut told = socket.next().await;
    // It may have joined before the stream brought the members.
    while told["event"] == "memberAdded" {
        told = socket.next().await;
    }
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
async fn errors_are_precise_where_the_original_had_no_such_request() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let ask = async |method: Method, path: &str, token: Option<&str>, body: Value| {
        let answer = server.request(method, path, token, Some(&body)).await;
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (path, list) = ("/api/chat/room", "/api/chat/rooms");
    let private = json!({ "name": "x", "private": true });
    let mine = "/api/chat/rooms?mine=true";
    for (token, code) in [(None, "token_missing"), (Some("x"), "token_invalid")] {
        for (method, path, body) in
            [(Method::POST, path, private.clone()), (Method::GET, mine, json!({}))]
        {
            let (status, answer) = ask(method, path, token, body).await;
            assert_eq!((status, &answer["code"]), (401, &json!(code)), "{path}");
        }
        for (method, path, body) in [
            (Method::POST, path, json!({ "name": "x" })),
            (Method::POST, path, json!({ "name": "x", "private": "true" })),
            (Method::GET, list, json!({})),
            (Method::GET, "/api/chat/rooms?mine=false", json!({})),
        ] {
            let (status, answer) = ask(method, path, token, body).await;
            assert_eq!((status, answer.get("code")), (401, None), "{path}");
        }
    }
    let token = Some(ada.token.as_str());
    let (status, answer) = ask(Method::POST, path, token, json!({ "private": true })).await;
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")));
    let (status, answer) = ask(Method::GET, &format!("{mine}&limit=0"), token, json!({})).await;
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_members_are_added_at_once() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let now = DateTime::now();
    let ids: Vec<_> = (0..1_000).map(|_| ObjectId::new()).collect();
    let users = ids.iter().map(|id| {
        let name = format!("member {id}");
        doc! { "_id": id, "username": name, "password": "-", "createdAt": now, "updatedAt": now }
    });
    connect(&uri).await.collection::<Document>("users").insert_many(users).await.unwrap();
    let mut socket = Socket::connect(&server, &ada.token).await;
    let ids: Vec<_> = ids.into_iter().map(ObjectId::to_hex).collect();
    let body = json!({ "name": "stadium", "private": true, "members": ids });
    let begun = Instant::now();
    let (status, answer) = ada.ask(Method::POST, "/api/chat/room", body).await;
    assert_eq!(status, 201, "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let room = &answer["room"];
    assert_eq!(room["members"].as_array().unwrap().len(), 1_001);
    assert_eq!(socket.next().await["event"], "roomAdded");
    let too_many = json!({
        "name": "stadium", "private": true, "members": vec![&ada.id; 1_001],
    });
    let (status, answer) = ada.ask(Method::POST, "/api/chat/room", too_many).await;
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")));

    // All of them are removed when the room ends.
    socket.join(&id_of(room)).await;
    let path = format!("/api/chat/room/{}", id_of(room));
    let begun = Instant::now();
    assert_eq!(ada.ask(Method::DELETE, &path, json!({})).await.0, 200);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    loop {
        let frame = socket.next().await;
        match frame["event"].as_str().unwrap() {
            "roomRemoved" => break,
            // The stream may still have been bringing the additions when the room was joined.
            "memberAdded" | "memberRemoved" => {}
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_goes_on_with_an_ended_room_when_the_first_one_is_killed() {
    const MESSAGES: usize = 10_000;
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = id_of(&ada.private_room("attic", &[&bob]).await);
    let (ada_id, bob_token) = (ada.id.clone(), bob.token.clone());
    let ada_token = ada.token.clone();
    drop((ada, bob));
    server.stop().await;
    let neighbour = Neighbour::connect(&uri).await;
    neighbour.insert_all(&room, (0..MESSAGES).map(|n| format!("message {n}"))).await;
    let database = connect(&uri).await;
    let of_room = doc! { "room": room.parse::<ObjectId>().unwrap() };
    let left = async || {
        let messages = database.collection::<Document>("messages");
        messages.count_documents(of_room.clone()).await.unwrap()
    };

    let first = Program::start_on(&uri, &[]);
    let ask = async |addr, method, path: String, token: &str| {
        let request = crate::helpers::client().request(method, format!("http://{addr}{path}"));
        let answer = request.bearer_auth(token).send().await.unwrap();
        (answer.status(), answer.json::<Value>().await.unwrap())
    };
    let path = format!("/api/chat/room/{room}");
    let history = format!("/api/chat/messages/{room}");
    let (status, answer) = ask(first.addr, Method::DELETE, path.clone(), &ada_token).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    // It is gone for everybody at once.
    for token in [&ada_token, &bob_token] {
        let answer = ask(first.addr, Method::GET, path.clone(), token).await;
        assert_eq!(answer.0, StatusCode::NOT_FOUND);
        let answer = ask(first.addr, Method::GET, history.clone(), token).await;
        assert_eq!(answer, (StatusCode::OK, json!([])));
    }
    eventually_within(Duration::from_secs(30), "the purge has begun", async || {
        left().await < MESSAGES as u64
    })
    .await;
    first.kill();
    // MongoDB finishes the operation that it was in.
    let mut rest = left().await;
    eventually_within(Duration::from_secs(20), "nobody goes on", async || {
        sleep(Duration::from_millis(500)).await;
        std::mem::replace(&mut rest, left().await) == rest
    })
    .await;
    assert!(rest > 0, "it was killed in the middle");

    let second = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let rooms = database.collection::<Document>("realtime_chat_backend_rooms");
    eventually_within(Duration::from_secs(30), "all is removed", async || {
        let rooms = rooms.count_documents(doc! { "owner": ada_id.parse::<ObjectId>().unwrap() });
        left().await == 0 && rooms.await.unwrap() == 0
    })
    .await;
    second.stop().await;
}
