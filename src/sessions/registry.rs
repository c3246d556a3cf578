//! The state that the sessions of one worker share, and the state that all workers share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::web::Data;
use bson::oid::ObjectId;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::auth::Tokens;
use crate::chat::Chat;
use crate::config::Config;
use crate::exchange::Exchange;
use crate::feed::Feed;
use crate::hub::Hub;
use crate::limits::{Address, Limits};
use crate::metrics::Metrics;
use crate::middleware::auth::Guard;
use crate::models::{Store, UserId};
use crate::presence::Presence;
use crate::refusals::{Refusals, Tally, limit_reached};
use crate::server::Connections;
use crate::server::capacity::Capacity;

/// The pause between two sessions that a drain ends, if the time allows it, so that the clients do
/// not all reconnect at the same moment.
const DRAIN_INTERVAL: Duration = Duration::from_millis(1);

/// How often the records are checked for sessions that moved to other instances.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// How many records one query of a sweep reads.
const SWEEP_BATCH: usize = 1_000;

/// The parts that sessions use, one of these for each worker.
pub struct Worker {
    /// The database, with the connections of this worker.
    pub store: Store,
    /// Stores messages.
    pub chat: Chat,
    /// The rooms of this worker and their members.
    pub hub: Rc<Hub>,
    /// Who is online.
    pub presence: Arc<Presence>,
    /// Signals of and to other instances.
    pub exchange: Arc<Exchange>,
    /// The reader of the change stream.
    pub feed: Arc<Feed>,
    /// Verifies tokens.
    pub tokens: Data<Tokens>,
    /// Refuses revoked tokens.
    pub guard: Data<Guard>,
    /// The configuration.
    pub config: Data<Config>,
    /// The limits.
    pub limits: Data<Limits>,
    /// Counts refused sockets.
    pub refusals: Data<Refusals>,
    /// The metrics.
    pub metrics: Data<Metrics>,
    /// The state that all workers share.
    pub registry: Arc<SessionRegistry>,
}

/// The sessions and connections of this process.
#[derive(Debug)]
pub struct SessionRegistry {
    /// The id of this process in the records of sockets.
    pub instance: ObjectId,
    max_sessions: usize,
    /// For one address; 0 means no limit.
    max_per_address: usize,
    /// All TCP connections, and from how many on no socket is admitted.
    connections: Connections,
    max_connections: usize,
    sessions: AtomicUsize,
    refused: RefusedCounts,
    panics: AtomicU64,
    addresses: Mutex<HashMap<Address, usize>>,
    drain: CancellationToken,
    /// The milliseconds over which a drain is spread.
    drain_spread: AtomicU64,
    /// The resumable sessions, by their private ids.
    resumable: Mutex<HashMap<String, ResumableSession>>,
}

/// How many sockets were refused, by limit.
#[derive(Debug, Default)]
struct RefusedCounts {
    sockets: Tally,
    of_address: Tally,
}

/// The connection of this process that owns a session.
#[derive(Debug)]
struct ResumableSession {
    /// How often the session was taken over before.
    generation: i64,
    user: UserId,
    end: CancellationToken,
    /// Cancelled when all requests that were read from it are processed.
    ended: CancellationToken,
}

/// Permits one session. The number of permits is bounded; dropping one makes room for another.
#[derive(Debug)]
pub struct ConnectionPermit {
    registry: Arc<SessionRegistry>,
    /// Cancelled when the session must end, because another connection took it over or a drain
    /// began.
    pub end: CancellationToken,
    /// The private id, and how often the session was taken over before.
    resumable: Option<(String, i64)>,
    /// Cancels `ResumableSession::ended` when it is dropped.
    _ended: Option<DropGuard>,
    address: Option<Address>,
}

impl SessionRegistry {
    /// A registry without sessions, with the limits of `capacity` and at most `max_per_address`
    /// sessions for one address (0 means no limit).
    pub fn new(capacity: Capacity, max_per_address: usize) -> Self {
        Self {
            instance: ObjectId::new(),
            max_sessions: capacity.sockets,
            max_per_address,
            connections: Connections::new(capacity.connections),
            max_connections: capacity.for_sockets,
            sessions: AtomicUsize::new(0),
            refused: RefusedCounts::default(),
            panics: AtomicU64::new(0),
            addresses: Mutex::default(),
            drain: CancellationToken::new(),
            drain_spread: AtomicU64::new(0),
            resumable: Mutex::default(),
        }
    }

