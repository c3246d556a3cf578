//! Chaos test: three instances on three nodes of MongoDB, with clients on both wires, while
//! everything fails.
//!
//! ```sh
//! cargo build --release && cargo run --release --example chaos -- --seconds 600 --seed 1
//! ```
//!
//! Each client sends with idempotency keys, repeats each send until it gets the ack, and reconnects
//! to any instance with its last position or offset. Meanwhile, nodes and instances are killed,
//! paused and restarted, and the network between them stalls and is cut, in an order that the seed
//! determines. At the end, the transcript of every client is compared with the collection. The
//! program exits with 1 if an acknowledged message was lost, duplicated or out of order.
//!
//! Half of the clients on Socket.IO use `recovery: true`. The others get their offsets in separate
//! events after the messages, which is the default: messages that came without an offset before a
//! cut must come again, and count once.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what this program does not expect is its failure"
)]

mod client;
mod cluster;
mod faults;
mod proxy;
#[path = "../../tests/api/helpers/random.rs"]
mod random;
#[path = "../../tests/api/helpers/replica_set.rs"]
mod replica_set;
mod report;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bson::oid::ObjectId;
use bson::{Document, Timestamp, doc};
use futures::future::join_all;
use mongodb::Client as Mongo;
use realtime_chat_backend::auth::Tokens;
use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::time::{Instant, sleep, timeout};

use client::{Client, END, Phase, Shared};
use cluster::{DATABASE, Instances, SECRET};
use faults::FaultLog;
use random::Random;
use replica_set::ReplicaSet;
use report::{Report, Stored};
use wire::Kind;

const USAGE: &str = "\
Usage: chaos [--seconds N] [--seed N] [--clients N] [--server PATH]

  --seconds N    the duration of the faults (default 60)
  --seed N       determines the faults and their order (default random)
  --clients N    the number of clients, half of them on each wire, and half of those on Socket.IO
                 with `recovery: true` (default 16)
  --server PATH  the server binary (default: of the same build)
";

/// The number of rooms. Each client is in two of them.
const ROOMS: usize = 3;
/// How long everything may take to recover after the last fault.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);

