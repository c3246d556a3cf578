//! Users who type, and users who come, move to another instance and go: what that costs, and that
//! those who watch are told what is true.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bson::{Document, Timestamp, doc};
use futures::TryStreamExt;
use futures::future::join_all;
use mongodb::{Client, Collection};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::clients::connect_from;
use crate::server::{Server, token, user};
use crate::wire::{Connection, Disconnected, Incoming, Kind, ResumeState};
use crate::{Checks, Target};

/// How many users type, in how many rooms.
const TYPISTS: usize = 1_000;
const ROOMS: usize = 100;
/// How often a front end says that its user types.
const KEYSTROKES: Duration = Duration::from_secs(1);
/// What typing may cost an instance, as a part of a core, and the oplog, in bytes a second.
const MOST_CPU: f64 = 0.05;
const MOST_OPLOG: f64 = 50_000.0;

/// How many watch, half of them on each instance, and how many users each.
const WATCHERS: usize = 20;
const WATCHED: usize = 1_000;
/// How soon all users are seen.
const SEEN: Duration = Duration::from_secs(30);
/// How long after its last session a user is still online.
const LINGER: Duration = Duration::from_secs(15);
/// How many connect at the same time.
const AT_ONCE: usize = 1_000;

pub async fn run(target: Target, sockets: usize, time: Duration) -> Checks {
    let mut checks = Checks::default();
    let uri = target.mongo.uri("siege");
    let other = Arc::new(Server::start(&target.binary, &uri, &[]));
    let servers = [Arc::clone(&target.server), other];
    typing(&target, &servers, time, &mut checks).await;
    presence(&target, servers, sockets, &mut checks).await;
    checks
}

async fn typing(target: &Target, servers: &[Arc<Server>; 2], time: Duration, checks: &mut Checks) {
    let mut rooms = Vec::new();
    for number in 0..ROOMS {
        rooms.push(servers[0].room(&format!("typing {number}")).await);
    }
    let connecting = (0..TYPISTS).map(async |number| {
        // Neighbours in a room are on different instances and wires.
        let kind =
            if (number / ROOMS / 2).is_multiple_of(2) { Kind::Plain } else { Kind::SocketIo };
        let server = &servers[number / ROOMS % 2];
        join(number, kind, server, &rooms[number % ROOMS]).await
    });
    let connected: Vec<_> = join_all(connecting).await.into_iter().flatten().collect();
    checks.check("all who type are admitted", connected.len() == TYPISTS, String::new());
    // Instances tell each other for the first time after some seconds.
    sleep(Duration::from_secs(6)).await;

    let oplog = Oplog::of(&target.mongo.uri("local")).await;
    let (from, begun) = (oplog.end().await, Instant::now());
    let used = servers.each_ref().map(|server| server.cpu());
    let heard = Arc::new(AtomicUsize::new(0));
    let typists: Vec<_> = connected
        .into_iter()
        .enumerate()
        .map(|(number, connection)| {
            let room = rooms[number % ROOMS].clone();
            tokio::spawn(type_until(connection, room, begun + time, Arc::clone(&heard)))
        })
        .collect();
    let alive = join_all(typists).await.into_iter().filter(|done| matches!(done, Ok(true)));
    let alive = alive.count();
    let took = begun.elapsed().as_secs_f64();
    checks.check("all who type stay connected", alive == TYPISTS, format!("{alive}"));
    let heard = heard.load(Ordering::Relaxed);
    // The first of each user, to all others of the room.
    let least = TYPISTS * (TYPISTS / ROOMS - 1);
    checks.check("the others of a room hear it", heard >= least, format!("{heard}"));
    for (number, server) in servers.iter().enumerate() {
        let part = (server.cpu() - used[number]).as_secs_f64() / took;
        let figure = format!("{:.1} % of a core", part * 100.0);
        checks.check(&format!("instance {number} has little work"), part < MOST_CPU, figure);
    }
    let bytes = oplog.size_since(from).await as f64 / took;
    let figure = format!("{:.1} KB a second", bytes / 1000.0);
    checks.check("the oplog stays small", bytes < MOST_OPLOG, figure);
}

