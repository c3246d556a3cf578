//! The recent events of all rooms, in stream order, shared by all workers.
//!
//! The feed appends new events and, after the start, prepends those before the start. Each worker
//! follows the ring by sequence number, and a session that resumes reads the events of its rooms
//! after its last position. The ring is bounded by age and bytes. It knows the position of the
//! newest evicted event of each room ([`Ring::recovers`]), so a position in a quiet room stays
//! recoverable however old it is. A reader that lags behind the ring gets [`Lagged`], so no event
//! is missed silently. Age is measured in cluster time, not by the clock of this machine.
//!
//! Nothing awaits under the lock, and each operation under it is short: some pushes, a look at one
//! end, or a binary search in the index of one room.

mod detached;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    event::{Event, MessageKey},
    position::Position,
};
use crate::models::RoomId;

use state::RingState;
pub(super) use state::footprint;

/// The sequence number of an event in this process, counted from 0. A standalone MongoDB has
/// sequence numbers but no positions. They are lost when the process ends.
pub type Seq = u64;

/// How much the ring keeps for recovery.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The age after which an event may be evicted (`RECOVERY_WINDOW`). Zero: nothing is
    /// recoverable.
    pub window: Duration,
    /// The bytes beyond which the oldest events are evicted (`RECOVERY_BYTES`).
    pub bytes: usize,
}

/// The maximum number of events that are prepended.
const MAX_FILLED: Seq = 1 << 32;

/// The maximum number of removed messages that the ring remembers during the backfill. With more,
/// the backfill ends.
const MAX_REMOVED: usize = 100_000;

/// See the [module](self).
#[derive(Debug)]
pub struct Ring {
    limits: Limits,
    // A standard lock: nothing awaits while it is held.
    state: RwLock<RingState>,
    end: watch::Sender<Seq>,
}

/// Identifies the time from one [`Ring::open`] to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(Seq);

/// The next event of this reader was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the events were evicted")]
pub struct Lagged {
    /// The end of the ring, from which the reader can go on.
    pub tail: Tail,
}

/// The end of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The number of the next event.
    pub seq: Seq,
    /// Every later event is after this position. `None` before the feed has begun and on a
    /// standalone MongoDB.
    pub through: Option<Position>,
}

/// An event of a room, and the number of the next one.
#[derive(Debug, Clone)]
pub struct RoomEvent {
    /// The event.
    pub event: Arc<Event>,
    /// Its number.
    pub seq: Seq,
    /// The number of the room's next event, or of the ring's next event if the room has none yet.
    pub next: Seq,
}

/// The events of one reply of MongoDB.
#[derive(Debug)]
pub struct Batch {
    /// The events in stream order, each after all that were published before.
    pub events: Vec<Event>,
    /// The position of the last change, even if it became no event.
    pub newest: Option<Position>,
    /// Every later event is after this position.
    pub through: Option<Position>,
    /// The current cluster time, in seconds since 1970.
    pub second: u32,
}

