//! Load by REST: some connections, each with one request at a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::Result;
use crate::histogram::Histogram;
use crate::http::Connection;
use crate::process::Process;

/// What to ask, and how.
#[derive(Clone)]
pub struct Load {
    /// The server.
    pub addr: SocketAddr,
    /// Its process.
    pub process: Process,
    /// The bytes of the request.
    pub request: Arc<[u8]>,
    /// The status that it must be answered with.
    pub status: u16,
    /// How many connections ask at once.
    pub connections: usize,
    /// Requests a second of all connections together; `None` asks again at once. With a pace,
    /// latency counts from when the request was due: a server that stalls cannot hide it.
    pub pace: Option<f64>,
    /// How long to ask before anything is measured.
    pub warm_up: Duration,
    /// How long to measure.
    pub measure: Duration,
}

/// What a load found.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Answers a second.
    pub rate: f64,
    /// Microseconds of the server's processor time for each.
    pub cpu: f64,
    /// Median and 99th percentile of latency, in milliseconds.
    pub p50: f64,
    /// The latter.
    pub p99: f64,
}

#[derive(Default)]
struct Tally {
    latency: Histogram,
    answers: AtomicU64,
}

impl Load {
    /// Asks and measures.
    ///
    /// # Errors
    /// An answer had another status, or a connection was closed.
    pub async fn run(&self) -> Result<Outcome> {
        let tally = Arc::new(Tally::default());
        let mut asking = JoinSet::new();
        let start = Instant::now();
        for number in 0..self.connections {
            let (load, tally) = (self.clone(), Arc::clone(&tally));
            asking.spawn(async move { load.ask(number, start, &tally).await });
        }
        let measuring = async {
            sleep(self.warm_up).await;
            tally.latency.clear();
            let (cpu, answers) = (self.process.cpu()?, tally.answers.load(Ordering::Relaxed));
            let begin = Instant::now();
            sleep(self.measure).await;
            let seconds = begin.elapsed().as_secs_f64();
            let cpu = self.process.cpu()? - cpu;
            let answers = (tally.answers.load(Ordering::Relaxed) - answers) as f64;
            Ok(Outcome {
                rate: answers / seconds,
                cpu: cpu * 1e6 / answers.max(1.0),
                p50: tally.latency.quantile(0.5),
                p99: tally.latency.quantile(0.99),
            })
        };
        tokio::select! {
            outcome = measuring => outcome,
            // Only a failure ends one of these.
            Some(failed) = asking.join_next() => match failed? {
                Ok(never) => match never {},
                Err(error) => Err(error),
            }
        }
    }

    async fn ask(
        &self,
        number: usize,
        start: Instant,
        tally: &Tally,
    ) -> Result<std::convert::Infallible> {
        let mut connection = Connection::open(self.addr).await?;
        for turn in 0_u64.. {
            let mut due = Instant::now();
            if let Some(pace) = self.pace {
                let nth = turn as f64 * self.connections as f64 + number as f64;
                due = start + Duration::from_secs_f64(nth / pace);
                sleep_until(due).await;
            }
            let answer = connection.exchange(&self.request).await?;
            if answer.status != self.status {
                return Err(format!("{} instead of {}", answer.status, self.status).into());
            }
            tally.latency.record(due.elapsed());
            tally.answers.fetch_add(1, Ordering::Relaxed);
        }
        Err("no more turns".into())
    }
}
