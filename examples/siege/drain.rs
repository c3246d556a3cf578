//! SIGTERM with thousands of sockets, which reconnect to another instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::clients::{Client, connect_all};
use crate::server::Server;
use crate::{Checks, Target};

/// The default of `SHUTDOWN_TIMEOUT`.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Members of one room.
const PER_ROOM: usize = 250;

pub async fn run(target: Target, sockets: usize) -> Checks {
    let mut checks = Checks::default();
    let Target { server, mongo, binary } = target;
    let other = Server::start(&binary, &mongo.uri("siege"), &[]);
    let mut rooms = Vec::new();
    for number in 0..sockets.div_ceil(PER_ROOM) {
        rooms.push(other.room(&format!("drain {number}")).await);
    }
    let mut clients: Vec<_> =
        (0..sockets).map(|number| Client::new(number, &rooms[number / PER_ROOM])).collect();
    let connected = connect_all(&mut clients, server.addr, Duration::from_secs(60)).await;
    checks.check("all are admitted", connected == sockets, format!("{connected}"));

    // Messages are sent to this instance all the time. The acknowledged ones are counted.
    let acked = Arc::new(AtomicU64::new(0));
    let sending = tokio::spawn({
        let (server, rooms, acked) = (Arc::clone(&server), rooms.clone(), Arc::clone(&acked));
        async move {
            let http = reqwest::Client::new();
            let mut failed = 0;
            for number in 0.. {
                let room = &rooms[number % rooms.len()];
                if server.send(&http, room, &format!("message {number}")).await {
                    acked.fetch_add(1, Ordering::Relaxed);
                } else {
                    failed += 1;
                }
                if failed > 50 {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let http = reqwest::Client::new();
    sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    server.terminate();
    let unready = async {
        loop {
            match server.get("/readyz").await {
                Some((503, _)) => return true,
                Some(_) => sleep(Duration::from_millis(5)).await,
                None => return false,
            }
        }
    };
    let gate = Semaphore::new(1_000);
    let deadline = Instant::now() + TIMEOUT * 4;
    let moving = clients.iter_mut().map(async |client| {
        let _ = timeout(TIMEOUT * 2, client.receive(usize::MAX)).await;
        let closed = begun.elapsed();
        client.connection = None;
        let _turn = gate.acquire().await;
        (closed, client.connect_until(other.addr, deadline).await)
    });
    let (unready, moved) = tokio::join!(unready, join_all(moving));
    checks.expect("readyz is 503 as soon as it drains", unready);
    let first = moved.iter().map(|(closed, _)| *closed).min().unwrap_or_default();
    let last = moved.iter().map(|(closed, _)| *closed).max().unwrap_or_default();
    let spread = last - first > Duration::from_secs(1) && last < TIMEOUT;
    checks.check("closes are spread", spread, format!("from {first:.2?} to {last:.2?}"));
    let back = moved.iter().filter(|(_, back)| *back).count();
    checks.check("all reconnect to the other instance", back == sockets, format!("{back}"));
    let well = server.ended(TIMEOUT.saturating_sub(begun.elapsed())).await;
    checks.check("it ends successfully in time", well, format!("{:.1?}", begun.elapsed()));
    sending.await.unwrap();

    for room in &rooms {
        other.send(&http, room, "the end").await;
    }
    let receiving = clients.iter_mut().map(async |client| {
        let to_the_end = async {
            while client.received.last().map(String::as_str) != Some("the end") {
                client.receive(client.received.len() + 1).await?;
            }
            Ok::<_, crate::wire::Disconnected>(())
        };
        timeout(Duration::from_secs(30), to_the_end).await.is_ok_and(|received| received.is_ok())
    });
    let received = join_all(receiving).await.into_iter().filter(|received| *received).count();
    checks.check("all receive the end", received == sockets, format!("{received}"));
    let missed: usize = clients.iter().map(|client| client.missed).sum();
    checks.check("all are recovered", missed == 0, format!("{missed} are not"));
    let mut stored = 0;
    let mut same = true;
    for members in clients.chunks(PER_ROOM) {
        let most = members.iter().max_by_key(|client| client.received.len());
        let transcript = most.map(|client| &client.received).cloned().unwrap_or_default();
        stored += transcript.len() as u64 - 1;
        // A client that joined later has only the last part of the messages.
        same &= members.iter().all(|client| transcript.ends_with(&client.received));
    }
    checks.expect("transcripts are the same", same);
    let acked = acked.load(Ordering::Relaxed);
    let figures = format!("{acked} acknowledged, {stored} received");
    checks.check("all acknowledged messages are stored", stored >= acked && acked > 0, figures);
    checks
}
