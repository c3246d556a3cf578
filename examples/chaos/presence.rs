//! Who is online, after all that: every instance must say it alike, and as it is.

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
/// How long they must go on to agree.
const AGREES: Duration = Duration::from_secs(3);

/// Connects every second user, and lets `watcher` watch all of them on each instance. Returns what
/// is wrong.
pub async fn judge(instances: &[SocketAddr], users: &[Account], watcher: &Account) -> Vec<String> {
    let present: Vec<_> = users.iter().step_by(2).cloned().collect();
    let connected: Vec<_> = present
        .iter()
        .enumerate()
        .map(|(number, account)| Present::connect(instances, number, account.clone()))
        .collect();
    let expected: BTreeSet<_> = present.iter().map(|account| account.user.clone()).collect();
    let until = Instant::now() + AGREED;
    let watching = instances.iter().map(|&addr| watch(addr, users, watcher, &expected, until));
    let problems = join_all(watching).await;
    drop(connected);
    problems.into_iter().flatten().collect()
}

/// A user who stays connected until this is dropped.
struct Present(AbortHandle);

impl Present {
    fn connect(instances: &[SocketAddr], number: usize, account: Account) -> Self {
        let addr = instances[number % instances.len()];
        let kind = [Kind::Plain, Kind::SocketIo][number / instances.len() % 2];
        let staying = async move {
            loop {
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
