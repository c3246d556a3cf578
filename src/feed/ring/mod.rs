//! The recent events of all rooms, in stream order, shared by all workers.
//!
//! The feed writes at one end and, after the start, puts what was before in front of the other.
//! Each worker follows the ring by sequence number, and a session that comes back reads the events
//! of its rooms behind its last position. What is kept is bounded by age and bytes; the ring knows
//! the position of the newest event of each room that is no longer recoverable ([`Ring::recovers`]),
//! so that a quiet room never grows too old, and tells every reader that lags too far
//! ([`Lagged`]), so nobody misses an event without being told. Age is counted in cluster time,
//! never by our clock.
//!
//! Nothing awaits under the lock, and each operation under it is short: some pushes, a look at one
//! end, or a binary search in the index of one room.

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

/// The number of an event in this process, counted from 0. Unlike positions, these exist on a
/// standalone MongoDB, too, and end with the process.
pub type Seq = u64;

/// How much of the past is recoverable.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The age from which an event may be evicted (`RECOVERY_WINDOW`); zero: nothing is
    /// recoverable.
    pub window: Duration,
    /// The bytes beyond which the oldest events are evicted (`RECOVERY_BYTES`).
    pub bytes: usize,
}

/// How many events of before it was opened a ring takes.
const MAX_FILLED: Seq = 1 << 32;

/// Of how many messages that were removed before their events were filled in a ring knows. With
/// more, nothing more is filled in.
const MAX_REMOVED: usize = 100_000;

/// See the [module](self).
#[derive(Debug)]
pub struct Ring {
    limits: Limits,
    // A standard lock: nothing awaits while it is held.
    state: RwLock<RingState>,
    end: watch::Sender<Seq>,
}

/// The time from one opening of a ring to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(Seq);

/// The events that a reader wanted are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the events were evicted")]
pub struct Lagged {
    /// Where the ring ends now, to go on from.
    pub tail: Tail,
}

/// The end of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The number that the next event will have.
    pub seq: Seq,
    /// No event up to here will follow. `None` before the feed has begun and on a standalone
    /// MongoDB.
    pub through: Option<Position>,
}

/// An event of a room, and where that room goes on.
#[derive(Debug, Clone)]
pub struct RoomEvent {
    /// The event.
    pub event: Arc<Event>,
    /// Its number.
    pub seq: Seq,
    /// The number of the room's next event, or that of the ring's next when there is none yet.
    pub next: Seq,
}

/// What the feed read from one reply of the database.
#[derive(Debug)]
pub struct Batch {
    /// The events in stream order, each later than all published before.
    pub events: Vec<Event>,
    /// The position of the last insert, also when no event was made of it.
    pub newest: Option<Position>,
    /// No event at or before this position is to come.
    pub through: Option<Position>,
    /// The present, in seconds of the cluster time.
    pub second: u32,
}

impl Ring {
    /// An empty ring, of which nothing is recoverable yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: RwLock::default(), end: watch::Sender::new(0) }
    }

    /// Forgets everything and begins anew: the stream will bring all inserts after `at`. Whoever
    /// reads the ring lags. Answers what [`fill`](Self::fill) needs.
    pub fn open(&self, at: Position) -> Epoch {
        let mut state = self.write();
        // Behind numbers for what is filled in. The first is that of an event that never was: also
        // a reader at the very end has missed it.
        let next = state.end() + 1 + MAX_FILLED;
        // What was published before will not be published again.
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
            ..RingState::default()
        };
        self.end.send_replace(next);
        Epoch(next)
    }

    /// Puts events in front, which came before all others of this epoch: those after `from`, in
    /// stream order. Whoever follows the ring has no need of them. Answers whether there may be more
    /// in front of these; not when the limits are reached or the ring was opened anew.
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

    /// Forgets everything; from now on events have no position. Whoever reads lags.
    pub fn close(&self) {
        let mut state = self.write();
        let next = state.end() + 1;
        *state = RingState { first: next, recoverable: next, ..RingState::default() };
        self.end.send_replace(next);
    }

    /// Appends what the feed read.
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

    /// The room of a message of which an event is here.
    pub fn room_of(&self, message: &MessageKey) -> Option<RoomId> {
        let state = self.read();
        let seq = state.messages.get(message)?.last()?;
        Some(state.entry(*seq)?.event.room())
    }

    /// Nothing is known of this message but that it was removed: what is filled in later must not
    /// have its text. To be called until the ring is [filled](Self::filled).
    pub fn note_removed(&self, message: MessageKey) {
        let removed = &mut self.write().removed;
        if removed.len() <= MAX_REMOVED {
            removed.insert(message);
        }
    }

    /// Nothing more will be filled in.
    pub fn filled(&self) {
        self.write().removed = HashSet::new();
    }

    /// Where the ring ends.
    pub fn tail(&self) -> Tail {
        self.read().tail()
    }

    /// Announces the number behind the last event, each time that it grows.
    pub fn ends(&self) -> watch::Receiver<Seq> {
        self.end.subscribe()
    }

    /// The position of the newest insert that the feed has seen since the ring was opened.
    pub fn newest(&self) -> Option<Position> {
        self.read().newest
    }

    /// Up to `max` events for a follower that has come to number `from`; none when there are none
    /// yet.
    pub fn after(&self, from: Seq, max: usize) -> Result<Vec<Arc<Event>>, Lagged> {
        let state = self.read();
        let skip = state.index(from)?;
        let events = state.entries.iter().skip(skip).take(max);
        Ok(events.map(|entry| entry.event.clone()).collect())
    }

    /// Up to where a reader has everything that has handed on what comes before number `seq`, the
    /// last of it at the position `dispatched`.
    pub fn through_at(&self, seq: Seq, dispatched: Option<Position>) -> Option<Position> {
        let state = self.read();
        if seq >= state.end() { state.through } else { dispatched }
    }

    /// Whether every event of `room` after `since` is still here.
    pub fn recovers(&self, room: RoomId, since: Position) -> bool {
        let state = self.read();
        let floor = state.evicted.get(&room).copied().or(state.floor);
        !self.limits.window.is_zero() && floor.is_some_and(|floor| since >= floor)
    }

    /// Where the memory of this ring begins, when it has seen nothing of `room` since then that it
    /// is not recoverable any more. What came before can be asked of the database only.
    pub fn beginning(&self, room: RoomId) -> Option<Position> {
        let state = self.read();
        if state.evicted.contains_key(&room) { None } else { state.floor }
    }

    /// The number of the first event of `room` after `since`, or that of the ring's next event.
    pub fn first_after(&self, room: RoomId, since: Position) -> Seq {
        let state = self.read();
        let Some(numbers) = state.rooms.get(&room) else { return state.end() };
        let passed = numbers.partition_point(|&seq| {
            state.entry(seq).and_then(|entry| entry.event.position()) <= Some(since)
        });
        numbers.get(passed).copied().unwrap_or_else(|| state.end())
    }

    /// The first event of `room` from the number `seq` on, which
    /// [`first_after`](Self::first_after) or [`RoomEvent::next`] gave; `None` when there is none
    /// yet.
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

    /// How many events the ring holds, and the bytes that it counts for them.
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
