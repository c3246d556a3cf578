//! The backfill: a second stream reads the events before the ring was opened and adds them to the
//! ring.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    panic::AssertUnwindSafe,
    time::Duration,
};

use bson::Timestamp;
use futures::FutureExt;
use tokio::time::timeout;

use super::{
    Feed, Phase,
    backoff::Backoff,
    changes::events_of,
    end::{MAX_TRIES, StreamEnd},
    event::{Event, Kind},
    next_of,
    position::{Position, back},
    position_of,
    removals::Removals,
    ring::{Epoch, footprint},
    stream::{ErrorClass, Poison, Reading},
};

/// How long one reply may take while MongoDB searches an oplog that is full of other changes.
const BACKFILL_TIMEOUT: Duration = Duration::from_secs(120);

/// After so many empty replies the backfill is complete, even if the resume token cannot be read.
const MAX_EMPTY_REPLIES: u32 = 1_000;

/// How many events are added to the ring under one lock.
const CHUNK: usize = 1_000;

/// What to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backfill {
    pub(super) epoch: Epoch,
    /// The last position, inclusive.
    pub(super) last: Position,
    pub(super) window: Duration,
}

impl Feed {
    /// Fills the ring each time that it is opened.
    pub(super) async fn run_backfill(&self) {
        let mut epochs = self.backfill.subscribe();
        loop {
            let backfill = *epochs.borrow_and_update();
            let filling = async {
                if let Some(backfill) = backfill {
                    self.backfill(backfill).await;
                }
                pending().await
            };
            tokio::select! {
                biased;
                // The sender lives in `self`.
                _ = epochs.changed() => {}
                never = filling => match never {},
            }
        }
    }

    async fn backfill(&self, mut backfill: Backfill) {
        let mut backoff = Backoff::default();
        let mut tries = 0;
        while !backfill.window.is_zero() {
            let filled = AssertUnwindSafe(self.try_backfill(backfill)).catch_unwind().await;
            let Err(end) = filled.unwrap_or(Err(StreamEnd::Panicked)) else { break };
            tries += 1;
            match end.class() {
                // The oplog does not reach back so far: try half of the window.
                ErrorClass::Lost => {
                    backfill.window = Duration::from_secs(backfill.window.as_secs() / 2);
                    tries = 0;
                    continue;
                }
                ErrorClass::RetryBriefly if tries >= MAX_TRIES => {
                    log::error!("messages before the start cannot be recovered: {end}");
                    break;
                }
                _ => {
                    log::warn!("reading the messages before the start failed, trying again: {end}")
                }
            }
            backoff.pause().await;
        }
        self.phase.send_if_modified(|phase| {
            let is_filling = *phase == Phase::Filling;
            if is_filling {
                *phase = Phase::Live;
                self.ring.filled();
            }
            is_filling
        });
    }

    async fn try_backfill(
        &self,
        Backfill { epoch, last, window }: Backfill,
    ) -> Result<(), StreamEnd> {
        let (time, increment) = last.time();
        let until = Timestamp { time, increment };
        let count = |events: &[Event], poison: &[Poison]| self.count(events, poison);
        let (from, events) = self.read(back(until, window), until, count).await?;
        // The newest first, so that the ring never has a gap.
        let mut rest = Vec::from(events);
        loop {
            let chunk = rest.split_off(rest.len().saturating_sub(CHUNK));
            let front = rest.last().and_then(Event::position).unwrap_or(from);
            let goes_on = self.ring.fill(epoch, front, chunk, time);
            if rest.is_empty() || !goes_on {
                log::info!("messages from {front} on can be recovered");
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    /// Reads the events from `at` to `until`, both inclusive. Returns the newest of them, as many
    /// as the ring has room for, and the position after which they are complete.
    async fn read(
        &self,
        mut at: Timestamp,
        until: Timestamp,
        count: impl Fn(&[Event], &[Poison]),
    ) -> Result<(Position, VecDeque<Event>), StreamEnd> {
        let is_past = |position: Position| position.time() <= (until.time, until.increment);
        let (mut from, mut events, mut bytes) = (position_of(at), VecDeque::new(), 0);
        // The rooms of the messages so far, for later removals.
        let mut rooms = HashMap::new();
        // Without the removals before `at`, which would take a second search of the oplog. A message
        // that was refused because of one of them was taken back soon after, which is read, too.
        let mut removals = Removals::default();
        loop {
            let opening = self.open_stream(at, Reading::Backfill);
            let mut stream = timeout(BACKFILL_TIMEOUT, opening).await??;
            let mut empty_replies = 0;
            let ended = loop {
                let reply = timeout(BACKFILL_TIMEOUT, stream.next(None)).await?;
                let mut reply = reply.ok_or(StreamEnd::Closed)??;
                let has_more = reply.newest.is_some() || reply.ended.is_some();
                reply.changes.retain(|change| change.position().is_some_and(is_past));
                reply.poison.retain(|poison| is_past(poison.position));
                // Revoked tokens are read from their collection.
                let admit = |event: &Event| {
                    event.kind() != Kind::Revoked && self.admit(&mut removals, event, false)
                };
                let read = events_of(reply.changes, &mut rooms, |_| None, admit);
                count(&read.events, &reply.poison);
                bytes += read.events.iter().map(footprint).sum::<usize>();
                events.extend(read.events);
                while bytes > self.limits.bytes
                    && let Some(oldest) = events.pop_front()
                {
                    bytes -= footprint(&oldest);
                    if let Some(key) = oldest.key()
                        && rooms.get(key).is_some_and(|(_, last)| *last == oldest.position())
                    {
                        rooms.remove(key);
                    }
                    from = oldest.position().unwrap_or(from);
                }
                if let Some(ended) = reply.ended {
                    break ended;
                }
                empty_replies = if has_more { 0 } else { empty_replies + 1 };
                // A reply without events means that the oplog has no more.
                let is_done = reply.progress > until || (!has_more && reply.progress == until);
                if is_done || empty_replies == MAX_EMPTY_REPLIES {
                    return Ok((from, events));
                }
            };
            if ended > until {
                return Ok((from, events));
            }
            // A new collection of that name begins at least one increment later.
            (events, bytes, from, at) = (VecDeque::new(), 0, position_of(ended), next_of(ended));
            rooms.clear();
        }
    }

    /// The position of the last change at a cluster time, which several changes can share. Without
    /// changes, the position of the time itself.
    pub(super) async fn last_at(&self, time: Timestamp) -> Result<Position, StreamEnd> {
        let (from, events) = self.read(time, time, |_, _| {}).await?;
        Ok(events.back().and_then(Event::position).unwrap_or(from))
    }
}
