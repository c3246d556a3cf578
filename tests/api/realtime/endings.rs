//! What a client sends before it goes is stored, however it goes; and when it says goodbye, it has
//! gone.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::helpers::endings::{
    CLOSE, Ending, Leaver, TEXT, Transport, endings, frame, missing_and_misordered, upgrade,
};
use crate::helpers::mongod::{ReplicaSet, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, User, alone, eventually_within, metric, token_for};

const TRANSPORTS: [Transport; 3] = [Transport::Plain, Transport::WebSocket, Transport::Polling];

/// How many go in each way at the same time.
const LEAVERS: usize = 12;

fn contents(history: &[Value]) -> impl Iterator<Item = &str> {
    history.iter().map(|message| message["content"].as_str().unwrap())
}

/// Waits until so many messages are stored, each sender's in their order.
async fn assert_all_stored(user: &User<'_>, room: &str, count: usize, how: &str) {
    let within = Duration::from_secs(20);
    let stored = async || missing(user, room, count).await == (0, 0);
    eventually_within(within, &format!("all is stored: {how}"), stored).await;
}

async fn missing(user: &User<'_>, room: &str, count: usize) -> (usize, usize) {
    missing_and_misordered(contents(&user.history(room).await), LEAVERS, count)
}

async fn connect_all(
    addr: SocketAddr,
    transport: Transport,
    token: &str,
    room: &str,
) -> Vec<Leaver> {
    let connecting = |number| Leaver::connect(addr, transport, token, room, number);
    join_all((0..LEAVERS).map(connecting)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_end_is_stored_however_it_ends() {
    let _alone = alone().await;
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    for transport in TRANSPORTS {
        for &ending in endings(transport) {
            for count in [1, 2, 10, 64] {
                let how = format!("{transport:?}, {ending:?}, {count}");
                let room = ada.create_room(&how).await;
                let leavers = connect_all(server.addr, transport, &ada.token, &room).await;
                let leaving = leavers.into_iter().map(|leaver| leaver.send_and_end(count, ending));
                join_all(leaving).await;
                assert_all_stored(&ada, &room, count, &how).await;
            }
        }
    }
    assert_eq!(metric(server.addr, "chat_unprocessed_messages_total").await, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_a_stop_is_stored() {
    let uri = fresh_database().await;
    let other = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = other.register("ada").await;
    for transport in TRANSPORTS {
        let server = Program::start_on(&uri, &[]);
        let room = ada.create_room(&format!("{transport:?}")).await;
        let leavers = connect_all(server.addr, transport, &ada.token, &room).await;
        let sending = leavers.into_iter().map(|leaver| leaver.send_and_end(10, Ending::Silence));
        let sending = tokio::spawn(join_all(sending));
        // A sender whose first message is stored has sent all of its messages.
        eventually_within(Duration::from_secs(20), "each has sent", async || {
            let history = ada.history(&room).await;
            let senders = contents(&history).filter_map(|content| content.split(' ').next());
            senders.collect::<HashSet<_>>().len() == LEAVERS
        })
        .await;
        assert!(server.terminate().success());
        sending.await.unwrap();
        assert_all_stored(&ada, &room, 10, &format!("{transport:?}")).await;
    }
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_token_ended_is_stored() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    for transport in TRANSPORTS {
        let room = ada.create_room(&format!("{transport:?}")).await;
        let token = token_for(&ada.id, 3);
        let leavers = connect_all(server.addr, transport, &token, &room).await;
        let sending = leavers.into_iter().map(|leaver| leaver.send_and_end(64, Ending::Silence));
        join_all(sending).await;
        assert_all_stored(&ada, &room, 64, &format!("{transport:?}")).await;
    }
    server.stop().await;
}

/// A message in `room`, which only who is still in it hears.
async fn assert_gone(caller: &mut Caller, ada: &User<'_>, [left, joined]: [&str; 2]) {
    ada.send(left, "for those who stayed").await;
    ada.send(joined, "for all").await;
    assert_eq!(caller.heard().await, (joined.to_owned(), "for all".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_is_heard_before_the_client_comes_back_on_any_instance() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let [left, joined] = [ada.create_room("left").await, ada.create_room("joined").await];
    for round in 0..20 {
        let next = if round % 2 == 0 { &one } else { &other };
        let mut caller = Caller::connect(one.addr, &ada.token).await;
        caller.join(&left).await;
        ada.send(&left, "an offset").await;
        assert_eq!(caller.heard().await.1, "an offset");
        let memory = caller.disconnect().await;
        let mut caller = Caller::come_back(next.addr, &ada.token, memory).await;
        assert!(!caller.recovered, "round {round}");
        caller.join(&joined).await;
        assert_gone(&mut caller, &ada, [&left, &joined]).await;
    }
    drop((one, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_was_left_before_the_end_is_not_heard_again() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let [left, joined] = [ada.create_room("left").await, ada.create_room("joined").await];
    for round in 0..20 {
        let next = if round % 2 == 0 { &one } else { &other };
        let mut caller = Caller::connect(one.addr, &ada.token).await;
        caller.join(&left).await;
        caller.emit("leaveRoom", json!(left)).await;
        caller.emit("joinRoom", json!(joined)).await;
        let mut caller = Caller::recover(next.addr, &ada.token, &caller.cut()).await;
        assert_gone(&mut caller, &ada, [&left, &joined]).await;
    }
    drop((one, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_right_behind_the_first_join_is_one() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = ada.create_room("left").await;
    for round in 0..20 {
        let next = if round % 2 == 0 { &one } else { &other };
        let mut caller = Caller::connect(one.addr, &ada.token).await;
        caller.emit("joinRoom", json!(room)).await;
        let memory = caller.disconnect().await;
        let caller = Caller::come_back(next.addr, &ada.token, memory).await;
        assert!(!caller.recovered, "round {round}");
    }
    drop((one, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_behind_many_messages_is_one() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let room = ada.create_room("left").await;
    for round in 0..6 {
        // Another instance cannot know how much there is in front of it, and waits for 0.3 s.
        let (next, messages) = if round % 2 == 0 { (&one, 500) } else { (&other, 50) };
        let mut caller = Caller::connect(one.addr, &ada.token).await;
        caller.join(&room).await;
        for number in 0..messages {
            caller.emit("sendMessage", json!({ "room": room, "content": number })).await;
        }
        let memory = caller.disconnect().await;
        let caller = Caller::come_back(next.addr, &ada.token, memory).await;
        assert!(!caller.recovered, "round {round}");
    }
    drop((one, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_of_a_room_that_it_is_in_takes_nothing_from_what_was_missed() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    for round in 0..10 {
        let room = ada.create_room(&format!("room {round}")).await;
        let mut caller = Caller::connect(server.addr, &ada.token).await;
        caller.join(&room).await;
        ada.send(&room, "heard").await;
        assert_eq!(caller.heard().await.1, "heard");
        ada.send(&room, "missed").await;
        let scratch = ada.create_room(&format!("scratch {round}")).await;
        for number in 0..20 {
            caller.emit("sendMessage", json!({ "room": scratch, "content": number })).await;
        }
        caller.emit("joinRoom", json!(room)).await;
        let mut caller = Caller::recover(server.addr, &ada.token, &caller.cut()).await;
        ada.send(&room, "new").await;
        assert_eq!(caller.contents(2).await, ["missed", "new"], "round {round}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_in_more_rooms_than_allowed_by_joining_before_the_end() {
    let server = TestServer::start_with(&[("MAX_ROOMS_PER_SESSION", "2")]).await;
    let ada = server.register("ada").await;
    let mut rooms = Vec::new();
    for number in 0..6 {
        rooms.push(ada.create_room(&format!("room {number}")).await);
    }
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    caller.join(&rooms[0]).await;
    for number in 0..20 {
        caller.emit("sendMessage", json!({ "room": rooms[1], "content": number })).await;
    }
    for room in &rooms[1..] {
        caller.emit("joinRoom", json!(room)).await;
    }
    let mut caller = Caller::recover(server.addr, &ada.token, &caller.cut()).await;
    for room in &rooms {
        ada.send(room, "for its members").await;
    }
    ada.send(&rooms[0], "the end").await;
    let mut heard_in = Vec::new();
    loop {
        match caller.heard().await {
            (_, content) if content == "the end" => break,
            (room, content) if content == "for its members" => heard_in.push(room),
            _ => {}
        }
    }
    assert_eq!(heard_in, rooms[..2]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_close_frame_is_discarded() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("room").await;
    let send = |content: &str| {
        let data = json!({ "room": room, "content": content });
        frame(TEXT, json!({ "event": "sendMessage", "data": data }).to_string().as_bytes())
    };
    let mut stream = upgrade(server.addr, &format!("/ws?token={}", ada.token)).await;
    let close = frame(CLOSE, &1000_u16.to_be_bytes());
    let bytes = [send("before"), close, send("behind")].concat();
    stream.write_all(&bytes).await.unwrap();
    // The connection is at its end when everything has been read from it.
    let _ = stream.read_to_end(&mut Vec::new()).await;
    eventually_within(Duration::from_secs(20), "the session has ended", async || {
        metric(server.addr, "chat_sessions").await == 0
    })
    .await;
    assert_eq!(contents(&ada.history(&room).await).collect::<Vec<_>>(), ["before"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_behind_the_first_authenticate_is_stored() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("room").await;
    for number in 0..LEAVERS {
        let mut stream = upgrade(server.addr, "/ws").await;
        let event = |event: &str, data: Value| {
            frame(TEXT, json!({ "event": event, "data": data }).to_string().as_bytes())
        };
        let mut bytes = event("authenticate", json!({ "token": ada.token }));
        for nth in 0..20 {
            let data = json!({ "room": room, "content": format!("{number} {nth}") });
            bytes.extend(event("sendMessage", data));
        }
        stream.write_all(&bytes).await.unwrap();
    }
    assert_all_stored(&ada, &room, 20, "behind authenticate").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_messages_than_may_wait_are_stored_when_the_token_ends_before_they_are() {
    let _alone = alone().await;
    let mongo = ReplicaSet::start(1).await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongo.uri("slow"))]).await;
    let ada = server.register("ada").await;
    for transport in TRANSPORTS {
        let room = ada.create_room(&format!("{transport:?}")).await;
        let token = token_for(&ada.id, 3);
        let leaver = Leaver::connect(server.addr, transport, &token, &room, 0).await;
        sleep(Duration::from_millis(1_500)).await;
        mongo.pause(0);
        let sending = tokio::spawn(leaver.send_and_end(200, Ending::Silence));
        sleep(Duration::from_millis(2_500)).await;
        mongo.resume(0);
        sending.await.unwrap();
        let stored = async || {
            let history = ada.history(&room).await;
            missing_and_misordered(contents(&history), 1, 200) == (0, 0)
        };
        let how = format!("all is stored: {transport:?}");
        eventually_within(Duration::from_secs(20), &how, stored).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_after_the_end_is_counted() {
    let _alone = alone().await;
    let mongo = ReplicaSet::start(1).await;
    let server = TestServer::start_with(&[("MONGO_URI", &mongo.uri("away"))]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let connect = |transport| Leaver::connect(server.addr, transport, &ada.token, &room, 0);
    let few = connect(Transport::WebSocket).await;
    let many = connect(Transport::Polling).await;
    mongo.pause(0);
    few.send_and_end(3, Ending::Close).await;
    many.send_and_end(600, Ending::Close).await;
    eventually_within(Duration::from_secs(60), "all are counted", async || {
        sleep(Duration::from_millis(200)).await;
        metric(server.addr, "chat_unprocessed_messages_total").await == 603
    })
    .await;
    mongo.resume(0);
    drop(server);
}
