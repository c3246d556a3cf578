//! Many messages, many members, and some that do not keep up.

use std::time::Duration;

use futures::future::join_all;
use realtime_chat_backend::feed::position::Position;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::interval;

use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::socket::{END, Heard, Socket};
use crate::helpers::{TestServer, alone, eventually};

/// So many writers of [`write`] make 500 messages a second.
const WRITERS: u64 = 8;

/// Writes so many messages of this length at 500 a second, if the machine can, and then the end.
fn write(neighbour: &Neighbour, room: &str, each: usize, length: usize) -> JoinHandle<()> {
    let (neighbour, room) = (neighbour.clone(), room.to_owned());
    tokio::spawn(async move {
        let writing = (0..WRITERS).map(async |writer| {
            let mut pace = interval(Duration::from_millis(WRITERS * 1_000 / 500));
            for n in 0..each {
                pace.tick().await;
                let content = format!("{writer} {n} {}", "x".repeat(length));
                neighbour.insert(&room, &content).await;
            }
        });
        join_all(writing).await;
        neighbour.insert(&room, END).await;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_joins_begins_where_it_joined() {
    const JOINS: usize = 600;
    const EACH: usize = 180;
    let _alone = alone().await;
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("busy").await;
    let neighbour = Neighbour::connect(&uri).await;
    let begun = Socket::connect(&server, &ada.token).await.join(&room).await;
    let writing = write(&neighbour, &room, EACH, 0);

    let mut joining = Vec::new();
    let mut pace = interval(Duration::from_millis(5));
    for n in 0..JOINS {
        pace.tick().await;
        let (addr, token, room) = (server.addr, ada.token.clone(), room.clone());
        joining.push(tokio::spawn(async move {
            let mut socket = Socket::connect_at(addr, &token).await;
            let mut stays = Vec::new();
            for wanted in [n % 40, n % 7] {
                let joined: Position = socket.join(&room).await.parse().unwrap();
                assert_eq!(socket.kept(), 0, "the ack of a join comes before what it brings");
                let mut transcript = Vec::new();
                while transcript.len() < wanted {
                    transcript.push(socket.heard().await);
                }
                socket.ask("leaveRoom", json!(room)).await;
                while socket.kept() > 0 {
                    transcript.push(socket.heard().await);
                }
                stays.push((joined, transcript));
            }
            stays
        }));
    }
    // Who came late waits for something.
    writing.await.unwrap();
    let more = tokio::spawn({
        let (neighbour, room) = (neighbour.clone(), room.clone());
        async move {
            for n in 0.. {
                neighbour.insert(&room, &format!("more {n}")).await;
            }
        }
    });
    let joined = join_all(joining).await;
    more.abort();
    neighbour.insert(&room, END).await;

    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.recover(&room, begun).await;
    let all = socket.heard_to_the_end(2).await;
    assert!(all.len() > EACH * WRITERS as usize);
    for stays in joined {
        for (at, transcript) in stays.unwrap() {
            let first = all.partition_point(|heard| heard.position <= at);
            assert_eq!(transcript, all[first..first + transcript.len()]);
        }
    }
    drop(socket);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stops_reading_is_closed_and_the_others_hear_everything() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let room = ada.create_room("busy").await;
    let neighbour = Neighbour::connect(&uri).await;
    // All places are taken: somebody else gets in when a member is gone.
    let server = Program::start_on(&uri, &[("WORKERS", "1"), ("MAX_CONNECTIONS", "5")]);
    let mut quick = Vec::new();
    for _ in 0..3 {
        let mut socket = Socket::connect_at(server.addr, &ada.token).await;
        socket.join(&room).await;
        quick.push(socket);
    }
    let mut hesitant = Socket::connect_narrow(server.addr, &ada.token).await;
    hesitant.join(&room).await;
    let mut deaf = Socket::connect_narrow(server.addr, &ada.token).await;
    deaf.join(&room).await;

    let writing = write(&neighbour, &room, 250, 4_000);
    let mut transcripts = join_all(quick.iter_mut().map(|socket| socket.heard_to_the_end(1))).await;
    writing.await.unwrap();
    transcripts.dedup();
    let [all] = &transcripts[..] else { panic!("they disagree") };
    assert_eq!(all.len(), 250 * WRITERS as usize + 1);

    // The one that reads again finds out, and has missed nothing when it comes back.
    let mut heard = Vec::new();
    let closed = loop {
        match hesitant.next_or_closed().await {
            Ok(frame) => heard.push(crate::helpers::socket::heard(&frame)),
            Err(closed) => break closed,
        }
    };
    assert_eq!(closed, Some((1013, "too slow".to_owned())));
    assert!(!heard.is_empty() && heard.len() < all.len());
    drop((hesitant, quick));
    let mut back = Socket::connect_at(server.addr, &ada.token).await;
    back.recover(&room, heard.last().unwrap().position).await;
    heard.extend(back.heard_to_the_end(1).await);
    assert_eq!(heard, *all);

    // The one that never does is gone, too.
    let mut others = vec![back];
    eventually("there are four places without the deaf one", async || {
        match Socket::try_connect(server.addr, &ada.token).await {
            Some(socket) => others.push(socket),
            None => return false,
        }
        others.len() == 5
    })
    .await;
    drop(deaf);
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_closes_nobody_who_reads() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("busy").await;
    let neighbour = Neighbour::connect(&uri).await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = Socket::connect(&server, &ada.token).await;
        socket.join(&room).await;
        sockets.push(socket);
    }
    // Together more than may wait for one member.
    let content = |n| format!("{n:<3}{}", "x".repeat(20_000));
    neighbour.insert_all(&room, (0..100).map(content)).await;
    let transcripts = sockets.iter_mut().map(async |socket| {
        for n in 0..100 {
            assert_eq!(socket.heard().await.content, content(n));
        }
    });
    join_all(transcripts).await;
    drop(sockets);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_do_not_read_cost_what_their_bounds_say() {
    const MEMBERS: usize = 30;
    let _alone = alone().await;
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let room = ada.create_room("large").await;
    let neighbour = Neighbour::connect(&uri).await;
    let server = Program::start_on(&uri, &[("RECOVERY_BYTES", "1048576")]);
    let mut deaf = Vec::new();
    for _ in 0..MEMBERS {
        let mut socket = Socket::connect_narrow(server.addr, &ada.token).await;
        socket.join(&room).await;
        deaf.push(socket);
    }
    let mut witness = Socket::connect_at(server.addr, &ada.token).await;
    witness.join(&room).await;
    let before = server.peak_memory();
    for n in 0..200 {
        neighbour.insert(&room, &format!("{n:<4}{}", "x".repeat(100_000))).await;
        witness.heard().await;
    }
    let grown = server.peak_memory() - before;
    // A megabyte waits for each, and a bit is under way.
    assert!(grown < 2 * MEMBERS as u64 + 40, "it has grown by {grown} MiB");
    drop((deaf, witness));
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_is_replayed_at_the_pace_of_the_socket() {
    const BACKLOG: usize = 60_000;
    let _alone = alone().await;
    let uri = fresh_database().await;
    let beside =
        TestServer::start_with(&[("MONGO_URI", &uri), ("RECOVERY_BYTES", "1048576")]).await;
    let ada = beside.register("ada").await;
    let (room, other) = (ada.create_room("long").await, ada.create_room("other").await);
    let neighbour = Neighbour::connect(&uri).await;
    let server = Program::start_on(&uri, &[]);
    let mut witness = Socket::connect_at(server.addr, &ada.token).await;
    let since = witness.join(&other).await;
    neighbour.insert_all(&room, (0..BACKLOG).map(|n| n.to_string())).await;
    neighbour.insert(&other, "all are there").await;
    assert_eq!(witness.heard().await.content, "all are there");
    let before = server.peak_memory();

    // Some do not read at all, one reads everything.
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut socket = Socket::connect_narrow(server.addr, &ada.token).await;
        socket.recover(&room, &since).await;
        deaf.push(socket);
    }
    let mut slow = Socket::connect_narrow(server.addr, &ada.token).await;
    slow.recover(&room, &since).await;
    let mut last = None;
    for n in 0..BACKLOG {
        let Heard { content, position, .. } = slow.heard().await;
        assert_eq!(content, n.to_string());
        assert!(Some(position) > last);
        last = Some(position);
    }
    neighbour.insert(&room, "live").await;
    assert_eq!(slow.heard().await.content, "live");
    let grown = server.peak_memory() - before;
    assert!(grown < 60, "a backlog waits in the ring: {grown} MiB more");

    // Where the ring does not hold it all, it is told.
    let mut socket = Socket::connect(&beside, &ada.token).await;
    let ack = socket.ask("joinRoom", json!({ "room": room, "since": since })).await;
    assert_eq!(ack["recovered"], false);
    socket.resync(&room).await;
    neighbour.insert(&room, "live").await;
    assert_eq!(socket.heard().await.content, "live");
    drop((deaf, slow, socket, witness));
    beside.stop().await;
}
