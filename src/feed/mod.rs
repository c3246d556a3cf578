//! The only reader of the change stream and the only writer of the ring.
//!
//! One task of the process reads the change stream and publishes its events to the ring, which
//! every worker reads. The stream begins at the current cluster time. When it fails, stalls or
//! ends, the feed opens it again at the cluster time that it had reached, and skips the events that
//! it published before. When the oplog no longer reaches back to that time, the feed clears the
//! ring, and every session sends a `resync`. Before each attempt it pauses, with exponential
//! backoff. All that is in `reader.rs`. [`Feed::live`] says why messages are not delivered.
//!
//! After the start, a second stream reads the events of the recovery window before the start and
//! adds them to the ring, so clients can recover across a restart. New messages do not wait for it.
//!
//! A standalone MongoDB has no change stream. There, `chat` publishes each message that it stored.
//!
//! A third task keeps the set of [revoked] tokens, and the database's time.

mod backfill;
mod backoff;
mod changes;
mod end;
pub mod event;
pub mod position;
mod reader;
pub mod removals;
pub mod revoked;
pub mod ring;
pub mod stream;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bson::Timestamp;
use futures::future::join3;
use mongodb::Database;
use tokio::{
    sync::{broadcast, oneshot, watch},
    time::{error::Elapsed, sleep, timeout},
};

use crate::models::{Clock, MessageId, PresenceRow, Revocations, RoomId, Store, UserId};

use backfill::Backfill;
use end::STALL_TIMEOUT;
use event::{Event, MessageKey};
use position::Position;
use removals::{RefusedMessage, Removals, Verdicts};
use revoked::Revoked;
use ring::{Batch, Limits, Ring};
use stream::Cluster;

/// The timeout of a `hello` command.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request waits until the stream has read what is stored.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// How many changes of presence may wait until they are read.
const MAX_PRESENCE_CHANGES: usize = 16_384;

/// See the [module](self).
pub struct Feed {
    database: Database,
    ring: Arc<Ring>,
    /// How much the ring keeps for recovery, and how far back it is filled after the start.
    limits: Limits,
    phase: watch::Sender<Phase>,
    /// What to fill in since the ring was last opened.
    backfill: watch::Sender<Option<Backfill>>,
    // A standard lock: nothing awaits while it is held.
    health: Mutex<Health>,
    /// The user may open the stream of `messages` only, not that of the database.
    is_narrow: AtomicBool,
    /// Everything before this time was read.
    reached: watch::Sender<Timestamp>,
    /// The changes of who is connected, which are no events and have no positions.
    presence: broadcast::Sender<PresenceChange>,
    removals: Mutex<Removals>,
    verdicts: Verdicts,
    revocations: Revocations,
    revoked: Arc<Revoked>,
    stats: Stats,
}

/// How messages get to sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet: the stream was not opened since the start.
    Starting,
    /// By the change stream, while the backfill is not finished.
    Filling,
    /// By the change stream.
    Live,
    /// Within this process, because MongoDB is a standalone.
    Local,
}

/// A change of who is connected to which instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceChange {
    /// A user is connected to an instance.
    Added(PresenceRow),
    /// A user is not connected to an instance any more.
    Removed(PresenceRow),
    /// Changes may have been missed.
    Lost,
}

/// Counters since the start of the process.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events read, including those of the backfill.
    pub events: AtomicU64,
    /// Documents skipped because they are not valid messages.
    pub poison: AtomicU64,
    /// Documents that became a `resync` because of their size.
    pub oversized: AtomicU64,
    /// Times that the stream had to be opened again.
    pub restarts: AtomicU64,
    /// Times that events were lost and every session sent a `resync`.
    pub losses: AtomicU64,
    /// Panics, each of which restarted the feed.
    pub panics: AtomicU64,
    /// How far the stream is behind the cluster, in seconds.
    pub lag: AtomicU64,
}

