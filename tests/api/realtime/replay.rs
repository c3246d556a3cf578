//! What happens to other rooms, and to its own, while a room is replayed.
//!
//! The client of these tests takes nothing that it does not read, so a replay stands still in
//! the middle until the test goes on.

use std::time::Duration;

use serde_json::json;

use crate::helpers::TestServer;
use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::socket::{Heard, Socket, heard};

/// How many messages there are to replay: more than all buffers on the way hold together.
const BACKLOG: usize = 600;
/// How long each is, in bytes.
const LENGTH: usize = 48 * 1024;

/// A server with a room that has a backlog, and another room.
struct Stage {
    server: TestServer,
    token: String,
    neighbour: Neighbour,
    /// The room with the backlog.
    long: String,
    /// Before its backlog.
    since: String,
    other: String,
    /// A member of the other room.
    witness: Socket,
}

impl Stage {
    async fn set(vars: &[(&str, &str)]) -> Self {
        let uri = fresh_database().await;
        // One worker, so that what the witness has heard was dispatched to all.
        let mut all = vec![("MONGO_URI", uri.as_str()), ("WORKERS", "1")];
        all.extend(vars);
        let server = TestServer::start_with(&all).await;
        let ada = server.register("ada").await;
        let [long, other] = [ada.create_room("long").await, ada.create_room("other").await];
        let token = ada.token;
        let since = Socket::connect(&server, &token).await.join(&long).await;
        let mut witness = Socket::connect(&server, &token).await;
        witness.join(&other).await;
        let neighbour = Neighbour::connect(&uri).await;
        let mut stage = Self { server, token, neighbour, long, since, other, witness };
        stage.grow(0..BACKLOG).await;
        stage
    }

    /// Adds to the long room, and waits until the server has it.
    async fn grow(&mut self, numbers: std::ops::Range<usize>) {
        self.neighbour.insert_all(&self.long, numbers.map(long)).await;
        self.tell_other("grown").await;
    }

    /// A message in the other room, which the server has dispatched when this returns.
    async fn tell_other(&mut self, content: &str) {
        self.neighbour.insert(&self.other, content).await;
        assert_eq!(self.witness.heard().await.content, content);
    }

    /// A client that is replayed the long room and stands still.
    async fn replayed(&self) -> Socket {
        let mut socket = Socket::connect_narrow(self.server.addr, &self.token).await;
        socket.recover(&self.long, &self.since).await;
        socket
    }

    /// Stops the server when nobody is left whom it would wait for.
    async fn end<T>(self, sockets: T) {
        drop((sockets, self.witness));
        self.server.stop().await;
    }
}

fn long(number: usize) -> String {
    format!("{number}{}", " ".repeat(LENGTH))
}

fn number(heard: &Heard) -> usize {
    heard.content.trim().parse().unwrap()
}

/// The numbers of the next messages, which are all of the long room.
async fn numbers(socket: &mut Socket, count: usize) -> Vec<usize> {
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        numbers.push(number(&socket.heard().await));
    }
    numbers
}