/// Says every second that the user types, and counts what it hears of others. Returns whether the
/// connection has held.
async fn type_until(
    mut connection: Connection,
    room: String,
    end: Instant,
    heard: Arc<AtomicUsize>,
) -> bool {
    let mut keys = interval(KEYSTROKES);
    while Instant::now() < end {
        tokio::select! {
            _ = keys.tick() => {
                if connection.request("typing", &json!(room)).await.is_err() {
                    return false;
                }
            }
            said = connection.next() => match said {
                Ok(Incoming::Signal { event, .. }) if event == "typing" => {
                    heard.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
    true
}

async fn presence(
    target: &Target,
    [first, second]: [Arc<Server>; 2],
    sockets: usize,
    checks: &mut Checks,
) {
    let users: Vec<_> = (0..sockets).map(|_| user()).collect();
    let watching = (0..WATCHERS).map(async |number| {
        let server = if number % 2 == 0 { &first } else { &second };
        let step = sockets.div_ceil(WATCHED).max(1);
        let watched = users.iter().skip(number % step).step_by(step).map(|(user, _)| user.clone());
        Watcher::start(number, server, watched.take(WATCHED).collect()).await
    });
    let watchers: Vec<_> = join_all(watching).await.into_iter().flatten().collect();
    checks.check("all who watch are answered", watchers.len() == WATCHERS, String::new());

    let begun = Instant::now();
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let stop = Arc::new(AtomicBool::new(false));
    // The even ones stay on the first instance; the others move to the third one.
    let third = Arc::new(Server::start(&target.binary, &target.mongo.uri("siege"), &[]));
    let present: Vec<_> = users
        .iter()
        .enumerate()
        .map(|(number, (_, token))| {
            let servers = match number % 2 {
                0 => [Arc::clone(&first), Arc::clone(&first)],
                _ => [Arc::clone(&second), Arc::clone(&third)],
            };
            tokio::spawn(stay(number, servers, token.clone(), Arc::clone(&gate), Arc::clone(&stop)))
        })
        .collect();
    let watched: usize = watchers.iter().map(|watcher| watcher.users).sum();
    let seen = async || watchers.iter().map(Watcher::online).sum::<usize>() == watched;
    let in_time = timeout(SEEN, until(&seen)).await.is_ok();
    let figure = format!("{sockets} users after {:.1?}", begun.elapsed());
    checks.check("all users are seen within 30 s", in_time, figure);

    // Watchers of the second instance would have to watch again.
    let (stay, leave): (Vec<_>, Vec<_>) =
        watchers.into_iter().partition(|watcher| watcher.number % 2 == 0);
    drop(leave);
    let changes = |watchers: &[Watcher]| watchers.iter().map(Watcher::changes).sum::<usize>();
    let before = changes(&stay);
    second.terminate();
    checks.expect("the instance stops", second.ended(Duration::from_secs(60)).await);
    sleep(LINGER * 2).await;
    let told = changes(&stay) - before;
    checks.check("a restart says nothing", told == 0, format!("{told} changes were told"));

    stop.store(true, Ordering::Relaxed);
    let moved = join_all(present).await.into_iter().filter(|done| matches!(done, Ok(true)));
    let moved = moved.count();
    checks.check("all users are connected at the end", moved == sockets, format!("{moved}"));
    let begun = Instant::now();
    let gone = async || stay.iter().all(|watcher| watcher.online() == 0);
    let in_time = timeout(LINGER * 2, until(&gone)).await.is_ok();
    let figure = format!("after {:.1?}", begun.elapsed());
    checks.check("all users are seen to leave", in_time, figure);
}

/// Waits until a condition holds.
async fn until(holds: &impl AsyncFn() -> bool) {
    while !holds().await {
        sleep(Duration::from_millis(100)).await;
    }
}

/// One user with one socket: on the first of these servers, and on the second when that stops.
/// Returns whether it was connected in the end.
async fn stay(
    number: usize,
    servers: [Arc<Server>; 2],
    token: String,
    gate: Arc<Semaphore>,
    stop: Arc<AtomicBool>,
) -> bool {
    for server in servers {
        let mut connection = {
            let _turn = gate.acquire().await;
            match connect(number, Kind::Plain, &server, &token).await {
                Ok(connection) => connection,
                Err(_) => return false,
            }
        };
        loop {
            match timeout(Duration::from_secs(1), connection.next()).await {
                Err(_) if stop.load(Ordering::Relaxed) => return true,
                Ok(Err(_)) => break,
                _ => {}
            }
        }
    }
    false
}

/// A socket that watches users.
struct Watcher {
    number: usize,
    users: usize,
    state: Arc<WatcherState>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct WatcherState {
    online: AtomicUsize,
    changes: AtomicUsize,
}

impl Watcher {
    async fn start(number: usize, server: &Server, users: Vec<String>) -> Option<Self> {
        let (_, token) = user();
        let mut connection = connect(number, Kind::Plain, server, &token).await.ok()?;
        connection.request("watchUsers", &json!(users)).await.ok()?;
        let answer = loop {
            if let Incoming::Ack { data, .. } = connection.next().await.ok()? {
                break data;
            }
        };
        let name = |user: &Value| user.as_str().map(str::to_owned);
        let mut online: HashSet<_> = answer["online"].as_array()?.iter().filter_map(name).collect();
        let state = Arc::new(WatcherState::default());
        state.online.store(online.len(), Ordering::Relaxed);
        let (count, heard) = (users.len(), Arc::clone(&state));
        let listening = tokio::spawn(async move {
            while let Ok(said) = connection.next().await {
                let Incoming::Signal { event, data } = said else { continue };
                let Some(user) = name(&data["user"]) else { continue };
                let changed = match event.as_str() {
                    "userOnline" => online.insert(user),
                    "userOffline" => online.remove(&user),
                    _ => false,
                };
                heard.changes.fetch_add(usize::from(changed), Ordering::Relaxed);
                heard.online.store(online.len(), Ordering::Relaxed);
            }
        });
        Some(Self { number, users: count, state, listening })
    }

    /// How many of its users it sees online.
    fn online(&self) -> usize {
        self.state.online.load(Ordering::Relaxed)
    }

    /// How often it was told a change.
    fn changes(&self) -> usize {
        self.state.changes.load(Ordering::Relaxed)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// The log of all writes to the database.
struct Oplog(Collection<Document>);

impl Oplog {
    async fn of(uri: &str) -> Self {
        let client = Client::with_uri_str(uri).await.unwrap();
        Self(client.database("local").collection("oplog.rs"))
    }

    async fn end(&self) -> Timestamp {
        let last = self.0.find_one(doc! {}).sort(doc! { "$natural": -1 }).await.unwrap();
        last.unwrap().get_timestamp("ts").unwrap()
    }

    /// The size of all entries after this one, in bytes.
    async fn size_since(&self, from: Timestamp) -> i64 {
        let stages = [
            doc! { "$match": { "ts": { "$gt": from } } },
            doc! { "$group": { "_id": null, "size": { "$sum": { "$bsonSize": "$$ROOT" } } } },
        ];
        let found: Vec<_> = self.0.aggregate(stages).await.unwrap().try_collect().await.unwrap();
        let size = |found: &Document| {
            let size = found.get("size")?;
            size.as_i64().or_else(|| size.as_i32().map(i64::from))
        };
        found.first().and_then(size).unwrap_or_default()
    }
}

async fn connect(
    number: usize,
    kind: Kind,
    server: &Server,
    token: &str,
) -> Result<Connection, Disconnected> {
    let stream = connect_from(number, server.addr).await.map_err(Disconnected::because)?;
    Connection::open_on(stream, kind, server.addr, token, ResumeState::default()).await
}

async fn join(
    number: usize,
    kind: Kind,
    server: &Server,
    room: &str,
) -> Result<Connection, Disconnected> {
    let mut connection = connect(number, kind, server, &token()).await?;
    connection.request("joinRoom", &json!(room)).await?;
    loop {
        match connection.next().await? {
            Incoming::Ack { data, .. } if data["room"] == json!(room) => return Ok(connection),
            Incoming::Ack { data, .. } => return Err(Disconnected(data.to_string())),
            _ => {}
        }
    }
}
