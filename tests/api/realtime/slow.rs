//! Clients that read slowly, or not at all, with more for them than any buffer takes.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::helpers::engine_io::Poller;
use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, eventually, metric, token_for};

/// A server, a user, and a room with more than the system buffers for a connection.
struct Stage {
    server: TestServer,
    user: String,
    token: String,
    neighbour: Neighbour,
    room: String,
    /// Before the first message.
    since: String,
}

impl Stage {
    async fn set(messages: usize, length: usize) -> Self {
        let uri = fresh_database().await;
        let server = TestServer::start_with(&[("MONGO_URI", &uri), ("WORKERS", "1")]).await;
        let ada = server.register("ada").await;
        let (user, token) = (ada.id.clone(), ada.token.clone());
        let [room, other] = [ada.create_room("long").await, ada.create_room("other").await];
        let neighbour = Neighbour::connect(&uri).await;
        let mut witness = Socket::connect(&server, &token).await;
        let since = witness.join(&other).await;
        let contents = (0..messages).map(|n| format!("{n} {}", "x".repeat(length)));
        neighbour.insert_all(&room, contents).await;
        neighbour.insert(&other, "all are there").await;
        witness.heard().await;
        drop(witness);
        eventually("the witness is gone", async || metric(server.addr, "chat_sessions").await == 0)
            .await;
        Self { server, user, token, neighbour, room, since }
    }

    /// What a client joins with.
    fn wish(&self) -> serde_json::Value {
        json!({ "room": self.room, "since": self.since })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_ends_a_session_whose_client_does_not_read() {
    let stage = Stage::set(300, 100_000).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let expires = Duration::from_secs(now.as_secs() + 5);
    let token = token_for(&stage.user, expires.as_secs() - now.as_secs());
    let addr = stage.server.addr;
    let mut plain = Socket::connect_narrow(addr, &token).await;
    plain.send("joinRoom", stage.wish()).await;
    let mut caller = Caller::connect(addr, &token).await;
    caller.emit("joinRoom", stage.wish()).await;
    let poller = Poller::open(addr, "/socket.io/").await;
    poller.post(&format!("40{}", json!({ "token": token }))).await.assert_ok();
    poller.post(&format!("42{}", json!(["joinRoom", stage.wish()]))).await.assert_ok();
    let busy = tokio::spawn({
        let (neighbour, room) = (stage.neighbour.clone(), stage.room.clone());
        async move {
            loop {
                neighbour.insert(&room, "live").await;
                sleep(Duration::from_millis(20)).await;
            }
        }
    });

    let left = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        expires.saturating_sub(now)
    };
    sleep(left().saturating_sub(Duration::from_millis(400))).await;
    assert_eq!(metric(addr, "chat_sessions").await, 3, "they are not too slow yet");
    sleep(left()).await;
    let expired = Instant::now();
    eventually("nobody is left", async || metric(addr, "chat_sessions").await == 0).await;
    let lasted = expired.elapsed();
    assert!(lasted < Duration::from_secs(1), "{lasted:?} after the token");
    for wire in ["ws", "socket.io"] {
        let ended = format!("chat_disconnects_total{{reason=\"expired\",wire=\"{wire}\"}}");
        assert_eq!(metric(addr, &ended).await, if wire == "ws" { 1 } else { 2 });
    }
    busy.abort();
    drop((plain, caller));
    stage.server.stop().await;
}

/// How long the slow readers are slow: longer than a client may take nothing at all.
const SLOW: Duration = Duration::from_secs(22);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_and_steadily_hears_everything() {
    const MESSAGES: usize = 1_500;
    const LENGTH: usize = 16_000;
    let stage = Stage::set(MESSAGES, LENGTH).await;
    let begun = Instant::now();
    let pace = || sleep(Duration::from_millis(if begun.elapsed() < SLOW { 200 } else { 0 }));
    let is_next = |content: &str, n: usize| {
        assert!(content.len() > LENGTH && content.starts_with(&format!("{n} ")), "{n}: {content}");
    };
    let plain = async {
        let mut socket = Socket::connect_narrow(stage.server.addr, &stage.token).await;
        socket.recover(&stage.room, &stage.since).await;
        for n in 0..MESSAGES {
            is_next(&socket.heard().await.content, n);
            pace().await;
        }
    };
    let socket_io = async {
        let mut caller = Caller::connect(stage.server.addr, &stage.token).await;
        caller.emit("joinRoom", stage.wish()).await;
        for n in 0..MESSAGES {
            is_next(&caller.heard().await.1, n);
            pace().await;
        }
    };
    futures::join!(plain, socket_io);
    stage.server.stop().await;
}