    /// A permit for one more session; `None` if there are too many, or the process is stopping.
    pub fn acquire(self: &Arc<Self>, address: Address) -> Option<ConnectionPermit> {
        if self.is_draining() {
            return None;
        }
        let taken = self.sessions.fetch_add(1, Ordering::Relaxed);
        // Make the permit first: dropping it also undoes the count if there are too many.
        let mut permit = ConnectionPermit {
            registry: Arc::clone(self),
            end: self.drain.child_token(),
            resumable: None,
            _ended: None,
            address: None,
        };
        if self.max_per_address > 0 {
            let mut addresses = self.addresses();
            let count = addresses.entry(address).or_default();
            if *count >= self.max_per_address {
                drop(addresses);
                let (most, what) = (self.max_per_address, "a socket was refused");
                let setting = "MAX_CONNECTIONS_PER_ADDRESS";
                self.refused.of_address.note(|| limit_reached(setting, most, what));
                return None;
            }
            *count += 1;
            permit.address = Some(address);
        }
        if taken < self.max_sessions && self.connections.count() <= self.max_connections {
            return Some(permit);
        }
        self.refuse_socket();
        None
    }

    /// Whether a connection that will [acquire a permit](Self::acquire) later may begin. `waiting`
    /// is the number of other such connections, whether or not they have a permit.
    pub fn has_capacity_beside(&self, waiting: usize) -> bool {
        if self.is_draining() {
            return false;
        }
        let taken = self.sessions().max(waiting);
        let has_room =
            taken < self.max_sessions && self.connections.count() <= self.max_connections;
        if !has_room {
            self.refuse_socket();
        }
        has_room
    }

    fn refuse_socket(&self) {
        let (most, what) = (self.max_sessions, "a socket was refused");
        self.refused.sockets.note(|| limit_reached("MAX_CONNECTIONS", most, what));
    }

