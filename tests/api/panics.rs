//! A panic in a session ends that session, one in the feed restarts the feed; both are counted.
//!
//! What panics is the logger, in the midst of the real session or feed that logs something. As a
//! process has one logger, the tests run in a process of their own.

use std::process::Command;
use std::sync::Mutex;

use bson::doc;
use log::{LevelFilter, Log, Metadata, Record};
use serde_json::json;

use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, eventually, metric};

/// Set in the process in which it happens.
const WITHIN: &str = "TEST_PANICS_WITHIN";

/// Panics once at a line that contains this.
struct Saboteur(Mutex<Option<&'static str>>);

static SABOTEUR: Saboteur = Saboteur(Mutex::new(None));

impl Saboteur {
    fn wait_for(&self, text: &'static str) {
        *self.0.lock().unwrap() = Some(text);
    }

    fn has_struck(&self) -> bool {
        self.0.lock().unwrap().is_none()
    }
}

impl Log for Saboteur {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("realtime_chat_backend")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = record.args().to_string();
        let strikes = {
            let mut waiting = self.0.lock().unwrap();
            waiting.take_if(|text| line.contains(*text)).is_some()
        };
        // The lock is free again, or nobody could log anything any more.
        assert!(!strikes, "sabotage at: {line}");
    }

    fn flush(&self) {}
}

/// Whether this is the process in which it happens; else that is run.
fn is_within(test: &str) -> bool {
    if std::env::var_os(WITHIN).is_some() {
        log::set_logger(&SABOTEUR).expect("nobody else logs here");
        log::set_max_level(LevelFilter::Debug);
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    command.args([name.as_str(), "--exact", "--nocapture"]).env(WITHIN, "1");
    let output = tokio::task::block_in_place(|| command.output().unwrap());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_session_ends_that_session_only() {
    if !is_within("a_panic_in_a_session_ends_that_session_only") {
        return;
    }
    let server = TestServer::start_with(&[("WORKERS", "1")]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut plain =
        [Socket::connect(&server, &ada.token).await, Socket::connect(&server, &ada.token).await];
    let mut callers = [
        Caller::connect(server.addr, &ada.token).await,
        Caller::connect(server.addr, &ada.token).await,
    ];
    for (socket, caller) in plain.iter_mut().zip(&mut callers) {
        socket.join(&room).await;
        caller.join(&room).await;
    }
    let ([mut victim, mut other], [mut called, mut caller]) = (plain, callers);
    // What is refused is logged.
    let refused = json!({ "room": room, "content": "x", "clientId": "x".repeat(256) });
    SABOTEUR.wait_for("the field clientId");
    victim.send("sendMessage", refused.clone()).await;
    assert_eq!(victim.closed().await, None);
    assert!(SABOTEUR.has_struck());
    assert_eq!(metric(server.addr, "chat_panics_total").await, 1);
    SABOTEUR.wait_for("the field clientId");
    called.emit("sendMessage", refused).await;
    eventually("the second panic is counted", async || {
        metric(server.addr, "chat_panics_total").await == 2
    })
    .await;

    ada.send(&room, "life goes on").await;
    assert_eq!(other.heard().await.content, "life goes on");
    assert_eq!(caller.heard().await, (room, "life goes on".to_owned()));
    eventually("their places are free", async || metric(server.addr, "chat_sessions").await == 2)
        .await;
    let memory = called.cut();
    Caller::recover(server.addr, &ada.token, &memory).await;
    drop((other, caller));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_feed_restarts_it_and_loses_nothing() {
    if !is_within("a_panic_in_the_feed_restarts_it_and_loses_nothing") {
        return;
    }
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&room).await;
    let neighbour = Neighbour::connect(&uri).await;
    neighbour.insert(&room, "before").await;
    assert_eq!(socket.heard().await.content, "before");
    SABOTEUR.wait_for("skipped a document in messages");
    neighbour.messages.insert_one(doc! { "content": 5 }).await.unwrap();
    for content in ["meanwhile", "afterwards"] {
        neighbour.insert(&room, content).await;
        assert_eq!(socket.heard().await.content, content);
    }
    assert!(SABOTEUR.has_struck());
    assert_eq!(metric(server.addr, "chat_feed_panics_total").await, 1);
    assert_eq!(metric(server.addr, "chat_feed_losses_total").await, 0);
    assert_eq!(metric(server.addr, "chat_panics_total").await, 0);
    drop(socket);
    server.stop().await;
}
