//! Reads the change stream into the ring, and opens it again whenever it ends.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bson::Timestamp;
use futures::FutureExt;
use tokio::time::{sleep, timeout};

use super::{
    Feed, Phase, PresenceChange, QUERY_TIMEOUT,
    backfill::Backfill,
    backoff::Backoff,
    changes::{Read, events_of},
    end::{MAX_TRIES, STALL_TIMEOUT, StreamEnd},
    event::{Event, MessageKey},
    next_of,
    position::Position,
    position_of,
    removals::Removals,
    ring::Batch,
    stream::{ChangeStream, Cluster, ErrorClass, Poison, Reading, Reply, Scope, StreamError},
};

/// How often to check whether a standalone MongoDB has become a replica set.
const STANDALONE_CHECK: Duration = Duration::from_secs(30);

/// How often to try whether the user may open the stream of the database by now.
const WIDEN: Duration = Duration::from_secs(10);

/// Where to open the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamStart {
    /// At the current cluster time, with an empty ring that is filled so far back.
    Fresh(Duration),
    /// At the time that it had reached.
    At(Timestamp),
}

impl Feed {
    pub(super) async fn run_stream(&self) {
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

    /// Opens the change stream of the database, or that of `messages` if the user has no privilege
    /// for more.
    pub(super) async fn open_stream(
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
    pub(super) fn admit(&self, removals: &mut Removals, event: &Event, is_live: bool) -> bool {
        if !self.knows_members() && event.room().may_have_members() {
            return false;
        }
        let is_delivered = removals.admit(event);
        self.verdicts.tell(event, is_delivered, is_live);
        is_delivered
    }

    /// Counts the events of a reply.
    pub(super) fn count(&self, events: &[Event], poison: &[Poison]) {
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
    pub(super) fn record_poison(&self, poison: &[Poison]) {
        let Some(Poison { position, cause }) = poison.first() else { return };
        self.stats.poison.fetch_add(poison.len() as u64, Ordering::Relaxed);
        let mut health = self.health();
        if health.poison_logged.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
            health.poison_logged = Some(Instant::now());
            log::warn!("skipped a document in messages, stored at {position}: {cause}");
        }
    }
}

/// A position before every insert at `time`.
fn before(time: Timestamp) -> Option<Position> {
    Some(Position::first_of(time.time, time.increment.checked_sub(1)?))
}
