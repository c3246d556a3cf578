//! Many clients: some that poll in a busy room, and some that vanish.

use std::any::Any;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::interval;

use crate::helpers::engine_io::{Poller, Ws};
use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::{TestServer, alone, eventually_within, metric};

const ENDPOINT: &str = "/socket.io/";

/// A client that polls and has joined a room.
async fn joined(addr: SocketAddr, token: &str, room: &str) -> Poller {
    let poller = Poller::open(addr, ENDPOINT).await;
    poller.post(&format!("40{}", json!({ "token": token }))).await.assert_ok();
    assert!(poller.collect(1).await[0].starts_with("40{"));
    poller.post(&format!("420{}", json!(["joinRoom", room]))).await.assert_ok();
    assert!(poller.collect(1).await[0].starts_with("430[{\"room\""));
    poller
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_poll_in_a_busy_room_hear_everything_in_order() {
    const MEMBERS: usize = 50;
    const WRITERS: usize = 4;
    const EACH: usize = 375;
    let _alone = alone().await;
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("busy").await;
    let joining = (0..MEMBERS).map(|_| joined(server.addr, &ada.token, &room));
    let members = join_all(joining).await;
    let neighbour = Neighbour::connect(&uri).await;

    // Together 300 a second, if the machine can.
    let writing = join_all((0..WRITERS).map(async |writer| {
        let mut pace = interval(Duration::from_millis(WRITERS as u64 * 1_000 / 300));
        for n in 0..EACH {
            pace.tick().await;
            neighbour.insert(&room, &format!("{writer} {n}")).await;
        }
    }));
    let listening = members.into_iter().map(|member| {
        tokio::spawn(async move {
            let mut contents = Vec::new();
            while contents.len() < WRITERS * EACH {
                let mut packets = member.packets().await;
                let offset = packets.pop().expect("a packet");
                assert!(offset.starts_with(r#"42["position",""#), "{offset}");
                contents.extend(packets.iter().map(|packet| {
                    let event = packet.strip_prefix("42").expect("an event");
                    let event: Value = serde_json::from_str(event).expect("JSON");
                    event[1]["content"].as_str().expect("one offset, at the end").to_owned()
                }));
            }
            contents
        })
    });
    let (_, heard) = futures::join!(writing, join_all(listening));
    let mut transcripts: Vec<_> = heard.into_iter().map(Result::unwrap).collect();
    transcripts.dedup();
    let [all] = &transcripts[..] else { panic!("they disagree") };
    for writer in 0..WRITERS {
        let by = format!("{writer} ");
        let numbers = all.iter().filter_map(|content| content.strip_prefix(&by)?.parse().ok());
        assert_eq!(numbers.collect::<Vec<usize>>(), (0..EACH).collect::<Vec<_>>());
    }
    server.stop().await;
}

/// What is left open of a client that vanished.
type Silent = Option<Box<dyn Any>>;

/// A client that comes, and then vanishes in one of several ways.
async fn vanish(addr: SocketAddr, token: &str, room: &str, way: usize) -> Silent {
    match way % 6 {
        // It never polls again.
        0 => {
            Poller::open(addr, ENDPOINT).await;
            None
        }
        // The same, from within a room.
        1 => {
            joined(addr, token, room).await;
            None
        }
        // Its poll is aborted.
        2 => {
            let poller = joined(addr, token, room).await;
            drop(poller.begin("GET", "", 0).await);
            None
        }
        // Half of a post is all that ever comes.
        3 => {
            let poller = joined(addr, token, room).await;
            Some(Box::new(poller.begin("POST", "4", 9).await))
        }
        // It stops in the middle of an upgrade.
        4 => {
            let poller = joined(addr, token, room).await;
            let mut ws = Ws::connect(addr, &poller.target("websocket")).await;
            ws.send("2probe").await;
            assert_eq!(ws.text().await, "3probe");
            Some(Box::new(ws))
        }
        // It neither reads nor writes any more, or is cut off.
        _ => {
            let mut ws = Ws::open(addr, ENDPOINT).await;
            ws.send(format!("40{}", json!({ "token": token }))).await;
            assert!(ws.text().await.starts_with("40{"));
            ws.send(format!("42{}", json!(["joinRoom", room]))).await;
            (way % 12 == 5).then(|| Box::new(ws) as _)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_clients_that_vanish() {
    const CLIENTS: usize = 5_000;
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let room = ada.create_room("lobby").await;
    let server = Program::start_on(&uri, &[]);
    let addr = server.addr;
    let come_and_vanish = async |ways: Vec<usize>| {
        let loads = alone().await;
        let clients = stream::iter(ways).map(|way| vanish(addr, &ada.token, &room, way));
        let silent: Vec<_> = clients.buffer_unordered(50).collect().await;
        drop(loads);
        eventually_within(Duration::from_secs(60), "nothing is left", async || {
            metric(addr, "chat_sessions").await == 0
                && metric(addr, "chat_engine_io_connections").await == 0
        })
        .await;
        drop(silent);
    };
    come_and_vanish((0..CLIENTS).collect()).await;
    let before = server.memory();
    // Those who are gone at once, again: what they need is there already.
    come_and_vanish((0..CLIENTS).filter(|way| way % 6 == 2 || way % 12 == 11).collect()).await;
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 10, "{grown} MiB more than {before}");
    beside.stop().await;
}