struct Options {
    seconds: u64,
    seed: u64,
    clients: usize,
    server: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    env_logger::init();
    match Options::parse(std::env::args().skip(1)) {
        Ok(options) => run(&options).await,
        Err(problem) => {
            eprint!("{problem}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> ExitCode {
    let Options { seconds, seed, clients, server } = options;
    println!("chaos for {seconds} s with --seed {seed}, {clients} clients, {}", server.display());
    let mut random = Random::new(*seed);
    let mongo = ReplicaSet::start_patient(3).await;
    let uri = mongo.uri(DATABASE);
    let database = Mongo::with_uri_str(&uri).await.unwrap().database(DATABASE);
    let instances = Instances::start(server, &mongo).await;
    let addresses = instances.addresses();
    let tokens = Tokens::new(&SECRET.into());
    let token = || tokens.issue(ObjectId::new().to_hex().parse().unwrap());
    let rooms = make_rooms(addresses[0], &token()).await;
    let answer = database.run_command(doc! { "ping": 1 }).await.unwrap();
    let begun = answer.get_timestamp("operationTime").unwrap();

    let (phase, phase_receiver) = watch::channel(Phase::Send);
    let most = Duration::from_secs(*seconds) + RECOVERY_TIMEOUT * 3;
    let shared = Arc::new(Shared {
        instances: addresses.clone(),
        phase: phase_receiver,
        joined: Barrier::new(clients + 1),
        until: Instant::now() + most,
    });
    let clients_running: Vec<_> = (0..*clients)
        .map(|number| {
            let kind = match number % 4 {
                1 => Kind::SocketIo,
                3 => Kind::SocketIoInline,
                _ => Kind::Plain,
            };
            let name = format!("client {number}");
            let rooms = [0, 1].map(|next| rooms[(number + next) % ROOMS].clone());
            let client = Client::new(kind, name, token(), &rooms, random.part());
            tokio::spawn(client.run(Arc::clone(&shared)))
        })
        .collect();
    shared.joined.wait().await;

    let fault_log = FaultLog::begin();
    let end = Instant::now() + Duration::from_secs(*seconds);
    let (of_nodes, of_instances) = (random.part(), random.part());
    let nodes = faults::break_nodes(mongo, of_nodes, Arc::clone(&fault_log), end);
    let others = faults::break_instances(instances, of_instances, Arc::clone(&fault_log), end);
    let (mongo, (instances, failed_stops)) = tokio::join!(nodes, others);
    println!("all faults have ended after {} faults", fault_log.count());
    phase.send_replace(Phase::Finish);
    let last_token = token();
    let transcripts = tokio::select! {
        transcripts = join_all(clients_running) => transcripts,
        () = send_last_messages(&addresses, &last_token, &rooms) => unreachable!("it never ends"),
    };
    let transcripts: Vec<_> = transcripts.into_iter().map(|joined| joined.unwrap()).collect();

    let stored = read_messages(&database, begun).await;
    let mut report = Report::of(&transcripts, &stored, &fault_log.primary_losses());
    report.add_problems(instances.errors());
    report.add_problems((0..failed_stops).map(|_| "an instance did not stop in time".to_owned()));
    println!("\n{report}");
    drop(mongo);
    if report.is_good() {
        return ExitCode::SUCCESS;
    }
    println!("FAILED; the logs of the instances are in {}", instances.keep_logs().display());
    ExitCode::FAILURE
}

async fn make_rooms(addr: SocketAddr, token: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for number in 0..ROOMS {
        let body = json!({ "name": format!("room {number}") });
        let answer = post(addr, "/api/chat/room", token, &body).await.expect("the room is created");
        rooms.push(answer["room"]["_id"].as_str().unwrap().to_owned());
    }
    rooms
}

/// Sends the last message to all rooms again and again, because a client that got a `resync` may
/// have missed it.
async fn send_last_messages(instances: &[SocketAddr], token: &str, rooms: &[String]) {
    loop {
        // Clients that wait for an answer should get it before.
        sleep(Duration::from_secs(5)).await;
        for room in rooms {
            let sender = Tokens::new(&SECRET.into()).verify(token).unwrap().user.to_string();
            let body = json!({ "room": room, "sender": sender, "content": END });
            for &addr in instances {
                if post(addr, "/api/chat/message", token, &body).await.is_some() {
                    break;
                }
            }
        }
    }
}

async fn post(addr: SocketAddr, path: &str, token: &str, body: &Value) -> Option<Value> {
    let url = format!("http://{addr}{path}");
    let request = reqwest::Client::new().post(url).bearer_auth(token).json(body);
    let answer = timeout(Duration::from_secs(8), request.send()).await.ok()?.ok()?;
    if answer.status().is_success() { answer.json().await.ok() } else { None }
}

/// All messages, in the order of the change stream.
async fn read_messages(database: &mongodb::Database, since: Timestamp) -> Vec<Stored> {
    let messages = database.collection::<Document>("messages");
    let count = messages.count_documents(doc! {}).await.unwrap();
    let mut stream = messages.watch().start_at_operation_time(since).await.unwrap();
    let mut stored = Vec::new();
    let hex = |document: &Document, key| document.get_object_id(key).unwrap().to_hex();
    let reading = async {
        while stored.len() < count as usize {
            let Some(event) = stream.next_if_any().await.unwrap() else { continue };
            let Some(document) = event.full_document else { continue };
            stored.push(Stored {
                id: hex(&document, "_id"),
                room: hex(&document, "room"),
                content: document.get_str("content").unwrap().to_owned(),
            });
        }
    };
    timeout(RECOVERY_TIMEOUT, reading)
        .await
        .expect("the change stream has everything that is stored");
    stored
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_micros() as u64);
        let mut options =
            Self { seconds: 60, seed: now % 1_000_000, clients: 16, server: server() };
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
            let number = || value.parse().map_err(|_| format!("{value:?} is not a number"));
            match argument.as_str() {
                "--seconds" => options.seconds = number()?,
                "--seed" => options.seed = number()?,
                "--clients" => options.clients = number()? as usize,
                "--server" => options.server = value.into(),
                _ => return Err(format!("unknown option {argument:?}")),
            }
        }
        if !options.server.is_file() {
            return Err(format!("there is no {}: cargo build", options.server.display()));
        }
        Ok(options)
    }
}

/// The server binary of the same build as this program.
fn server() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    folder.join(env!("CARGO_PKG_NAME"))
}
