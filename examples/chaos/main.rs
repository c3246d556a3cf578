//! Chaos: three instances on three nodes of MongoDB, clients on both wires, and faults everywhere.
//!
//! ```sh
//! cargo build --release && cargo run --release --example chaos -- --seconds 600 --seed 1
//! ```
//!
//! Clients send, edit, delete and mark messages by their sockets and by REST. They repeat a request
//! with the same idempotency key until it is answered, and go on after their last position or offset
//! on any instance. Some rooms are private: their owner adds and removes members all the time, some
//! members leave by themselves, and everybody tries to join and to send in any case. Some users are
//! logged out on all devices now and then, and log in again when their socket is refused. Meanwhile
//! nodes and instances are killed, paused and restarted, and the network between them stalls and is
//! cut, in an order that the seed decides.
//!
//! At the end the transcript of each client is compared with the change stream and the collections.
//! The program exits with 1 if
//!
//! - anything acknowledged was lost, doubled or delivered out of order,
//! - the text of a deleted message came after its deletion,
//! - a client ends with another text or mark than the collections, or a mark went back,
//! - anybody saw a change of a private room without being a member,
//! - a socket got anything behind the revocation of its token,
//! - a front end that is written with `/chat.js` shows anything else than the collection,
//! - the instances say after a kill of one of them, or in the end, that somebody is online who is
//!   not, or the other way round.
//!
//! `RUST_LOG=chaos=debug` logs the connections, joins and removals of each client.
//!
//! Half of the clients on Socket.IO have `recovery: true`. The others get an offset after the
//! events, which is the default. The events after their last offset must be delivered again, and
//! count once.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failure of this program itself may panic"
)]

mod account;
mod app;
mod client;
mod cluster;
mod faults;
mod moderator;
mod presence;
mod proxy;
#[path = "../../tests/api/helpers/random.rs"]
mod random;
#[path = "../../tests/api/helpers/replica_set.rs"]
mod replica_set;
mod stored;
mod transcript;
mod verdict;
mod wire;
mod wish;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bson::doc;
use futures::future::join_all;
use mongodb::Client as Mongo;
use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::time::{Instant, sleep, timeout};

use account::Account;
use app::App;
use client::{Client, END, Phase, World};
use cluster::{DATABASE, Instances};
use faults::Story;
use moderator::Moderator;
use random::Random;
use replica_set::ReplicaSet;
use stored::Stored;
use verdict::Verdict;
use wire::Kind;

const USAGE: &str = "\
Usage: chaos [--seconds N] [--seed N] [--clients N] [--private-rooms N] [--server PATH]

  --seconds N    how long there are faults (default 60)
  --seed N       determines the faults and their order (default random)
  --clients N    how many clients: half of them on each wire, and on Socket.IO half of these with
                 `recovery: true` (default 16)
  --private-rooms N
                 rooms whose members are added and removed all the time (default 2)
  --apps N       front ends that are written with /chat.js and run in Node.js 20 or later
                 (default 3: one for each instance)
  --server PATH  the server (default: the one built beside this program)
";

/// The number of public rooms. Each client is in two of them.
const ROOMS: usize = 3;
/// One in so many clients logs its user out on all devices now and then.
const LOGGED_OUT: usize = 3;
/// How many users only come and go, to be seen or not.
const SEEN: usize = 8;
/// How long recovery may take after the last fault.
const CALM: Duration = Duration::from_secs(90);
/// How long a mark may take to be stored after its answer.
const MARKED: Duration = Duration::from_secs(3);
/// The timeout of a REST request.
const REST: Duration = Duration::from_secs(8);

struct Options {
    seconds: u64,
    seed: u64,
    clients: usize,
    private_rooms: usize,
    apps: usize,
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
    let Options { seconds, seed, clients, private_rooms, apps, server } = options;
    println!("chaos for {seconds} s with --seed {seed}, {clients} clients, {}", server.display());
    let mut random = Random::new(*seed);
    let mongo = ReplicaSet::start_patient(3).await;
    let uri = mongo.uri(DATABASE);
    let database = Mongo::with_uri_str(&uri).await.unwrap().database(DATABASE);
    let instances = Instances::start(server, &mongo).await;
    let addresses = instances.addresses();
    // A connection for each request: an open one may lead to a process that was killed.
    let http = reqwest::Client::builder().timeout(REST).pool_max_idle_per_host(0).build().unwrap();
    let accounts = Account::make(&database, 1 + clients + SEEN + apps).await;
    let (speaker, others) = accounts.split_first().unwrap();
    let (users, others) = others.split_at(*clients);
    let (seen, of_apps) = others.split_at(SEEN);
    let answer = database.run_command(doc! { "ping": 1 }).await.unwrap();
    let begun = answer.get_timestamp("operationTime").unwrap();
    let public = make_rooms(addresses[0], &speaker.token()).await;
    let mut moderator = Moderator {
        owner: speaker.clone(),
        users: users.to_vec(),
        rooms: Vec::new(),
        instances: addresses.clone(),
        http: http.clone(),
        random: random.part(),
        members: HashSet::new(),
        changes: 0,
    };
    moderator.make_rooms(*private_rooms).await;

