//! Removals: everything before one is delivered to the removed user, and nothing after it.

use std::time::Duration;

use bson::doc;
use bson::oid::ObjectId;
use serde_json::json;

use super::id_of;
use crate::helpers::mongod::{Neighbour, fresh_database, standalone};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, User, eventually};

/// Stores a message of a user, as an instance does whose check was before a removal of the user and
/// which is killed before it hears of the removal.
async fn store_late(neighbour: &Neighbour, sender: &User<'_>, room: &str, content: &str) {
    let mut message = neighbour.document(room, content);
    message.insert("sender", sender.id.parse::<ObjectId>().unwrap());
    neighbour.messages.insert_one(message).await.unwrap();
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
async fn a_room_that_a_session_was_removed_from_is_not_in_it_when_it_comes_back() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    let lounge = ada.create_room("lounge").await;
    let mut caller = Caller::connect(one.addr, &bob.token).await;
    caller.join(&id).await;
    caller.join(&lounge).await;
    ada.remove(&id, &bob).await;
    assert_eq!(caller.event().await[0], "memberRemoved");
    assert_eq!(caller.event().await[0], "roomRemoved");
    ada.say(&id, "without bob").await;
    ada.say(&lounge, "an offset").await;
    assert_eq!(caller.heard().await.1, "an offset");
    let memory = caller.cut();
    ada.add(&id, &bob).await;
    ada.say(&id, "with bob").await;

    // The session was told that it is out of the room, so it joins the room or is not in it. It
    // would have a gap: its offset is behind what was said without it.
    let mut caller = Caller::recover(other.addr, &bob.token, &memory).await;
    assert_eq!(caller.event().await[0], "roomAdded");
    ada.say(&lounge, "who is here?").await;
    assert_eq!(caller.heard().await.1, "who is here?");
    caller.join(&id).await;
    ada.say(&id, "welcome").await;
    assert_eq!(caller.heard().await.1, "welcome");

    // That join is in the record again.
    let memory = caller.cut();
    ada.say(&id, "while he was away").await;
    let mut caller = Caller::recover(one.addr, &bob.token, &memory).await;
    assert_eq!(caller.heard().await.1, "while he was away");
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
async fn who_has_just_sent_a_message_sends_none_after_the_removal() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, other.register("bob").await);
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut expected = Vec::new();
    for n in 0..10 {
        let sent = format!("{n}");
        // The instance has just read that he is a member, and may not have heard of the removal.
        assert_eq!(bob.say(&id, &sent).await.0, 201);
        expected.push(sent);
        assert_eq!(ada.remove(&id, &bob).await.0, 200);
        for _ in 0..3 {
            assert_eq!(bob.say(&id, "too late").await.0, 400);
        }
        assert_eq!(ada.add(&id, &bob).await.0, 200);
    }
    let history = ada.history(&id).await;
    let contents: Vec<_> = history.iter().map(|message| message["content"].clone()).collect();
    assert_eq!(contents, expected);
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_after_the_removal_of_its_sender_is_never_delivered_and_does_not_stay() {
    let uri = fresh_database().await;
    let one = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let neighbour = Neighbour::connect(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut socket = Socket::connect(&one, &ada.token).await;
    let since = socket.join(&id).await;
    ada.remove(&id, &bob).await;
    assert_eq!(socket.next().await["event"], "memberRemoved");
    store_late(&neighbour, &bob, &id, "late").await;
    // An instance that starts now knows of the removal, too.
    let other = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let mut later = Socket::connect(&other, &ada.token).await;
    later.recover(&id, &since).await;
    assert_eq!(later.next().await["event"], "memberRemoved");
    store_late(&neighbour, &bob, &id, "later").await;
    ada.say(&id, "done").await;
    for socket in [&mut socket, &mut later] {
        assert_eq!(socket.heard().await.content, "done");
        socket.assert_silent(Duration::from_millis(200)).await;
    }
    eventually("it is removed", async || {
        let history = ada.history(&id).await;
        history.len() == 1 && history[0]["content"] == "done"
    })
    .await;
    // Nobody is told of the removal of a message that was never delivered.
    for socket in [&mut socket, &mut later] {
        socket.assert_silent(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_refused_message_is_refused_until_its_sender_is_a_member_again() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let id = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut owner = Socket::connect(&server, &ada.token).await;
    owner.join(&id).await;
    let mut socket = Socket::connect(&server, &bob.token).await;
    let message = json!({ "room": id, "content": "hello", "clientId": "key" });
    let first = socket.ask("sendMessage", message.clone()).await;
    assert_eq!(first["message"]["content"], "hello", "{first}");
    assert_eq!(owner.heard().await.content, "hello");
    ada.remove(&id, &bob).await;
    assert_eq!(socket.next().await["event"], "roomRemoved");
    // Also of a message that was delivered: the answer would say what the room has.
    let refused = socket.ask("sendMessage", message.clone()).await;
    assert_eq!(refused["code"], "room_not_found");
    ada.add(&id, &bob).await;
    assert_eq!(socket.next().await["event"], "roomAdded");
    assert_eq!(socket.ask("sendMessage", message.clone()).await, first);

    // A message that was stored too late, and whose sender is a member again at its retry.
    let neighbour = Neighbour::connect(&uri).await;
    let stored = first["message"]["_id"].as_str().unwrap().parse::<ObjectId>().unwrap();
    let document = neighbour.messages.find_one(doc! { "_id": stored }).await.unwrap().unwrap();
    neighbour.messages.delete_one(doc! { "_id": stored }).await.unwrap();
    ada.remove(&id, &bob).await;
    neighbour.messages.insert_one(&document).await.unwrap();
    ada.add(&id, &bob).await;
    for event in ["memberRemoved", "memberAdded", "messageDeleted", "memberRemoved", "memberAdded"]
    {
        assert_eq!(owner.next().await["event"], event);
    }
    assert_eq!(socket.next().await["event"], "roomRemoved");
    assert_eq!(socket.next().await["event"], "roomAdded");
    let refused = socket.ask("sendMessage", message.clone()).await;
    assert_eq!(refused["code"], "room_not_found");
    assert_eq!(neighbour.messages.find_one(doc! { "_id": stored }).await.unwrap(), None);
    // The room knows this message, which was delivered once.
    assert_eq!(owner.next().await["event"], "messageDeleted");
    assert_eq!(socket.ask("sendMessage", message.clone()).await, first);
    assert_eq!(owner.heard().await.content, "hello");
    assert_eq!(socket.ask("sendMessage", message).await, first);
    owner.assert_silent(Duration::from_millis(200)).await;
}
