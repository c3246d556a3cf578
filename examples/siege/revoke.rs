//! Users who log out everywhere while messages flow: all their sockets are closed within a second,
//! on both instances and wires, nothing behind the revocation reaches them, and others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::clients::connect_from;
use crate::server::{Server, user};
use crate::wire::{Connection, Disconnected, Incoming, Kind, ResumeState};
use crate::{Checks, Target};

/// Sockets of one user.
const PER_USER: usize = 10;
/// One of so many users is revoked.
const ONE_OF: usize = 10;
/// Members of one room.
const PER_ROOM: usize = 100;
/// How many connect at the same time.
const AT_ONCE: usize = 200;
/// How soon after the request all sockets of a revoked token are closed.
const MOST: Duration = Duration::from_secs(1);
/// How long everything may take to settle.
const SETTLED: Duration = Duration::from_secs(60);

/// The content of the last message.
const END: &str = "the end";

/// What one socket has heard.
struct Heard {
    /// The highest number of a message.
    last: Option<u64>,
    /// Whether the last message of all has come.
    to_the_end: bool,
    /// When it was closed.
    closed: Option<Instant>,
}

pub async fn run(target: &Target, sockets: usize) -> Checks {
    let mut checks = Checks::default();
    let other = Arc::new(Server::start(&target.binary, &target.mongo.uri("siege"), &[]));
    let servers = [Arc::clone(&target.server), other];
    let users: Vec<_> = (0..sockets.div_ceil(PER_USER)).map(|_| user()).collect();
    let mut rooms = Vec::new();
    for number in 0..sockets.div_ceil(PER_ROOM) {
        rooms.push(servers[0].room(&format!("revoke {number}")).await);
    }

    let gate = Semaphore::new(AT_ONCE);
    let connecting = (0..sockets).map(async |number| {
        let _turn = gate.acquire().await;
        let kind = if number / 2 % 2 == 0 { Kind::Plain } else { Kind::SocketIo };
        let (_, token) = &users[number / PER_USER];
        let room = &rooms[number % rooms.len()];
        connect(number, kind, &servers[number % 2], token, room).await
    });
    let connected = join_all(connecting).await;
    let admitted = connected.iter().filter(|connection| connection.is_ok()).count();
    checks.check("all are admitted", admitted == sockets, format!("{admitted}"));
    let listening: Vec<_> =
        connected.into_iter().map(|connection| tokio::spawn(listen(connection))).collect();

    // The number of the next message. Those that begin after a revocation was answered are behind.
    let next = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn({
        let (servers, rooms) = (servers.clone(), rooms.clone());
        let (next, stop) = (Arc::clone(&next), Arc::clone(&stop));
        async move {
            let http = reqwest::Client::new();
            let mut failed = 0;
            while !stop.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::SeqCst) as usize;
                let room = &rooms[number % rooms.len()];
                let sent = servers[number % 2].send(&http, room, &number.to_string()).await;
                failed += usize::from(!sent);
                sleep(Duration::from_millis(2)).await;
            }
            failed
        }
    });
    sleep(Duration::from_secs(2)).await;

    let mut revoked = Vec::new();
    for (number, (_, token)) in users.iter().enumerate().step_by(ONE_OF) {
        let server = &servers[number / ONE_OF % 2];
        let asked = Instant::now();
        let answered = server.post("/api/auth/logout-all", token, &json!({})).await.is_some();
        checks.expect("a logout is answered", answered);
        revoked.push((number, asked, next.load(Ordering::SeqCst)));
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    let failed = sending.await.unwrap();
    checks.check("all messages are stored", failed == 0, format!("{failed} are not"));
    let http = reqwest::Client::new();
    for room in &rooms {
        servers[0].send(&http, room, END).await;
    }
    let waiting = listening.into_iter().map(async |listening| timeout(SETTLED, listening).await);
    let heard: Vec<_> = join_all(waiting).await;
    let heard: Vec<_> = heard.into_iter().map(|heard| heard.ok().and_then(Result::ok)).collect();

    let (mut closed, mut late, mut behind, mut spared, mut touched) = (Vec::new(), 0, 0, 0, 0);
    for (number, heard) in heard.iter().enumerate() {
        let user = number / PER_USER;
        let revocation = revoked.iter().find(|(revoked, ..)| *revoked == user);
        match (revocation, heard) {
            (Some((_, at, limit)), Some(heard)) => {
                match heard.closed {
                    Some(end) => closed.push(end.saturating_duration_since(*at)),
                    None => late += 1,
                }
                behind += usize::from(heard.to_the_end || heard.last >= Some(*limit));
            }
            (Some(_), None) => late += 1,
            (None, Some(heard)) if heard.to_the_end => spared += 1,
            (None, _) => touched += 1,
        }
    }
    closed.sort_unstable();
    let slowest = closed.last().copied().unwrap_or_default();
    let median = closed.get(closed.len() / 2).copied().unwrap_or_default();
    let in_time = late == 0 && slowest < MOST && !closed.is_empty();
    let figures = format!(
        "{} sockets of {} users, p50 {median:.0?}, p100 {slowest:.0?}, {late} not at all",
        closed.len(),
        revoked.len()
    );
    checks.check("all sockets of revoked tokens are closed within a second", in_time, figures);
    checks.check("nothing behind a revocation is heard", behind == 0, format!("{behind}"));
    let figures = format!("{spared} heard everything, {touched} did not");
    checks.check("no other socket is touched", touched == 0 && spared > 0, figures);
    checks
}

async fn connect(
    number: usize,
    kind: Kind,
    server: &Server,
    token: &str,
    room: &str,
) -> Result<Connection, Disconnected> {
    let stream = connect_from(number, server.addr).await.map_err(Disconnected::because)?;
    let state = ResumeState::default();
    let mut connection = Connection::open_on(stream, kind, server.addr, token, state).await?;
    connection.request("joinRoom", &json!(room)).await?;
    loop {
        match connection.next().await? {
            Incoming::Ack { data, .. } if data["room"] == json!(room) => return Ok(connection),
            Incoming::Ack { data, .. } => return Err(Disconnected(data.to_string())),
            _ => {}
        }
    }
}

/// Hears everything up to the end, or until the server closes.
async fn listen(connection: Result<Connection, Disconnected>) -> Heard {
    let mut heard = Heard { last: None, to_the_end: false, closed: None };
    let Ok(mut connection) = connection else { return heard };
    while !heard.to_the_end {
        match connection.next().await {
            Ok(Incoming::Event { told, .. }) => {
                heard.to_the_end = told.content == END;
                heard.last = heard.last.max(told.content.parse().ok());
            }
            Ok(_) => {}
            Err(_) => {
                heard.closed = Some(Instant::now());
                break;
            }
        }
    }
    heard
}
