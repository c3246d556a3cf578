//! Thousands of requests, frames and packets that are none: nothing breaks, and the log stays
//! readable.

use std::time::Duration;

use futures::future::join_all;
use reqwest::StatusCode;
use tokio::time::{sleep, timeout};

use crate::helpers::breaker;
use crate::helpers::grammar::KINDS;
use crate::helpers::mongod::fresh_database;
use crate::helpers::program::Program;
use crate::helpers::random::Random;
use crate::helpers::{TestServer, alone, client, metric};

const SEED: u64 = 20_261_126;
/// In all.
const COUNT: usize = 10_240;
/// Sent at once.
const SENDERS: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_malformed_breaks_leaks_or_floods_the_log() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let server = Program::start_on(&uri, &[("RATE_LIMIT_LOGIN", "0")]);
    println!("seed {SEED}");
    let mut random = Random::new(SEED);
    for kind in KINDS {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let (addr, token, mut random) = (server.addr, ada.token.clone(), random.part());
                let count = COUNT / KINDS.len() / SENDERS;
                tokio::spawn(
                    async move { breaker::send(kind, count, addr, &token, &mut random).await },
                )
            })
            .collect();
        let seen: Vec<_> = join_all(senders).await.into_iter().map(Result::unwrap).collect();
        println!("{kind:?}: {seen:?}");
        // Not all is refused by the parser, so the grammar reaches what is behind it.
        let passed = seen.iter().flatten().filter(|(status, _)| ![0, 400].contains(*status));
        let passed: usize = passed.map(|(_, count)| count).sum();
        assert!(passed > COUNT / KINDS.len() / 10, "{passed}");
    }
    // What only waited for more to come ends by its deadline.
    let gone = async {
        loop {
            let mut left = 0;
            for gauge in ["chat_sessions", "chat_engine_io_connections"] {
                left += metric(server.addr, gauge).await;
            }
            if left == 0 {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(90), gone).await.expect("no session is left");
    assert_eq!(metric(server.addr, "chat_panics_total").await, 0);
    let answer = client().get(format!("http://{}/readyz", server.addr)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let log = server.log();
    assert!(!log.iter().any(|line| line.contains("panicked") || line.contains("ERROR")), "{log:?}");
    assert!(log.len() < 20, "{} lines: {log:?}", log.len());
    beside.stop().await;
}
