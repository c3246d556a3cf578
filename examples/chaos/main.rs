//! Chaos: three instances on three nodes of MongoDB, clients on both wires, and everything fails.
//!
//! ```sh
//! cargo build --release && cargo run --release --example chaos -- --seconds 600 --seed 1
//! ```
//!
//! Clients send, edit and delete messages with idempotency keys, by their sockets and by REST, again
//! and again until they have the ack, and come back to any instance with what they last had.
//! Meanwhile nodes and instances are killed, paused and
//! restarted and the network between them stalls and is cut, in an order that the seed decides. At
//! the end the transcript of every client is compared with the collection. It exits with 1 when
//! anything acknowledged was lost, doubled or given out of order, when the text of a deleted message
//! came behind its deletion, or when a client ends with another text than the collection.
//!
//! One half of the clients on Socket.IO has `recovery: true`. The other half gets its offsets behind
//! the messages, as by default: what it had heard without an offset before a cut must come again,
//! and counts once.

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
mod verdict;
mod wire;
mod wish;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bson::oid::ObjectId;
use bson::{Document, Timestamp, doc};
use futures::future::join_all;
use mongodb::Client as Mongo;
use mongodb::change_stream::event::OperationType;
use realtime_chat_backend::auth::Tokens;
use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::time::{Instant, sleep, timeout};

use client::{Client, END, Phase, Text, World};
use cluster::{DATABASE, Instances, SECRET};
use faults::Story;
use random::Random;
use replica_set::ReplicaSet;
use verdict::{Stored, Verdict};
use wire::{Change, Kind, Told};

const USAGE: &str = "\
Usage: chaos [--seconds N] [--seed N] [--clients N] [--server PATH]

  --seconds N    how long things fail; 60 unless given
  --seed N       which things fail in which order; another one each time unless given
  --clients N    how many clients, half of them on each wire, of which on Socket.IO one half with
                 `recovery: true`; 16 unless given
  --server PATH  the server; the one that was built beside this program unless given
";

/// How many rooms there are, of which each client is in two.
const ROOMS: usize = 3;
/// How long everything may take to be well again after the last fault.
const CALM: Duration = Duration::from_secs(90);
/// How long an answer by REST may take.
const REST: Duration = Duration::from_secs(8);

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
    let user = || {
        let id = ObjectId::new().to_hex();
        let token = tokens.issue(id.parse().unwrap());
        (id, token)
    };
    let rooms = make_rooms(addresses[0], &user().1).await;
    let answer = database.run_command(doc! { "ping": 1 }).await.unwrap();
    let begun = answer.get_timestamp("operationTime").unwrap();

    let (phase, told) = watch::channel(Phase::Talk);
    let most = Duration::from_secs(*seconds) + CALM * 3;
    let world = Arc::new(World {
        instances: addresses.clone(),
        generations: instances.generations(),
        // A connection of its own for each request, since others may lead to one that is gone.
        http: reqwest::Client::builder().timeout(REST).pool_max_idle_per_host(0).build().unwrap(),
        phase: told,
        joined: Barrier::new(clients + 1),
        content: AtomicUsize::new(0),
        deletions: Default::default(),
        until: Instant::now() + most,
    });
    let talking: Vec<_> = (0..*clients)
        .map(|number| {
            let kind = match number % 4 {
                1 => Kind::SocketIo,
                3 => Kind::SocketIoInside,
                _ => Kind::Plain,
            };
            let name = format!("client {number}");
            let rooms = [0, 1].map(|next| rooms[(number + next) % ROOMS].clone());
            let client = Client::new(kind, name, user(), &rooms, random.part());
            tokio::spawn(client.run(Arc::clone(&world)))
        })
        .collect();
    world.joined.wait().await;

    let story = Story::begin();
    let end = Instant::now() + Duration::from_secs(*seconds);
    let (of_nodes, of_instances) = (random.part(), random.part());
    let nodes = faults::break_nodes(mongo, of_nodes, Arc::clone(&story), end);
    let others = faults::break_instances(instances, of_instances, Arc::clone(&story), end);
    let (mongo, (instances, bad_ends)) = tokio::join!(nodes, others);
    println!("all is mended after {} faults", story.count());
    phase.send_replace(Phase::Finish);
    let (speaker, token) = user();
    let saying = async {
        while world.content.load(Ordering::SeqCst) < *clients {
            sleep(Duration::from_millis(100)).await;
        }
        say_the_end(&addresses, &speaker, &token, &rooms).await
    };
    let transcripts = tokio::select! {
        transcripts = join_all(talking) => transcripts,
        () = saying => unreachable!("it says so for ever"),
    };
    let transcripts: Vec<_> = transcripts.into_iter().map(|joined| joined.unwrap()).collect();

    let stored = read_stored(&database, begun).await;
    let mut verdict = Verdict::of(&transcripts, &stored, &story.primaries());
    verdict.complain(instances.complaints());
    verdict.complain((0..bad_ends).map(|_| "an instance did not stop in time".to_owned()));
    println!("\n{verdict}");
    drop(mongo);
    if verdict.is_good() {
        return ExitCode::SUCCESS;
    }
    println!("FAILED; the logs of the instances are in {}", instances.keep_logs().display());
    ExitCode::FAILURE
}

