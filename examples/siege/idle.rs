//! Thousands of idle sockets, which then all disconnect and reconnect at once.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::clients::{Client, connect_all};
use crate::{Checks, Target};

/// Members of one room.
const PER_ROOM: usize = 200;
/// How long all of them may take to reconnect.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(target: &Target, sockets: usize, hold: Duration) -> Checks {
    let mut checks = Checks::default();
    let server = &target.server;
    let mut rooms = Vec::new();
    for number in 0..sockets.div_ceil(PER_ROOM) {
        rooms.push(server.room(&format!("idle {number}")).await);
    }
    let client = |number: usize| Client::new(number, &rooms[number / PER_ROOM]);
    let mut clients: Vec<_> = (0..sockets).map(client).collect();
    let before = server.memory();
    let begun = Instant::now();
    let connected = connect_all(&mut clients, server.addr, Duration::from_secs(120)).await;
    checks.check(
        "all are admitted",
        connected == sockets,
        format!("{connected} in {:?}", begun.elapsed()),
    );
    sleep(Duration::from_secs(2)).await;
    let first = server.memory();
    let each = |memory: u64| (memory.saturating_sub(before)) as f64 / sockets as f64;
    println!("{:.1} KiB for each socket ({before} KiB before, {first} with them)", each(first));
    println!("idle for {hold:?}");
    // They answer pings, and must receive no message.
    let until = Instant::now() + hold;
    let holding = clients.iter_mut().map(async |client| {
        let received = tokio::time::timeout_at(until, client.receive(1)).await;
        received.is_err() && client.received.is_empty()
    });
    let held = join_all(holding).await.into_iter().filter(|held| *held).count();
    let memory = server.memory();
    checks.check("all are still there", held == sockets, format!("{held}"));
    println!("{:.1} KiB for each socket after that", each(memory));

    clients.iter_mut().for_each(|client| client.connection = None);
    let http = reqwest::Client::new();
    for room in &rooms {
        let sent = server.send(&http, room, "while all were away").await;
        checks.expect("a message is stored meanwhile", sent);
    }
    let begun = Instant::now();
    let connected = connect_all(&mut clients, server.addr, RECONNECT_TIMEOUT).await;
    checks.check(
        "all are back in time",
        connected == sockets,
        format!("{connected} in {:?}", begun.elapsed()),
    );
    let receiving = clients.iter_mut().map(async |client| {
        let received = timeout(RECONNECT_TIMEOUT, client.receive(1)).await;
        received.is_ok() && client.missed == 0
    });
    let received = join_all(receiving).await.into_iter().filter(|received| *received).count();
    checks.check("all receive the message", received == sockets, format!("{received}"));
    sleep(Duration::from_secs(5)).await;
    let back = server.memory();
    println!("{:.1} KiB for each socket when all were back", each(back));
    drop(clients);
    let empty = target.emptied(Duration::from_secs(60)).await;
    checks.check("no session is left", empty, String::new());
    // The allocator may need some more memory after the reconnection.
    let level = back as f64 <= memory as f64 * 1.25;
    checks.check("memory is back at its level", level, format!("{memory} KiB, then {back}"));
    println!("{} KiB when all were gone", server.memory());
    checks
}
