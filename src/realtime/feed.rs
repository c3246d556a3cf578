//! The one reader of the change stream, and the only publisher.
//!
//! One task in the process reads the stream of new messages and puts them into the ring, from
//! which every worker takes them. It begins at the cluster's own time less the recovery window,
//! so that a restart loses nothing, and opens the stream again whenever it fails, stands still or
//! ends: at the cluster time that it had reached, dropping what was published already. When the
//! past cannot be had, it opens the ring anew, which tells every session to fetch the history.
//! Every way out of the stream leads to one of these two, after a pause that grows: the feed
//! never spins and never stops in silence ([`Feed::live`]).
//!
//! On a standalone MongoDB there is no stream; then whoever stores a message publishes it here.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bson::Timestamp;
use futures::FutureExt;
use mongodb::Database;
use tokio::{
    sync::watch,
    time::{error::Elapsed, sleep, timeout},
};

use super::{
    event::Event,
    position::Position,
    ring::{Batch, Limits, Ring},
    stream::{ChangeStream, Cluster, Fate, Poison, Reply, StreamError},
};
use crate::models::Message;

/// How long the stream may be silent, and how long it may stand still while the cluster moves on.
/// A reply comes each second, and an idle cluster writes a no-op every ten.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a question to the cluster may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How often a standalone MongoDB is asked whether it has become a replica set.
const STANDALONE_CHECK: Duration = Duration::from_secs(30);

/// So many failures of one kind at one place mean that the place is the cause.
const TRIES_IN_PLACE: u32 = 3;

/// See the [module](self).
pub struct Feed {
    database: Database,
    ring: Arc<Ring>,
    /// How far back the ring is filled at the start.
    window: Duration,
    phase: watch::Sender<Phase>,
    // A standard lock: nothing awaits while it is held.
    health: Mutex<Health>,
    stats: Stats,
}

/// How messages get to sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet: the stream has not been opened since the start.
    Starting,
    /// By the change stream; the ring does not yet hold all of the recovery window.
    Filling,
    /// By the change stream.
    Live,
    /// Within this process, since MongoDB is a standalone.
    Local,
}

/// Counters since the start of the process.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events published.
    pub events: AtomicU64,
    /// Inserts skipped because they are no messages.
    pub poison: AtomicU64,
    /// Inserts that became a `resync` because of their size.
    pub oversized: AtomicU64,
    /// Times that the stream had to be opened again.
    pub restarts: AtomicU64,
    /// Times that the past was lost and every session was told to fetch the history.
    pub losses: AtomicU64,
    /// Panics, each of which restarted the feed.
    pub panics: AtomicU64,
    /// How far the stream is behind the cluster, in seconds.
    pub lag: AtomicU64,
}

#[derive(Debug)]
struct Health {
    /// When the stream last was where the cluster is, or came nearer.
    moved: Instant,
    /// What went wrong since.
    cause: Option<String>,
    /// The newest time of the cluster that was heard of.
    cluster_time: Option<Position>,
    poison_logged: Option<Instant>,
}

/// Why the feed cannot deliver; the text says more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotLive(String);

/// Where the stream is to be opened.
#[derive(Debug)]
enum Course {
    /// At the cluster's own time less this, with the ring opened anew.
    Fresh(Duration),
    /// Where it was. With a reach, that is where a fresh start began, and MongoDB has not answered
    /// yet whether its oplog goes back so far.
    At(Timestamp, Option<Duration>),
}

/// Why the stream has to be opened again.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Failed(#[from] StreamError),
    #[error("MongoDB has closed it")]
    Closed,
    #[error("MongoDB has not answered for {PATIENCE:?}")]
    Silent(#[from] Elapsed),
    #[error("it has stood still for {PATIENCE:?} while the cluster moved on; is a majority up?")]
    StoodStill,
    #[error("the collection was dropped or renamed")]
    Ended(Timestamp),
    #[error("the feed panicked")]
    Panicked,
}

impl Feed {
    /// A feed of the messages in `database`, which should be a client's of its own: the stream
    /// keeps a connection busy.
    pub fn new(database: Database, limits: Limits) -> Self {
        Self {
            database,
            ring: Arc::new(Ring::new(limits)),
            window: limits.window,
            phase: watch::Sender::new(Phase::Starting),
            health: Mutex::new(Health {
                moved: Instant::now(),
                cause: None,
                cluster_time: None,
                poison_logged: None,
            }),
            stats: Stats::default(),
        }
    }

