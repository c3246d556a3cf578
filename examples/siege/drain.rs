//! SIGTERM with thousands of sockets, which come back on another instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::crowd::{Guest, come_all};
use crate::server::Server;
use crate::{Besieged, Verdict};

/// `SHUTDOWN_TIMEOUT` unless it is set.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Members of one room.
const IN_ONE_ROOM: usize = 250;

pub async fn run(besieged: Besieged, sockets: usize) -> Verdict {
    let mut verdict = Verdict::default();
    let Besieged { server, mongo, binary } = besieged;
    let other = Server::start(&binary, &mongo.uri("siege"), &[]);
    let mut rooms = Vec::new();
    for number in 0..sockets.div_ceil(IN_ONE_ROOM) {
        rooms.push(other.room(&format!("drain {number}")).await);
    }
    let mut guests: Vec<_> =
        (0..sockets).map(|number| Guest::new(number, &rooms[number / IN_ONE_ROOM])).collect();
    let came = come_all(&mut guests, server.addr, Duration::from_secs(60)).await;
    verdict.check("all are let in", came == sockets, format!("{came}"));

    // Messages are sent here all the time; what is acknowledged counts.
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
    let moving = guests.iter_mut().map(async |guest| {
        let _ = timeout(TIMEOUT * 2, guest.hear(usize::MAX)).await;
        let closed = begun.elapsed();
        guest.connection = None;
        let _turn = gate.acquire().await;
        (closed, guest.come_by(other.addr, deadline).await)
    });
    let (unready, moved) = tokio::join!(unready, join_all(moving));
    verdict.expect("readyz is 503 as soon as it drains", unready);
    let first = moved.iter().map(|(closed, _)| *closed).min().unwrap_or_default();
    let last = moved.iter().map(|(closed, _)| *closed).max().unwrap_or_default();
    let spread = last - first > Duration::from_secs(1) && last < TIMEOUT;
    verdict.check("closes are spread", spread, format!("from {first:.2?} to {last:.2?}"));
    let back = moved.iter().filter(|(_, back)| *back).count();
    verdict.check("all come back elsewhere", back == sockets, format!("{back}"));
    let well = server.ended(TIMEOUT.saturating_sub(begun.elapsed())).await;
    verdict.check("it ends well and in time", well, format!("{:.1?}", begun.elapsed()));
    sending.await.unwrap();

    for room in &rooms {
        other.send(&http, room, "the end").await;
    }
    let hearing = guests.iter_mut().map(async |guest| {
        let to_the_end = async {
            while guest.heard.last().map(String::as_str) != Some("the end") {
                guest.hear(guest.heard.len() + 1).await?;
            }
            Ok::<_, crate::wire::Lost>(())
        };
        timeout(Duration::from_secs(30), to_the_end).await.is_ok_and(|heard| heard.is_ok())
    });
    let heard = join_all(hearing).await.into_iter().filter(|heard| *heard).count();
    verdict.check("all hear the end", heard == sockets, format!("{heard}"));
    let missed: usize = guests.iter().map(|guest| guest.missed).sum();
    verdict.check("all are recovered", missed == 0, format!("{missed} are not"));
    let mut stored = 0;
    let mut same = true;
    for members in guests.chunks(IN_ONE_ROOM) {
        let most = members.iter().max_by_key(|guest| guest.heard.len());
        let transcript = most.map(|guest| &guest.heard).cloned().unwrap_or_default();
        stored += transcript.len() as u64 - 1;
        // Whoever joined while messages were sent has a part of them: its end.
        same &= members.iter().all(|guest| transcript.ends_with(&guest.heard));
    }
    verdict.expect("transcripts are the same", same);
    let acked = acked.load(Ordering::Relaxed);
    let told = format!("{acked} acknowledged, {stored} heard");
    verdict.check("what was acknowledged is there", stored >= acked && acked > 0, told);
    verdict
}