async fn make_rooms(addr: SocketAddr, token: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for number in 0..ROOMS {
        let body = json!({ "name": format!("room {number}") });
        let answer = post(addr, "/api/chat/room", token, &body).await.expect("a room is made");
        rooms.push(answer["room"]["_id"].as_str().unwrap().to_owned());
    }
    rooms
}

/// Says that it is over in all rooms, for ever: who had to begin anew may have missed it.
async fn say_the_end(instances: &[SocketAddr], user: &str, token: &str, rooms: &[String]) {
    loop {
        for room in rooms {
            let body = json!({ "room": room, "sender": user, "content": END });
            for &addr in instances {
                if post(addr, "/api/chat/message", token, &body).await.is_some() {
                    break;
                }
            }
        }
        sleep(Duration::from_secs(5)).await;
    }
}

async fn post(addr: SocketAddr, path: &str, token: &str, body: &Value) -> Option<Value> {
    let url = format!("http://{addr}{path}");
    let request = reqwest::Client::new().post(url).bearer_auth(token).json(body);
    let answer = timeout(Duration::from_secs(8), request.send()).await.ok()?.ok()?;
    if answer.status().is_success() { answer.json().await.ok() } else { None }
}

/// Everything that has happened to messages since then, and what they are now.
async fn read_stored(database: &mongodb::Database, since: Timestamp) -> Stored {
    // The stream is read up to a document that only this program writes.
    const MARK: &str = "chaos";
    database.collection::<Document>(MARK).insert_one(doc! {}).await.unwrap();
    let ours = doc! { "$match": { "ns.coll": { "$in": ["messages", MARK] } } };
    let stream = database.watch().pipeline([ours]).start_at_operation_time(since);
    let mut stream = stream.await.unwrap();
    let mut changes = Vec::new();
    let reading = async {
        loop {
            let Some(event) = stream.next_if_any().await.unwrap() else { continue };
            if event.ns.and_then(|ns| ns.coll).as_deref() == Some(MARK) {
                return;
            }
            let document = event.full_document.expect("nothing is removed or set");
            let (is_new, text) =
                (event.operation_type == OperationType::Insert, text_of(&document));
            changes.push(Told {
                change: match text.content {
                    None => Change::Deleted,
                    Some(_) if is_new => Change::Sent,
                    Some(_) => Change::Edited,
                },
                room: hex(&document, "room"),
                id: hex(&document, "_id"),
                content: text.content.unwrap_or_default(),
                version: text.version,
            });
        }
    };
    timeout(CALM, reading).await.expect("the change stream has everything that is stored");
    let mut texts: HashMap<_, HashMap<_, _>> = HashMap::new();
    let mut messages = database.collection::<Document>("messages").find(doc! {}).await.unwrap();
    while messages.advance().await.unwrap() {
        let document = messages.deserialize_current().unwrap();
        let room = texts.entry(hex(&document, "room")).or_default();
        room.insert(hex(&document, "_id"), text_of(&document));
    }
    Stored { changes, texts }
}

fn hex(document: &Document, key: &str) -> String {
    document.get_object_id(key).unwrap().to_hex()
}

/// What a message says. A client is not told the version of a deleted one.
fn text_of(message: &Document) -> Text {
    if message.contains_key("deletedAt") {
        return Text { version: 0, content: None };
    }
    Text {
        version: message.get_i32("__v").unwrap().into(),
        content: Some(message.get_str("content").unwrap().to_owned()),
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_micros() as u64);
        let mut options =
            Self { seconds: 60, seed: now % 1_000_000, clients: 16, server: server() };
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
            let number = || value.parse().map_err(|_| format!("{value:?} is no number"));
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

/// The server of the same build as this program.
fn server() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    folder.join(env!("CARGO_PKG_NAME"))
}
