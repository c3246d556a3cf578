//! `readyz`: whether messages reach this instance and leave it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bson::doc;
use realtime_chat_backend::models::own;
use realtime_chat_backend::mongod::{Mongod, Options};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::helpers::mongod::{Guarded, Neighbour, ReplicaSet, fresh_database};
use crate::helpers::replica_set::options;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, client, eventually};

async fn readyz(server: &TestServer) -> (StatusCode, Value) {
    let answer = server.request(Method::GET, "/readyz", None, None).await;
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_unready_while_mongodb_is_down_and_good_again_by_itself() {
    let mut mongo = ReplicaSet::start(1).await;
    let uri = mongo.uri("readiness");
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ready = (StatusCode::OK, json!({ "status": "ready", "realtime": "cluster" }));
    assert_eq!(readyz(&server).await, ready);
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&room).await;

    mongo.stop_node(0).await;
    eventually("it is unready", async || {
        let (status, body) = readyz(&server).await;
        let is_unready = status == StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(body["reason"].is_string(), is_unready, "{body}");
        is_unready
    })
    .await;
    mongo.restart(0).await;
    eventually("it is ready again", async || readyz(&server).await == ready).await;

    // The socket was open all the time and goes on where it was.
    let sent = ada.send(&room, "after the outage").await;
    assert_eq!(socket.next().await["data"], sent);
    socket.assert_silent(Duration::from_millis(100)).await;
    drop(socket);
    server.stop().await;
}