    /// The ring that this feed writes to.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// What was counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Reads the stream for ever. To be spawned once; whoever stops it drops it as a whole.
    pub async fn run(&self) {
        let mut course = Course::Fresh(self.window);
        let mut backoff = Backoff::default();
        let mut tries_in_place = 0;
        loop {
            let begun = course.place();
            let followed = AssertUnwindSafe(self.follow(&mut course)).catch_unwind().await;
            let end = followed.unwrap_or(End::Panicked);
            if course.place() != begun {
                backoff = Backoff::default();
                tries_in_place = 0;
            }
            tries_in_place += 1;
            self.note(&end);
            match end.fate() {
                Fate::Standalone => {
                    self.serve_locally().await;
                    course = Course::Fresh(self.window);
                }
                Fate::Lost => match course {
                    // The oplog does not reach back so far: less is better than nothing.
                    Course::Fresh(reach) | Course::At(_, Some(reach)) if !reach.is_zero() => {
                        course = Course::Fresh(Duration::from_secs(reach.as_secs() / 2));
                        continue;
                    }
                    _ => course = self.lose(&end),
                },
                Fate::RetryBriefly if begun.is_some() && tries_in_place >= TRIES_IN_PLACE => {
                    course = self.lose(&end);
                }
                Fate::Retry | Fate::RetryBriefly => {}
            }
            backoff.pause().await;
        }
    }

