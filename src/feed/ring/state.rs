//! The state of a ring, and the eviction of events beyond its limits.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use smallvec::SmallVec;

use super::{Lagged, Limits, Seq, Tail};
use crate::{
    feed::{
        event::{Event, Kind, MessageKey},
        position::Position,
    },
    models::RoomId,
};

/// The minimum that is kept for workers that follow the ring, whatever the limits are: each worker
/// must read an event before it is dropped, even if nothing is kept for recovery.
const FOLLOWER_LIMITS: Limits = Limits { window: Duration::from_secs(10), bytes: 1 << 20 };

/// The maximum number of rooms whose newest evicted event is known. With more, the list is cleared,
/// and no room is recoverable from before the last of these events.
pub(super) const MAX_EVICTED: usize = 20_000;

/// The bytes that are counted for an event beside its JSON: itself, and its entries in the ring and
/// in both indexes.
pub(super) const OVERHEAD: usize = 320;

#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) entries: VecDeque<Entry>,
    /// The number of the first entry.
    pub(super) first: Seq,
    /// The sum of the entries' footprints.
    pub(super) bytes: usize,
    /// The number of the first entry within the limits. Earlier ones are kept for followers only.
    pub(super) recoverable: Seq,
    /// The sum of the footprints from `recoverable` on.
    pub(super) recoverable_bytes: usize,
    /// The numbers of each room's entries, in order. Rooms without entries are removed.
    pub(super) rooms: HashMap<RoomId, VecDeque<Seq>>,
    /// The numbers of each message's entries, in order. Messages without entries are removed.
    pub(super) messages: HashMap<MessageKey, SmallVec<[Seq; 1]>>,
    /// Messages that had no entry when another program removed them. The backfill may still read
    /// their text.
    pub(super) removed: HashSet<MessageKey>,
    /// The position of the newest evicted event of each room.
    pub(super) evicted: HashMap<RoomId, Position>,
    /// For rooms that are not in `evicted`: every event after this position is in the ring. `None`:
    /// nothing is recoverable.
    pub(super) floor: Option<Position>,
    /// The number of the first event since the ring was opened.
    pub(super) epoch_start: Seq,
    /// No event after `floor` was evicted.
    pub(super) is_complete: bool,
    /// See [`Tail::through`].
    pub(super) through: Option<Position>,
    /// The position of the newest change that was read, even if it became no event.
    pub(super) newest: Option<Position>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: Arc<Event>,
    /// Its cluster time, in seconds since 1970.
    pub(super) second: u32,
}

impl RingState {
    pub(super) fn end(&self) -> Seq {
        self.first + self.entries.len() as Seq
    }

    pub(super) fn tail(&self) -> Tail {
        Tail { seq: self.end(), through: self.through }
    }

    /// The index of the entry `seq`, which may be past the end.
    pub(super) fn index(&self, seq: Seq) -> Result<usize, Lagged> {
        let behind = seq.checked_sub(self.first).ok_or(Lagged { tail: self.tail() })?;
        Ok(usize::try_from(behind).unwrap_or(usize::MAX))
    }

    pub(super) fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(self.index(seq).ok()?)
    }

    pub(super) fn push(&mut self, event: Event, second: u32) {
        let seq = self.end();
        self.rooms.entry(event.room()).or_default().push_back(seq);
        if let Some(key) = event.key() {
            if event.kind() == Kind::Deleted {
                self.of_message(key).for_each(Event::withdraw);
            }
            self.messages.entry(key.clone()).or_default().push(seq);
        }
        let entry = Entry { event: Arc::new(event), second };
        self.bytes += entry.footprint();
        self.recoverable_bytes += entry.footprint();
        self.entries.push_back(entry);
    }

    pub(super) fn push_front(&mut self, event: Event, second: u32) {
        if let Some(key) = event.key()
            && (self.removed.contains(key) || self.was_deleted(key))
        {
            event.withdraw();
        }
        self.first -= 1;
        self.recoverable = self.first;
        self.rooms.entry(event.room()).or_default().push_front(self.first);
        if let Some(key) = event.key() {
            self.messages.entry(key.clone()).or_default().insert(0, self.first);
        }
        let entry = Entry { event: Arc::new(event), second };
        self.bytes += entry.footprint();
        self.recoverable_bytes += entry.footprint();
        self.entries.push_front(entry);
    }

    /// The events of a message in the ring, in order.
    fn of_message(&self, key: &MessageKey) -> impl Iterator<Item = &Event> {
        let numbers = self.messages.get(key).into_iter().flatten();
        numbers.filter_map(|&seq| Some(&*self.entry(seq)?.event))
    }

    /// Whether the ring has a deletion of the message.
    fn was_deleted(&self, key: &MessageKey) -> bool {
        self.of_message(key).any(|event| event.kind() == Kind::Deleted)
    }

    /// Evicts entries beyond the limits from recovery, then drops entries that no follower should
    /// need.
    pub(super) fn evict(&mut self, limits: Limits, now: u32) {
        while let Some(entry) = self.entry(self.recoverable)
            && (self.recoverable_bytes > limits.bytes || entry.is_older(limits.window, now))
        {
            let (footprint, event) = (entry.footprint(), Arc::clone(&entry.event));
            self.recoverable_bytes -= footprint;
            self.recoverable += 1;
            self.is_complete = false;
            let Some(position) = event.position() else { continue };
            self.evicted.insert(event.room(), position);
            if self.evicted.len() > MAX_EVICTED {
                self.evicted = HashMap::new();
                self.floor = Some(position);
            }
        }
        let bytes = limits.bytes.max(FOLLOWER_LIMITS.bytes);
        let window = limits.window.max(FOLLOWER_LIMITS.window);
        while self.first < self.recoverable
            && let Some(oldest) = self.entries.front()
            && (self.bytes > bytes || oldest.is_older(window, now))
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.bytes -= entry.footprint();
        self.first += 1;
        if let Some(key) = entry.event.key()
            && let Some(numbers) = self.messages.get_mut(key)
        {
            numbers.remove(0);
            if numbers.is_empty() {
                self.messages.remove(key);
            }
        }
        let room = entry.event.room();
        if let Some(numbers) = self.rooms.get_mut(&room) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.rooms.remove(&room);
            }
        }
    }
}

/// The bytes that are counted for an event.
pub(crate) fn footprint(event: &Event) -> usize {
    OVERHEAD + event.len()
}

impl Entry {
    fn footprint(&self) -> usize {
        footprint(&self.event)
    }

    fn is_older(&self, age: Duration, now: u32) -> bool {
        u64::from(now.saturating_sub(self.second)) > age.as_secs()
    }
}
