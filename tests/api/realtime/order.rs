//! One order of messages for everyone, whoever sent them and wherever they listen.

use std::collections::HashMap;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};
use futures::future::{BoxFuture, FutureExt, join_all};
use mongodb::Database;
use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::mongod::{Neighbour, connect, fresh_database, standalone};
use crate::helpers::socket::{END, Heard, Socket};
use crate::helpers::{TestServer, User, alone};

/// How many messages each writer sends to each room.
const EACH: usize = 12;

async fn by_rest(user: &User<'_>, writer: usize, room: &str) {
    for n in 0..EACH {
        user.send(room, &format!("rest {writer} {n}")).await;
    }
}

async fn by_socket(server: &TestServer, token: &str, writer: usize, room: &str) {
    let mut socket = Socket::connect(server, token).await;
    for n in 0..EACH {
        let message = json!({ "room": room, "content": format!("socket {writer} {n}") });
        let ack = socket.ask("sendMessage", message).await;
        assert!(ack["message"]["_id"].is_string(), "{ack}");
    }
}

async fn by_another_program(neighbour: &Neighbour, room: &str) {
    for n in 0..EACH {
        neighbour.insert(room, &format!("neighbour 0 {n}")).await;
    }
}

/// The numbers of each writer's messages, in the order in which they were heard.
fn by_writer(transcript: &[Heard]) -> HashMap<&str, Vec<usize>> {
    let mut writers: HashMap<_, Vec<_>> = HashMap::new();
    for heard in transcript.iter().filter(|heard| heard.content != END) {
        let (writer, n) = heard.content.rsplit_once(' ').unwrap();
        writers.entry(writer).or_default().push(n.parse().unwrap());
    }
    writers
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sockets_of_all_instances_hear_all_messages_in_one_order() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let servers = TestServer::instances::<3>(&uri).await;
    servers[0].register("ada").await;
    let users = join_all(servers.iter().map(|server| server.login("ada"))).await;
    let mut rooms = Vec::new();
    for n in 0..5 {
        rooms.push(users[0].create_room(&format!("room {n}")).await);
    }
    let neighbour = Neighbour::connect(&uri).await;

    // Each of the 30 sockets is in two of the five rooms, in each room are sockets of all servers.
    let mut listening = Vec::new();
    for n in 0..30 {
        let mut socket = Socket::connect(&servers[n % 3], &users[0].token).await;
        for room in [n % 5, (n + 1 + n / 15) % 5] {
            socket.join(&rooms[room]).await;
        }
        listening.push(tokio::spawn(async move { socket.heard_to_the_end(2).await }));
    }
    let mut writing: Vec<BoxFuture<'_, ()>> = Vec::new();
    for room in &rooms {
        for (writer, (server, user)) in servers.iter().zip(&users).enumerate() {
            writing.push(by_rest(user, writer, room).boxed());
            writing.push(by_socket(server, &user.token, writer, room).boxed());
        }
        writing.push(by_another_program(&neighbour, room).boxed());
    }
    let writers = writing.len() / rooms.len();
    join_all(writing).await;
    for room in &rooms {
        users[0].send(room, END).await;
    }

    let mut transcripts: HashMap<String, Vec<Vec<Heard>>> = HashMap::new();
    for heard in join_all(listening).await {
        let heard = heard.unwrap();
        assert!(heard.is_sorted_by(|a, b| a.position < b.position), "one order across rooms");
        let mut by_room: HashMap<_, Vec<_>> = HashMap::new();
        for heard in heard {
            by_room.entry(heard.room.clone()).or_default().push(heard);
        }
        for (room, transcript) in by_room {
            transcripts.entry(room).or_default().push(transcript);
        }
    }
    for room in &rooms {
        let transcripts = &transcripts[room];
        assert_eq!(transcripts.len(), 12);
        assert!(transcripts.iter().all(|transcript| *transcript == transcripts[0]));
        let heard = by_writer(&transcripts[0]);
        assert_eq!(heard.len(), writers);
        let in_order: Vec<_> = (0..EACH).collect();
        assert!(heard.values().all(|numbers| *numbers == in_order), "{heard:?}");
    }
    drop(users);
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_program_arrives_like_any_other() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&room).await;

    let document = neighbour.document(&room, "from beside");
    neighbour.messages.insert_one(&document).await.unwrap();
    let frame = socket.next().await;
    let stored = ada.history(&room).await.remove(0);
    let id = |key| document.get_object_id(key).unwrap().to_hex();
    let expected = json!({
        "room": room,
        "sender": id("sender"),
        "content": "from beside",
        "_id": id("_id"),
        "createdAt": stored["createdAt"],
        "updatedAt": stored["updatedAt"],
        "__v": 0,
    });
    assert_eq!(frame["data"], expected);

    // What a person wrote: no stamps, another order, something more.
    let id = ObjectId::new();
    let room_id = ObjectId::parse_str(&room).unwrap();
    let by_hand = doc! { "mood": "good", "content": "by hand", "sender": id, "room": room_id };
    neighbour.messages.insert_one(by_hand).await.unwrap();
    assert_eq!(socket.next().await["data"]["content"], "by hand");
    socket.assert_silent(Duration::from_millis(100)).await;
    server.stop().await;
}

