//! Who is online, on several instances, some of which are killed, stopped and cut off.

use std::time::{Duration, Instant};

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use mongodb::Database;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use realtime_chat_backend::models::own;

use crate::helpers::mongod::{connect, fresh_database, standalone};
use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::{TestServer, eventually};

/// Watches a user on a socket. Returns whether the answer says online, and when he was last.
async fn watch(socket: &mut Socket, user: &str) -> (bool, Option<String>) {
    let answer = socket.ask("watchUsers", json!([user])).await;
    let online = answer["online"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let seen = answer["lastSeen"][user].as_str().map(str::to_owned);
    (online.contains(&json!(user)), seen)
}

/// Asks anew until a user is online or not.
async fn eventually_online(socket: &mut Socket, user: &str, is_online: bool) {
    eventually(&format!("online: {is_online}"), async || watch(socket, user).await.0 == is_online)
        .await;
}

fn came(user: &str) -> Value {
    json!({ "event": "userOnline", "data": { "user": user } })
}

/// No frame comes for this time, except pings.
async fn nothing_comes(socket: &mut Socket, most: Duration) {
    if let Ok(told) = timeout(most, socket.next()).await {
        panic!("came unasked: {told}");
    }
}

async fn rows(database: &Database, user: &str) -> u64 {
    let rows = database.collection::<Document>(own::PRESENCE.collection);
    let user = ObjectId::parse_str(user).unwrap();
    rows.count_documents(doc! { "_id.u": user }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_on_two_instances_are_one_user() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let mut watchers =
        [Socket::connect(&one, &bob.token).await, Socket::connect(&other, &bob.token).await];
    for watcher in &mut watchers {
        assert_eq!(watch(watcher, &ada.id).await, (false, None));
    }
    let first = Socket::connect(&one, &ada.token).await;
    for watcher in &mut watchers {
        assert_eq!(watcher.next().await, came(&ada.id));
    }
    let second = Socket::connect(&other, &ada.token).await;
    let third = Socket::connect(&other, &ada.token).await;
    eventually("there is a row for each instance", async || {
        rows(&connect(&uri).await, &ada.id).await == 2
    })
    .await;
    drop(first);
    drop(third);
    // A reload says nothing.
    drop(second);
    sleep(Duration::from_secs(2)).await;
    let last = Socket::connect(&one, &ada.token).await;
    for watcher in &mut watchers {
        nothing_comes(watcher, Duration::from_secs(17)).await;
        assert!(watch(watcher, &ada.id).await.0);
    }
    let left = Instant::now();
    let before = DateTime::now();
    drop(last);
    for watcher in &mut watchers {
        let told = watcher.next().await;
        assert_eq!(
            (&told["event"], &told["data"]["user"]),
            (&json!("userOffline"), &json!(ada.id))
        );
        assert!(told.get("position").is_none(), "{told}");
        let seen = told["data"]["lastSeen"].as_str().unwrap();
        let seen = DateTime::parse_rfc3339_str(seen).unwrap();
        let off = seen.timestamp_millis() - before.timestamp_millis();
        assert!((-100..2_000).contains(&off), "{told}");
        let (is_online, last_seen) = watch(watcher, &ada.id).await;
        assert!(!is_online);
        assert_eq!(json!(last_seen), told["data"]["lastSeen"]);
    }
    let took = left.elapsed();
    assert!((14_500..18_000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(rows(&connect(&uri).await, &ada.id).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let many: Vec<_> = (0..1_001).map(|_| ObjectId::new().to_hex()).collect();
    for data in [json!(null), json!("x"), json!(["x"]), json!({ "users": 1 }), json!(many)] {
        let refused = socket.ask("watchUsers", data.clone()).await;
        assert_eq!(refused["code"], "invalid_field", "{data}: {refused}");
        assert!(refused["error"].as_str().unwrap().starts_with("users: "), "{refused}");
    }
    // 1,000 in all.
    let answer = socket.ask("watchUsers", json!({ "users": many[..600] })).await;
    assert_eq!(answer, json!({ "online": [], "lastSeen": {} }));
    assert_eq!(socket.ask("watchUsers", json!(many[500..])).await["code"], "invalid_field");
    assert_eq!(socket.ask("unwatchUsers", json!(many[..600])).await, json!({}));
    assert_eq!(socket.ask("watchUsers", json!(many[1..])).await["code"], Value::Null);
    assert_eq!(socket.ask("unwatchUsers", json!(null)).await, json!({}));
    assert_eq!(socket.ask("watchUsers", json!(many[..1_000])).await["code"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_no_more_is_told_no_more() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let mut socket = Socket::connect(&server, &ada.token).await;
    watch(&mut socket, &bob.id).await;
    socket.ask("unwatchUsers", json!([bob.id])).await;
    let _bob = Socket::connect(&server, &bob.token).await;
    eventually_online(&mut Socket::connect(&server, &ada.token).await, &bob.id, true).await;
    socket.assert_silent(Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_can_be_turned_off() {
    let uri = fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("PRESENCE", "false")];
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let refusal = json!({
        "error": "The server does not say who is online", "code": "presence_unavailable",
    });
    for event in ["watchUsers", "unwatchUsers"] {
        assert_eq!(socket.ask(event, json!([ada.id])).await, refusal);
    }
    let path = format!("/api/chat/room/{room}/online");
    assert_eq!(ada.ask(Method::GET, &path, json!({})).await, (503, refusal));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(rows(&connect(&uri).await, &ada.id).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_killed_instance_are_offline_and_a_restart_does_not_inherit_them() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let doomed = Program::start_on(&uri, &[]);
    let (ada, bob, eve) =
        (server.register("ada").await, server.register("bob").await, server.register("eve").await);
    let mut watcher = Socket::connect(&server, &bob.token).await;
    watch(&mut watcher, &ada.id).await;
    watch(&mut watcher, &eve.id).await;
    let _ada = Socket::connect_at(doomed.addr, &ada.token).await;
    assert_eq!(watcher.next().await, came(&ada.id));
    let _eve = Socket::connect_at(doomed.addr, &eve.token).await;
    assert_eq!(watcher.next().await, came(&eve.id));
    let killed = Instant::now();
    doomed.kill();
    let restarted = Program::start_on(&uri, &[]);
    // Eve comes back on another instance; of her, nothing is said.
    let _eve = Socket::connect(&server, &eve.token).await;
    let told = watcher.next().await;
    assert_eq!((&told["event"], &told["data"]["user"]), (&json!("userOffline"), &json!(ada.id)));
    assert!(told["data"]["lastSeen"].is_string(), "{told}");
    assert!(killed.elapsed() < Duration::from_secs(40), "{:?}", killed.elapsed());
    let mut elsewhere = Socket::connect_at(restarted.addr, &bob.token).await;
    assert!(!watch(&mut elsewhere, &ada.id).await.0);
    assert!(watch(&mut elsewhere, &eve.id).await.0);
    watcher.assert_silent(Duration::from_secs(1)).await;
    assert_eq!(rows(&connect(&uri).await, &ada.id).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_stopped_for_a_while_is_right_again_soon() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let sleeper = Program::start_on(&uri, &[]);
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let mut watcher = Socket::connect(&server, &bob.token).await;
    let mut asleep = Socket::connect_at(sleeper.addr, &bob.token).await;
    watch(&mut watcher, &ada.id).await;
    watch(&mut asleep, &bob.id).await;
    let _ada = Socket::connect_at(sleeper.addr, &ada.token).await;
    assert_eq!(watcher.next().await, came(&ada.id));
    sleeper.pause();
    let told = watcher.next().await;
    assert_eq!(told["event"], "userOffline");
    sleeper.resume();
    let resumed = Instant::now();
    assert_eq!(watcher.next().await, came(&ada.id));
    assert!(resumed.elapsed() < Duration::from_secs(15), "{:?}", resumed.elapsed());
    // It did not take the others for dead.
    nothing_comes(&mut watcher, Duration::from_secs(12)).await;
    eventually_online(&mut asleep, &ada.id, true).await;
    eventually_online(&mut asleep, &bob.id, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_removed_under_the_server_are_written_again() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let _ada = Socket::connect(&one, &ada.token).await;
    let mut watcher = Socket::connect(&other, &bob.token).await;
    eventually_online(&mut watcher, &ada.id, true).await;
    let rows = connect(&uri).await.collection::<Document>(own::PRESENCE.collection);
    rows.delete_many(doc! { "_id": { "$type": "object" } }).await.unwrap();
    while watcher.next().await["event"] != "userOffline" {}
    assert_eq!(watcher.next().await, came(&ada.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_instance_that_nobody_knows_are_removed() {
    let uri = fresh_database().await;
    let database = connect(&uri).await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let mut watcher = Socket::connect(&other, &bob.token).await;
    let rows = database.collection::<Document>(own::PRESENCE.collection);
    let id = doc! { "i": ObjectId::new(), "u": ObjectId::parse_str(&ada.id).unwrap() };
    rows.insert_one(doc! { "_id": id, own::FIELD: own::MARK }).await.unwrap();
    eventually_online(&mut watcher, &ada.id, true).await;
    while watcher.next().await["event"] != "userOffline" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_works_on_a_standalone() {
    let mongod = standalone().await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongod.uri("chat"))]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let mut watcher = Socket::connect(&server, &bob.token).await;
    watch(&mut watcher, &ada.id).await;
    let socket = Socket::connect(&server, &ada.token).await;
    assert_eq!(watcher.next().await, came(&ada.id));
    drop(socket);
    let told = watcher.next().await;
    assert_eq!((&told["event"], &told["data"]["user"]), (&json!("userOffline"), &json!(ada.id)));
}
