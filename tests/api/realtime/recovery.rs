//! Coming back with a position: nothing is lost and nothing comes twice, or it is said.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bson::oid::ObjectId;
use futures::future::join_all;
use realtime_chat_backend::feed::position::Position;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::socket::{END, Heard, Socket};
use crate::helpers::{TestServer, alone};

/// Writes into a room until it is told to stop, and then its end.
async fn write(neighbour: Neighbour, room: String, stop: CancellationToken) {
    for n in 0.. {
        if stop.is_cancelled() {
            return neighbour.insert(&room, END).await;
        }
        neighbour.insert(&room, &n.to_string()).await;
    }
}

/// A client whose connection is cut again and again, at any moment, and that comes back to one
/// instance after the other.
struct Wanderer<'a> {
    token: &'a str,
    room: &'a str,
    since: Position,
    transcript: Vec<Heard>,
}

impl<'a> Wanderer<'a> {
    /// Joins a room for the first time.
    async fn start(addr: SocketAddr, token: &'a str, room: &'a str) -> Self {
        let since = Socket::connect_at(addr, token).await.join(room).await;
        Self { token, room, since: since.parse().unwrap(), transcript: Vec::new() }
    }

    /// Comes back and hears so many messages, or fewer at the end.
    async fn hear(&mut self, addr: SocketAddr, messages: usize) {
        let mut socket = Socket::connect_at(addr, self.token).await;
        socket.recover(self.room, self.since).await;
        assert_eq!(socket.kept(), 0, "the ack of a join comes before what it brings");
        while self.transcript.len() < messages && !self.is_at_the_end() {
            let heard = socket.heard().await;
            self.since = heard.position;
            self.transcript.push(heard);
        }
    }

    /// Comes back and is cut before it is answered.
    async fn knock(&self, addr: SocketAddr) {
        let mut socket = Socket::connect_at(addr, self.token).await;
        let data = json!({ "room": self.room, "since": self.since.to_string() });
        socket.send("joinRoom", data).await;
    }

