//! `readyz`: whether messages reach this instance and leave it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bson::doc;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::helpers::mongod::{Neighbour, ReplicaSet, fresh_database};
use crate::helpers::socket::Socket;
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