impl Ring {
    /// An empty ring, from which nothing is recoverable.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: RwLock::default(), end: watch::Sender::new(0) }
    }

    /// Clears the ring and begins a new epoch: the stream will bring all changes after `at`. Every
    /// reader then gets [`Lagged`]. Returns the epoch, which [`fill`](Self::fill) needs.
    pub fn open(&self, at: Position) -> Epoch {
        let mut state = self.write();
        // Leave room for the numbers of prepended events. Skip one more number, so that a reader at
        // the very end lags, too.
        let next = state.end() + 1 + MAX_FILLED;
        // Events that were published before are not published again.
        let is_complete = state.newest <= Some(at);
        let at = Some(at).max(state.newest);
        *state = RingState {
            first: next,
            recoverable: next,
            epoch_start: next,
            is_complete,
            floor: at,
            through: at,
            newest: state.newest,
            detached: state.detach(),
            ..RingState::default()
        };
        self.end.send_replace(next);
        Epoch(next)
    }

    /// Prepends the events after `from`, in stream order, to those of this epoch. Readers that
    /// follow the ring do not see them. Returns whether earlier events may be prepended, too: not
    /// if the limits are reached or the ring was opened again.
    pub fn fill(&self, epoch: Epoch, from: Position, events: Vec<Event>, second: u32) -> bool {
        let mut state = self.write();
        let filled = state.epoch_start.saturating_sub(state.first) + events.len() as Seq;
        let is_there = events.last().and_then(Event::position) > state.floor;
        let forgot = state.removed.len() > MAX_REMOVED;
        if state.epoch_start != epoch.0
            || !state.is_complete
            || is_there
            || filled > MAX_FILLED
            || forgot
        {
            return false;
        }
        for event in events.into_iter().rev() {
            let second = event.position().map_or(second, Position::seconds);
            state.push_front(event, second);
        }
        state.floor = state.floor.min(Some(from));
        state.evict(self.limits, second);
        state.is_complete
    }

    /// Clears the ring. Later events have no position. Every reader then gets [`Lagged`].
    pub fn close(&self) {
        let mut state = self.write();
        let next = state.end() + 1;
        let detached = state.detach();
        *state = RingState { first: next, recoverable: next, detached, ..RingState::default() };
        self.end.send_replace(next);
    }

    /// Appends events.
    pub fn publish(&self, batch: Batch) {
        let mut state = self.write();
        let was = state.end();
        for event in batch.events {
            let second = event.position().map_or(batch.second, Position::seconds);
            state.push(event, second);
        }
        state.newest = state.newest.max(batch.newest);
        state.through = state.through.max(batch.newest).max(batch.through);
        state.evict(self.limits, batch.second);
        if state.end() != was {
            self.end.send_replace(state.end());
        }
    }

    /// The room of a message that has an event in the ring, or one that left the ring and waits in
    /// an inbox.
    pub fn room_of(&self, message: &MessageKey) -> Option<RoomId> {
        self.read().room_of(message)
    }

    /// Remembers that a message without an event in the ring was removed, so that its text is not
    /// delivered if the backfill reads it later. Call it until the ring is [filled](Self::filled).
    pub fn note_removed(&self, message: MessageKey) {
        let removed = &mut self.write().removed;
        if removed.len() <= MAX_REMOVED {
            removed.insert(message);
        }
    }

    /// Ends the backfill.
    pub fn filled(&self) {
        self.write().removed = HashSet::new();
    }

    /// Where the ring ends.
    pub fn tail(&self) -> Tail {
        self.read().tail()
    }

    /// Announces the number of the next event each time that it grows.
    pub fn ends(&self) -> watch::Receiver<Seq> {
        self.end.subscribe()
    }

    /// The position of the newest change that the feed has read since the ring was opened.
    pub fn newest(&self) -> Option<Position> {
        self.read().newest
    }

    /// Up to `max` events from the number `from` on; empty if there are none yet.
    pub fn after(&self, from: Seq, max: usize) -> Result<Vec<Arc<Event>>, Lagged> {
        let state = self.read();
        let skip = state.index(from)?;
        let events = state.entries.iter().skip(skip).take(max);
        Ok(events.map(|entry| entry.event.clone()).collect())
    }

    /// The position up to which a reader has dispatched everything, if its next event has the
    /// number `seq` and its last one the position `dispatched`.
    pub fn through_at(&self, seq: Seq, dispatched: Option<Position>) -> Option<Position> {
        let state = self.read();
        if seq >= state.end() { state.through } else { dispatched }
    }

    /// Whether the ring still has every event of `room` after `since`.
    pub fn recovers(&self, room: RoomId, since: Position) -> bool {
        let state = self.read();
        let floor = state.evicted.get(&room).copied().or(state.floor);
        !self.limits.window.is_zero() && floor.is_some_and(|floor| since >= floor)
    }

    /// The position at which this ring begins, if no event of `room` was evicted since then. Only
    /// the database knows what came before.
    pub fn beginning(&self, room: RoomId) -> Option<Position> {
        let state = self.read();
        if state.evicted.contains_key(&room) { None } else { state.floor }
    }

    /// The number of the first event of `room` after `since`, or of the ring's next event if there
    /// is none.
    pub fn first_after(&self, room: RoomId, since: Position) -> Seq {
        let state = self.read();
        let Some(numbers) = state.rooms.get(&room) else { return state.end() };
        let passed = numbers.partition_point(|&seq| {
            state.entry(seq).and_then(|entry| entry.event.position()) <= Some(since)
        });
        numbers.get(passed).copied().unwrap_or_else(|| state.end())
    }

    /// The first event of `room` from the number `seq` on; `None` if there is none yet. `seq` comes
    /// from [`first_after`](Self::first_after) or [`RoomEvent::next`].
    pub fn event_of(&self, room: RoomId, seq: Seq) -> Result<Option<RoomEvent>, Lagged> {
        let state = self.read();
        state.index(seq)?;
        let Some(numbers) = state.rooms.get(&room) else { return Ok(None) };
        let mut numbers = numbers.range(numbers.partition_point(|&number| number < seq)..);
        let found = numbers.next().and_then(|&seq| Some((seq, state.entry(seq)?)));
        Ok(found.map(|(seq, entry)| RoomEvent {
            event: entry.event.clone(),
            seq,
            next: numbers.next().copied().unwrap_or_else(|| state.end()),
        }))
    }

    /// The number of events in the ring, and the bytes that are counted for them.
    pub fn size(&self) -> (usize, usize) {
        let state = self.read();
        (state.entries.len(), state.bytes)
    }

    fn read(&self) -> RwLockReadGuard<'_, RingState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, RingState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