#[derive(Debug)]
struct Health {
    /// When the stream last advanced, or was at the newest time of the cluster.
    advanced: Instant,
    /// Why the stream ended since then, without details that must not be public.
    cause: Option<String>,
    /// When the stream last ended.
    interrupted: Option<Instant>,
    /// The newest cluster time that is known.
    cluster_time: Option<Position>,
    poison_logged: Option<Instant>,
}

/// The feed cannot deliver; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotLive(String);

impl Feed {
    /// A feed of the messages in `store`. It should have a client of its own, because the stream
    /// keeps a connection busy. It sets the clock.
    pub fn new(store: &Store, limits: Limits, clock: Clock) -> Self {
        Self {
            database: store.database().clone(),
            ring: Arc::new(Ring::new(limits)),
            limits,
            phase: watch::Sender::new(Phase::Starting),
            backfill: watch::Sender::new(None),
            health: Mutex::new(Health {
                advanced: Instant::now(),
                cause: None,
                interrupted: None,
                cluster_time: None,
                poison_logged: None,
            }),
            is_narrow: AtomicBool::new(false),
            reached: watch::Sender::new(Timestamp { time: 0, increment: 0 }),
            presence: broadcast::Sender::new(MAX_PRESENCE_CHANGES),
            removals: Mutex::default(),
            verdicts: Verdicts::default(),
            revocations: store.revocations.clone(),
            revoked: Arc::new(Revoked::new(clock)),
            stats: Stats::default(),
        }
    }