    fn is_at_the_end(&self) -> bool {
        self.transcript.last().is_some_and(|heard| heard.content == END)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_during_load_misses_nothing_and_hears_nothing_twice() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let servers = TestServer::instances::<2>(&uri).await;
    let ada = servers[0].register("ada").await;
    let room = ada.create_room("busy").await;
    let neighbour = Neighbour::connect(&uri).await;
    let stop = CancellationToken::new();
    let first = Socket::connect(&servers[0], &ada.token).await.join(&room).await;
    let writing = tokio::spawn(write(neighbour, room.clone(), stop.clone()));

    let wandering = (0..6_usize).map(|seed| {
        let (token, room, servers) = (&ada.token, &room, &servers);
        let addr = move |turn: usize| servers[(seed + turn) % 2].addr;
        async move {
            let mut wanderer = Wanderer::start(addr(0), token, room).await;
            let begun = wanderer.since;
            for turn in 1..40 {
                match (seed + turn) % 5 {
                    0 => wanderer.knock(addr(turn)).await,
                    // Sometimes it is cut after the ack, before any message.
                    n => {
                        let more = (turn * 7 + seed) % 12 * (n - 1);
                        wanderer.hear(addr(turn), wanderer.transcript.len() + more).await;
                    }
                }
            }
            (wanderer, begun)
        }
    });
    let wandering = join_all(wandering).await;
    stop.cancel();
    writing.await.unwrap();

    let mut socket = Socket::connect(&servers[1], &ada.token).await;
    socket.recover(&room, first).await;
    let everything = socket.heard_to_the_end(1).await;
    for (mut wanderer, begun) in wandering {
        wanderer.hear(servers[0].addr, usize::MAX).await;
        let missed: Vec<_> =
            everything.iter().skip_while(|heard| heard.position <= begun).cloned().collect();
        assert_eq!(wanderer.transcript, missed);
    }
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_has_lost_nothing() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let (busy, quiet) = (ada.create_room("busy").await, ada.create_room("quiet").await);
    let neighbour = Neighbour::connect(&uri).await;

    let mut server = Program::start_on(&uri, &[]);
    let mut wanderer = Wanderer::start(server.addr, &ada.token, &busy).await;
    let nothing_yet = Socket::connect_at(server.addr, &ada.token).await.join(&quiet).await;
    let begun = wanderer.since;
    let stop = CancellationToken::new();
    let writing = tokio::spawn(write(neighbour.clone(), busy.clone(), stop.clone()));
    for kill in 1..=2 {
        wanderer.hear(server.addr, kill * 50).await;
        server.kill();
        server = Program::start_on(&uri, &[]);
    }
    wanderer.hear(server.addr, 150).await;
    stop.cancel();
    writing.await.unwrap();
    wanderer.hear(server.addr, usize::MAX).await;

    let mut socket = Socket::connect(&beside, &ada.token).await;
    socket.recover(&busy, begun).await;
    assert_eq!(wanderer.transcript, socket.heard_to_the_end(1).await);

    // In a room that had no message when it was killed, the first one is not missed either.
    neighbour.insert(&quiet, "the first").await;
    let mut socket = Socket::connect_at(server.addr, &ada.token).await;
    socket.recover(&quiet, nothing_yet).await;
    assert_eq!(socket.heard().await.content, "the first");
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coming_back_twice_with_one_position_brings_the_same() {
    let uri = fresh_database().await;
    let servers = TestServer::instances::<2>(&uri).await;
    let ada = servers[0].register("ada").await;
    let room = ada.create_room("lounge").await;
    let since = Socket::connect(&servers[0], &ada.token).await.join(&room).await;
    for turn in 0..4 {
        Socket::connect(&servers[turn % 2], &ada.token).await.recover(&room, &since).await;
    }
    ada.send(&room, "missed").await;
    let mut heard = Vec::new();
    for turn in 0..4 {
        let mut socket = Socket::connect(&servers[turn % 2], &ada.token).await;
        socket.recover(&room, &since).await;
        heard.push(socket.heard().await);
    }
    heard.dedup();
    assert_eq!(heard.len(), 1);
    let mut sockets = Vec::new();
    for server in &servers {
        let mut socket = Socket::connect(server, &ada.token).await;
        socket.recover(&room, heard[0].position).await;
        sockets.push(socket);
    }
    ada.send(&room, "live").await;
    for mut socket in sockets {
        assert_eq!(socket.heard().await.content, "live");
    }
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

/// Joins with a position that is not recovered; the live message after it shows that there is
/// one `resync` and nothing else.
async fn is_told_to_resync(socket: &mut Socket, neighbour: &Neighbour, room: &str, since: Value) {
    let ack = socket.ask("joinRoom", json!({ "room": room, "since": since })).await;
    assert_eq!((&ack["room"], &ack["recovered"]), (&json!(room), &json!(false)), "{since}");
    let live: Position = ack["position"].as_str().unwrap().parse().unwrap();
    assert_eq!(socket.resync(room).await, live, "{since}");
    neighbour.insert(room, &format!("after {since}")).await;
    let heard = socket.heard().await;
    assert_eq!(heard.content, format!("after {since}"));
    assert!(heard.position > live);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_none_of_ours_is_told_to_resync() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;
    // A room may be joined before the feed has come to what was stored a moment ago.
    let mut witness = Socket::connect(&server, &ada.token).await;
    witness.join(&room).await;
    neighbour.insert(&room, "long ago").await;
    assert_eq!(witness.heard().await.content, "long ago");
    drop(witness);
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let in_an_hour = format!("{}.1", seconds + 3_600);
    for since in [
        json!(""),
        json!("nonsense"),
        json!("7"),
        json!("07.1"),
        json!("7.1.0"),
        json!("7.1;"),
        json!(7.1),
        json!(true),
        json!({ "position": "7.1" }),
        json!("1.1"),
        json!("4294967295.4294967295.4294967295"),
        json!(in_an_hour),
    ] {
        let mut socket = Socket::connect(&server, &ada.token).await;
        is_told_to_resync(&mut socket, &neighbour, &room, since).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_join_is_answered_like_the_first_one() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let since = socket.join(&room).await;
    ada.deliver(&room, "one").await;
    assert_eq!(socket.heard().await.content, "one");
    assert_eq!(socket.join_since(&room, &since).await["recovered"], false);
    ada.deliver(&room, "two").await;
    assert_eq!(socket.heard().await.content, "two");

    // A request that is repeated for want of an answer.
    let mut other = Socket::connect(&server, &ada.token).await;
    for _ in 0..2 {
        assert_eq!(other.join_since(&room, &since).await["recovered"], true);
    }
    assert_eq!(other.heard().await.content, "one");
    assert_eq!(other.heard().await.content, "two");
    // On the same connection, after leaving.
    socket.ask("leaveRoom", json!(room)).await;
    socket.recover(&room, &since).await;
    assert_eq!(socket.heard().await.content, "one");
    assert_eq!(socket.heard().await.content, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_window_every_position_is_told_to_resync() {
    let uri = fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("RECOVERY_WINDOW", "0")];
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let since = socket.join(&room).await;
    neighbour.insert(&room, "live").await;
    assert_eq!(socket.heard().await.content, "live");
    let mut socket = Socket::connect(&server, &ada.token).await;
    is_told_to_resync(&mut socket, &neighbour, &room, json!(since)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_room_recovers_after_any_time_and_a_busy_one_is_told() {
    let uri = fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("RECOVERY_WINDOW", "1")];
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let mut rooms = Vec::new();
    for name in ["quiet", "busy", "empty", "old"] {
        rooms.push(ada.create_room(name).await);
    }
    let [quiet, busy, empty, old] = &rooms[..] else { unreachable!() };
    let neighbour = Neighbour::connect(&uri).await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    for room in &rooms {
        socket.join(room).await;
    }
    neighbour.insert(quiet, "the last for long").await;
    let in_quiet = socket.heard().await.position;
    // Its id is as old as the message of a room where nothing has happened for a day.
    let mut document = neighbour.document(old, "of yesterday");
    let yesterday =
        bson::DateTime::from_millis(bson::DateTime::now().timestamp_millis() - 86_400_000);
    let seconds = u32::try_from(yesterday.timestamp_millis() / 1_000).unwrap();
    document.insert("_id", ObjectId::from_parts(seconds, [1; 5], [1; 3]));
    neighbour.messages.insert_one(document).await.unwrap();
    let in_old = socket.heard().await.position;

    // The others go on for longer than the window, by the clock that counts.
    neighbour.insert(busy, "0").await;
    let in_busy = socket.heard().await.position;
    let mut newest = in_busy;
    for n in 1.. {
        if newest.seconds() > in_busy.seconds() + 3 {
            break;
        }
        neighbour.insert(busy, &n.to_string()).await;
        newest = socket.heard().await.position;
    }

    let mut back = Socket::connect(&server, &ada.token).await;
    back.recover(quiet, in_quiet).await;
    back.recover(empty, in_quiet).await;
    back.recover(old, in_old).await;
    back.recover(busy, newest).await;
    back.ask("leaveRoom", json!(busy)).await;
    is_told_to_resync(&mut back, &neighbour, busy, json!(in_busy.to_string())).await;
    neighbour.insert(quiet, "at last").await;
    assert_eq!(back.heard().await.content, "at last");
    let token = ada.token.clone();
    server.stop().await;

    // A process that was not there can still tell that nothing was missed.
    let server = TestServer::start_with(&vars).await;
    let mut back = Socket::connect(&server, &token).await;
    back.recover(empty, in_quiet).await;
    back.recover(old, in_old).await;
    is_told_to_resync(&mut back, &neighbour, busy, json!(in_busy.to_string())).await;
    neighbour.insert(old, "today").await;
    assert_eq!(back.heard().await.content, "today");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_ahead_of_one_instance_only_is_recovered() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let ada = quick.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut ahead = Socket::connect(&quick, &ada.token).await;
    ahead.join(&room).await;
    let mut behind = Socket::connect(&slow, &ada.token).await;
    behind.join(&room).await;

    // From now on the stream of one of them is answered late.
    neighbour.hold_slow_back(Duration::from_millis(1_500)).await;
    neighbour.insert(&room, "already heard").await;
    let since = ahead.heard().await.position;
    let mut moved = Socket::connect(&slow, &ada.token).await;
    moved.recover(&room, since).await;
    neighbour.insert(&room, "not yet heard").await;
    assert_eq!(moved.heard().await.content, "not yet heard");
    // Who stayed has both.
    assert_eq!(behind.heard().await.content, "already heard");
    assert_eq!(behind.heard().await.content, "not yet heard");
    drop(ada);
    quick.stop().await;
    slow.stop().await;
}
