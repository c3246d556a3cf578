//! Who types, on two instances.

use std::time::{Duration, Instant};

use bson::{Document, RawDocumentBuf, doc};

use reqwest::Method;
use serde_json::{Value, json};

use realtime_chat_backend::models::own;

use super::members::id_of;
use crate::helpers::mongod::{connect, fresh_database, standalone};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, User, eventually, metric};

/// Waits until the instances know of each other.
pub async fn acquainted(servers: &[&TestServer]) {
    for server in servers {
        eventually("the instances know each other", async || {
            metric(server.addr, "chat_instances").await == servers.len() as u64
        })
        .await;
    }
}

fn typing(room: &str, user: &User<'_>, name: &str) -> Value {
    let data = json!({ "room": room, "user": { "_id": user.id, "username": name } });
    json!({ "event": "typing", "data": data })
}

fn stopped(room: &str, user: &User<'_>) -> Value {
    json!({ "event": "stopTyping", "data": { "room": room, "user": user.id } })
}

#[tokio::test(flavor = "multi_thread")]
async fn others_in_the_room_see_who_types_on_every_instance() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob, eve) =
        (one.register("ada").await, one.register("bob").await, one.register("eve").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let lounge = ada.create_room("lounge").await;
    acquainted(&[&one, &other]).await;
    let mut typist = Socket::connect(&one, &ada.token).await;
    let mut second_tab = Socket::connect(&one, &ada.token).await;
    let mut near = Socket::connect(&one, &bob.token).await;
    let mut far = Socket::connect(&other, &bob.token).await;
    let mut far_caller = Caller::connect(other.addr, &bob.token).await;
    for socket in [&mut typist, &mut second_tab, &mut near, &mut far] {
        socket.join(&room).await;
    }
    far_caller.join(&room).await;
    let mut stranger = Socket::connect(&other, &eve.token).await;
    stranger.join(&lounge).await;

    // The first is passed on, the next ones within three seconds are not.
    for _ in 0..5 {
        assert_eq!(typist.ask("typing", json!({ "room": room })).await, json!({ "room": room }));
    }
    assert_eq!(near.next().await, typing(&room, &ada, "ada"));
    let began = Instant::now();
    assert_eq!(far.next().await, typing(&room, &ada, "ada"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // An event of Socket.IO without an offset, which would be a text at its end.
    let told = far_caller.event().await;
    assert_eq!(told, [json!("typing"), typing(&room, &ada, "ada")["data"].clone()]);
    near.assert_silent(Duration::from_millis(500)).await;

    typist.ask("stopTyping", json!(room)).await;
    assert_eq!(near.next().await, stopped(&room, &ada));
    assert_eq!(far.next().await, stopped(&room, &ada));
    assert_eq!(far_caller.event().await[0], "stopTyping");
    typist.ask("stopTyping", json!(room)).await;

    // A message ends it, and so does leaving, and the end of the connection.
    for end in ["message", "leave", "close"] {
        typist.ask("typing", json!(room)).await;
        assert_eq!(near.next().await["event"], "typing", "{end}");
        assert_eq!(far.next().await["event"], "typing", "{end}");
        match end {
            "message" => {
                ada.send(&room, "x").await;
                for socket in [&mut near, &mut far] {
                    assert_eq!(socket.heard().await.content, "x");
                }
                assert_eq!(typist.heard().await.content, "x");
            }
            "leave" => {
                typist.ask("leaveRoom", json!(room)).await;
                // It types again in the last round.
                typist.join(&room).await;
            }
            _ => drop(std::mem::replace(&mut typist, Socket::connect(&one, &ada.token).await)),
        }
        for socket in [&mut near, &mut far] {
            assert_eq!(socket.next().await, stopped(&room, &ada), "{end}");
        }
    }
    // Neither the user's own other session nor who is not in the room hears anything.
    assert_eq!(second_tab.heard().await.content, "x");
    second_tab.assert_silent(Duration::from_millis(100)).await;
    stranger.assert_silent(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_joined_a_room_can_type_there() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let cellar = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut socket = Socket::connect(&server, &bob.token).await;
    for event in ["typing", "stopTyping"] {
        for room in [cellar.as_str(), "0123456789abcdef01234567"] {
            let refused = socket.ask(event, json!({ "room": room })).await;
            let sentence = "Join the room first";
            assert_eq!(refused, json!({ "error": sentence, "code": "not_joined" }));
        }
        for data in [json!(null), json!("x"), json!({}), json!([])] {
            assert_eq!(socket.ask(event, data).await["code"], "invalid_field");
        }
    }
    // Who is removed types no more.
    let mut owner = Socket::connect(&server, &ada.token).await;
    owner.join(&cellar).await;
    socket.join(&cellar).await;
    socket.ask("typing", json!(cellar)).await;
    assert_eq!(owner.next().await, typing(&cellar, &bob, "bob"));
    assert_eq!(ada.remove(&cellar, &bob).await.0, 200);
    assert_eq!(owner.next().await["event"], "memberRemoved");
    assert_eq!(owner.next().await, stopped(&cellar, &bob));
    assert_eq!(socket.ask("typing", json!(cellar)).await["code"], "not_joined");
    assert_eq!(socket.next().await["event"], "memberRemoved");
    assert_eq!(socket.next().await["event"], "roomRemoved");
    socket.assert_silent(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_heard_of_is_not_shown_as_typing() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = ada.create_room("lounge").await;
    acquainted(&[&one, &other]).await;
    let mut typist = Socket::connect(&one, &ada.token).await;
    let mut far = Socket::connect(&other, &bob.token).await;
    typist.join(&room).await;
    far.join(&room).await;
    typist.ask("typing", json!(room)).await;
    assert_eq!(far.next().await, typing(&room, &ada, "ada"));
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    typist.ask("typing", json!(room)).await;
    assert_eq!(far.next().await, typing(&room, &ada, "ada"));
    assert_eq!(far.next().await, stopped(&room, &ada));
    let took = began.elapsed();
    assert!((8_500..11_000).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_is_written_only_while_another_instance_lives() {
    let uri = fresh_database().await;
    let one = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = ada.create_room("lounge").await;
    let mut typist = Socket::connect(&one, &ada.token).await;
    let mut near = Socket::connect(&one, &bob.token).await;
    typist.join(&room).await;
    near.join(&room).await;
    let bundles = connect(&uri).await.collection::<Document>(own::SIGNALS.collection);
    let sent = async || bundles.count_documents(doc! { "s": { "$exists": true } }).await.unwrap();
    for _ in 0..10 {
        typist.ask("typing", json!(room)).await;
        assert_eq!(near.next().await["event"], "typing");
        typist.ask("stopTyping", json!(room)).await;
        assert_eq!(near.next().await["event"], "stopTyping");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sent().await, 0);
    let other = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    acquainted(&[&one, &other]).await;
    // A burst is few bundles.
    for _ in 0..50 {
        typist.ask("typing", json!(room)).await;
        typist.ask("stopTyping", json!(room)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let count = sent().await;
    assert!((1..=20).contains(&count), "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_lost_or_lapped_is_followed_anew() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = ada.create_room("lounge").await;
    acquainted(&[&one, &other]).await;
    let mut typist = Socket::connect(&one, &ada.token).await;
    let mut far = Socket::connect(&other, &bob.token).await;
    typist.join(&room).await;
    far.join(&room).await;
    let database = connect(&uri).await;
    let bundles = database.collection::<RawDocumentBuf>(own::SIGNALS.collection);
    bundles.drop().await.unwrap();
    eventually("it is noticed", async || {
        metric(other.addr, "chat_signal_restarts_total").await >= 1
    })
    .await;
    let mut told = None;
    for _ in 0..40 {
        typist.ask("typing", json!(room)).await;
        typist.ask("stopTyping", json!(room)).await;
        // The first bundle behind the loss may have only the end of what was lost.
        let next = tokio::time::timeout(Duration::from_millis(500), far.next());
        if let Ok(next) = next.await {
            told = Some(next["event"].clone());
            break;
        }
    }
    assert_eq!(told, Some(json!("typing")), "signals come again");
    // It is capped again, also when it was created by a write.
    let is_capped = async || {
        let stats = doc! { "collStats": own::SIGNALS.collection };
        database.run_command(stats).await.unwrap().get_bool("capped").unwrap()
    };
    eventually("it is capped", is_capped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_works_on_a_standalone() {
    let mongod = standalone().await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongod.uri("chat"))]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = ada.create_room("lounge").await;
    let mut typist = Socket::connect(&server, &ada.token).await;
    let mut near = Socket::connect(&server, &bob.token).await;
    typist.ask("joinRoom", json!(room)).await;
    near.ask("joinRoom", json!(room)).await;
    typist.ask("typing", json!(room)).await;
    assert_eq!(near.next().await, typing(&room, &ada, "ada"));
    ada.send(&room, "x").await;
    assert_eq!(near.next().await["event"], "receiveMessage");
    assert_eq!(near.next().await, stopped(&room, &ada));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_said_who_has_joined_a_room_on_all_instances() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob, eve) =
        (one.register("ada").await, one.register("bob").await, one.register("eve").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    acquainted(&[&one, &other]).await;
    let path = format!("/api/chat/room/{room}/online");
    assert_eq!(ada.get(&path).await, json!({ "online": [] }));
    let mut here = Socket::connect(&one, &ada.token).await;
    let mut second_tab = Socket::connect(&other, &ada.token).await;
    let mut there = Socket::connect(&other, &bob.token).await;
    for socket in [&mut here, &mut second_tab, &mut there] {
        socket.join(&room).await;
    }
    let mut both = [ada.id.clone(), bob.id.clone()];
    both.sort_unstable();
    for user in [&ada, &other.login("bob").await] {
        assert_eq!(user.get(&path).await, json!({ "online": both }));
    }
    let (status, refused) = eve.ask(Method::GET, &path, json!({})).await;
    assert_eq!((status, &refused["code"]), (404, &json!("room_not_found")));
    let (status, refused) = eve.ask(Method::GET, "/api/chat/room/x/online", json!({})).await;
    assert_eq!((status, &refused["code"]), (400, &json!("invalid_field")));
}