/// Sends the numbers without waiting for an answer between them; gives the answers in the order in
/// which they come, with the numbers of the requests.
async fn send_at_once(socket: &mut Socket, messages: &[Value]) -> Vec<(u64, Value)> {
    for message in messages {
        socket.send("sendMessage", message.clone()).await;
    }
    let mut answers = Vec::new();
    for _ in messages {
        let mut frame = socket.next().await;
        answers.push((frame["ack"].as_u64().expect("an ack"), frame["data"].take()));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_socket_sends_at_once_is_stored_and_answered_in_that_order() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let messages: Vec<_> = (0..60)
        .map(|n| match n % 20 {
            // Without a content, with a key, for nobody, and too long.
            7 => json!({ "room": room }),
            11 => json!({ "room": room, "content": n.to_string(), "clientId": format!("key {n}") }),
            13 => json!({ "room": ObjectId::new().to_hex(), "content": n.to_string() }),
            17 => json!({ "room": room, "content": "x".repeat(101 * 1024) }),
            _ => json!({ "room": room, "content": n.to_string() }),
        })
        .collect();
    let answers = send_at_once(&mut socket, &messages).await;
    assert!(answers.iter().map(|(id, _)| *id).eq(1..=60), "in the order of the requests");
    let mut sent = Vec::new();
    for (n, (_, answer)) in answers.iter().enumerate() {
        let code = answer["code"].as_str();
        match n % 20 {
            7 => assert_eq!(code, Some("invalid_field"), "{answer}"),
            13 => assert_eq!(code, Some("room_not_found"), "{answer}"),
            17 => assert_eq!(code, Some("body_too_large"), "{answer}"),
            _ => {
                assert_eq!(answer["message"]["content"], n.to_string(), "{answer}");
                sent.push(answer["message"]["_id"].clone());
            }
        }
    }
    let history = ada.history(&room).await;
    assert!(history.iter().map(|message| &message["_id"]).eq(&sent));
    assert!(sent.is_sorted_by_key(|id| id.as_str().unwrap().to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_stored_takes_no_other_with_it() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;
    neighbour.insert(&room, "first").await;
    let database = neighbour.messages.client().database(&neighbour.messages.namespace().db);
    let validator = doc! { "content": { "$not": { "$regex": "refuse" } } };
    database.run_command(doc! { "collMod": "messages", "validator": validator }).await.unwrap();

    let content = |n: usize| if n % 9 == 4 { format!("refuse {n}") } else { format!("take {n}") };
    let bodies = (0..40)
        .map(|n| json!({ "room": room, "sender": ada.id, "content": content(n) }))
        .collect::<Vec<_>>();
    let posts =
        bodies.iter().map(|body| ada.request(Method::POST, "/api/chat/message", Some(body)));
    for (n, answer) in join_all(posts).await.into_iter().enumerate() {
        let expected = if n % 9 == 4 { 500 } else { 201 };
        assert_eq!(answer.status().as_u16(), expected, "message {n}");
    }
    let mut socket = Socket::connect(&server, &ada.token).await;
    let messages: Vec<_> =
        (0..40).map(|n| json!({ "room": room, "content": content(n) })).collect();
    for (n, (_, answer)) in send_at_once(&mut socket, &messages).await.into_iter().enumerate() {
        assert_eq!(answer["code"] == "internal", n % 9 == 4, "message {n}: {answer}");
    }
    // Four of each 40 are refused, and the first was the neighbour's.
    assert_eq!(ada.history(&room).await.len(), 1 + 2 * 36);
}

/// How many operations a MongoDB has been asked to insert with since its start.
async fn inserts(database: &Database) -> i64 {
    let status = database.run_command(doc! { "serverStatus": 1 }).await.unwrap();
    let commands = status.get_document("metrics").unwrap().get_document("commands").unwrap();
    commands.get_document("insert").unwrap().get_i64("total").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_at_once_is_stored_in_few_operations() {
    // Of its own, which nobody else asks for anything.
    let mongod = standalone().await;
    let uri = mongod.uri("together");
    let server = TestServer::start_with(&[("MONGO_URI", &uri), ("RATE_LIMIT_SEND", "0")]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let database = connect(&uri).await;
    const COUNT: i64 = 60;
    let message = json!({ "room": room, "sender": ada.id, "content": "hello" });

    let before = inserts(&database).await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    send_at_once(&mut socket, &vec![message.clone(); COUNT as usize]).await;
    let by_socket = inserts(&database).await - before;
    assert!((1..COUNT / 2).contains(&by_socket), "{by_socket} operations");

    let posts = (0..COUNT).map(|_| ada.request(Method::POST, "/api/chat/message", Some(&message)));
    assert!(join_all(posts).await.iter().all(|answer| answer.status() == 201));
    let by_rest = inserts(&database).await - before - by_socket;
    assert!((1..COUNT).contains(&by_rest), "{by_rest} operations");
    assert_eq!(ada.history(&room).await.len() as i64, 2 * COUNT);
    drop(socket);
    server.stop().await;
    mongod.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_removed_by_hand_soon_takes_no_messages() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    ada.send(&room, "hello").await;
    let rooms = connect(&uri).await.collection::<Document>("rooms");
    rooms.delete_one(doc! { "_id": ObjectId::parse_str(&room).unwrap() }).await.unwrap();
    // No longer than a room that was seen counts as there.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let message = json!({ "room": room, "sender": ada.id, "content": "gone" });
    let answer = ada.request(Method::POST, "/api/chat/message", Some(&message)).await;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({ "error": "Room not found" }));
    assert_eq!(ada.history(&room).await.len(), 1);
}