fn all(numbers: std::ops::Range<usize>) -> Vec<usize> {
    numbers.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_joined_during_a_replay_is_live_at_once() {
    let mut stage = Stage::set(&[]).await;
    let mut socket = stage.replayed().await;
    socket.join(&stage.other).await;
    let before = socket.kept();
    assert!(before < BACKLOG, "the replay was not over yet");
    stage.tell_other("live").await;
    stage.neighbour.insert(&stage.long, &long(BACKLOG)).await;

    let mut replayed = Vec::new();
    let mut live = Vec::new();
    while replayed.len() <= BACKLOG {
        let heard = socket.heard().await;
        if heard.room == stage.other {
            live.push((heard.content, replayed.len()));
        } else {
            replayed.push(number(&heard));
        }
    }
    assert_eq!(replayed, all(0..BACKLOG + 1));
    let [(content, after)] = &live[..] else { panic!("heard of the other room: {live:?}") };
    assert_eq!(content, "live");
    assert!((before..BACKLOG).contains(after), "it did not wait for the replay");
    socket.assert_silent(Duration::from_millis(100)).await;
    stage.end(socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_a_room_ends_its_replay_and_nothing_else() {
    let mut stage = Stage::set(&[]).await;
    let mut socket = Socket::connect_narrow(stage.server.addr, &stage.token).await;
    socket.join(&stage.other).await;
    socket.recover(&stage.long, &stage.since).await;
    let left = socket.ask("leaveRoom", json!(stage.long)).await;
    assert_eq!(left, json!({ "room": stage.long }));
    let had = socket.kept();
    assert!(had > 0 && had < BACKLOG, "{had}");
    let mut last = None;
    for n in 0..had {
        let heard = socket.heard().await;
        assert_eq!(number(&heard), n);
        last = Some(heard.position);
    }
    stage.neighbour.insert(&stage.long, "to nobody").await;
    stage.tell_other("live").await;
    assert_eq!(socket.heard().await.content, "live");

    // What it did not want then, it may want now.
    socket.recover(&stage.long, last.unwrap()).await;
    assert_eq!(numbers(&mut socket, BACKLOG - had).await, all(had..BACKLOG));
    assert_eq!(socket.heard().await.content, "to nobody");
    stage.end(socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_join_during_a_replay_changes_nothing() {
    let stage = Stage::set(&[]).await;
    let mut socket = stage.replayed().await;
    assert_eq!(numbers(&mut socket, 3).await, all(0..3));
    let again = json!({ "room": stage.long, "since": "1.1" });
    let ack = socket.ask("joinRoom", again.clone()).await;
    assert!(socket.kept() < BACKLOG - 3, "the replay was not over yet");
    // It says how far the replay has got.
    let so_far = heard(socket.last_kept().unwrap()).position.to_string();
    assert_eq!(ack, json!({ "room": stage.long, "position": so_far, "recovered": true }));
    assert_eq!(numbers(&mut socket, BACKLOG - 3).await, all(3..BACKLOG));
    stage.neighbour.insert(&stage.long, &long(BACKLOG)).await;
    assert_eq!(numbers(&mut socket, 1).await, [BACKLOG]);
    assert_eq!(socket.ask("joinRoom", again).await["recovered"], true);
    socket.assert_silent(Duration::from_millis(100)).await;
    stage.end(socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_eviction_overtakes_ends_in_one_resync() {
    // The backlog fits, twice as much does not.
    let bytes = (BACKLOG * (LENGTH + 1_024)).to_string();
    let mut stage = Stage::set(&[("RECOVERY_BYTES", &bytes)]).await;
    let mut socket = stage.replayed().await;
    stage.grow(BACKLOG..2 * BACKLOG).await;
    let newest = Socket::connect(&stage.server, &stage.token).await.join(&stage.other).await;

    let mut replayed = 0;
    let resync = loop {
        let frame = socket.next().await;
        if frame["event"] == "resync" {
            break frame;
        }
        let heard = heard(&frame);
        if heard.room == stage.long {
            assert_eq!(number(&heard), replayed);
            replayed += 1;
        }
    };
    assert!(replayed < BACKLOG, "{replayed}");
    assert_eq!(resync["data"]["room"], stage.long);
    let position = resync["data"]["position"].as_str().unwrap();
    assert_eq!(position, newest, "what was missed reaches to the newest message");
    stage.neighbour.insert(&stage.long, "live again").await;
    assert_eq!(socket.heard().await.content, "live again");
    // From there on it recovers like anyone.
    drop(socket);
    let mut socket = Socket::connect(&stage.server, &stage.token).await;
    socket.recover(&stage.long, position).await;
    assert_eq!(socket.heard().await.content, "live again");
    stage.end(socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_during_a_replay_goes_on_in_each_room_where_it_was() {
    let mut stage = Stage::set(&[]).await;
    let mut live_since = {
        let mut socket = Socket::connect(&stage.server, &stage.token).await;
        socket.join(&stage.other).await
    };
    let mut since = stage.since.clone();
    let (mut replayed, mut live) = (Vec::new(), Vec::new());
    for turn in 0..5 {
        let mut socket = Socket::connect_narrow(stage.server.addr, &stage.token).await;
        socket.recover(&stage.long, &since).await;
        socket.recover(&stage.other, &live_since).await;
        stage.tell_other(&format!("live {turn}")).await;
        let more = if turn < 4 { BACKLOG / 5 } else { usize::MAX };
        for _ in 0..more {
            let heard = socket.heard().await;
            if heard.room == stage.other {
                live_since = heard.position.to_string();
                live.push(heard.content);
            } else {
                since = heard.position.to_string();
                replayed.push(number(&heard));
            }
            if replayed.len() == BACKLOG && live.len() == 5 {
                break;
            }
        }
    }
    assert_eq!(replayed, all(0..BACKLOG));
    assert_eq!(live, [0, 1, 2, 3, 4].map(|turn| format!("live {turn}")));
    stage.end(()).await;
}
