//! The only reader of the change stream and the only writer of the ring.
//!
//! One task of the process reads the change stream and publishes its events to the ring, which
//! every worker reads. The stream begins at the current cluster time. When it fails, stalls or
//! ends, the feed opens it again at the cluster time that it had reached, and skips the events that
//! it published before. When the oplog no longer reaches back to that time, the feed clears the
//! ring, and every session sends a `resync`. Before each attempt it pauses, with exponential
//! backoff. [`Feed::live`] says why messages are not delivered.
//!
//! After the start, a second stream reads the events of the recovery window before the start and
//! adds them to the ring, so clients can recover across a restart. New messages do not wait for it.
//!
//! A standalone MongoDB has no change stream. There, `chat` publishes each message that it stored.

mod backfill;
mod backoff;
pub mod event;
pub mod position;
mod removals;
pub mod ring;
pub mod stream;

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bson::Timestamp;
use futures::{FutureExt, future::join};
use mongodb::Database;
use tokio::{
    sync::{broadcast, oneshot, watch},
    time::{error::Elapsed, sleep, timeout},
};

use crate::models::{Failure, MessageId, PresenceRow, RoomId, failure::describe};

use backfill::Backfill;
use backoff::Backoff;
use event::{Event, MessageKey};
use position::Position;
use removals::{Removals, Verdicts};
use ring::{Batch, Limits, Ring};
use stream::{
    Change, ChangeStream, Cluster, ErrorClass, Poison, Reading, Reply, Scope, StreamError,
};

/// The stream is stalled when it sends nothing for so long, or does not advance while the cluster
/// does. MongoDB replies every second, and an idle cluster writes a no-op every ten seconds.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The timeout of a `hello` command.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to check whether a standalone MongoDB has become a replica set.
const STANDALONE_CHECK: Duration = Duration::from_secs(30);

/// After so many failures at the same cluster time, the feed gives this time up.
const MAX_TRIES: u32 = 3;

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
    /// The changes of who is connected, which are no events and have no positions.
    presence: broadcast::Sender<PresenceChange>,
    removals: Mutex<Removals>,
    verdicts: Verdicts,
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
    /// The newest cluster time that is known.
    cluster_time: Option<Position>,
    poison_logged: Option<Instant>,
}

/// The feed cannot deliver; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotLive(String);

/// Where to open the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamStart {
    /// At the current cluster time, with an empty ring that is filled so far back.
    Fresh(Duration),
    /// At the time that it had reached.
    At(Timestamp),
}