    /// The TCP connections of the server.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// How many sessions of the plain wire ended by a panic.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Counts a session of the plain wire that ended by a panic.
    pub fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// How many sockets and connections were refused, by limit.
    pub fn refused(&self) -> [(&'static str, u64); 4] {
        [
            ("sockets", self.refused.sockets.count()),
            ("sockets_of_address", self.refused.of_address.count()),
            ("connections", self.connections.refused()),
            ("slow_request", self.connections.slow()),
        ]
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<Address, usize>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Whether the process ends its sessions and admits no more.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Ends all sessions within `most`, spread over time, and waits until they have ended.
    pub async fn drain(&self, most: Duration) {
        let sessions = u32::try_from(self.sessions()).unwrap_or(u32::MAX);
        let spread = DRAIN_INTERVAL.saturating_mul(sessions).min(most / 2);
        let millis = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
        self.drain_spread.store(millis, Ordering::Relaxed);
        self.drain.cancel();
        let deadline = tokio::time::Instant::now() + most;
        while self.sessions() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How long a session may go on during a drain: a random time.
    pub fn drain_delay(&self) -> Duration {
        let spread = self.drain_spread.load(Ordering::Relaxed);
        let mut random = [0; 8];
        // Without randomness all sessions end at once, which is allowed.
        let _ = getrandom::fill(&mut random);
        Duration::from_millis(u64::from_ne_bytes(random) % spread.max(1))
    }

    /// Ends the connection of this process that owns this session of `user`, and waits until all
    /// requests that were read from it are processed. Returns whether this took no longer than
    /// `most`; `None` if there is no such connection here.
    pub async fn end_and_wait(&self, pid: &str, user: UserId, most: Duration) -> Option<bool> {
        let ended = {
            let resumable = self.resumable();
            let old = resumable.get(pid).filter(|old| old.user == user)?;
            old.end.cancel();
            old.ended.clone()
        };
        Some(tokio::time::timeout(most, ended.cancelled()).await.is_ok())
    }

    /// Ends the previous connection of a session that was taken over, if it is in this process.
    /// `generation` is how often the session was taken over, including this time.
    pub fn take_over(&self, pid: &str, generation: i64) {
        if let Entry::Occupied(old) = self.resumable().entry(pid.to_owned())
            && old.get().generation < generation
        {
            old.remove().end.cancel();
        }
    }

    /// Ends sessions that moved to other instances, for ever. Spawn it once.
    pub async fn sweep(self: Arc<Self>, store: Store) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let pids: Vec<String> = self.resumable().keys().cloned().collect();
            for pids in pids.chunks(SWEEP_BATCH) {
                match store.sockets.taken_over(pids, self.instance).await {
                    Ok(taken) => taken.iter().for_each(|(pid, generation)| {
                        self.take_over(pid, *generation);
                    }),
                    Err(error) => log::debug!("The records of sockets were not read: {error}"),
                }
            }
        }
    }

    fn resumable(&self) -> MutexGuard<'_, HashMap<String, ResumableSession>> {
        self.resumable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionPermit {
    /// Lets `user` resume the session with this private id. If two connections resume one session
    /// at the same time, the later owner stays.
    pub fn make_resumable(&mut self, pid: &str, user: UserId, generation: i64) {
        self.registry.take_over(pid, generation);
        match self.registry.resumable().entry(pid.to_owned()) {
            Entry::Occupied(_) => self.end.cancel(),
            Entry::Vacant(free) => {
                let ended = CancellationToken::new();
                self._ended = Some(ended.clone().drop_guard());
                free.insert(ResumableSession { generation, user, end: self.end.clone(), ended });
                self.resumable = Some((pid.to_owned(), generation));
            }
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.registry.sessions.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address
            && let Entry::Occupied(mut count) = self.registry.addresses().entry(address)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if let Some((pid, generation)) = self.resumable.take()
            && let Entry::Occupied(own) = self.registry.resumable().entry(pid)
            && own.get().generation == generation
        {
            own.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::server::capacity::Pools;

    fn registry(max_sessions: usize, max_per_address: usize) -> Arc<SessionRegistry> {
        Arc::new(SessionRegistry::new(
            Capacity::within(1 << 20, Pools { number: 0, size: 0 }, max_sessions),
            max_per_address,
        ))
    }

    fn address(last: u8) -> Address {
        Address::of(Ipv4Addr::new(10, 0, 0, last).into())
    }

    #[test]
    fn permits_are_bounded_and_given_back() {
        let registry = registry(2, 0);
        let permits: Vec<_> = (0..3).map(|_| registry.acquire(address(1))).collect();
        assert_eq!(permits.iter().filter(|permit| permit.is_some()).count(), 2);
        assert_eq!(registry.sessions(), 2);
        drop(permits);
        assert_eq!(registry.sessions(), 0);
        assert!(registry.acquire(address(1)).is_some());
    }

    #[test]
    fn sessions_of_one_address_are_bounded() {
        let registry = registry(9, 2);
        let permits: Vec<_> = (0..3).map(|_| registry.acquire(address(1))).collect();
        assert_eq!(permits.iter().filter(|permit| permit.is_some()).count(), 2);
        assert!(registry.acquire(address(2)).is_some());
        drop(permits);
        assert!(registry.addresses().is_empty() && registry.sessions() == 0);
    }

    #[test]
    fn a_takeover_ends_the_previous_connection() {
        let registry = registry(9, 0);
        let mut old = registry.acquire(address(1)).unwrap();
        old.make_resumable("pid", UserId::new(), 0);
        registry.take_over("pid", 1);
        let mut new = registry.acquire(address(1)).unwrap();
        new.make_resumable("pid", UserId::new(), 1);
        assert!(old.end.is_cancelled() && !new.end.is_cancelled());
        drop(old);
        registry.take_over("pid", 1);
        assert!(!new.end.is_cancelled(), "it is the owner");
        registry.take_over("pid", 2);
        assert!(new.end.is_cancelled());
    }

    #[test]
    fn of_two_simultaneous_takeovers_the_later_owner_stays() {
        for order in [[1, 2], [2, 1]] {
            let registry = registry(9, 0);
            let permits = order.map(|generation| {
                let mut permit = registry.acquire(address(1)).unwrap();
                permit.make_resumable("pid", UserId::new(), generation);
                (generation, permit)
            });
            for (generation, permit) in permits {
                assert_eq!(permit.end.is_cancelled(), generation == 1, "{order:?}");
            }
            assert!(registry.resumable().is_empty());
        }
    }
}
