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
//!
//! A third task keeps the set of [revoked] tokens, and the database's time.

mod backfill;
mod backoff;
pub mod event;
pub mod position;
pub mod removals;
pub mod revoked;
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
use futures::{FutureExt, future::join3};
use mongodb::Database;
use tokio::{
    sync::{broadcast, oneshot, watch},
    time::{error::Elapsed, sleep, timeout},
};

use crate::models::{Clock, Failure, MessageId, PresenceRow, Revocations, RoomId, Store};

use backfill::Backfill;
use backoff::Backoff;
use event::{Event, MessageKey};
use position::Position;
use removals::{RefusedMessage, Removals, Verdicts};
use revoked::Revoked;
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

/// How often to try whether the user may open the stream of the database by now.
const WIDEN: Duration = Duration::from_secs(10);

/// How long a request waits until the stream has read what is stored.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

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
    #[error("a collection was dropped or renamed")]
    Ended(Timestamp),
    #[error("the feed panicked")]
    Panicked,
}

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

    /// Publishes the events of something that was just stored, on a standalone MongoDB. Otherwise the
    /// change stream delivers them, and `events` is not called. Call it in the order of the
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

    /// Whether a message was stored after its sender was removed from the room, as far as the stream
    /// was read.
    pub fn was_refused(&self, message: MessageId) -> bool {
        self.verdicts.was_refused(message)
    }

    /// Takes a refused message that may still be in the collection, because the instance that stored
    /// it was killed.
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
            Err(error) if error.is_privilege() => {
                if self.knows_members() {
                    log::warn!(
                        "The user of MONGO_URI may not open a change stream on the database, so \
                         only the stream of messages is opened, and private rooms are off. Grant \
                         changeStream and find on the database, without a collection ({error})"
                    );
                }
                ChangeStream::open(&self.database, Scope::Messages, at, reading).await
            }
            opened => opened,
        }
    }

    /// Tries to open the stream of the database, while that of `messages` is read.
    async fn try_widen(&self, at: Timestamp) -> Option<ChangeStream> {
        let opening = ChangeStream::open(&self.database, Scope::Database, at, Reading::Live);
        timeout(QUERY_TIMEOUT, opening).await.ok()?.ok()
    }

    /// Notes which stream is read from `from` on. If that has changed, the ring begins anew: one
    /// stream has the events of rooms with members, the other has not, and sessions in such rooms
    /// must not go on.
    async fn note_scope(&self, scope: Scope, from: Timestamp) -> Result<(), StreamEnd> {
        let is_narrow = scope == Scope::Messages;
        if self.is_narrow.load(Ordering::Relaxed) == is_narrow {
            return Ok(());
        }
        if !is_narrow {
            log::info!("private rooms are on again: the stream of the database can be opened");
            let before_start = self.removals_before(from).await?;
            *self.removals() = before_start;
        }
        self.is_narrow.store(is_narrow, Ordering::Relaxed);
        if self.phase() != Phase::Starting {
            let last = self.ring.newest().max(before(from)).unwrap_or(Position::ZERO);
            self.open(last, self.limits.window);
        }
        Ok(())
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
                let before_start = self.removals_before(cluster.committed).await?;
                *self.removals() = before_start;
                (next_of(cluster.committed), Some((last, window)))
            }
        };
        let opening = self.open_stream(from, Reading::Live);
        let mut stream = timeout(STALL_TIMEOUT, opening).await??;
        self.note_scope(stream.scope(), from).await?;
        if let Some((last, window)) = fresh {
            self.open(last, window);
            *start = StreamStart::At(from);
        }
        let mut advanced = Instant::now();
        let mut reached = from;
        let mut tried_to_widen = Instant::now();
        loop {
            if stream.scope() == Scope::Messages && tried_to_widen.elapsed() > WIDEN {
                tried_to_widen = Instant::now();
                if let Some(wide) = self.try_widen(reached).await {
                    self.note_scope(wide.scope(), reached).await?;
                    stream = wide;
                }
            }
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
            let is_close = reached.time.saturating_add(1) >= reply.cluster_time.time;
            let ended = self.publish(reply);
            if is_close && self.knows_members() {
                self.revoked.is_heard();
            }
            if let Some(end) = ended {
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
        let mut removals = self.removals();
        let admit = |event: &Event| self.admit(&mut removals, event, true);
        let Read { events, unknown, presence } =
            events_of(changes, &mut HashMap::new(), room_of, admit);
        presence.into_iter().for_each(|change| self.tell_presence(change));
        drop(removals);
        if self.phase() == Phase::Filling {
            unknown.into_iter().for_each(|message| self.ring.note_removed(message));
        }
        // Known to requests before it is told to sessions.
        events.iter().filter_map(Event::revocation).for_each(|revocation| {
            self.revoked.insert(*revocation);
        });
        self.count(&events, &poison);
        let lag = cluster_time.time.saturating_sub(progress.time);
        self.stats.lag.store(u64::from(lag), Ordering::Relaxed);
        self.health().see_cluster_time(cluster_time);
        let second = progress.time;
        self.ring.publish(Batch { events, newest, through: before(progress), second });
        self.reached.send_replace(progress);
        ended
    }

    /// Whether an event of the stream is delivered. `is_live`: not read by the backfill.
    fn admit(&self, removals: &mut Removals, event: &Event, is_live: bool) -> bool {
        if !self.knows_members() && event.room().may_have_members() {
            return false;
        }
        let is_delivered = removals.admit(event);
        self.verdicts.tell(event, is_delivered, is_live);
        is_delivered
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
        self.revoked.begin();
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
        self.revoked.begin();
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
        let mut health = self.health();
        health.cause = Some(end.kind());
        health.interrupted = Some(Instant::now());
        drop(health);
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

/// Turns changes into events, except those that are not `admitted`. A removal does not name its room:
/// the room is that of an earlier event of the message, in `rooms` or by `room_of`. Without a room
/// there is no event. The caller keeps `rooms` from reply to reply.
fn events_of(
    changes: Vec<Change>,
    rooms: &mut Rooms,
    room_of: impl Fn(&MessageKey) -> Option<RoomId>,
    mut admitted: impl FnMut(&Event) -> bool,
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
        if !admitted(&event) {
            continue;
        }
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