/// Waits until a server says that it is not ready for a reason with this in it, which is short and
/// nothing that a library prints.
async fn unready_because(server: &TestServer, text: &str) {
    eventually(text, async || {
        let (status, body) = readyz(server).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        let reason = body["reason"].as_str().unwrap();
        assert!(reason.len() < 200 && !reason.contains(['{', '"', '\n']), "{reason}");
        reason.contains(text)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_is_unready_and_says_so() {
    let on = |collection: &str, actions: &[&str]| {
        doc! { "resource": { "db": "chat", "collection": collection }, "actions": actions }
    };
    let full = ["find", "insert", "update", "remove", "createIndex", "listIndexes", "changeStream"];
    let exact = ["users", "rooms", "messages"].map(|collection| on(collection, &full));
    let lacking = [on("users", &full), on("rooms", &full), on("messages", &["find"])];
    // What the page about migrating names.
    let kept = ["find", "insert", "update", "remove", "createIndex", "listIndexes"];
    let minimal = [
        on("users", &["find", "insert", "createIndex", "listIndexes", "update"]),
        on("rooms", &["find", "insert", "createIndex", "listIndexes"]),
        on("messages", &["find", "insert", "createIndex", "listIndexes", "changeStream"]),
    ];
    let kept = own::ALL.iter().map(|purpose| on(purpose.collection, &kept));
    let minimal: Vec<_> = minimal.into_iter().chain(kept).collect();
    let mongo = Guarded::start(&[
        ("writer", doc! { "role": "readWrite" }),
        ("reader", doc! { "role": "read" }),
        ("minimal", doc! { "privileges": minimal }),
        ("exact", doc! { "privileges": exact.as_slice() }),
        ("lacking", doc! { "privileges": lacking.as_slice() }),
    ])
    .await;
    let start = async |name: &str, password: &str| {
        let uri = mongo.uri(name, password);
        TestServer::start_with(&[("MONGO_URI", &uri), ("ERRORS", "precise")]).await
    };
    let ready = (StatusCode::OK, json!({ "status": "ready", "realtime": "cluster" }));

    let server = start("writer", "writer").await;
    assert_eq!(readyz(&server).await, ready);
    server.register("ada").await;

    let server = start("reader", "reader").await;
    unready_because(&server, "may not insert in users").await;
    let body = json!({ "username": "eve", "password": "x" });
    let refused = server.request(Method::POST, "/api/auth/register", None, Some(&body)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    let server = start("lacking", "lacking").await;
    unready_because(&server, "may not insert in messages").await;

    let server = start("writer", "wrong").await;
    unready_because(&server, "user name or the password").await;
    let refused = server.request(Method::POST, "/api/auth/register", None, Some(&body)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    let server = start("minimal", "minimal").await;
    assert_eq!(readyz(&server).await, ready);
    let bob = server.register("bob").await;
    let attic = bob.create_room("attic").await;
    let mut caller = Caller::connect(server.addr, &bob.token).await;
    caller.join(&attic).await;
    let message = json!({ "room": attic, "content": "hello", "clientId": "c" });
    assert_eq!(caller.ask("sendMessage", message).await["error"], json!(null));
    let memory = caller.cut();
    Caller::recover(server.addr, &bob.token, &memory).await.leave().await;

    // Privileges on the three collections are enough, but then nothing is kept beside them.
    let server = start("exact", "exact").await;
    assert_eq!(readyz(&server).await, ready);
    let ada = server.login("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&room).await;
    let sent = ada.send(&room, "hello").await;
    assert_eq!(socket.next().await["data"], sent);
    let message = json!({ "room": room, "content": "hello", "clientId": "c" });
    assert_eq!(socket.ask("sendMessage", message).await["code"], "idempotency_unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_was_not_initiated_is_named() {
    let waiting = Options { initiate: false, ..options() };
    let mongo = Mongod::start(waiting).await.expect("it starts");
    let server = TestServer::start_with(&[("MONGO_URI", &mongo.uri("waiting"))]).await;
    unready_because(&server, "rs.initiate()").await;
    let direct = format!("mongodb://127.0.0.1:{}/waiting?directConnection=true", mongo.port());
    let server = TestServer::start_with(&[("MONGO_URI", &direct)]).await;
    unready_because(&server, "rs.initiate()").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_and_a_set_without_a_primary_are_unready() {
    let mut mongo = ReplicaSet::start(2).await;
    let primary = mongo.primary().await;
    mongo.whole().await;
    let port = mongo.ports()[1 - primary];
    let direct = format!("mongodb://127.0.0.1:{port}/readiness?directConnection=true");
    let server = TestServer::start_with(&[("MONGO_URI", &direct)]).await;
    unready_because(&server, "not the primary").await;
    let body = json!({ "username": "eve", "password": "x" });
    let refused = server.request(Method::POST, "/api/auth/register", None, Some(&body)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);

    // Of two, one alone is no majority.
    let uri = mongo.uri("readiness");
    mongo.kill(primary).await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    unready_because(&server, "no primary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stops_is_unready_until_it_is_gone() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    // Sessions are ended one after the other: with some there is time to look.
    let mut sockets = Vec::new();
    for _ in 0..200 {
        sockets.push(Socket::connect(&server, &ada.token).await);
    }
    let url = server.url("/readyz");
    let asking = tokio::spawn(async move {
        let client = client();
        let mut answers = Vec::new();
        while let Ok(answer) = client.get(&url).send().await {
            answers.push((answer.status(), answer.json::<Value>().await.unwrap()));
        }
        answers
    });
    let closing = tokio::spawn(async move {
        for mut socket in sockets {
            assert_eq!(socket.closed().await.map(|(code, _)| code), Some(1001));
        }
    });
    drop(ada);
    server.stop().await;
    closing.await.unwrap();
    let mut answers = asking.await.unwrap();
    answers.dedup();
    let stopping = json!({ "status": "unavailable", "reason": "the server stops" });
    assert_eq!(answers.last(), Some(&(StatusCode::SERVICE_UNAVAILABLE, stopping)));
    assert!(answers.len() <= 2, "never ready again: {answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_stop_is_stored() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let acked = Arc::new(AtomicUsize::new(0));
    let mut sending = Vec::new();
    for sender in 0..4 {
        let mut socket = Socket::connect(&server, &ada.token).await;
        let (room, acked) = (room.clone(), Arc::clone(&acked));
        sending.push(tokio::spawn(async move {
            let mut contents = Vec::new();
            for n in 0.. {
                let content = format!("{sender} {n}");
                let message = json!({ "room": room, "content": content });
                match socket.ask_or_closed("sendMessage", message).await {
                    Ok(ack) => assert_eq!(ack["message"]["content"], content),
                    Err(closed) => {
                        assert_eq!(closed.map(|(code, _)| code), Some(1001));
                        break;
                    }
                }
                contents.push(content);
                acked.fetch_add(1, Ordering::Relaxed);
            }
            contents
        }));
    }
    eventually("sending has begun", async || acked.load(Ordering::Relaxed) > 50).await;
    drop(ada);
    server.stop().await;
    let messages = Neighbour::connect(&uri).await.messages;
    for sending in sending {
        for content in sending.await.unwrap() {
            let found = messages.count_documents(doc! { "content": &content }).await.unwrap();
            assert_eq!(found, 1, "{content} was acknowledged");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_not_authenticated_yet_does_not_hold_the_stop_up() {
    let server = TestServer::start().await;
    let mut silent = Socket::connect_to(&server, "/ws").await;
    let begun = std::time::Instant::now();
    let stopping = tokio::spawn(server.stop());
    assert_eq!(silent.closed().await.map(|(code, _)| code), Some(1001));
    stopping.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