    let (phase, told) = watch::channel(Phase::Talk);
    let most = Duration::from_secs(*seconds) + CALM * 3;
    let world = Arc::new(World {
        instances: addresses.clone(),
        generations: instances.generations(),
        http,
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
            let rooms = [0, 1].map(|next| public[(number + next) % ROOMS].clone());
            let account = users[number].clone();
            let client = Client::new(
                kind,
                name,
                account,
                &rooms,
                &moderator.rooms,
                number % LOGGED_OUT == 0,
                random.part(),
            );
            tokio::spawn(client.run(Arc::clone(&world)))
        })
        .collect();
    world.joined.wait().await;
    let addresses_in_turn = addresses.iter().cycle();
    let apps = addresses_in_turn.zip(of_apps);
    let mut apps: Vec<_> = apps.map(|(&addr, user)| App::start(addr, user, &public)).collect();

    let story = Story::begin();
    let end = Instant::now() + Duration::from_secs(*seconds);
    let (of_nodes, of_instances) = (random.part(), random.part());
    let nodes = faults::break_nodes(mongo, of_nodes, Arc::clone(&story), end);
    let others = faults::break_instances(instances, of_instances, Arc::clone(&story), end);
    let presence = presence::follow_kills(&addresses, seen, speaker, story.kills(), end);
    let (mongo, (instances, bad_ends), (), (checks, mut wrong)) =
        tokio::join!(nodes, others, moderator.change_until(end), presence);
    println!(
        "{} faults, {} changes of members, who is online checked after {checks} kills",
        story.count(),
        moderator.changes,
    );
    let members = moderator.settle(&database, world.until).await;
    let finished = join_all(apps.iter_mut().map(|app| app.finish(world.until))).await;
    phase.send_replace(Phase::Finish(members));
    // Those who were removed must not get it.
    let rooms: Vec<_> = moderator.rooms.iter().chain(&public).cloned().collect();
    let saying = async {
        while world.content.load(Ordering::SeqCst) < *clients {
            sleep(Duration::from_millis(100)).await;
        }
        say_the_end(&addresses, speaker, &rooms).await
    };
    let transcripts = tokio::select! {
        transcripts = join_all(talking) => transcripts,
        () = saying => unreachable!("it never returns"),
    };
    let transcripts: Vec<_> = transcripts.into_iter().map(|joined| joined.unwrap()).collect();

    wrong.extend(presence::judge(&addresses, users, speaker).await);
    sleep(MARKED).await;
    let stored = Stored::read(&database, begun).await;
    let mut verdict = Verdict::of(&transcripts, &stored, &story.primaries());
    verdict.complain(wrong);
    verdict.complain(finished.into_iter().flatten());
    let shown = apps.into_iter().map(|app| app.judge(&stored, Instant::now() + CALM));
    let (counts, wrong): (Vec<_>, Vec<_>) = join_all(shown).await.into_iter().unzip();
    println!("messages that front ends with /chat.js show: {counts:?}");
    verdict.complain(wrong.into_iter().flatten());
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

/// Sends the last message to all rooms, again and again: a client may have to join anew.
async fn say_the_end(instances: &[SocketAddr], speaker: &Account, rooms: &[String]) {
    let (user, token) = (&speaker.user, speaker.token());
    loop {
        for room in rooms {
            let body = json!({ "room": room, "sender": user, "content": END });
            for &addr in instances {
                if post(addr, "/api/chat/message", &token, &body).await.is_some() {
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

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_micros() as u64);
        let mut options = Self {
            seconds: 60,
            seed: now % 1_000_000,
            clients: 16,
            private_rooms: 2,
            apps: 3,
            server: server(),
        };
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
            let number = || value.parse().map_err(|_| format!("{value:?} is no number"));
            match argument.as_str() {
                "--seconds" => options.seconds = number()?,
                "--seed" => options.seed = number()?,
                "--clients" => options.clients = number()? as usize,
                "--private-rooms" => options.private_rooms = number()? as usize,
                "--apps" => options.apps = number()? as usize,
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
