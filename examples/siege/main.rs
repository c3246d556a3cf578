//! A siege: what a server does under clients that are too many, too slow, or not clients at all.
//!
//! ```sh
//! cargo build --release && cargo run --release --example siege -- idle --sockets 18000 --seconds 600
//! ```
//!
//! It starts a MongoDB and what servers it needs, says what it does and what came of it, and exits
//! with 1 when a promise was not kept. Everything stays on the loopback.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what this program does not expect is its failure"
)]

#[path = "../../tests/api/helpers/breaker.rs"]
mod breaker;
mod crowd;
mod drain;
#[path = "../../tests/api/helpers/endings.rs"]
mod endings;
#[path = "../../tests/api/helpers/grammar.rs"]
mod grammar;
mod half_open;
mod idle;
mod leaving;
mod malformed;
#[path = "../../tests/api/helpers/random.rs"]
mod random;
#[path = "../../tests/api/helpers/replica_set.rs"]
mod replica_set;
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
Usage: siege idle|slow|half-open|drain|leaving|malformed [OPTION]...

  idle       sockets that are silent, and then all come back at once
  slow       members that never read, in a room with 200 messages a second
  half-open  handshakes and bodies that are begun and not ended
  drain      SIGTERM with many sockets, which come back on another instance
  leaving    sockets that send messages and end at once, in every way to end
  malformed  requests, frames and packets that are none

  --sockets N    how many: 18000, 300, 5000, 5000, 1000 of each, 100000 unless given
  --seconds N    how long they are idle, or others are timed: 60 and 20 unless given
  --seed N       what is malformed; another one each time unless given
  --server PATH  the server; the one that was built beside this program unless given
";

/// What is under siege.
struct Besieged {
    server: Arc<Server>,
    mongo: ReplicaSet,
    binary: PathBuf,
}

/// What was promised, and whether it was kept.
#[derive(Default)]
struct Verdict {
    broken: usize,
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
    let besieged = Besieged {
        server: Arc::new(Server::start(&server, &mongo.uri("siege"), &[])),
        mongo,
        binary: server,
    };
    let verdict = match command.as_str() {
        "idle" => idle::run(&besieged, sockets.unwrap_or(18_000), time(60)).await,
        "slow" => slow::run(&besieged, sockets.unwrap_or(300), time(20)).await,
        "half-open" => half_open::run(&besieged, sockets.unwrap_or(5_000), time(20)).await,
        "drain" => drain::run(besieged, sockets.unwrap_or(5_000)).await,
        "leaving" => leaving::run(&besieged, sockets.unwrap_or(1_000)).await,
        "malformed" => malformed::run(&besieged, sockets.unwrap_or(100_000), seed).await,
        other => unreachable!("{other} was refused before"),
    };
    match verdict.broken {
        0 => {
            println!("\nall promises were kept");
            ExitCode::SUCCESS
        }
        broken => {
            println!("\nFAILED: {broken} promises were broken");
            ExitCode::FAILURE
        }
    }
}

impl Besieged {
    /// Waits until no session is left; whether that was in time.
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

impl Verdict {
    /// Says whether a promise was kept, and with which figures.
    fn check(&mut self, promise: &str, kept: bool, figures: String) {
        let word = if kept { "kept   " } else { "BROKEN " };
        println!("{word} {promise} {figures}");
        self.broken += usize::from(!kept);
    }

    /// Compares the 99th percentile of others' delays under siege with that before and after it,
    /// of which the larger counts: what else the machine does changes in the meantime. Below some
    /// milliseconds it decides alone.
    fn check_delays(&mut self, before: f64, under: f64, after: f64) {
        let kept = under <= (before.max(after) * 2.0).max(20.0);
        let figures = format!("{before:.1} ms before, {under:.1} under siege, {after:.1} after");
        self.check("others' p99 stays within twice", kept, figures);
    }

    /// As [`check`](Self::check), of what is only worth a word when it was broken.
    fn expect(&mut self, promise: &str, kept: bool) {
        if !kept {
            self.check(promise, kept, String::new());
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = now.map_or(0, |since| since.as_micros() as u64) % 1_000_000;
        let command = arguments.next().unwrap_or_default();
        if !["idle", "slow", "half-open", "drain", "leaving", "malformed"]
            .contains(&command.as_str())
        {
            return Err(format!("unknown siege {command:?}"));
        }
        let mut options = Self { command, sockets: None, seconds: None, seed, server: server() };
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{value:?} is no number"));
            match argument.as_str() {
                "--sockets" => options.sockets = Some(number()? as usize),
                "--seconds" => options.seconds = Some(number()?),
                "--seed" => options.seed = number()?,
                "--server" => options.server = value.into(),
                _ => return Err(format!("unknown option {argument:?}")),
            }
        }
        // It is started in another folder.
        options.server = std::fs::canonicalize(&options.server)
            .map_err(|error| format!("{}: {error}: cargo build", options.server.display()))?;
        Ok(options)
    }
}

/// The server of the same build as this program.
fn server() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    folder.join(env!("CARGO_PKG_NAME"))
}
