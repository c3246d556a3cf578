//! Requests beside a removal: what is read, answered or done half-way when it takes effect.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};
use realtime_chat_backend::models::own;
use realtime_chat_backend::mongod::{Mongod, Options};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::super::typing::acquainted;
use super::id_of;
use crate::helpers::mongod::{Neighbour, ReplicaSet, SLOW, connect, fresh_database, standalone};
use crate::helpers::replica_set::options;
use crate::helpers::socket::Socket;
use crate::helpers::{TestServer, User, client, eventually};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A standalone MongoDB that has fail points.
async fn testable_standalone() -> Mongod {
    let arguments = ["--setParameter", "enableTestCommands=1"].map(str::to_owned).to_vec();
    let options = Options { replica_set: None, arguments, ..options() };
    Mongod::start(options).await.expect("a standalone starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standalone_a_removal_whose_answer_is_lost_is_told_by_the_next_one() {
    let mongod = testable_standalone().await;
    let uri = mongod.uri("chat");
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut socket = Socket::connect(&server, &bob.token).await;
    assert_eq!(socket.ask("joinRoom", json!(room)).await["room"], json!(room));
    let lose = doc! {
        "configureFailPoint": "failCommand", "mode": { "times": 1 },
        "data": {
            "failCommands": ["delete"],
            "writeConcernError": { "code": 64, "errmsg": "lost" },
        },
    };
    Neighbour::connect(&uri).await.admin().run_command(lose).await.unwrap();
    assert_ne!(ada.remove(&room, &bob).await.0, 200);
    assert_eq!(ada.remove(&room, &bob).await.0, 200);
    assert_eq!(ada.say(&room, "secret").await.0, 201);
    assert_eq!(socket.next().await["event"], "memberRemoved");
    assert_eq!(socket.next().await["event"], "roomRemoved");
    socket.assert_silent(ms(500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standalone_a_removal_is_told_although_its_request_has_ended() {
    let mongod = testable_standalone().await;
    let uri = mongod.uri("chat");
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut socket = Socket::connect(&server, &bob.token).await;
    socket.ask("joinRoom", json!(room)).await;
    // Longer than the deadline of a request.
    let hold = doc! {
        "configureFailPoint": "failCommand", "mode": { "times": 1 },
        "data": {
            "failCommands": ["delete"], "blockConnection": true, "blockTimeMS": 5_500,
        },
    };
    Neighbour::connect(&uri).await.admin().run_command(hold).await.unwrap();
    assert_eq!(ada.remove(&room, &bob).await.0, 503);
    assert_eq!(socket.next().await["event"], "memberRemoved");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standalone_who_left_a_conversation_is_back_when_it_is_opened_again() {
    let mongod = standalone().await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongod.uri("chat"))]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let open = async || {
        let body = json!({ "user": bob.id });
        let (status, answer) = ada.ask(Method::POST, "/api/chat/direct", body).await;
        (status, id_of(&answer["room"]))
    };
    let (status, room) = open().await;
    assert_eq!(status, 201);
    assert_eq!(bob.say(&room, "one").await.0, 201);
    assert_eq!(bob.remove(&room, &bob).await.0, 200);
    let mut socket = Socket::connect(&server, &bob.token).await;
    assert_eq!(open().await, (200, room.clone()));
    assert_eq!(socket.next().await["event"], "roomAdded");
    assert_eq!(bob.say(&room, "two").await.0, 201);
    // Nothing has changed for whom it was open.
    assert_eq!(open().await, (200, room));
    socket.assert_silent(ms(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_no_majority_has_yet_hides_what_was_said_since() {
    let mongo = ReplicaSet::start(3).await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongo.uri("majority"))]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    ada.say(&room, "before").await;
    bob.get("/api/chat/rooms?mine=true").await;
    mongo.whole().await;
    let primary = mongo.primary().await;
    let others: Vec<_> = (0..3).filter(|&node| node != primary).collect();
    others.iter().for_each(|&node| mongo.pause(node));
    let saying = async {
        sleep(ms(400)).await;
        ada.say(&room, "secret").await
    };
    let reading = async {
        sleep(ms(800)).await;
        let mut all = Vec::new();
        for path in [
            "/api/chat/rooms?mine=true".to_owned(),
            format!("/api/chat/messages/{room}"),
            format!("/api/chat/messages/{room}?limit=5"),
        ] {
            let asking = client().get(server.url(&path)).bearer_auth(&bob.token);
            // Without an answer in time there is nothing to see.
            if let Ok(answer) = asking.timeout(ms(1_000)).send().await {
                all.push(answer.text().await.unwrap());
            }
        }
        others.iter().for_each(|&node| mongo.resume(node));
        all
    };
    let (_, _, read) = tokio::join!(ada.remove(&room, &bob), saying, reading);
    assert!(!read.is_empty());
    for text in read {
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_online_is_not_told_to_a_user_who_was_removed_meanwhile() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let (ada, bob) = (quick.register("ada").await, quick.register("bob").await);
    let carol = quick.register("carol").await;
    let room = id_of(&ada.private_room("cellar", &[&bob, &carol]).await);
    acquainted(&[&quick, &slow]).await;
    let url = slow.url(&format!("/api/chat/room/{room}/online"));
    let hold = doc! {
        "configureFailPoint": "failCommand", "mode": { "times": 1 },
        "data": {
            "failCommands": ["insert"], "appName": SLOW,
            "namespace": format!("uneven.{}", own::SIGNALS.collection),
            "blockConnection": true, "blockTimeMS": 600,
        },
    };
    neighbour.admin().run_command(hold).await.unwrap();
    let asking = client().get(&url).bearer_auth(&bob.token).send();
    let removing = async {
        sleep(ms(150)).await;
        assert_eq!(ada.remove(&room, &bob).await.0, 200);
        let mut socket = Socket::connect(&quick, &carol.token).await;
        socket.join(&room).await;
        socket
    };
    let (answer, _socket) = tokio::join!(asking, removing);
    let answer = answer.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, 404, "{text}");
    assert!(!text.contains(&carol.id), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_ends_when_its_last_members_leave_at_the_same_time() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let bob = other.register("bob").await;
    let rooms = connect(&uri).await.collection::<Document>(own::ROOMS.collection);
    for round in 0..30 {
        let body = json!({ "name": "cellar", "private": true, "members": [bob.id] });
        let (_, answer) = ada.ask(Method::POST, "/api/chat/room", body).await;
        let room = id_of(&answer["room"]);
        tokio::join!(ada.remove(&room, &ada), bob.remove(&room, &bob));
        let id = ObjectId::parse_str(&room).unwrap();
        let found = rooms.find_one(doc! { "_id": id }).await.unwrap();
        let goes_on = found.is_some_and(|room| !room.get_bool("ended").unwrap_or(false));
        assert!(!goes_on, "{round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_behind_a_removal_says_nothing_of_what_happened_since() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let (ada, bob) = (quick.register("ada").await, quick.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let url = slow.url("/api/chat/message");
    let send = async |key: &str| {
        let body = json!({ "room": room, "sender": bob.id, "content": key });
        let request = client().post(&url).bearer_auth(&bob.token).header("Idempotency-Key", key);
        let answer = request.json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, sent) = send("first").await;
    assert_eq!(status, 201);
    neighbour.hold_slow_back(ms(3_000)).await;
    // The slow instance has just seen that bob is a member.
    let other = send("second");
    let removing = async {
        sleep(ms(150)).await;
        assert_eq!(ada.remove(&room, &bob).await.0, 200);
        let path = format!("/api/chat/message/{}", sent["message"]["_id"].as_str().unwrap());
        assert_eq!(ada.ask(Method::DELETE, &path, json!({})).await.0, 200);
        send("first").await
    };
    let (_, (status, again)) = tokio::join!(other, removing);
    assert_eq!(status, 400, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_have_one_conversation_also_after_an_earlier_one_is_removed() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let open = async |user: &User<'_>, other: &User<'_>| {
        let body = json!({ "user": other.id });
        let (status, answer) = user.ask(Method::POST, "/api/chat/direct", body).await;
        (status, id_of(&answer["room"]))
    };
    let (_, first) = open(&ada, &bob).await;
    ada.say(&first, "old").await;
    assert_eq!(ada.remove(&first, &ada).await.0, 200);
    assert_eq!(bob.remove(&first, &bob).await.0, 200);
    let (status, second) = open(&ada, &bob).await;
    assert_eq!(status, 201);
    let rooms = connect(&uri).await.collection::<Document>(own::ROOMS.collection);
    eventually("the first one is removed", async || {
        let first = doc! { "_id": ObjectId::parse_str(&first).unwrap(), "ended": true };
        rooms.find_one(first).await.unwrap().is_none()
    })
    .await;
    assert_eq!(open(&bob, &ada).await, (200, second));
}
