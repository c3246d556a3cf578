//! One order of messages for everyone, whoever sent them and wherever they listen.

use std::collections::HashMap;
use std::time::Duration;

use bson::doc;
use bson::oid::ObjectId;
use futures::future::{BoxFuture, FutureExt, join_all};
use serde_json::json;

use crate::helpers::mongod::{Neighbour, fresh_database};
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
