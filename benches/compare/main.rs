//! Compares this server with a Node server of the usual packages, with three peers that somebody who
//! wants speed might write today, and with a lower bound ("floor"), in one run with one MongoDB.
//!
//! ```sh
//! cargo bench --bench compare                          # without the peers
//! cargo bench --bench compare -- --peers               # everything, more than an hour
//! cargo bench --bench compare -- --quick               # short measurements, without curves
//! cargo bench --bench compare -- --only rooms,fanout   # some rows
//! cargo bench --bench compare -- --servers ours,axum   # some servers
//! cargo bench --bench compare -- --attach 4242:5000    # a server that runs already: pid and port
//! ```
//!
//! The most important figure is the CPU time of the server process for each answer or delivery:
//! other load on the machine changes it little, but changes every rate and latency a lot. The
//! results are written to `benches/RESULTS.md` and `benches/results.svg`, and the README's table is
//! drawn from them, unless rows or servers were left out. So a run without `--peers` only prints its
//! table: figures of different runs are never mixed.

mod contender;
mod curves;
mod fanout;
mod floor;
mod histogram;
mod http;
mod install;
mod options;
mod output;
mod plot;
mod process;
mod reconnect;
mod report;
mod rest;
mod rows;
mod seed;
mod servers;
mod summary;
mod websocket;
mod wire;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use realtime_chat_backend::mongod::{Installer, Mongod};

use contender::Contender;
use options::Options;
use report::Results;
use rows::Group;
use seed::Seed;
use servers::{Launcher, Server};

/// The text of an error is for a person.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// A run.
struct Bench {
    options: Options,
    launcher: Launcher,
    /// `None` for an attached server.
    mongod: Option<Mongod>,
    results: Results,
    /// The data in the databases.
    seeds: BTreeMap<Contender, Seed>,
    begin: Instant,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [serve, port] if serve == "--serve-floor" => {
            port.parse().map_err(Into::into).and_then(floor::serve)
        }
        _ => compare(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &[String]) -> Result<()> {
    let Some(options) = Options::parse(arguments)? else { return Ok(()) };
    if options.redraw {
        return output::draw_readme();
    }
    process::raise_file_limit()?;
    // The load shares the processors with the servers, and sometimes needs more than one of them.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Bench::run(options))
}

impl Bench {
    async fn run(options: Options) -> Result<()> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare");
        std::fs::create_dir_all(&folder)?;
        let ours = env!("CARGO_BIN_EXE_realtime-chat-backend");
        let ours = options.binary.clone().unwrap_or_else(|| ours.into());
        let mut bench = Self {
            options,
            launcher: Launcher { folder, ours },
            mongod: None,
            results: Results::default(),
            seeds: BTreeMap::new(),
            begin: Instant::now(),
        };
        if let Some((pid, port)) = bench.options.attach {
            rows::attached(&mut bench, Server::attach(pid, port)).await?;
            println!("{}", bench.results.table());
            return Ok(());
        }
        bench.results.others = process::others();
        bench.start_mongod().await?;
        // Node first, because some rows depend on its maximum. The others in no special order.
        let order = [Contender::Node, Contender::Floor];
        let order = order.into_iter().chain(Contender::PEERS).chain([Contender::Ours]);
        let contenders: Vec<Contender> =
            order.filter(|contender| bench.options.servers.contains(contender)).collect();
        for &contender in &contenders {
            bench.say(&format!("preparing {}", contender.name()));
            let note = install::prepare(&bench.launcher.folder, contender).await?;
            bench.results.notes.extend(note);
            if let Some(packages) = contender.packages()? {
                bench.results.packages.push(format!("{}: {packages}", contender.name()));
            }
        }
        // Measure all starts first, because MongoDB is still busy for a while after a load.
        for &contender in &contenders {
            rows::measure(&mut bench, contender, |group| group == Group::Start).await?;
        }
        for &contender in &contenders {
            rows::measure(&mut bench, contender, |group| group != Group::Start).await?;
            curves::measure(&mut bench, contender).await?;
        }
        println!("{}", bench.results.table());
        if bench.options.is_complete() {
            output::write(&bench.results, &bench.options).await?;
            bench.say("written: benches/RESULTS.md, benches/results.svg, the table of README.md");
        }
        if let Some(mongod) = bench.mongod {
            mongod.stop().await;
        }
        Ok(())
    }

    async fn start_mongod(&mut self) -> Result<()> {
        self.say("starting MongoDB");
        let binary = std::env::var_os("MONGOD").map(Into::into);
        let binary = tokio::task::spawn_blocking(|| Installer::from_env(binary).binary()).await??;
        let data = self.launcher.folder.join("mongod");
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        let options = realtime_chat_backend::mongod::Options {
            remove_data: true,
            ..realtime_chat_backend::mongod::Options::new(binary, data)
        };
        self.mongod = Some(Mongod::start(options).await?);
        Ok(())
    }

    /// The connection string of a contender's database.
    fn uri(&self, contender: Contender) -> Result<String> {
        self.uri_of(contender, "")
    }

    /// The connection string of another database of a contender, for data that would change other
    /// rows.
    fn uri_of(&self, contender: Contender, suffix: &str) -> Result<String> {
        let mongod = self.mongod.as_ref().ok_or("there is no MongoDB of this run")?;
        Ok(mongod.uri(&format!("compare_{}{suffix}", contender.name())))
    }

    /// Prints a line of progress.
    fn say(&self, text: &str) {
        eprintln!("{:>6.1}s  {text}", self.begin.elapsed().as_secs_f64());
    }
}
