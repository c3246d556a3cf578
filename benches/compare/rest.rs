//! Load by REST: connections with one request at a time.

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

/// A load.
#[derive(Clone)]
pub struct Load {
    /// The server.
    pub addr: SocketAddr,
    /// Its process.
    pub process: Process,
    /// The bytes of the request.
    pub request: Arc<[u8]>,
    /// The expected status.
    pub status: u16,
    /// The number of connections.
    pub connections: usize,
    /// Requests a second of all connections together. `None`: each connection sends the next
    /// request immediately. With a rate, latency counts from the time when the request was due, so
    /// that it includes the time during which a server stalls.
    pub pace: Option<f64>,
    /// The duration before the measurement.
    pub warm_up: Duration,
    /// The duration of the measurement.
    pub measure: Duration,
}

/// The results of a load.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Answers a second.
    pub rate: f64,
    /// The server's CPU time for each answer, in µs.
    pub cpu: f64,
    /// The median latency, in ms.
    pub p50: f64,
    /// The 99th percentile of the latency, in ms.
    pub p99: f64,
}

#[derive(Default)]
struct Counters {
    latency: Histogram,
    answers: AtomicU64,
}

impl Load {
    /// Runs the load and measures.
    ///
    /// # Errors
    /// An answer had another status, or a connection was closed.
    pub async fn run(&self) -> Result<Outcome> {
        let counters = Arc::new(Counters::default());
        let mut asking = JoinSet::new();
        let start = Instant::now();
        for number in 0..self.connections {
            let (load, counters) = (self.clone(), Arc::clone(&counters));
            asking.spawn(async move { load.ask(number, start, &counters).await });
        }
        let measuring = async {
            sleep(self.warm_up).await;
            counters.latency.clear();
            let (cpu, answers) = (self.process.cpu()?, counters.answers.load(Ordering::Relaxed));
            let begin = Instant::now();
            sleep(self.measure).await;
            let seconds = begin.elapsed().as_secs_f64();
            let cpu = self.process.cpu()? - cpu;
            let answers = (counters.answers.load(Ordering::Relaxed) - answers) as f64;
            Ok(Outcome {
                rate: answers / seconds,
                cpu: cpu * 1e6 / answers.max(1.0),
                p50: counters.latency.quantile(0.5),
                p99: counters.latency.quantile(0.99),
            })
        };
        tokio::select! {
            outcome = measuring => outcome,
            // A connection ends only with a failure.
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
        counters: &Counters,
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
            counters.latency.record(due.elapsed());
            counters.answers.fetch_add(1, Ordering::Relaxed);
        }
        Err("no more turns".into())
    }
}
