//! Read marks, on two instances: they never go back, everybody concerned is told, and the list of
//! rooms says what is unread.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use realtime_chat_backend::models::own;

use super::members::id_of;
use crate::helpers::mongod::{connect, fresh_database, standalone};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, User, eventually};

impl User<'_> {
    async fn mark(&self, room: &str, message: &str) -> (u16, Value) {
        let path = format!("/api/chat/room/{room}/read");
        self.ask(Method::POST, &path, json!({ "message": message })).await
    }

    async fn mine(&self) -> Vec<Value> {
        match self.get("/api/chat/rooms?mine=true").await {
            Value::Array(rooms) => rooms,
            other => panic!("not a list: {other}"),
        }
    }

    /// What the list says of its only room: unread, last read, and the last content.
    async fn only_room(&self) -> (Value, Value, Value) {
        let [room]: [Value; 1] = self.mine().await.try_into().unwrap();
        let last = room["lastMessage"]["content"].clone();
        (room["unread"].clone(), room["lastRead"].clone(), last)
    }

    async fn send_all(&self, room: &str, contents: &[&str]) -> Vec<String> {
        let mut ids = Vec::new();
        for content in contents {
            ids.push(id_of(&self.send(room, content).await));
        }
        ids
    }
}

fn read(room: &str, user: &str, message: &str) -> Value {
    json!({ "room": room, "user": user, "message": message })
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_concerned_is_told_on_every_instance() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob, eve) =
        (one.register("ada").await, one.register("bob").await, one.register("eve").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let [first, second] = ada.send_all(&room, &["one", "two"]).await.try_into().unwrap();
    // Bob reads on one device; another one has joined nothing, a third has joined the room.
    let mut reader = Socket::connect(&one, &bob.token).await;
    let mut elsewhere = Socket::connect(&other, &bob.token).await;
    let mut in_room = Caller::connect(other.addr, &bob.token).await;
    in_room.join(&room).await;
    let mut owner = Socket::connect(&other, &ada.token).await;
    owner.join(&room).await;
    let mut stranger = Socket::connect(&other, &eve.token).await;

    let request = json!({ "room": room, "message": second });
    assert_eq!(reader.ask("markAsRead", request.clone()).await, request);
    for socket in [&mut reader, &mut elsewhere, &mut owner] {
        let told = socket.next().await;
        assert_eq!(
            (&told["event"], &told["data"]),
            (&json!("messageRead"), &read(&room, &bob.id, &second))
        );
        assert!(told["position"].is_string(), "{told}");
    }
    let told = in_room.event().await;
    assert_eq!(told[..2], [json!("messageRead"), read(&room, &bob.id, &second)]);
    in_room.assert_nothing_came().await;

    // A mark never goes back, whoever says so and on which instance.
    let bob_there = other.login("bob").await;
    assert_eq!(bob_there.mark(&room, &first).await.0, 200);
    assert_eq!(bob_there.only_room().await, (json!(0), json!(second), json!("two")));
    for socket in [&mut reader, &mut elsewhere, &mut owner, &mut stranger] {
        socket.assert_silent(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_of_a_visible_room_is_refused() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, eve) = (one.register("ada").await, one.register("eve").await);
    let cellar = id_of(&ada.private_room("cellar", &[]).await);
    let lounge = ada.create_room("lounge").await;
    let there = id_of(&ada.send(&cellar, "there").await);
    let unknown = ObjectId::new().to_hex();
    for (user, room, message, status, code) in [
        (&eve, &cellar, &there, 404, "room_not_found"),
        (&eve, &unknown, &there, 404, "room_not_found"),
        (&eve, &lounge, &there, 404, "message_not_found"),
        (&ada, &cellar, &unknown, 404, "message_not_found"),
        (&ada, &cellar, &"x".to_owned(), 400, "invalid_field"),
        (&ada, &"x".to_owned(), &there, 400, "invalid_field"),
    ] {
        let (answered, body) = user.mark(room, message).await;
        assert_eq!((answered, &body["code"]), (status, &json!(code)), "{body}");
        let mut socket = Socket::connect(&other, &user.token).await;
        let body = socket.ask("markAsRead", json!({ "room": room, "message": message })).await;
        assert_eq!(body["code"], code, "{body}");
    }
    let mut socket = Socket::connect(&other, &ada.token).await;
    for data in [json!(null), json!("x"), json!({ "room": cellar }), json!({ "message": there })] {
        assert_eq!(socket.ask("markAsRead", data).await["code"], "invalid_field");
    }
    let marks = connect(&uri).await.collection::<Document>(own::MARKS.collection);
    assert_eq!(marks.count_documents(doc! { "message": { "$exists": true } }).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_says_what_is_unread() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[]).await);
    ada.send(&room, "before bob").await;
    // A date has milliseconds, so that the next message is behind the time of the addition.
    assert_eq!(ada.add(&room, &bob).await.0, 200);
    assert_eq!(bob.only_room().await, (json!(0), json!(null), json!("before bob")));
    let sent = ada.send_all(&room, &["one", "two", "three", "four"]).await;
    let [first, second, _, fourth] = sent.try_into().unwrap();
    assert_eq!(bob.only_room().await, (json!(4), json!(null), json!("four")));
    assert_eq!(ada.only_room().await, (json!(0), json!(fourth), json!("four")));
    let bob_there = other.login("bob").await;
    assert_eq!(bob_there.mark(&room, &first).await.0, 200);
    assert_eq!(bob.only_room().await, (json!(3), json!(first), json!("four")));
    // Deleted messages are neither unread nor the last one.
    for message in [&second, &fourth] {
        let path = format!("/api/chat/message/{message}");
        assert_eq!(ada.ask(Method::DELETE, &path, json!({})).await.0, 200);
    }
    assert_eq!(bob.only_room().await, (json!(1), json!(first), json!("three")));
    let [listed]: [Value; 1] = bob.mine().await.try_into().unwrap();
    assert_eq!(listed["lastMessage"]["sender"], json!({ "_id": ada.id, "username": "ada" }));
    // Who writes has read what was before.
    let answer = id_of(&bob.send(&room, "answer").await);
    assert_eq!(bob.only_room().await, (json!(0), json!(answer), json!("answer")));
    ada.send(&room, "five").await;
    assert_eq!(bob.only_room().await, (json!(1), json!(answer), json!("five")));
    for n in 0..101 {
        ada.send(&room, &n.to_string()).await;
    }
    assert_eq!(bob.only_room().await.0, json!(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_room_is_in_the_list_once_it_is_marked() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let mut rooms = Vec::new();
    for name in ["one", "two", "three"] {
        let room = ada.create_room(name).await;
        let message = id_of(&ada.send(&room, name).await);
        rooms.push((room, message));
    }
    let unmarked = ada.create_room("four").await;
    let public = bob.get("/api/chat/rooms").await;
    assert_eq!(bob.mine().await, Vec::<Value>::new());
    for (room, message) in &rooms {
        assert_eq!(bob.mark(room, message).await.0, 200);
    }
    let direct = bob.ask(Method::POST, "/api/chat/direct", json!({ "user": ada.id })).await.1;
    let direct = id_of(&direct["room"]);
    let ids = |rooms: &[Value]| rooms.iter().map(id_of).collect::<Vec<_>>();
    let mine = bob.mine().await;
    let mut expected: Vec<_> = rooms.iter().map(|(room, _)| room.clone()).collect();
    expected.push(direct);
    expected.sort_unstable();
    assert_eq!(ids(&mine), expected);
    assert!(!expected.contains(&unmarked));
    let pages = format!("/api/chat/rooms?mine=true&limit=2&before={}", expected[3]);
    assert_eq!(ids(bob.get(&pages).await.as_array().unwrap()), expected[1..3]);
    // The list of all rooms is what it was.
    assert_eq!(bob.get("/api/chat/rooms").await, public);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_with_very_much_that_is_unread_is_counted_to_a_hundred() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let (busy, quiet) = (ada.create_room("busy").await, ada.create_room("quiet").await);
    for room in [&busy, &quiet] {
        let first = id_of(&ada.send(room, "first").await);
        assert_eq!(bob.mark(room, &first).await.0, 200);
    }
    let (room, sender) =
        (ObjectId::parse_str(&busy).unwrap(), ObjectId::parse_str(&ada.id).unwrap());
    let message = |n: u32| {
        let (id, now) = (ObjectId::new(), DateTime::now());
        doc! {
            "_id": id, "room": room, "sender": sender, "content": n.to_string(),
            "createdAt": now, "updatedAt": now, "__v": 0,
        }
    };
    let messages: Vec<_> = (0..6_000).map(message).collect();
    let last_read = messages[5_992].get_object_id("_id").unwrap().to_hex();
    let collection = connect(&uri).await.collection::<Document>("messages");
    collection.insert_many(&messages).await.unwrap();
    ada.send(&quiet, "one").await;
    let answer = id_of(&bob.send(&quiet, "two").await);
    ada.send_all(&quiet, &["three", "four"]).await;
    let unread = async || {
        let mine = bob.mine().await;
        let of = |id: &str| mine.iter().find(|room| room["_id"] == json!(id)).unwrap().clone();
        let (busy, quiet) = (of(&busy), of(&quiet));
        assert_eq!(quiet["lastRead"], json!(answer));
        (busy["unread"].clone(), quiet["unread"].clone())
    };
    assert_eq!(unread().await, (json!(100), json!(2)));
    assert_eq!(bob.mark(&busy, &last_read).await.0, 200);
    // A mark is written up to a second later.
    eventually("the mark counts", async || unread().await == (json!(7), json!(2))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_marks_are_few_writes_and_the_last_one_is_stored() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = id_of(&ada.private_room("cellar", &[]).await);
    let contents: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    let contents: Vec<_> = contents.iter().map(String::as_str).collect();
    let messages = ada.send_all(&room, &contents).await;
    let last = messages.last().unwrap().clone();
    let mut socket = Socket::connect(&other, &ada.token).await;
    // Two devices on two instances, in any order.
    let marking = messages.iter().rev().chain(&messages).enumerate().map(|(n, message)| {
        let server = if n % 2 == 0 { &one } else { &other };
        let path = format!("/api/chat/room/{room}/read");
        let token = &ada.token;
        async move {
            let body = json!({ "message": message });
            server.request(Method::POST, &path, Some(token), Some(&body)).await.status()
        }
    });
    assert!(join_all(marking).await.iter().all(|status| status.as_u16() == 200));
    let mut told: Vec<String> = Vec::new();
    while told.last() != Some(&last) {
        let event = socket.next().await;
        assert_eq!(event["event"], "messageRead");
        told.push(event["data"]["message"].as_str().unwrap().to_owned());
    }
    assert!(told.is_sorted(), "a mark went back: {told:?}");
    assert!(told.len() <= 6, "each instance writes at most once a second: {told:?}");
    socket.assert_silent(Duration::from_millis(1500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_stores_the_mark_that_waits() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let [first, second] = ada.send_all(&room, &["one", "two"]).await.try_into().unwrap();
    assert_eq!(ada.mark(&room, &first).await.0, 200);
    assert_eq!(ada.mark(&room, &second).await.0, 200);
    server.stop().await;
    let marks = connect(&uri).await.collection::<Document>(own::MARKS.collection);
    let stored = marks.find_one(doc! { "_id.room": ObjectId::parse_str(&room).unwrap() }).await;
    assert_eq!(stored.unwrap().unwrap().get_object_id("message").unwrap().to_hex(), second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_recovered_like_a_message() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut caller = Caller::connect(one.addr, &ada.token).await;
    caller.join(&room).await;
    let message = id_of(&ada.send(&room, "an offset").await);
    assert_eq!(caller.heard().await.1, "an offset");
    let mut socket = Socket::connect(&one, &ada.token).await;
    let since = socket.join(&room).await;
    let memory = caller.cut();
    assert_eq!(bob.mark(&room, &message).await.0, 200);
    assert_eq!(socket.next().await["data"], read(&room, &bob.id, &message));
    assert_eq!(ada.mark(&room, &message).await.0, 200);
    assert_eq!(socket.next().await["data"], read(&room, &ada.id, &message));

    let mut caller = Caller::recover(other.addr, &ada.token, &memory).await;
    // That of the other user for the room, that of the same user once.
    assert_eq!(caller.event().await[..2], [json!("messageRead"), read(&room, &bob.id, &message)]);
    assert_eq!(caller.event().await[..2], [json!("messageRead"), read(&room, &ada.id, &message)]);
    caller.assert_nothing_came().await;
    let mut socket = Socket::connect(&other, &ada.token).await;
    socket.recover(&room, &since).await;
    assert_eq!(socket.next().await["data"], read(&room, &bob.id, &message));
    socket.assert_silent(Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_ends_takes_its_marks_along() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = id_of(&ada.private_room("cellar", &[]).await);
    let message = id_of(&ada.send(&room, "x").await);
    assert_eq!(ada.mark(&room, &message).await.0, 200);
    let marks = connect(&uri).await.collection::<Document>(own::MARKS.collection);
    let of_room = doc! { "_id.room": ObjectId::parse_str(&room).unwrap() };
    assert_eq!(marks.count_documents(of_room.clone()).await.unwrap(), 1);
    let path = format!("/api/chat/room/{room}");
    assert_eq!(ada.ask(Method::DELETE, &path, json!({})).await.0, 200);
    eventually("the marks are gone", async || {
        marks.count_documents(of_room.clone()).await.unwrap() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_work_on_a_standalone() {
    let mongod = standalone().await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongod.uri("chat"))]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    assert_eq!(socket.ask("joinRoom", json!(room)).await["position"], json!(null));
    let message = id_of(&ada.send(&room, "x").await);
    assert_eq!(socket.next().await["event"], "receiveMessage");
    assert_eq!(bob.mark(&room, &message).await.0, 200);
    let told = socket.next().await;
    assert_eq!(told, json!({ "event": "messageRead", "data": read(&room, &bob.id, &message) }));
    assert_eq!(bob.only_room().await, (json!(0), json!(message), json!("x")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_marks_nothing_costs_nothing() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&room).await;
    ada.send(&room, "x").await;
    assert_eq!(socket.heard().await.content, "x");
    socket.assert_silent(Duration::from_millis(1200)).await;
    let marks = connect(&uri).await.collection::<Document>(own::MARKS.collection);
    assert_eq!(marks.count_documents(doc! { "message": { "$exists": true } }).await.unwrap(), 0);
}

/// 1,000 rooms, of which a fifth has unread messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_rooms_are_listed_quickly() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let database = connect(&uri).await;
    let (user, now) = (ObjectId::parse_str(&ada.id).unwrap(), DateTime::now());
    let room_id = |n: u32| {
        let [a, b, c] = [(n >> 16) as u8, (n >> 8) as u8, n as u8];
        ObjectId::from_bytes([0x60, 0, 0, 0, 0x9c, b'r', b'o', b'o', b'm', a, b, c])
    };
    let (mut rooms, mut members, mut marks, mut messages) = (vec![], vec![], vec![], vec![]);
    let other = ObjectId::new();
    for n in 0..1000 {
        let room = room_id(n);
        let id = doc! { "room": room, "user": user };
        rooms.push(doc! {
            "_id": room, own::FIELD: own::MARK, "name": format!("room {n}"), "owner": user,
            "createdAt": now, "updatedAt": now, "__v": 0,
        });
        members
            .push(doc! { "_id": &id, own::FIELD: own::MARK, "username": "ada", "joinedAt": now });
        let ids: Vec<_> = (0..20).map(|_| ObjectId::new()).collect();
        let mark = if n % 5 == 0 { ids[9] } else { ids[19] };
        marks.push(doc! { "_id": id, own::FIELD: own::MARK, "message": mark, "updatedAt": now });
        messages.extend(ids.into_iter().map(|id| {
            doc! {
                "_id": id, "room": room, "sender": other, "content": "hello",
                "createdAt": now, "updatedAt": now, "__v": 0,
            }
        }));
    }
    for (name, documents) in [
        (own::ROOMS.collection, rooms),
        (own::MEMBERS.collection, members),
        (own::MARKS.collection, marks),
        ("messages", messages),
    ] {
        database.collection::<Document>(name).insert_many(documents).await.unwrap();
    }
    eventually("the index is there", async || {
        let names = database.collection::<Document>("messages").list_index_names().await.unwrap();
        names.contains(&"room_1__id_1".to_owned())
    })
    .await;
    let listed = ada.mine().await;
    assert_eq!(listed.len(), 1000);
    for (n, room) in listed.iter().enumerate() {
        let unread = if n % 5 == 0 { 10 } else { 0 };
        assert_eq!(room["unread"], json!(unread), "{room}");
        assert_eq!(room["lastMessage"]["content"], "hello");
    }
    // The release build is several times as fast. Here it is only seen that the time does not
    // consist of a thousand round trips.
    let began = std::time::Instant::now();
    for _ in 0..5 {
        ada.mine().await;
    }
    let each = began.elapsed() / 5;
    eprintln!("a list of 1,000 rooms took {each:?}");
    assert!(each < Duration::from_secs(2), "{each:?}");
}
