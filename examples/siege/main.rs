//! Stress tests: a server with too many clients, with slow clients, and with malformed input.
//!
//! ```sh
//! cargo build --release && cargo run --release --example siege -- idle --sockets 18000 --seconds 600
//! ```
//!
//! It starts a MongoDB and the servers, prints each check with its result, and exits with 1 if a
//! check failed. All connections are on the loopback.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what this program does not expect is its failure"
)]

#[path = "../../tests/api/helpers/breaker.rs"]
mod breaker;
mod clients;
mod drain;
#[path = "../../tests/api/helpers/endings.rs"]
mod endings;
#[path = "../../tests/api/helpers/grammar.rs"]
mod grammar;
mod half_open;
mod idle;
mod leaving;
mod malformed;
mod presence;
#[path = "../../tests/api/helpers/random.rs"]
mod random;
#[path = "../../tests/api/helpers/replica_set.rs"]
mod replica_set;
mod revoke;
mod server;
mod slow;
#[path = "../chaos/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use realtime_chat_backend::server::capacity::raise_open_files;
use tokio::time::{Instant, sleep};

use replica_set::ReplicaSet;
use server::Server;

const USAGE: &str = "\
Usage: siege idle|slow|half-open|drain|leaving|revoke|presence|malformed [OPTION]...

  idle       idle sockets, which then all reconnect at once
  slow       members that never read, in a room with 200 messages a second
  half-open  handshakes and bodies that begin and do not end
  drain      SIGTERM with many sockets, which reconnect to another instance
  leaving    sockets that send messages and close at once, in every way to close
  revoke     users who log out everywhere, on two instances, while messages flow
  presence   users who type, and users who come, move and go while others watch
  malformed  malformed requests, frames and packets

  --sockets N    how many (default 18000, 300, 5000, 5000, 1000 of each, 10000, 16000, 100000)
  --seconds N    how long they are idle or type, or delays are measured (default 60, 20 and 20)
  --seed N       determines the malformed input (default random)
  --server PATH  the server binary (default: of the same build)
";

/// The server under test.
struct Target {
    server: Arc<Server>,
    mongo: ReplicaSet,
    binary: PathBuf,
}

/// The results of the checks.
#[derive(Default)]
struct Checks {
    failed: usize,
}

struct Options {
    command: String,
    sockets: Option<usize>,
    seconds: Option<u64>,
    seed: u64,
    server: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        Ok(options) => run(options).await,
        Err(problem) => {
            eprint!("{problem}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> ExitCode {
    let Options { command, sockets, seconds, seed, server } = options;
    let time = |default| Duration::from_secs(seconds.unwrap_or(default));
    println!("{command} against {}, {} files may be open", server.display(), raise_open_files());
    let mongo = ReplicaSet::start(1).await;
    let target = Target {
        server: Arc::new(Server::start(&server, &mongo.uri("siege"), &[])),
        mongo,
        binary: server,
    };
    let checks = match command.as_str() {
        "idle" => idle::run(&target, sockets.unwrap_or(18_000), time(60)).await,
        "slow" => slow::run(&target, sockets.unwrap_or(300), time(20)).await,
        "half-open" => half_open::run(&target, sockets.unwrap_or(5_000), time(20)).await,
        "drain" => drain::run(target, sockets.unwrap_or(5_000)).await,
        "leaving" => leaving::run(&target, sockets.unwrap_or(1_000)).await,
        "revoke" => revoke::run(&target, sockets.unwrap_or(10_000)).await,
        "presence" => presence::run(target, sockets.unwrap_or(16_000), time(20)).await,
        "malformed" => malformed::run(&target, sockets.unwrap_or(100_000), seed).await,
        other => unreachable!("{other} was refused before"),
    };
    match checks.failed {
        0 => {
            println!("\nall checks passed");
            ExitCode::SUCCESS
        }
        failed => {
            println!("\nFAILED: {failed} checks failed");
            ExitCode::FAILURE
        }
    }
}

impl Target {
    /// Waits until no session is left. Returns whether that was in time.
    async fn emptied(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            let gauges = ["chat_sessions", "chat_engine_io_connections"];
            if self.server.count(&gauges).await == 0 {
                return true;
            }
            sleep(Duration::from_millis(200)).await;
        }
        false
    }
}

impl Checks {
    /// Prints a check with its result and its figures.
    fn check(&mut self, name: &str, passed: bool, figures: String) {
        let word = if passed { "passed " } else { "FAILED " };
        println!("{word} {name} {figures}");
        self.failed += usize::from(!passed);
    }

    /// Compares the 99th percentile of the delays of other clients under load with the one before
    /// and the one after it, whichever is larger, because other load on the machine can change in
    /// the meantime. It may be twice as long, or 20 ms if that is more.
    fn check_delays(&mut self, before: f64, under: f64, after: f64) {
        let passed = under <= (before.max(after) * 2.0).max(20.0);
        let figures = format!("{before:.1} ms before, {under:.1} under load, {after:.1} after");
        self.check("the p99 of other clients at most doubles", passed, figures);
    }

    /// Like [`check`](Self::check), but prints only a failure.
    fn expect(&mut self, name: &str, passed: bool) {
        if !passed {
            self.check(name, passed, String::new());
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = now.map_or(0, |since| since.as_micros() as u64) % 1_000_000;
        let command = arguments.next().unwrap_or_default();
        let known =
            ["idle", "slow", "half-open", "drain", "leaving", "revoke", "presence", "malformed"];
        if !known.contains(&command.as_str()) {
            return Err(format!("unknown siege {command:?}"));
        }
        let mut options = Self { command, sockets: None, seconds: None, seed, server: server() };
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{value:?} is not a number"));
            match argument.as_str() {
                "--sockets" => options.sockets = Some(number()? as usize),
                "--seconds" => options.seconds = Some(number()?),
                "--seed" => options.seed = number()?,
                "--server" => options.server = value.into(),
                _ => return Err(format!("unknown option {argument:?}")),
            }
        }
        // The server is started in another folder.
        options.server = std::fs::canonicalize(&options.server)
            .map_err(|error| format!("{}: {error}: cargo build", options.server.display()))?;
        Ok(options)
    }
}

/// The server binary of the same build as this program.
fn server() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    folder.join(env!("CARGO_PKG_NAME"))
}