    /// How messages get to sessions, or why they do not.
    ///
    /// # Errors
    /// Says why, for `readyz` and the log.
    pub fn live(&self) -> Result<Phase, NotLive> {
        let phase = *self.phase.borrow();
        let health = self.health();
        let stalled = health.moved.elapsed() > PATIENCE;
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

    /// How messages get to sessions, whether or not they do at this moment.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until rooms can be joined.
    pub async fn started(&self) {
        self.reach(|phase| phase != Phase::Starting).await;
    }

    /// Waits until the ring holds all that it can recover.
    pub async fn filled(&self) {
        self.reach(|phase| matches!(phase, Phase::Live | Phase::Local)).await;
    }

    /// Whether the cluster has got to `position`, which this process has not seen. Asks it only
    /// when nothing newer was heard of.
    pub async fn cluster_reached(&self, position: Position) -> bool {
        let reached = |time: Option<Position>| time.map(Position::time) >= Some(position.time());
        if reached(self.health().cluster_time) {
            return true;
        }
        let asked = timeout(ANSWER, Cluster::ask(&self.database)).await;
        let Ok(Ok(cluster)) = asked else { return false };
        self.health().hear_of(cluster.latest);
        reached(Some(position_of(cluster.latest)))
    }

    /// Delivers a message that was just stored, on a standalone MongoDB; elsewhere the stream
    /// does. To be called in the order of the acknowledgements, by whoever stores one.
    pub fn publish_local(&self, message: &Message<'_>) {
        if self.phase() != Phase::Local {
            return;
        }
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let second = since_1970.map_or(0, |age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        let events = vec![Event::message(message, None)];
        self.ring.publish(Batch { events, newest: None, through: None, second });
        self.stats.events.fetch_add(1, Ordering::Relaxed);
    }

    /// Opens the stream and publishes what it brings, until it cannot go on.
    async fn follow(&self, course: &mut Course) -> End {
        match self.try_follow(course).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_follow(&self, course: &mut Course) -> Result<std::convert::Infallible, End> {
        let (from, fresh) = match *course {
            Course::At(at, _) => (at, None),
            Course::Fresh(reach) => {
                let cluster = timeout(PATIENCE, Cluster::ask(&self.database)).await??;
                if !cluster.has_change_streams {
                    return Err(End::standalone());
                }
                (back(cluster.committed, reach), Some((cluster.committed, reach)))
            }
        };
        let mut stream = timeout(PATIENCE, ChangeStream::open(&self.database, from)).await??;
        if let Some((live, reach)) = fresh {
            self.open(position_of(from), position_of(live));
            *course = Course::At(from, Some(reach));
        }
        let mut moved = Instant::now();
        let mut reached = from;
        // The first reply comes before MongoDB has searched anything.
        let mut has_searched = false;
        loop {
            // A stream whose answer did not come in time is never asked again: it is dropped.
            let next = timeout(PATIENCE, stream.next(self.ring.newest())).await?;
            let reply = next.ok_or(End::Closed)??;
            if reply.progress > reached || reply.progress >= reply.cluster_time {
                moved = Instant::now();
                self.health().recovered(moved);
            } else if moved.elapsed() > PATIENCE {
                return Err(End::StoodStill);
            }
            reached = reply.progress;
            if has_searched || reached > from {
                *course = Course::At(reached, None);
            }
            has_searched = true;
            if let Some(end) = self.publish(reply) {
                // Nothing can follow it in the stream of a collection that is gone. What is
                // inserted into a new one comes later, by at least one increment.
                self.open(position_of(end), position_of(end));
                let next = Timestamp { increment: end.increment.saturating_add(1), ..end };
                *course = Course::At(next, None);
                return Err(End::Ended(end));
            }
        }
    }

    /// Publishes a reply; returns when the collection ended, if it did.
    fn publish(&self, reply: Reply) -> Option<Timestamp> {
        let Reply { events, newest, progress, cluster_time, ended, poison, oversized } = reply;
        let lag = cluster_time.time.saturating_sub(progress.time);
        self.stats.events.fetch_add(events.len() as u64, Ordering::Relaxed);
        self.stats.oversized.fetch_add(oversized, Ordering::Relaxed);
        self.stats.lag.store(u64::from(lag), Ordering::Relaxed);
        self.skip(&poison);
        self.health().hear_of(cluster_time);
        let second = progress.time;
        self.ring.publish(Batch { events, newest, through: before(progress), second });
        let standing = self.ring.tail().standing;
        // A reply that got beyond the start, if only by time, has brought all that came before.
        let filled =
            standing.through >= standing.live || Some(position_of(progress)) >= standing.live;
        if filled && self.phase() != Phase::Live {
            self.phase.send_replace(Phase::Live);
        }
        ended
    }

    fn open(&self, from: Position, live: Position) {
        self.ring.open(from, live);
        log::info!("following new messages from {live}, those from {from} can be recovered");
        self.phase.send_replace(Phase::Filling);
    }

    /// Gives the past up.
    fn lose(&self, cause: &End) -> Course {
        self.stats.losses.fetch_add(1, Ordering::Relaxed);
        log::error!("messages may have been missed, all rooms will be told to resync: {cause}");
        Course::Fresh(Duration::ZERO)
    }

    /// Serves a standalone MongoDB until it is one no more.
    async fn serve_locally(&self) {
        log::warn!(
            "MongoDB is a standalone: messages are delivered within this process only, without \
             recovery. To change that, restart mongod with --replSet rs0 and run rs.initiate()"
        );
        self.ring.close();
        self.phase.send_replace(Phase::Local);
        loop {
            sleep(STANDALONE_CHECK).await;
            let asked = timeout(ANSWER, Cluster::ask(&self.database)).await;
            if let Ok(Ok(Cluster { has_change_streams: true, .. })) = asked {
                log::info!("MongoDB is a replica set now");
                return;
            }
        }
    }

    /// Counts and logs why the stream is opened again.
    fn note(&self, end: &End) {
        self.health().cause = Some(end.to_string());
        match end {
            End::Failed(error) if Fate::of(error) == Fate::Standalone => return,
            End::Panicked => {
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
            }
            End::Ended(_) => {
                self.stats.losses.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.stats.restarts.fetch_add(1, Ordering::Relaxed);
        log::warn!("the change stream of messages is opened again: {end}");
    }

    /// Counts documents that are no messages, and logs the first of them every minute.
    fn skip(&self, poison: &[Poison]) {
        let Some(Poison { position, cause }) = poison.first() else { return };
        self.stats.poison.fetch_add(poison.len() as u64, Ordering::Relaxed);
        let mut health = self.health();
        if health.poison_logged.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
            health.poison_logged = Some(Instant::now());
            log::warn!("skipped a document in messages, inserted at {position}: {cause}");
        }
    }

    async fn reach(&self, is_reached: impl Fn(Phase) -> bool) {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`, so this ends only when the phase is reached.
        let _ = phases.wait_for(|phase| is_reached(*phase)).await;
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    fn recovered(&mut self, moved: Instant) {
        self.moved = moved;
        self.cause = None;
    }

    fn hear_of(&mut self, time: Timestamp) {
        self.cluster_time = self.cluster_time.max(Some(position_of(time)));
    }
}

impl Course {
    fn place(&self) -> Option<Timestamp> {
        match *self {
            Self::Fresh(_) => None,
            Self::At(at, _) => Some(at),
        }
    }
}

impl End {
    fn standalone() -> Self {
        Self::Failed(StreamError::Standalone)
    }

    fn fate(&self) -> Fate {
        match self {
            Self::Failed(error) => Fate::of(error),
            // A panic over one event would come back with it.
            Self::Panicked => Fate::RetryBriefly,
            Self::Closed | Self::Silent(_) | Self::StoodStill | Self::Ended(_) => Fate::Retry,
        }
    }
}

fn position_of(time: Timestamp) -> Position {
    Position::first_of(time.time, time.increment)
}

/// A position before every insert at `time`.
fn before(time: Timestamp) -> Option<Position> {
    Some(Position::first_of(time.time, time.increment.checked_sub(1)?))
}

fn back(time: Timestamp, reach: Duration) -> Timestamp {
    let seconds = u32::try_from(reach.as_secs()).unwrap_or(u32::MAX);
    if seconds == 0 {
        return time;
    }
    Timestamp { time: time.time.saturating_sub(seconds), increment: 1 }
}

/// Pauses between attempts: doubling, bounded, and jittered so that the instances do not knock
/// all at once.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(5);

    async fn pause(&mut self) {
        // Without entropy there is no jitter, which is no reason not to pause.
        let jitter = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        sleep(self.0.mul_f64(0.5 + jitter / 2.0)).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}
