//! Connection state recovery: a client that comes back goes on as if it had not been away, or
//! begins anew and is told so.

use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{join_all, select_all};
use realtime_chat_backend::feed::position::Position;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::helpers::engine_io::{Poller, SEPARATOR, Ws};
use crate::helpers::mongod::{Neighbour, ReplicaSet, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::{Caller, Memory, Told};
use crate::helpers::{TestServer, User, alone, eventually, metric, mongod, token_for};

/// What one has heard was dispatched to all.
const ONE_WORKER: &[(&str, &str)] = &[("WORKERS", "1")];

async fn tell(user: &User<'_>, room: &str, contents: impl IntoIterator<Item = &str>) {
    for content in contents {
        user.send(room, content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_a_session_that_can_come_back_has_an_offset() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    assert!(caller.memory.pid.is_some() && !caller.recovered);
    caller.join(&room).await;
    tell(&ada, &room, ["a", "b"]).await;
    assert_eq!(caller.contents(2).await, ["a", "b"]);
    // One that is no event of a room has no text at its end that would be taken for an offset.
    let before = caller.memory.clone();
    caller.emit("joinRoom", json!("nowhere")).await;
    let error = caller.event().await;
    assert_eq!(error[0], "error");
    assert!(error[1].is_object() && error.len() == 2, "{error:?}");
    assert_eq!(caller.memory, before);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_a_message_has_one_argument_and_the_offset_is_an_event_behind_it() {
    let server = TestServer::start_with(ONE_WORKER).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut caller = Caller::by_default(server.addr, &ada.token, Memory::default()).await;
    assert!(caller.memory.pid.is_some());
    caller.join(&room).await;
    let mut last = Position::ZERO;
    for content in ["a", "b"] {
        ada.send(&room, content).await;
        let message = caller.event().await;
        assert_eq!((message.len(), &message[0]), (2, &json!("receiveMessage")));
        assert_eq!(message[1]["content"], content);
        let position = caller.event().await;
        assert_eq!((position.len(), &position[0]), (2, &json!("position")));
        let position = position[1].as_str().unwrap().parse().unwrap();
        assert!(position > last);
        last = position;
    }
    // Errors have no text at their end that would be taken for an offset.
    caller.emit("joinRoom", json!("nowhere")).await;
    let error = caller.event().await;
    assert!(error[0] == "error" && error[1].is_object() && error.len() == 2, "{error:?}");
    assert_eq!(caller.memory.offset, Some(last.to_string()));
    // An offset follows a resync, too.
    let other = ada.create_room("other").await;
    let ack = caller.ask("joinRoom", json!({ "room": other, "since": "unknown" })).await;
    assert_eq!(ack["recovered"], false);
    let resync = caller.event().await;
    assert_eq!(
        (resync.len(), &resync[0], &resync[1]["room"]),
        (2, &json!("resync"), &json!(other))
    );
    let position = caller.event().await;
    assert!(position[0] == "position" && position[1].is_string(), "{position:?}");
    let memory = caller.cut();
    assert_ne!(memory.offset, Some(last.to_string()));

    ada.send(&room, "c").await;
    let mut caller = Caller::by_default(server.addr, &ada.token, memory).await;
    assert!(caller.recovered);
    assert_eq!(caller.event().await[1]["content"], "c");
    assert_eq!(caller.event().await[0], "position");
    caller.assert_nothing_came().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_written_together_have_one_offset_behind_the_last() {
    let server = TestServer::start_with(ONE_WORKER).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut witness = Caller::connect(server.addr, &ada.token).await;
    witness.join(&room).await;
    let mut caller = Caller::by_default(server.addr, &ada.token, Memory::default()).await;
    caller.join(&room).await;
    let memory = caller.cut();
    let contents: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    tell(&ada, &room, contents.iter().map(String::as_str)).await;
    assert_eq!(witness.contents(contents.len()).await, contents);

    let mut caller = Caller::by_default(server.addr, &ada.token, memory).await;
    for content in contents {
        let told = Told { message: Some((room.clone(), content)), with_offset: false };
        assert_eq!(caller.told().await, told);
    }
    assert_eq!(caller.told().await, Told { message: None, with_offset: true });
    // The stream may have gone on since the last message.
    let position = |memory: &Memory| memory.offset.as_ref().unwrap().parse::<Position>().unwrap();
    assert!(position(&caller.memory) >= position(&witness.memory));
    caller.assert_nothing_came().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_and_its_offset_are_one_write() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut ws = Ws::open(server.addr, "/socket.io/").await;
    ws.send(format!("40{}", json!({ "token": ada.token }))).await;
    assert!(ws.packet().await.starts_with("40{"));
    ws.send(format!("420{}", json!(["joinRoom", room]))).await;
    assert!(ws.packet().await.starts_with("430["));
    for n in 0..20 {
        ada.send(&room, &n.to_string()).await;
        let bytes = ws.read_once().await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(&format!(r#""content":"{n}""#)), "{text}");
        assert!(text.contains(r#"42["position",""#) && text.ends_with(r#""]"#), "{text}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_is_let_in_and_told_what_was_missed_in_one_write() {
    let server = TestServer::start_with(ONE_WORKER).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut witness = Caller::connect(server.addr, &ada.token).await;
    witness.join(&room).await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    caller.join(&room).await;
    let (sid, memory) = (caller.sid.clone(), caller.cut());
    tell(&ada, &room, ["1", "2"]).await;
    assert_eq!(witness.contents(2).await, ["1", "2"]);
    let mut ws = Ws::open(server.addr, "/socket.io/").await;
    let auth = json!({ "token": ada.token, "pid": memory.pid, "offset": memory.offset });
    ws.send(format!("40{auth}")).await;
    let bytes = ws.read_once().await;
    let text = String::from_utf8_lossy(&bytes);
    let admission = format!(r#"40{{"sid":"{sid}""#);
    let parts = [&admission, r#""content":"1""#, r#""content":"2""#, r#"42["position",""#];
    let places: Vec<_> = parts.iter().map(|part| text.find(*part)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_has_one_offset_behind_the_last_message() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let session = Poller::open(server.addr, "/socket.io/").await;
    session.post(&format!("40{}", json!({ "token": ada.token }))).await.assert_ok();
    session.collect(1).await;
    session.post(&format!("420{}", json!(["joinRoom", room]))).await.assert_ok();
    assert!(session.collect(1).await[0].starts_with("430["));
    // Each is given to the session before the next is sent, and none is fetched.
    for (given, content) in (1..).zip(["a", "b", "c"]) {
        ada.send(&room, content).await;
        let labels = r#"chat_deliveries_total{wire="socket.io"}"#;
        eventually(content, async || metric(server.addr, labels).await == given).await;
    }
    let packets = session.packets().await;
    for (packet, content) in packets.iter().zip(["a", "b", "c"]) {
        let event: serde_json::Value = serde_json::from_str(&packet[2..]).unwrap();
        assert_eq!((&event[0], &event[1]["content"]), (&json!("receiveMessage"), &json!(content)));
        assert_eq!(event.as_array().unwrap().len(), 2);
    }
    assert!(packets.len() == 4 && packets[3].starts_with(r#"42["position",""#), "{packets:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_come_back_is_not_told_that_he_can() {
    let uri = fresh_database().await;
    let standalone = mongod::standalone().await;
    let plain = [("MONGO_URI", uri.as_str())];
    let legacy = [plain[0], ("LEGACY_TRUST", "true")];
    let windowless = [plain[0], ("RECOVERY_WINDOW", "0")];
    let local = standalone.uri("local");
    let local = [("MONGO_URI", local.as_str())];
    for (vars, anonymous, auth) in [
        (&plain[..], false, json!({ "recovery": false })),
        (&legacy, true, json!({})),
        (&windowless, false, json!({})),
        (&local, false, json!({})),
    ] {
        let server = TestServer::start_with(vars).await;
        let _ = server
            .request(
                reqwest::Method::POST,
                "/api/auth/register",
                None,
                Some(&json!({ "username": "ada", "password": "password of ada" })),
            )
            .await;
        let ada = server.login("ada").await;
        let room = ada.create_room(&format!("{vars:?}")).await;
        let mut auth = auth;
        if !anonymous {
            auth["token"] = json!(ada.token);
        }
        let caller = Caller::try_connect(server.addr, auth, Memory::default()).await;
        let mut caller = caller.unwrap();
        assert_eq!(caller.memory, Memory::default(), "{vars:?}");
        if anonymous {
            // The original acknowledges no join.
            caller.emit("joinRoom", json!(room)).await;
            caller
                .ask("sendMessage", json!({ "room": room, "sender": ada.id, "content": "0" }))
                .await;
        } else {
            caller.join(&room).await;
            ada.send(&room, "0").await;
        }
        let event = caller.event().await;
        assert_eq!((event.len(), &event[1]["content"]), (2, &json!("0")), "{vars:?}");
        // No offset comes behind it.
        ada.send(&room, "1").await;
        assert_eq!(caller.event().await[1]["content"], "1", "{vars:?}");
        server.stop().await;
    }
    standalone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_hears_what_it_missed_also_before_it_heard_anything() {
    let server = TestServer::start_with(ONE_WORKER).await;
    let ada = server.register("ada").await;
    let [room, other] = [ada.create_room("lounge").await, ada.create_room("other").await];
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    caller.join(&room).await;
    let (sid, memory) = (caller.sid.clone(), caller.cut());
    assert_eq!(memory.offset, None);
    tell(&ada, &other, ["not for us"]).await;
    tell(&ada, &room, ["1", "2"]).await;

    // Twice, as it may be cut again before it has taken anything.
    for _ in 0..2 {
        let caller = Caller::recover(server.addr, &ada.token, &memory).await;
        assert_eq!(caller.sid, sid);
    }
    let mut caller = Caller::recover(server.addr, &ada.token, &memory).await;
    assert_eq!(caller.contents(2).await, ["1", "2"]);
    // A room that was joined later counts from there, one that was left no more.
    caller.join(&other).await;
    caller.ask("leaveRoom", json!(room)).await;
    let memory = caller.cut();
    tell(&ada, &room, ["unheard"]).await;
    tell(&ada, &other, ["3"]).await;
    let mut caller = Caller::recover(server.addr, &ada.token, &memory).await;
    assert_eq!(caller.contents(1).await, ["3"]);
    tell(&ada, &other, ["4"]).await;
    assert_eq!(caller.contents(1).await, ["4"]);
    assert_eq!(caller.sid, sid);
    caller.assert_nothing_came().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_again_and_again_hears_everything_once() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    caller.join(&room).await;
    let mut memory = caller.cut();
    let mut heard = Vec::new();
    for n in 0..12 {
        // Sometimes there is nothing new, and sometimes not all of it is taken.
        for part in 0..n % 3 {
            ada.send(&room, &format!("{n}.{part}")).await;
        }
        let mut caller = Caller::recover(server.addr, &ada.token, &memory).await;
        heard.extend(caller.contents((n % 3).min(1)).await);
        memory = caller.cut();
    }
    ada.send(&room, "end").await;
    let mut caller = Caller::recover(server.addr, &ada.token, &memory).await;
    while heard.last().is_none_or(|last| last != "end") {
        heard.extend(caller.contents(1).await);
    }
    let all: Vec<_> = ada.history(&room).await.into_iter().collect();
    let all: Vec<_> = all.iter().map(|message| message["content"].as_str().unwrap()).collect();
    assert_eq!(heard, all);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_room_can_be_come_back_to_after_any_time() {
    let uri = fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("RECOVERY_WINDOW", "1")];
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let [quiet, busy] = [ada.create_room("quiet").await, ada.create_room("busy").await];
    let mut in_quiet = Caller::connect(server.addr, &ada.token).await;
    in_quiet.join(&quiet).await;
    let mut in_both = Caller::connect(server.addr, &ada.token).await;
    in_both.join(&quiet).await;
    in_both.join(&busy).await;
    let (in_quiet, in_both) = (in_quiet.cut(), in_both.cut());
    for n in 0..30 {
        ada.send(&busy, &n.to_string()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let mut caller = Caller::recover(server.addr, &ada.token, &in_quiet).await;
    ada.send(&quiet, "1").await;
    assert_eq!(caller.contents(1).await, ["1"]);
    drop(caller.cut());
    // What cannot be had in full begins anew.
    let mut caller = Caller::come_back(server.addr, &ada.token, in_both.clone()).await;
    assert!(!caller.recovered);
    assert_ne!(caller.memory.pid, in_both.pid);
    caller.assert_nothing_came().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_instance_will_do_and_the_newest_connection_is_the_one() {
    let uri = fresh_database().await;
    let servers = TestServer::instances::<2>(&uri).await;
    let ada = servers[0].register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut first = Caller::connect(servers[0].addr, &ada.token).await;
    first.join(&room).await;
    tell(&ada, &room, ["1"]).await;
    assert_eq!(first.contents(1).await, ["1"]);

    // The first is still thought alive: here at once, elsewhere soon it is closed.
    let mut second = Caller::recover(servers[0].addr, &ada.token, &first.memory).await;
    assert_eq!(second.sid, first.sid);
    first.closed().await;
    tell(&ada, &room, ["2"]).await;
    let mut third = Caller::recover(servers[1].addr, &ada.token, &second.memory).await;
    assert_eq!(third.contents(1).await, ["2"]);
    second.closed().await;
    tell(&ada, &room, ["3"]).await;
    assert_eq!(third.contents(1).await, ["3"]);
    // What the old ones do is no concern of the new one's.
    let memory = third.cut();
    let mut fourth = Caller::recover(servers[0].addr, &ada.token, &memory).await;
    tell(&ada, &room, ["4"]).await;
    assert_eq!(fourth.contents(1).await, ["4"]);
    drop(fourth);
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_come_back_at_once_one_stays() {
    let server = TestServer::start_with(&[("WORKERS", "2")]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    caller.join(&room).await;
    let memory = caller.cut();
    let auth = json!({ "token": ada.token, "pid": memory.pid });
    for _ in 0..10 {
        let coming = (0..4).map(|_| async {
            let mut ws = Ws::open(server.addr, "/socket.io/").await;
            ws.send(format!("40{auth}")).await;
            ws
        });
        let come = join_all(coming).await;
        let closing = come.into_iter().map(|mut ws| async move { ws.closed().await }.boxed());
        let mut closing: Vec<_> = closing.collect();
        for _ in 0..3 {
            (_, _, closing) = select_all(closing).await;
        }
        let last = closing.pop().unwrap();
        let closed = tokio::time::timeout(Duration::from_millis(50), last).await;
        assert!(closed.is_err(), "one stays");
    }
    Caller::recover(server.addr, &ada.token, &memory).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_killed_takes_nothing_along() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let room = ada.create_room("lounge").await;
    let killed = Program::start_on(&uri, &[]);
    let mut silent = Caller::connect(killed.addr, &ada.token).await;
    silent.join(&room).await;
    let mut caller = Caller::connect(killed.addr, &ada.token).await;
    caller.join(&room).await;
    tell(&ada, &room, ["1"]).await;
    assert_eq!(caller.contents(1).await, ["1"]);
    tell(&ada, &room, ["2"]).await;
    killed.kill();
    caller.closed().await;
    tell(&ada, &room, ["3"]).await;

    let mut again = Caller::recover(beside.addr, &ada.token, &caller.memory).await;
    assert_eq!(again.sid, caller.sid);
    assert_eq!(again.contents(2).await, ["2", "3"]);
    let mut again = Caller::recover(beside.addr, &ada.token, &silent.memory).await;
    assert_eq!(again.contents(3).await, ["1", "2", "3"]);
    // One that starts afterwards is as good.
    let memory = again.cut();
    tell(&ada, &room, ["4"]).await;
    let started = Program::start_on(&uri, &[]);
    let mut again = Caller::recover(started.addr, &ada.token, &memory).await;
    assert_eq!(again.contents(1).await, ["4"]);
    drop(started);
    beside.stop().await;
}

/// What a client that is cut again and again has heard of each room.
struct Wanderer {
    /// It asks for the offset inside each event.
    exact: bool,
    memory: Memory,
    rooms: Vec<String>,
    heard: Vec<Vec<String>>,
    /// How many of each room it had heard when it got its last offset. What is behind that is
    /// repeated, and nothing else.
    covered: Vec<usize>,
    repeated: usize,
}

impl Wanderer {
    /// One who has been in none of these rooms.
    fn new(exact: bool, rooms: &[String]) -> Self {
        let (memory, rooms) = (Memory::default(), rooms.to_vec());
        let (heard, covered) = (vec![Vec::new(); rooms.len()], vec![0; rooms.len()]);
        Self { exact, memory, rooms, heard, covered, repeated: 0 }
    }

    /// Connects, after the first time to go on.
    async fn connect(&mut self, addr: SocketAddr, token: &str) -> Caller {
        let memory = self.memory.clone();
        let goes_on = memory.pid.is_some();
        let caller = match self.exact {
            true => Caller::come_back(addr, token, memory).await,
            false => Caller::by_default(addr, token, memory).await,
        };
        assert_eq!(caller.recovered, goes_on);
        for (heard, &covered) in self.heard.iter_mut().zip(&self.covered) {
            self.repeated += heard.len() - covered;
            heard.truncate(covered);
        }
        caller
    }

    /// Takes one event.
    async fn hear(&mut self, caller: &mut Caller) {
        let told = caller.told().await;
        if let Some((room, content)) = told.message {
            let room = self.rooms.iter().position(|known| *known == room).unwrap();
            self.heard[room].push(content);
        }
        if told.with_offset {
            self.covered = self.heard.iter().map(Vec::len).collect();
        }
    }

    /// Comes back and takes so many events, or fewer at the end.
    async fn hear_some(&mut self, addr: SocketAddr, token: &str, events: usize) {
        let mut caller = self.connect(addr, token).await;
        for _ in 0..events {
            if self.is_at_the_end() {
                break;
            }
            self.hear(&mut caller).await;
        }
        self.memory = caller.cut();
    }

    fn count(&self) -> usize {
        self.heard.iter().map(Vec::len).sum()
    }

    fn is_at_the_end(&self) -> bool {
        self.heard.iter().all(|heard| heard.last().is_some_and(|last| last == "end"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_the_middle_of_a_replay_loses_and_repeats_nothing() {
    assert_eq!(cut_in_the_middle_of_a_replay(true).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_a_cut_repeats_what_is_behind_the_last_offset_and_loses_nothing() {
    assert!(cut_in_the_middle_of_a_replay(false).await > 0);
}

/// Cuts a client in the middle of replays of several rooms, and compares what it heard with what
/// was said there; answers how many messages came again.
async fn cut_in_the_middle_of_a_replay(exact: bool) -> usize {
    let uri = fresh_database().await;
    let servers = TestServer::instances::<2>(&uri).await;
    let ada = servers[0].register("ada").await;
    let rooms =
        [ada.create_room("1").await, ada.create_room("2").await, ada.create_room("live").await];
    let mut wanderer = Wanderer::new(exact, &rooms);
    let mut caller = wanderer.connect(servers[0].addr, &ada.token).await;
    caller.join(&rooms[0]).await;
    wanderer.memory = caller.cut();
    let neighbour = Neighbour::connect(&uri).await;
    let mut expected = vec![Vec::new(); 3];
    let mut number = 0;
    for turn in 0..24_usize {
        // A backlog for the next turn, in rooms that are in the middle of a replay themselves.
        for n in 0..20 {
            let room = [0, 1, 0, 2][(turn + n) % 4];
            // The others are joined later.
            let joined = [true, turn > 4, turn > 9][room];
            number += 1;
            // Some turns have more than is written at once.
            let length = if turn % 3 == 0 { 5_000 } else { 1 };
            let content = format!("{number:>length$}");
            neighbour.insert(&rooms[room], &content).await;
            if joined {
                expected[room].push(content);
            }
        }
        let mut caller = wanderer.connect(servers[turn % 2].addr, &ada.token).await;
        if turn == 4 {
            caller.join(&rooms[1]).await;
        }
        if turn == 9 {
            caller.join(&rooms[2]).await;
        }
        for _ in 0..(turn * 7) % 19 {
            wanderer.hear(&mut caller).await;
        }
        wanderer.memory = caller.cut();
    }
    let mut caller = wanderer.connect(servers[0].addr, &ada.token).await;
    let all: usize = expected.iter().map(Vec::len).sum();
    while wanderer.count() < all || wanderer.covered.iter().sum::<usize>() < all {
        wanderer.hear(&mut caller).await;
    }
    assert_eq!(wanderer.heard, expected);
    caller.assert_nothing_came().await;
    drop(caller);
    join_all(servers.into_iter().map(TestServer::stop)).await;
    wanderer.repeated
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_of_before_a_join_is_none_of_the_room_that_was_joined() {
    let server = TestServer::start_with(ONE_WORKER).await;
    let ada = server.register("ada").await;
    let [live, old] = [ada.create_room("live").await, ada.create_room("old").await];
    let mut plain = Socket::connect(&server, &ada.token).await;
    let since = plain.join(&old).await;
    tell(&ada, &old, ["1", "2", "3"]).await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    caller.join(&live).await;
    tell(&ada, &live, ["later than all of them"]).await;
    caller.heard().await;

    // In the same session, and in one that begins anew with the offset of this one.
    let began = caller.cut();
    let unknown = Memory { pid: Some("of another server".to_owned()), ..began.clone() };
    for memory in [began, unknown] {
        let mut caller = Caller::come_back(server.addr, &ada.token, memory).await;
        let ack = caller.ask("joinRoom", json!({ "room": old, "since": since })).await;
        assert_eq!(ack["recovered"], true);
        // Nothing of it was heard: the first time not at all, then a part of it, twice.
        let mut caller = Caller::recover(server.addr, &ada.token, &caller.cut()).await;
        assert_eq!(caller.contents(1).await, ["1"]);
        let memory = caller.cut();
        for _ in 0..2 {
            let mut caller = Caller::recover(server.addr, &ada.token, &memory).await;
            assert_eq!(caller.contents(2).await, ["2", "3"]);
            caller.assert_nothing_came().await;
            let mut caller = Caller::recover(server.addr, &ada.token, &caller.cut()).await;
            caller.assert_nothing_came().await;
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_ahead_of_the_instance_takes_nothing_from_a_room_that_is_joined_there() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let ada = quick.register("ada").await;
    let [before, room] = [ada.create_room("before").await, ada.create_room("after").await];
    let mut caller = Caller::connect(quick.addr, &ada.token).await;
    caller.join(&before).await;
    neighbour.hold_slow_back(Duration::from_secs(3)).await;

    neighbour.insert(&room, "not yet there").await;
    neighbour.insert(&before, "ahead").await;
    assert_eq!(caller.contents(1).await, ["ahead"]);
    let known = caller.cut();
    let unknown = Memory { pid: Some("of another server".to_owned()), ..known.clone() };
    // The slow instance has seen neither when they join, one recovered and one anew.
    let mut memories = Vec::new();
    for memory in [known, unknown] {
        let mut caller = Caller::come_back(slow.addr, &ada.token, memory).await;
        caller.join(&room).await;
        memories.push(caller.cut());
    }
    for memory in memories {
        let mut caller = Caller::recover(slow.addr, &ada.token, &memory).await;
        assert_eq!(caller.contents(1).await, ["not yet there"]);
        caller.assert_nothing_came().await;
    }
    drop(ada);
    quick.stop().await;
    slow.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_back_as_somebody_else() {
    let server = TestServer::start().await;
    let [ada, bob] = [server.register("ada").await, server.register("bob").await];
    let room = ada.create_room("lounge").await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    caller.join(&room).await;
    let memory = caller.memory.clone();
    let mut other = Caller::come_back(server.addr, &bob.token, memory.clone()).await;
    assert!(!other.recovered);
    assert_ne!(other.sid, caller.sid);
    tell(&ada, &room, ["1"]).await;
    // The rightful one was not disturbed.
    assert_eq!(caller.contents(1).await, ["1"]);
    other.assert_nothing_came().await;
    let mut caller = Caller::recover(server.addr, &ada.token, &caller.cut()).await;
    caller.assert_nothing_came().await;

    let expired = expired_token(&ada.id);
    let auth = json!({ "token": expired });
    let refused = Caller::try_connect(server.addr, auth, memory.clone()).await.err().unwrap();
    assert_eq!(refused["message"], "Invalid token");
    let refused = Caller::try_connect(server.addr, json!({}), memory).await.err().unwrap();
    assert_eq!(refused["message"], "Access denied. No token provided.");
    caller.assert_nothing_came().await;
    server.stop().await;
}

/// A token that ended an hour ago.
fn expired_token(user: &str) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{Algorithm, EncodingKey};

    let now = jsonwebtoken::get_current_timestamp();
    let payload = json!({ "id": user, "iat": now - 7_200, "exp": now - 3_600 }).to_string();
    let header = r#"{"alg":"HS256","typ":"JWT"}"#;
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(crate::helpers::SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_token_ends_goes_on_with_a_fresh_one() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut caller = Caller::connect(server.addr, &token_for(&ada.id, 2)).await;
    caller.join(&room).await;
    // By the transport, not by a packet that would keep the client away.
    caller.closed().await;
    tell(&ada, &room, ["1"]).await;
    let mut caller = Caller::recover(server.addr, &ada.token, &caller.memory).await;
    assert_eq!(caller.contents(1).await, ["1"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_go_on_begins_anew() {
    let uri = fresh_database().await;
    let neighbour = Neighbour::connect(&uri).await;
    let vars = [ONE_WORKER, &[("MONGO_URI", uri.as_str())]].concat();
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut witness = Caller::connect(server.addr, &ada.token).await;
    witness.join(&room).await;
    let in_the_room = async || {
        let mut caller = Caller::connect(server.addr, &ada.token).await;
        caller.join(&room).await;
        caller
    };
    let with_offset =
        |memory: Memory, offset: &str| Memory { offset: Some(offset.to_owned()), ..memory };
    let ahead = format!("{}.1", jsonwebtoken::get_current_timestamp() + 1_000);
    let left = in_the_room().await.leave().await;
    neighbour.socket_is_gone(left.pid.as_deref().unwrap()).await;
    let memories = [
        Memory { pid: Some("unknown".into()), offset: None },
        Memory { pid: Some("a".repeat(100_000)), offset: Some("1.1".into()) },
        with_offset(in_the_room().await.cut(), "what is this"),
        with_offset(in_the_room().await.cut(), &ahead),
        with_offset(in_the_room().await.cut(), "99999999999999.1"),
        left,
        // Without a room there is nothing to come back to.
        Caller::connect(server.addr, &ada.token).await.cut(),
    ];
    for memory in memories {
        let mut caller = Caller::come_back(server.addr, &ada.token, memory.clone()).await;
        assert!(!caller.recovered, "{memory:?}");
        assert!(caller.memory.pid.is_some() && caller.memory.pid != memory.pid);
        tell(&ada, &room, ["unheard"]).await;
        assert_eq!(witness.contents(1).await, ["unheard"]);
        caller.assert_nothing_came().await;
        // The offset of another session, which socket.io-client keeps, does not count.
        caller.join(&room).await;
        let memory = caller.cut();
        tell(&ada, &room, ["heard"]).await;
        assert_eq!(witness.contents(1).await, ["heard"]);
        if memory.offset.as_ref().is_none_or(|offset| offset == "1.1") {
            let mut caller = Caller::recover(server.addr, &ada.token, &memory).await;
            assert_eq!(caller.contents(1).await, ["heard"]);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_got_lost_on_its_way_comes_again() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let session = Poller::open(server.addr, "/socket.io/").await;
    session.post(&format!("40{}", json!({ "token": ada.token }))).await.assert_ok();
    let connected = session.collect(1).await;
    let answer: serde_json::Value = serde_json::from_str(&connected[0][2..]).unwrap();
    session.post(&format!("420{}", json!(["joinRoom", room]))).await.assert_ok();
    assert!(session.collect(1).await[0].starts_with("430["));
    // The connection breaks while the answer to this poll is under way.
    let poll = session.begin("GET", "", 0).await;
    tell(&ada, &room, ["1"]).await;
    poll.readable().await.unwrap();
    drop(poll);
    tell(&ada, &room, ["2"]).await;

    let memory = Memory { pid: answer["pid"].as_str().map(str::to_owned), offset: None };
    let mut caller = Caller::recover(server.addr, &ada.token, &memory).await;
    assert_eq!(caller.sid, answer["sid"]);
    assert_eq!(caller.contents(2).await, ["1", "2"]);
    // The abandoned session was ended by that.
    eventually("it is gone", async || session.post("3").await.status == 400).await;
    let memory = caller.cut();

    // And back by polling.
    tell(&ada, &room, ["3", "4"]).await;
    let session = Poller::open(server.addr, "/socket.io/").await;
    let auth = json!({ "token": ada.token, "pid": memory.pid, "offset": memory.offset });
    session.post(&format!("40{auth}")).await.assert_ok();
    let packets = session.collect(3).await;
    assert!(packets[0].contains(memory.pid.as_ref().unwrap()), "{packets:?}");
    assert!(packets[1].contains("\"content\":\"3\"") && packets[2].contains("\"content\":\"4\""));
    assert!(packets.iter().all(|packet| !packet.contains(SEPARATOR)));
    server.stop().await;
}

/// Writes into rooms until it is told to stop, and then the end of each.
async fn write(neighbour: Neighbour, rooms: Vec<String>, stop: CancellationToken) {
    for n in 0.. {
        if stop.is_cancelled() {
            break;
        }
        neighbour.insert(&rooms[n % rooms.len()], &n.to_string()).await;
    }
    for room in &rooms {
        neighbour.insert(room, "end").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_during_load_hears_everything_and_only_what_has_no_offset_again() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let servers = TestServer::instances::<2>(&uri).await;
    let ada = servers[0].register("ada").await;
    let mut rooms = Vec::new();
    for name in ["one", "two", "three"] {
        rooms.push(ada.create_room(name).await);
    }
    let start = async |exact, addr| {
        let mut wanderer = Wanderer::new(exact, &rooms);
        let mut caller = wanderer.connect(addr, &ada.token).await;
        for room in &rooms {
            caller.join(room).await;
        }
        wanderer.memory = caller.cut();
        wanderer
    };
    let mut wanderers = Vec::new();
    for seed in 0..6 {
        wanderers.push(start(seed < 3, servers[seed % 2].addr).await);
    }
    let stop = CancellationToken::new();
    let neighbour = Neighbour::connect(&uri).await;
    let writing = tokio::spawn(write(neighbour, rooms.clone(), stop.clone()));
    let wandering = wanderers.into_iter().enumerate().map(|(seed, mut wanderer)| {
        let (servers, ada) = (&servers, &ada);
        async move {
            for turn in 0..30 {
                let addr = servers[(seed + turn) % 2].addr;
                wanderer.hear_some(addr, &ada.token, (turn * 7 + seed * 3) % 23).await;
            }
            wanderer
        }
    });
    let wanderers = join_all(wandering).await;
    stop.cancel();
    writing.await.unwrap();
    let mut all = Vec::new();
    for room in &rooms {
        let history = ada.history(room).await.into_iter();
        let contents = history.map(|message| message["content"].as_str().unwrap().to_owned());
        all.push(contents.collect::<Vec<_>>());
    }
    for mut wanderer in wanderers {
        wanderer.hear_some(servers[0].addr, &ada.token, usize::MAX).await;
        assert_eq!(wanderer.heard, all);
        assert!(!wanderer.exact || wanderer.repeated == 0, "{} repeated", wanderer.repeated);
    }
    join_all(servers.into_iter().map(TestServer::stop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_mongodb_is_away_nobody_begins_anew() {
    let mut set = ReplicaSet::start(1).await;
    let uri = set.uri("away");
    let vars = [("MONGO_URI", uri.as_str())];
    let server = TestServer::start_with(&vars).await;
    let (memory, token, room) = {
        let ada = server.register("ada").await;
        let room = ada.create_room("lounge").await;
        let mut caller = Caller::connect(server.addr, &ada.token).await;
        caller.join(&room).await;
        let memory = caller.cut();
        ada.send(&room, "1").await;
        (memory, ada.token, room)
    };
    let come_back = async |server: &TestServer| {
        let mut ws = Ws::open(server.addr, "/socket.io/").await;
        let auth = json!({ "token": token, "pid": memory.pid });
        ws.send(format!("40{auth}")).await;
        ws
    };
    // Not refused, which would keep the client away, but closed: it tries again.
    set.stop_node(0).await;
    come_back(&server).await.closed().await;
    server.stop().await;
    let server = TestServer::start_with(&vars).await;
    come_back(&server).await.closed().await;
    set.restart(0).await;
    eventually("the session goes on", async || {
        let mut ws = come_back(&server).await;
        ws.next_text().await.is_some_and(|text| text.contains(memory.pid.as_ref().unwrap()))
    })
    .await;
    let mut caller = Caller::recover(server.addr, &token, &memory).await;
    assert_eq!(caller.heard().await, (room, "1".to_owned()));
    drop(caller);
    server.stop().await;
}
