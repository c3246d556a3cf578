//! What other programs and MongoDB itself can do to the stream: each has one outcome, is counted,
//! and the others go on.

use std::net::SocketAddr;

use bson::oid::ObjectId;
use bson::{Bson, Document, doc};
use futures::future::join_all;
use mongodb::error::Error;
use serde_json::json;

use crate::helpers::mongod::{Neighbour, ReplicaSet, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::socket::{Socket, heard};
use crate::helpers::{TestServer, alone, eventually, metric};

/// Inserts a message that each of these sockets hears next.
async fn all_hear(sockets: &mut [Socket], neighbour: &Neighbour, room: &str, content: &str) {
    neighbour.insert(room, content).await;
    for socket in sockets {
        assert_eq!(socket.heard().await.content, content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_dropped_or_renamed_is_one_resync_for_each_room() {
    let uri = fresh_database().await;
    let servers = TestServer::instances::<2>(&uri).await;
    let ada = servers[0].register("ada").await;
    let rooms = [ada.create_room("one").await, ada.create_room("other").await];
    let neighbour = Neighbour::connect(&uri).await;
    let mut sockets = Vec::new();
    for server in &servers {
        let mut socket = Socket::connect(server, &ada.token).await;
        for room in &rooms {
            socket.join(room).await;
        }
        sockets.push(socket);
    }
    all_hear(&mut sockets, &neighbour, &rooms[0], "before").await;

    for end in ["drop", "rename"] {
        let messages = &neighbour.messages;
        if end == "drop" {
            messages.drop().await.unwrap();
        } else {
            let database = &messages.namespace().db;
            let rename = doc! {
                "renameCollection": format!("{database}.messages"),
                "to": format!("{database}.archive"),
            };
            // Refused while an index is being built, which is so for a moment after the drop.
            eventually("it is renamed", async || {
                let renamed = neighbour.admin().run_command(rename.clone()).await;
                let building = |error: &Error| error.to_string().contains("index build");
                assert!(renamed.as_ref().err().is_none_or(building), "{renamed:?}");
                renamed.is_ok()
            })
            .await;
        }
        let mut positions = Vec::new();
        for socket in &mut sockets {
            let mut told = Vec::new();
            for _ in &rooms {
                let frame = socket.next().await;
                assert_eq!(frame["event"], "resync", "{end}: {frame}");
                told.push(frame["data"]["room"].as_str().unwrap().to_owned());
                positions.push(frame["data"]["position"].as_str().unwrap().to_owned());
            }
            told.sort();
            let mut expected = rooms.to_vec();
            expected.sort();
            assert_eq!(told, expected, "{end}");
        }
        for room in &rooms {
            all_hear(&mut sockets, &neighbour, room, "after").await;
        }
        // From there on it is recovered as ever.
        positions.dedup();
        let mut back = Socket::connect(&servers[0], &ada.token).await;
        back.recover(&rooms[0], &positions[0]).await;
        assert_eq!(back.heard().await.content, "after");
    }
    for server in &servers {
        assert_eq!(metric(server.addr, "chat_feed_losses_total").await, 2);
        assert_eq!(metric(server.addr, "chat_feed_restarts_total").await, 2);
    }
    drop(sockets);
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

/// What the feed has counted: documents that are no messages, too large ones, and new beginnings.
async fn counted(addr: SocketAddr) -> [u64; 4] {
    let names = ["poison", "oversized", "restarts", "losses"];
    let counts = names.map(|name| format!("chat_feed_{name}_total"));
    let counts = join_all(counts.iter().map(|name| metric(addr, name))).await;
    counts.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_whose_room_cannot_be_known_are_skipped_and_counted() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;
    let mut sockets = [Socket::connect(&server, &ada.token).await];
    let since = sockets[0].join(&room).await;

    let with = |field: &str, value: Bson| {
        let mut document = neighbour.document(&room, "poison");
        document.insert(field, value);
        document
    };
    let without = |field: &str| {
        let mut document = neighbour.document(&room, "poison");
        document.remove(field);
        document
    };
    let large = "x".repeat(300 * 1024);
    let poison: Vec<Document> = vec![
        doc! {},
        doc! { "_id": 7 },
        with("room", "lounge".into()),
        with("room", 7.into()),
        with("room", Bson::Null),
        with("room", Bson::Array(Vec::new())),
        with("room", Bson::Array(vec![ObjectId::new().into(), ObjectId::new().into()])),
        without("room"),
        doc! { "room": "lounge", "content": large },
    ];
    for document in &poison {
        neighbour.messages.insert_one(document).await.unwrap();
    }
    neighbour.messages.insert_many(&[doc! {}, doc! { "content": 5 }]).await.unwrap();
    all_hear(&mut sockets, &neighbour, &room, "a message").await;
    let count = poison.len() as u64 + 2;
    assert_eq!(counted(server.addr).await, [count, 0, 0, 0]);
    // Recovery passes over them, too, also at a server that begins with them.
    let later = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    for server in [&server, &later] {
        let mut back = Socket::connect(server, &ada.token).await;
        back.recover(&room, &since).await;
        assert_eq!(back.heard().await.content, "a message");
    }
    drop((sockets, ada));
    server.stop().await;
    later.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_too_large_to_deliver_is_a_resync_of_its_room() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let rooms = [ada.create_room("one").await, ada.create_room("other").await];
    let neighbour = Neighbour::connect(&uri).await;
    let mut sockets = Vec::new();
    let mut since = Vec::new();
    for room in &rooms {
        let mut socket = Socket::connect(&server, &ada.token).await;
        since.push(socket.join(room).await);
        sockets.push(socket);
    }
    // One of 15 MB, and one that leaves the event that holds it no room in a document.
    for size in [15_000_000, 16 * 1024 * 1024 - 200] {
        neighbour.insert(&rooms[0], &"x".repeat(size)).await;
        let position = sockets[0].resync(&rooms[0]).await;
        assert!(position > since[0].parse().unwrap());
        for (room, socket) in rooms.iter().zip(&mut sockets) {
            all_hear(std::slice::from_mut(socket), &neighbour, room, "after").await;
        }
    }
    assert_eq!(counted(server.addr).await, [0, 2, 0, 0]);
    // Who comes back is told in their places.
    let mut back = Socket::connect(&server, &ada.token).await;
    back.recover(&rooms[0], &since[0]).await;
    for _ in 0..2 {
        back.resync(&rooms[0]).await;
        assert_eq!(back.heard().await.content, "after");
    }
    drop((sockets, back));
    server.stop().await;
}

/// When the oldest entry of the oplog was made, in seconds.
async fn oldest_in_oplog(neighbour: &Neighbour) -> u32 {
    let oplog = neighbour.messages.client().database("local").collection::<Document>("oplog.rs");
    loop {
        match oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await {
            Ok(oldest) => return oldest.unwrap().get_timestamp("ts").unwrap().time,
            // The entry was removed meanwhile.
            Err(error) => assert!(error.to_string().contains("CappedPositionLost"), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_has_rolled_over_meanwhile_is_one_resync() {
    let _alone = alone().await;
    let arguments = ["--oplogSize", "1", "--syncdelay", "1"];
    let mongo = ReplicaSet::start_with(1, &arguments).await;
    let uri = mongo.uri("rolling");
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;
    let server = Program::start_on(&uri, &[]);
    let mut sockets = [Socket::connect_at(server.addr, &ada.token).await];
    sockets[0].join(&room).await;
    neighbour.insert(&room, "before").await;
    let before = sockets[0].heard().await.position;

    server.pause();
    // An answer to the last question waits for it already; what comes later is lost.
    neighbour.insert(&room, "on its way").await;
    neighbour.insert(&room, "missed").await;
    let filler = neighbour.messages.client().database("filler").collection::<Document>("filler");
    let large = doc! { "text": "x".repeat(1 << 20) };
    while oldest_in_oplog(&neighbour).await <= before.seconds() + 1 {
        filler.insert_many([&large, &large, &large, &large]).await.unwrap();
    }
    server.resume();
    let mut frame = sockets[0].next().await;
    // A slow MongoDB has answered with both.
    for content in ["on its way", "missed"] {
        if frame["event"] == "receiveMessage" {
            assert_eq!(heard(&frame).content, content);
            frame = sockets[0].next().await;
        }
    }
    assert_eq!((&frame["event"], &frame["data"]["room"]), (&json!("resync"), &json!(room)));
    all_hear(&mut sockets, &neighbour, &room, "after").await;
    let [.., restarts, losses] = counted(server.addr).await;
    assert_eq!(losses, 1);
    assert!(restarts <= 3, "no busy loop: {restarts}");

    // A server that starts with less of the oplog than its window begins where it can.
    let later = Program::start_on(&uri, &[]);
    let mut socket = Socket::connect_at(later.addr, &ada.token).await;
    let ack = socket.join_since(&room, &before.to_string()).await;
    assert_eq!(ack["recovered"], false);
    socket.resync(&room).await;
    all_hear(std::slice::from_mut(&mut socket), &neighbour, &room, "at last").await;
    drop((sockets, socket));
    beside.stop().await;
}
