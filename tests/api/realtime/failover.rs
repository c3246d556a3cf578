//! The primary of three nodes is gone in the middle of everything.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::typing::acquainted;
use crate::helpers::mongod::ReplicaSet;
use crate::helpers::socket::{END, Socket};
use crate::helpers::{TestServer, alone, eventually};

/// Each writes 20 messages a second.
const WRITERS: usize = 10;

/// What a writer knows at the end.
#[derive(Default)]
struct Written {
    /// The ids of the messages that were acknowledged, by content.
    acked: HashMap<String, String>,
    /// How many of them since the primary is gone.
    acked_after: usize,
}

/// Sends by socket until it was acknowledged for a while after the primary was gone. Half of the
/// writers send a message that was refused again; the others go on to the next, and never know.
async fn write(
    mut socket: Socket,
    writer: usize,
    room: String,
    struck: CancellationToken,
) -> Written {
    let mut written = Written::default();
    let mut pace = interval(Duration::from_millis(1_000 / 20));
    for n in 0.. {
        pace.tick().await;
        let content = format!("{writer} {n}");
        let message = json!({ "room": room, "content": content, "clientId": content });
        let since_then = struck.is_cancelled();
        let id = loop {
            let ack = socket.ask("sendMessage", message.clone()).await;
            let id = ack["message"]["_id"].as_str().map(str::to_owned);
            if id.is_some() || writer.is_multiple_of(2) {
                break id;
            }
        };
        if let Some(id) = id {
            written.acked_after += usize::from(since_then);
            written.acked.insert(content, id);
        }
        if written.acked_after == 30 {
            break;
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_killed_takes_no_acknowledged_message_along() {
    let _alone = alone().await;
    let mongo = ReplicaSet::start(3).await;
    survives(mongo, async |mongo, primary| mongo.kill(primary).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_falls_silent_does_not_silence_the_rooms() {
    let _alone = alone().await;
    let mongo = ReplicaSet::start(3).await;
    // It holds its connections and answers nothing, as behind a network that is cut.
    survives(mongo, async |mongo, primary| mongo.pause(primary)).await;
}

async fn survives(mut mongo: ReplicaSet, strike: impl AsyncFnOnce(&mut ReplicaSet, usize)) {
    let uri = mongo.uri("failover");
    let servers = TestServer::instances::<2>(&uri).await;
    let ada = servers[0].register("ada").await;
    let room = ada.create_room("lounge").await;

    let mut listening = Vec::new();
    for n in 0..4 {
        let mut socket = Socket::connect(&servers[n % 2], &ada.token).await;
        socket.join(&room).await;
        listening.push(tokio::spawn(async move { socket.heard_to_the_end(1).await }));
    }
    let mut witness = Socket::connect(&servers[0], &ada.token).await;
    witness.join(&room).await;
    let struck = CancellationToken::new();
    let mut writing = Vec::new();
    for writer in 0..WRITERS {
        let socket = Socket::connect(&servers[writer / 2 % 2], &ada.token).await;
        writing.push(tokio::spawn(write(socket, writer, room.clone(), struck.clone())));
    }
    // In the middle of it.
    for _ in 0..200 {
        witness.heard().await;
    }
    drop(witness);
    let primary = mongo.primary().await;
    strike(&mut mongo, primary).await;
    struck.cancel();
    let written = join_all(writing).await;

    // Writes have come back by themselves, and so has the stream.
    let end = json!({ "room": room, "sender": ada.id, "content": END });
    let sent = ada.request(Method::POST, "/api/chat/message", Some(&end)).await;
    assert_eq!(sent.status(), StatusCode::CREATED);
    let mut heard = Vec::new();
    for listening in listening {
        heard.push(listening.await.unwrap());
    }
    heard.dedup();
    let [transcript] = &heard[..] else { panic!("the sockets disagree") };
    let contents: Vec<&str> = transcript.iter().map(|heard| heard.content.as_str()).collect();
    let distinct: HashSet<&str> = contents.iter().copied().collect();
    assert_eq!(distinct.len(), contents.len(), "nothing twice");

    let history = ada.history(&room).await;
    let text = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
    let stored: HashMap<_, _> =
        history.iter().map(|message| (text(message, "content"), text(message, "_id"))).collect();
    assert_eq!(stored.len(), history.len(), "nothing is stored twice");
    let stored_contents: HashSet<&str> = stored.keys().map(String::as_str).collect();
    assert_eq!(stored_contents, distinct, "what is stored was heard, and nothing else");
    for written in written {
        let written = written.unwrap();
        for (content, id) in &written.acked {
            assert_eq!(stored.get(content), Some(id), "{content} was acknowledged");
        }
    }
    for server in &servers {
        eventually("both are ready", async || {
            server.request(Method::GET, "/readyz", None, None).await.status() == StatusCode::OK
        })
        .await;
    }
    drop(ada);
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_types_and_who_is_there_is_told_again_after_a_kill() {
    let mongo = ReplicaSet::start(3).await;
    tells_again(mongo, async |mongo, primary| mongo.kill(primary).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_types_and_who_is_there_is_told_again_after_a_silence() {
    let mongo = ReplicaSet::start(3).await;
    tells_again(mongo, async |mongo, primary| mongo.pause(primary)).await;
}

async fn tells_again(mut mongo: ReplicaSet, strike: impl AsyncFnOnce(&mut ReplicaSet, usize)) {
    let servers = TestServer::instances::<2>(&mongo.uri("signals")).await;
    let [one, other] = &servers;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let carol = one.register("carol").await;
    let room = ada.create_room("lounge").await;
    acquainted(&[one, other]).await;
    let mut typist = Socket::connect(one, &ada.token).await;
    typist.join(&room).await;
    let mut far = Socket::connect(other, &bob.token).await;
    far.join(&room).await;
    eventually("the other instance knows who is there", async || {
        let answer = far.ask("watchUsers", json!([ada.id, carol.id])).await;
        answer["online"] == json!([ada.id])
    })
    .await;
    while far.kept() > 0 {
        far.next().await;
    }

    let primary = mongo.primary().await;
    strike(&mut mongo, primary).await;
    let typing = async {
        loop {
            // It is answered whether or not the others can be told.
            typist.ask("typing", json!(room)).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = typing => unreachable!("it never ends"),
        () = told(&mut far, "typing", &ada.id) => {}
    }
    // Before this, nobody was said to be gone.
    let socket = Socket::connect(one, &carol.token).await;
    told(&mut far, "userOnline", &carol.id).await;
    drop(socket);
    told(&mut far, "userOffline", &carol.id).await;
    drop((ada, bob, carol));
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

/// Waits for an event about a user. Until then, nothing but the end of typing may come.
async fn told(socket: &mut Socket, event: &str, user: &str) {
    loop {
        let frame = socket.next().await;
        let about = &frame["data"]["user"];
        if frame["event"] == event && (about == user || about["_id"] == user) {
            return;
        }
        assert!(frame["event"] == "stopTyping" || frame["event"] == "typing", "{frame}");
    }
}