    /// The ring that this feed writes to.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// The revoked tokens that this process knows.
    pub fn revoked(&self) -> &Arc<Revoked> {
        &self.revoked
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Reads the stream for ever. Spawn it once; dropping the future stops it.
    pub async fn run(&self) {
        join3(self.run_stream(), self.run_backfill(), self.run_revocations()).await;
    }

    /// How messages get to sessions at this moment.
    ///
    /// # Errors
    /// Messages are not delivered; the text says why, for `/readyz` and the log.
    pub fn live(&self) -> Result<Phase, NotLive> {
        let phase = *self.phase.borrow();
        let health = self.health();
        let stalled = health.advanced.elapsed() > STALL_TIMEOUT;
        let cause = health.cause.as_deref();
        match phase {
            Phase::Starting => {
                let cause = cause.unwrap_or("MongoDB has not answered yet");
                Err(NotLive(format!("the change stream is not open: {cause}")))
            }
            Phase::Filling | Phase::Live if stalled => {
                let cause = cause.unwrap_or("MongoDB is silent");
                Err(NotLive(format!("the change stream is interrupted: {cause}")))
            }
            phase => Ok(phase),
        }
    }

    /// How messages get to sessions, even if the stream is interrupted at this moment.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until rooms can be joined.
    pub async fn started(&self) {
        self.wait_for_phase(|phase| phase != Phase::Starting).await;
    }

    /// Waits until the backfill is finished.
    pub async fn filled(&self) {
        self.wait_for_phase(|phase| matches!(phase, Phase::Live | Phase::Local)).await;
    }

    /// Whether the cluster has reached `position`, which this process has not seen. Asks the
    /// cluster only if `position` is newer than the newest known cluster time.
    pub async fn cluster_reached(&self, position: Position) -> bool {
        let reached = |time: Option<Position>| time.map(Position::time) >= Some(position.time());
        if reached(self.health().cluster_time) {
            return true;
        }
        let asked = timeout(QUERY_TIMEOUT, Cluster::ask(&self.database)).await;
        let Ok(Ok(cluster)) = asked else { return false };
        self.health().see_cluster_time(cluster.latest);
        reached(Some(position_of(cluster.latest)))
    }

    /// Waits until everything that the cluster has stored by now was read.
    ///
    /// # Errors
    /// The stream is late.
    pub async fn read_until_now(&self) -> Result<(), Elapsed> {
        timeout(READ_TIMEOUT, async {
            loop {
                if let Ok(cluster) = Cluster::ask(&self.database).await {
                    let mut reached = self.reached.subscribe();
                    // The sender lives in `self`.
                    let _ = reached.wait_for(|reached| *reached >= cluster.latest).await;
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await
    }

    /// Publishes the events of something that was just stored, on a standalone MongoDB. Otherwise
    /// the change stream delivers them, and `events` is not called. Call it in the order of the
    /// acknowledgements. Returns false if an event is not delivered: the message of a user who was
    /// removed from its room.
    pub fn publish_local<E: IntoIterator<Item = Event>>(&self, events: impl FnOnce() -> E) -> bool {
        if self.phase() != Phase::Local {
            return true;
        }
        let mut events = Vec::from_iter(events());
        let stored = events.len();
        // Until the events are in the ring, so that they are in the order in which they are judged.
        let mut removals = self.removals();
        events.retain(|event| removals.admit(event));
        let delivered = events.len();
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let second = since_1970.map_or(0, |age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        self.ring.publish(Batch { events, newest: None, through: None, second });
        self.stats.events.fetch_add(delivered as u64, Ordering::Relaxed);
        delivered == stored
    }

    /// Waits for a message to a room with members, which is about to be stored: whether it is
    /// delivered. It is not if its sender was removed in the meantime.
    pub fn verdict(&self, message: MessageId) -> oneshot::Receiver<bool> {
        self.verdicts.wait_for(MessageKey::Id(message.0))
    }

    /// Whether a message was stored after its sender was removed from the room, as far as the
    /// stream was read.
    pub fn was_refused(&self, message: MessageId) -> bool {
        self.verdicts.was_refused(message)
    }

    /// Takes a refused message that may still be in the collection, because the instance that
    /// stored it was killed.
    pub fn next_refused(&self) -> Option<RefusedMessage> {
        self.verdicts.next_refused()
    }

    /// Gives a refused message back that could not be removed.
    pub fn refuse_again(&self, message: RefusedMessage) {
        self.verdicts.remember(message);
    }

    /// Whether the stream has ended within this time, for example because of a failover.
    pub fn was_interrupted(&self, within: Duration) -> bool {
        self.health().interrupted.is_some_and(|at| at.elapsed() < within)
    }

    /// Hears of changes of presence from now on. Call it before [`run`](Self::run).
    pub fn presence_changes(&self) -> broadcast::Receiver<PresenceChange> {
        self.presence.subscribe()
    }

    fn tell_presence(&self, change: PresenceChange) {
        // Nobody listens while presence is off.
        let _ = self.presence.send(change);
    }

    /// Whether changes of members come in the stream, without which there are no rooms with
    /// members.
    pub fn knows_members(&self) -> bool {
        !self.is_narrow.load(Ordering::Relaxed)
    }

    async fn wait_for_phase(&self, is_wanted: impl Fn(Phase) -> bool) {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`, so this ends only when the phase is reached.
        let _ = phases.wait_for(|phase| is_wanted(*phase)).await;
    }

    /// Whether the stream has brought that a user was removed from a room, and not added since.
    pub fn was_removed(&self, room: RoomId, user: UserId) -> bool {
        self.removals().has(room, user)
    }

    fn removals(&self) -> MutexGuard<'_, Removals> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    fn recovered(&mut self, advanced: Instant) {
        self.advanced = advanced;
        self.cause = None;
    }

    fn see_cluster_time(&mut self, time: Timestamp) {
        self.cluster_time = self.cluster_time.max(Some(position_of(time)));
    }
}

fn position_of(time: Timestamp) -> Position {
    Position::first_of(time.time, time.increment)
}

/// The earliest time at which something can follow what happened at `time`.
fn next_of(time: Timestamp) -> Timestamp {
    Timestamp { increment: time.increment.saturating_add(1), ..time }
}
