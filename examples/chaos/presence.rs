//! Who is online, after each kill of an instance and after all that: every instance must say it
//! alike, and as it is.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::account::Account;
use crate::wire::{Connection, Disconnected, Incoming, Kind, ResumeState};

/// How long it may take until all instances agree: a user is offline 15 s after the last session,
/// and the users of an instance that was killed are offline within 40 s.
const AGREED: Duration = Duration::from_secs(45);
/// How long it may take while there are other faults: an instance that was cut off or stopped for
/// 12 s right then is right again within 15 s.
const AGREED_AMONG_FAULTS: Duration = Duration::from_secs(70);
/// How long they must go on to agree.
const AGREES: Duration = Duration::from_secs(3);

/// Lets half of the users be connected. When an instance is killed, they leave and the others come,
/// and all instances must agree on that, whatever else is broken meanwhile. Returns how often this
/// was checked until `end`, and what was wrong.
pub async fn follow_kills(
    instances: &[SocketAddr],
    users: &[Account],
    watcher: &Account,
    mut kills: tokio::sync::watch::Receiver<usize>,
    end: Instant,
) -> (usize, Vec<String>) {
    let (mut checks, mut problems) = (0, Vec::new());
    let half = |which: usize| users.iter().skip(which).step_by(2).cloned().collect::<Vec<_>>();
    let mut connected = connect(instances, &half(0));
    while timeout_at(end, kills.changed()).await.is_ok_and(|changed| changed.is_ok()) {
        checks += 1;
        let present = half(checks % 2);
        // Assigned first, so that it is never nobody who is online.
        connected = connect(instances, &present);
        let until = Instant::now() + AGREED_AMONG_FAULTS;
        let wrong = until_agreed(instances, users, watcher, &present, until).await;
        problems.extend(wrong.into_iter().map(|wrong| format!("after a kill: {wrong}")));
    }
    drop(connected);
    (checks, problems)
}

/// Connects every second user, and lets `watcher` watch all of them on each instance. Returns what
/// is wrong.
pub async fn judge(instances: &[SocketAddr], users: &[Account], watcher: &Account) -> Vec<String> {
    let present: Vec<_> = users.iter().step_by(2).cloned().collect();
    let connected = connect(instances, &present);
    let until = Instant::now() + AGREED;
    let problems = until_agreed(instances, users, watcher, &present, until).await;
    drop(connected);
    problems
}

fn connect(instances: &[SocketAddr], users: &[Account]) -> Vec<Present> {
    let users = users.iter().enumerate();
    users.map(|(number, account)| Present::connect(instances, number, account.clone())).collect()
}

/// Waits until each instance says that those of the users are online who are `present`. Returns what
/// is wrong at `until`.
async fn until_agreed(
    instances: &[SocketAddr],
    users: &[Account],
    watcher: &Account,
    present: &[Account],
    until: Instant,
) -> Vec<String> {
    let expected: BTreeSet<_> = present.iter().map(|account| account.user.clone()).collect();
    let watching = instances.iter().map(|&addr| watch(addr, users, watcher, &expected, until));
    join_all(watching).await.into_iter().flatten().collect()
}

/// A user who stays connected until this is dropped.
struct Present(AbortHandle);

impl Present {
    fn connect(instances: &[SocketAddr], number: usize, account: Account) -> Self {
        let kind = [Kind::Plain, Kind::SocketIo][number / instances.len() % 2];
        let instances = instances.to_vec();
        let staying = async move {
            // Another one each time, since one may be down for longer than nobody is missed.
            for &addr in instances.iter().cycle().skip(number) {
                let opened =
                    Connection::open(kind, addr, &account.token(), ResumeState::default()).await;
                if let Ok(mut connection) = opened {
                    while connection.next().await.is_ok() {}
                }
                sleep(Duration::from_millis(200)).await;
            }
        };
        Self(tokio::spawn(staying).abort_handle())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches the users on one instance until those who are online are the expected ones, and stay so
/// for a while. Returns what is wrong.
async fn watch(
    addr: SocketAddr,
    users: &[Account],
    watcher: &Account,
    expected: &BTreeSet<String>,
    until: Instant,
) -> Option<String> {
    loop {
        let mut online = BTreeSet::new();
        match watch_once(addr, users, watcher, expected, until, &mut online).await {
            Ok(true) => return None,
            Ok(false) => {
                let (stuck, missing): (Vec<_>, Vec<_>) =
                    (online.difference(expected).collect(), expected.difference(&online).collect());
                return Some(format!("{addr} says {stuck:?} are online, and {missing:?} are not"));
            }
            Err(Disconnected(why)) if Instant::now() > until => {
                return Some(format!("{addr} lets nobody watch: {why}"));
            }
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Returns whether the expected users are online, and nobody else, before `until`.
async fn watch_once(
    addr: SocketAddr,
    users: &[Account],
    watcher: &Account,
    expected: &BTreeSet<String>,
    until: Instant,
    online: &mut BTreeSet<String>,
) -> Result<bool, Disconnected> {
    let memory = ResumeState::default();
    let mut connection = Connection::open(Kind::Plain, addr, &watcher.token(), memory).await?;
    let users: HashSet<_> = users.iter().map(|account| account.user.clone()).collect();
    let asked = connection.request("watchUsers", &json!(users)).await?;
    let mut agrees_since = None;
    loop {
        let now = Instant::now();
        let agrees = *online == *expected;
        let since = *agrees_since.get_or_insert(now);
        match agrees {
            true if now >= since + AGREES => return Ok(true),
            true => {}
            false if now >= until => return Ok(false),
            false => agrees_since = None,
        }
        let next = if agrees { since + AGREES } else { until };
        let Ok(said) = timeout_at(next, connection.next()).await else { continue };
        match said? {
            Incoming::Ack { id, data } if id == asked => {
                let Value::Array(users) = &data["online"] else {
                    return Err(Disconnected(data.to_string()));
                };
                *online = users.iter().filter_map(|user| Some(user.as_str()?.to_owned())).collect();
            }
            Incoming::Signal { event, data } => {
                let user = data["user"].as_str().unwrap_or_default();
                if event == "userOnline" {
                    online.insert(user.to_owned());
                } else {
                    online.remove(user);
                }
            }
            _ => {}
        }
    }
}