/// Why the stream has to be opened again.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("{0}")]
    Failed(#[from] StreamError),
    #[error("MongoDB has closed it")]
    Closed,
    #[error("MongoDB did not answer in time")]
    TimedOut(#[from] Elapsed),
    #[error("it did not advance for {STALL_TIMEOUT:?}, but the cluster did; is a majority up?")]
    Stalled,
    #[error("the collection was dropped or renamed")]
    Ended(Timestamp),
    #[error("the feed panicked")]
    Panicked,
}

impl Feed {
    /// A feed of the messages in `database`. It should have a client of its own, because the stream
    /// keeps a connection busy.
    pub fn new(database: Database, limits: Limits) -> Self {
        Self {
            database,
            ring: Arc::new(Ring::new(limits)),
            limits,
            phase: watch::Sender::new(Phase::Starting),
            backfill: watch::Sender::new(None),
            health: Mutex::new(Health {
                advanced: Instant::now(),
                cause: None,
                cluster_time: None,
                poison_logged: None,
            }),
            is_narrow: AtomicBool::new(false),
            presence: broadcast::Sender::new(MAX_PRESENCE_CHANGES),
            removals: Mutex::default(),
            verdicts: Verdicts::default(),
            stats: Stats::default(),
        }
    }

    /// The ring that this feed writes to.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Reads the stream for ever. Spawn it once; dropping the future stops it.
    pub async fn run(&self) {
        join(self.run_stream(), self.run_backfill()).await;
    }

    async fn run_stream(&self) {
        let mut start = StreamStart::Fresh(self.limits.window);
        let mut backoff = Backoff::default();
        let mut tries = 0;
        loop {
            let begun = start;
            let ended = AssertUnwindSafe(self.read_stream(&mut start)).catch_unwind().await;
            let end = ended.unwrap_or(StreamEnd::Panicked);
            if start != begun {
                backoff = Backoff::default();
                tries = 0;
            }
            tries += 1;
            self.record_end(&end);
            match end.class() {
                ErrorClass::Standalone => {
                    self.deliver_locally().await;
                    start = StreamStart::Fresh(self.limits.window);
                }
                ErrorClass::Lost => start = self.restart_after_loss(&end),
                ErrorClass::RetryBriefly
                    if matches!(begun, StreamStart::At(_)) && tries >= MAX_TRIES =>
                {
                    start = self.restart_after_loss(&end);
                }
                ErrorClass::Retry | ErrorClass::RetryBriefly => {}
            }
            backoff.pause().await;
        }
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

    /// Publishes the events of something that was just stored, on a standalone MongoDB. Otherwise the
    /// change stream delivers them, and `events` is not called. Call it in the order of the
    /// acknowledgements.
    pub fn publish_local<E: IntoIterator<Item = Event>>(&self, events: impl FnOnce() -> E) {
        if self.phase() != Phase::Local {
            return;
        }
        let events = Vec::from_iter(events());
        let count = events.len() as u64;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let second = since_1970.map_or(0, |age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        self.ring.publish(Batch { events, newest: None, through: None, second });
        self.stats.events.fetch_add(count, Ordering::Relaxed);
    }

    /// Hears whether a message of a room with members, which is about to be stored, is delivered:
    /// not when its sender was removed in the meantime.
    pub fn verdict(&self, message: MessageId) -> oneshot::Receiver<bool> {
        self.verdicts.wait_for(MessageKey::Id(message.0))
    }

    /// Hears of changes of presence from now on. Call it before [`run`](Self::run).
    pub fn presence_changes(&self) -> broadcast::Receiver<PresenceChange> {
        self.presence.subscribe()
    }

    fn tell_presence(&self, change: PresenceChange) {
        // Nobody listens while presence is off.
        let _ = self.presence.send(change);
    }

    /// Whether changes of members come in the stream, without which there are no rooms with members.
    pub fn knows_members(&self) -> bool {
        !self.is_narrow.load(Ordering::Relaxed)
    }

    /// Opens the change stream of the database, or that of `messages` if the user has no privilege
    /// for more.
    async fn open_stream(
        &self,
        at: Timestamp,
        reading: Reading,
    ) -> Result<ChangeStream, StreamError> {
        let opened = ChangeStream::open(&self.database, Scope::Database, at, reading).await;
        match opened {
            Err(StreamError::Database(error)) if Failure::of(&error) == Failure::Privilege => {
                if !self.is_narrow.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "The user of MONGO_URI may not open a change stream on the database, so \
                         only the stream of messages is opened, and private rooms are off. Grant \
                         changeStream and find on the database, without a collection ({})",
                        describe(&error)
                    );
                }
                ChangeStream::open(&self.database, Scope::Messages, at, reading).await
            }
            Ok(stream) => {
                self.is_narrow.store(false, Ordering::Relaxed);
                Ok(stream)
            }
            failed => failed,
        }
    }

    /// Opens the stream and publishes its events until the stream ends.
    async fn read_stream(&self, start: &mut StreamStart) -> StreamEnd {
        match self.try_read_stream(start).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_read_stream(
        &self,
        start: &mut StreamStart,
    ) -> Result<std::convert::Infallible, StreamEnd> {
        let (from, fresh) = match *start {
            StreamStart::At(at) => (at, None),
            StreamStart::Fresh(window) => {
                let cluster = timeout(STALL_TIMEOUT, Cluster::ask(&self.database)).await??;
                if !cluster.has_change_streams {
                    return Err(StreamEnd::standalone());
                }
                let last = timeout(STALL_TIMEOUT, self.last_at(cluster.committed)).await??;
                (next_of(cluster.committed), Some((last, window)))
            }
        };
        let opening = self.open_stream(from, Reading::Live);
        let mut stream = timeout(STALL_TIMEOUT, opening).await??;
        if let Some((last, window)) = fresh {
            self.open(last, window);
            *start = StreamStart::At(from);
        }
        let mut advanced = Instant::now();
        let mut reached = from;
        loop {
            // After a timeout the stream is dropped: its cursor must not be used again.
            let next = timeout(STALL_TIMEOUT, stream.next(self.ring.newest())).await?;
            let reply = next.ok_or(StreamEnd::Closed)??;
            if reply.progress > reached || reply.progress >= reply.cluster_time {
                advanced = Instant::now();
                self.health().recovered(advanced);
            } else if advanced.elapsed() > STALL_TIMEOUT {
                return Err(StreamEnd::Stalled);
            }
            reached = reply.progress;
            *start = StreamStart::At(reached);
            if let Some(end) = self.publish(reply) {
                // The stream of a dropped collection brings nothing more.
                self.open(position_of(end), Duration::ZERO);
                *start = StreamStart::At(next_of(end));
                return Err(StreamEnd::Ended(end));
            }
        }
    }

    /// Publishes a reply. Returns the time at which the collection was dropped or renamed, if it
    /// was.
    fn publish(&self, reply: Reply) -> Option<Timestamp> {
        let Reply { changes, newest, progress, cluster_time, ended, poison } = reply;
        let room_of = |message: &MessageKey| self.ring.room_of(message);
        let Read { mut events, unknown, presence } =
            events_of(changes, &mut HashMap::new(), room_of);
        presence.into_iter().for_each(|change| self.tell_presence(change));
        let mut removals = self.removals.lock().unwrap_or_else(PoisonError::into_inner);
        events.retain(|event| {
            let is_delivered = removals.admit(event);
            self.verdicts.tell(event, is_delivered);
            is_delivered
        });
        drop(removals);
        if self.phase() == Phase::Filling {
            unknown.into_iter().for_each(|message| self.ring.note_removed(message));
        }
        self.count(&events, &poison);
        let lag = cluster_time.time.saturating_sub(progress.time);
        self.stats.lag.store(u64::from(lag), Ordering::Relaxed);
        self.health().see_cluster_time(cluster_time);
        let second = progress.time;
        self.ring.publish(Batch { events, newest, through: before(progress), second });
        ended
    }

    /// Counts the events of a reply.
    fn count(&self, events: &[Event], poison: &[Poison]) {
        let oversized = events.iter().filter(|event| event.is_resync()).count();
        self.stats.events.fetch_add(events.len() as u64, Ordering::Relaxed);
        self.stats.oversized.fetch_add(oversized as u64, Ordering::Relaxed);
        self.record_poison(poison);
    }

    /// Clears the ring. The stream goes on after `last`, the last position of its cluster time, and
    /// the backfill reads `window` back from there.
    fn open(&self, last: Position, window: Duration) {
        let epoch = self.ring.open(last);
        log::info!("change stream open at {last}");
        self.tell_presence(PresenceChange::Lost);
        self.phase.send_replace(Phase::Filling);
        self.backfill.send_replace(Some(Backfill { epoch, last, window }));
    }

    /// Restarts the stream at the current cluster time, because earlier events are lost.
    fn restart_after_loss(&self, cause: &StreamEnd) -> StreamStart {
        self.stats.losses.fetch_add(1, Ordering::Relaxed);
        log::error!("messages may have been missed, every room gets a resync: {cause}");
        StreamStart::Fresh(Duration::ZERO)
    }

    /// Delivers within this process until MongoDB is a replica set.
    async fn deliver_locally(&self) {
        log::warn!(
            "MongoDB is a standalone: messages are delivered within this process only, without \
             recovery. To change that, restart mongod with --replSet rs0 and run rs.initiate()"
        );
        self.ring.close();
        self.backfill.send_replace(None);
        self.phase.send_replace(Phase::Local);
        self.tell_presence(PresenceChange::Lost);
        loop {
            sleep(STANDALONE_CHECK).await;
            let asked = timeout(QUERY_TIMEOUT, Cluster::ask(&self.database)).await;
            if let Ok(Ok(Cluster { has_change_streams: true, .. })) = asked {
                log::info!("MongoDB is a replica set now");
                return;
            }
        }
    }

    /// Counts and logs why the stream ended.
    fn record_end(&self, end: &StreamEnd) {
        self.health().cause = Some(end.kind());
        match end {
            StreamEnd::Failed(error) if ErrorClass::of(error) == ErrorClass::Standalone => return,
            StreamEnd::Panicked => {
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
            }
            StreamEnd::Ended(_) => {
                self.stats.losses.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.stats.restarts.fetch_add(1, Ordering::Relaxed);
        log::warn!("the change stream is opened again: {end}");
    }

    /// Counts documents that are not valid messages, and logs at most one a minute.
    fn record_poison(&self, poison: &[Poison]) {
        let Some(Poison { position, cause }) = poison.first() else { return };
        self.stats.poison.fetch_add(poison.len() as u64, Ordering::Relaxed);
        let mut health = self.health();
        if health.poison_logged.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
            health.poison_logged = Some(Instant::now());
            log::warn!("skipped a document in messages, stored at {position}: {cause}");
        }
    }

    async fn wait_for_phase(&self, is_wanted: impl Fn(Phase) -> bool) {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`, so this ends only when the phase is reached.
        let _ = phases.wait_for(|phase| is_wanted(*phase)).await;
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

impl StreamEnd {
    fn standalone() -> Self {
        Self::Failed(StreamError::Standalone)
    }

    /// The kind of problem, without the text of a library.
    fn kind(&self) -> String {
        match self {
            Self::Failed(StreamError::Database(error)) => Failure::of(error).to_string(),
            Self::Failed(StreamError::Unreadable(_)) => {
                "the answer of MongoDB cannot be read".to_owned()
            }
            end => end.to_string(),
        }
    }

    fn class(&self) -> ErrorClass {
        match self {
            Self::Failed(error) => ErrorClass::of(error),
            // An event that causes a panic causes it again.
            Self::Panicked => ErrorClass::RetryBriefly,
            Self::Closed | Self::TimedOut(_) | Self::Stalled | Self::Ended(_) => ErrorClass::Retry,
        }
    }
}

/// The events of a reply.
struct Read {
    events: Vec<Event>,
    /// Messages that were removed and whose room is not known.
    unknown: Vec<MessageKey>,
    presence: Vec<PresenceChange>,
}

/// The room and the last position of each message that was seen.
type Rooms = HashMap<MessageKey, (RoomId, Option<Position>)>;

/// Turns changes into events. A removal does not name its room: the room is that of an earlier
/// event of the message, in `rooms` or by `room_of`. Without a room there is no event. The caller
/// keeps `rooms` from reply to reply.
fn events_of(
    changes: Vec<Change>,
    rooms: &mut Rooms,
    room_of: impl Fn(&MessageKey) -> Option<RoomId>,
) -> Read {
    let events = Vec::with_capacity(changes.len());
    let mut read = Read { events, unknown: Vec::new(), presence: Vec::new() };
    for change in changes {
        let event = match change {
            Change::Event(event) => event,
            Change::Presence(change) => {
                read.presence.push(change);
                continue;
            }
            Change::Removal(removal) => {
                let seen = rooms.get(removal.key()).map(|&(room, _)| room);
                let Some(room) = seen.or_else(|| room_of(removal.key())) else {
                    read.unknown.push(removal.key().clone());
                    continue;
                };
                removal.in_room(room)
            }
        };
        if let Some(key) = event.key() {
            rooms.insert(key.clone(), (event.room(), event.position()));
        }
        read.events.push(event);
    }
    read
}

fn position_of(time: Timestamp) -> Position {
    Position::first_of(time.time, time.increment)
}

/// A position before every insert at `time`.
fn before(time: Timestamp) -> Option<Position> {
    Some(Position::first_of(time.time, time.increment.checked_sub(1)?))
}

/// The earliest time at which something can follow what happened at `time`.
fn next_of(time: Timestamp) -> Timestamp {
    Timestamp { increment: time.increment.saturating_add(1), ..time }
}
