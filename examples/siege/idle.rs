//! Thousands of idle sockets, which then all go and come back at once.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::crowd::{Guest, come_all};
use crate::{Besieged, Verdict};

/// Members of one room.
const IN_ONE_ROOM: usize = 200;
/// How long all may take to be back.
const BACK: Duration = Duration::from_secs(30);

pub async fn run(besieged: &Besieged, sockets: usize, hold: Duration) -> Verdict {
    let mut verdict = Verdict::default();
    let server = &besieged.server;
    let mut rooms = Vec::new();
    for number in 0..sockets.div_ceil(IN_ONE_ROOM) {
        rooms.push(server.room(&format!("idle {number}")).await);
    }
    let guest = |number: usize| Guest::new(number, &rooms[number / IN_ONE_ROOM]);
    let mut guests: Vec<_> = (0..sockets).map(guest).collect();
    let before = server.memory();
    let begun = Instant::now();
    let came = come_all(&mut guests, server.addr, Duration::from_secs(120)).await;
    verdict.check("all are let in", came == sockets, format!("{came} in {:?}", begun.elapsed()));
    sleep(Duration::from_secs(2)).await;
    let first = server.memory();
    let each = |memory: u64| (memory.saturating_sub(before)) as f64 / sockets as f64;
    println!("{:.1} KiB for each socket ({before} KiB before, {first} with them)", each(first));
    println!("idle for {hold:?}");
    // They answer pings, and would hear what is not to be said.
    let until = Instant::now() + hold;
    let holding = guests.iter_mut().map(async |guest| {
        let heard = tokio::time::timeout_at(until, guest.hear(1)).await;
        heard.is_err() && guest.heard.is_empty()
    });
    let held = join_all(holding).await.into_iter().filter(|held| *held).count();
    let memory = server.memory();
    verdict.check("all are still there", held == sockets, format!("{held}"));
    println!("{:.1} KiB for each socket after that", each(memory));

    guests.iter_mut().for_each(|guest| guest.connection = None);
    let http = reqwest::Client::new();
    for room in &rooms {
        let sent = server.send(&http, room, "while all were away").await;
        verdict.expect("a message is stored meanwhile", sent);
    }
    let begun = Instant::now();
    let came = come_all(&mut guests, server.addr, BACK).await;
    verdict.check(
        "all are back in time",
        came == sockets,
        format!("{came} in {:?}", begun.elapsed()),
    );
    let hearing = guests.iter_mut().map(async |guest| {
        let heard = timeout(BACK, guest.hear(1)).await;
        heard.is_ok() && guest.missed == 0
    });
    let heard = join_all(hearing).await.into_iter().filter(|heard| *heard).count();
    verdict.check("nobody has missed the message", heard == sockets, format!("{heard}"));
    sleep(Duration::from_secs(5)).await;
    let back = server.memory();
    println!("{:.1} KiB for each socket when all were back", each(back));
    drop(guests);
    let empty = besieged.emptied(Duration::from_secs(60)).await;
    verdict.check("no session is left", empty, String::new());
    // What came back may lie elsewhere in memory than what went.
    let level = back as f64 <= memory as f64 * 1.25;
    verdict.check("memory is back at its level", level, format!("{memory} KiB, then {back}"));
    println!("{} KiB when all were gone", server.memory());
    verdict
}
