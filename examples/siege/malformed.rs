//! A hundred thousand malformed requests, frames and packets.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use crate::breaker;
use crate::grammar::KINDS;
use crate::random::Random;
use crate::server::token;
use crate::{Checks, Target};

/// The number of concurrent senders.
const SENDERS: usize = 32;

pub async fn run(target: &Target, count: usize, seed: u64) -> Checks {
    let mut checks = Checks::default();
    let server = &target.server;
    println!("--seed {seed}");
    let mut random = Random::new(seed);
    for kind in KINDS {
        let begun = Instant::now();
        let count = count.div_ceil(KINDS.len() * SENDERS);
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let (addr, token, mut random) = (server.addr, token(), random.part());
                tokio::spawn(
                    async move { breaker::send(kind, count, addr, &token, &mut random).await },
                )
            })
            .collect();
        let seen = join_all(senders).await;
        let mut answers = std::collections::BTreeMap::<u16, usize>::new();
        for (status, count) in seen.into_iter().flat_map(Result::unwrap) {
            *answers.entry(status).or_default() += count;
        }
        println!("{kind:?}: {answers:?} in {:.1?}", begun.elapsed());
    }
    let empty = target.emptied(Duration::from_secs(90)).await;
    checks.check("no session is left", empty, String::new());
    let panics = server.count(&["chat_panics_total", "chat_feed_panics_total"]).await;
    let log = server.log();
    let bad = |line: &&String| line.contains("panicked") || line.contains(" ERROR ");
    let complaints: Vec<_> = log.iter().filter(bad).take(5).collect();
    checks.check(
        "nothing panicked",
        panics == 0 && complaints.is_empty(),
        format!("{complaints:?}"),
    );
    checks.check("the log is readable", log.len() < 50, format!("{} lines", log.len()));
    let ready = server.get("/readyz").await.is_some_and(|(status, _)| status == 200);
    checks.expect("it serves", ready);
    checks
}
