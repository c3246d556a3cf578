//! The state of a ring, and the eviction of events beyond its limits.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{Lagged, Limits, Seq, Tail, detached::Detached};
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
    /// The messages that have entries.
    pub(super) messages: HashMap<MessageKey, Thread>,
    /// Events that left the ring and may still be delivered.
    pub(super) detached: Detached,
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
    /// The number of the event before it of the same message, which may be gone.
    before: Option<Seq>,
}

/// The entries of one message, each of which knows the one before it.
#[derive(Debug)]
pub(super) struct Thread {
    newest: Seq,
    /// As long as nothing is gone.
    oldest: Seq,
    /// Whether a deletion is, or was, among them.
    deleted: bool,
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

    fn entry_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        let index = self.index(seq).ok()?;
        self.entries.get_mut(index)
    }

    /// An entry, with its bytes counted.
    fn counted(&mut self, event: Event, second: u32, before: Option<Seq>) -> Entry {
        let entry = Entry { event: Arc::new(event), second, before };
        self.bytes += entry.footprint();
        self.recoverable_bytes += entry.footprint();
        entry
    }

    pub(super) fn push(&mut self, event: Event, second: u32) {
        let seq = self.end();
        self.rooms.entry(event.room()).or_default().push_back(seq);
        let mut before = None;
        if let Some(key) = event.key() {
            let deleted = event.kind() == Kind::Deleted;
            if deleted {
                self.withdraw(key);
            }
            let thread = self.messages.entry(key.clone()).or_insert(Thread::of(seq));
            before =
                Some(std::mem::replace(&mut thread.newest, seq)).filter(|&before| before < seq);
            thread.deleted |= deleted;
        }
        let entry = self.counted(event, second, before);
        self.entries.push_back(entry);
    }

    pub(super) fn push_front(&mut self, event: Event, second: u32) {
        self.first -= 1;
        self.recoverable = self.first;
        let seq = self.first;
        self.rooms.entry(event.room()).or_default().push_front(seq);
        let mut after = None;
        if let Some(key) = event.key() {
            let thread = self.messages.entry(key.clone()).or_insert(Thread::of(seq));
            after = Some(std::mem::replace(&mut thread.oldest, seq)).filter(|&after| after > seq);
            if thread.deleted || self.removed.contains(key) {
                event.withdraw();
            }
            thread.deleted |= event.kind() == Kind::Deleted;
        }
        let entry = self.counted(event, second, None);
        self.entries.push_front(entry);
        if let Some(after) = after.and_then(|after| self.entry_mut(after)) {
            after.before = Some(seq);
        }
    }

    /// The room of a message, by the newest of its events.
    pub(super) fn room_of(&self, key: &MessageKey) -> Option<RoomId> {
        let newest = self.messages.get(key).and_then(|thread| self.entry(thread.newest));
        newest.map(|entry| entry.event.room()).or_else(|| self.detached.room_of(key))
    }

    /// Lets go of all events; gives those that may still be given.
    pub(super) fn detach(&mut self) -> Detached {
        let mut detached = std::mem::take(&mut self.detached);
        self.entries.iter().for_each(|entry| detached.take(&entry.event));
        detached
    }

    /// A message was deleted: no text of it is given any more.
    fn withdraw(&mut self, key: &MessageKey) {
        self.detached.withdraw(key);
        let mut seq = self.messages.get(key).map(|thread| thread.newest);
        while let Some(entry) = seq.and_then(|seq| self.entry(seq)) {
            // An earlier deletion has done the rest.
            if entry.event.is_withdrawn() {
                return;
            }
            entry.event.withdraw();
            seq = entry.before;
        }
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
            if event.kind() == Kind::Revoked {
                // No client misses it.
                continue;
            }
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
        self.detached.take(&entry.event);
        if let Some(key) = entry.event.key()
            && self.messages.get(key).is_some_and(|thread| thread.newest < self.first)
        {
            self.messages.remove(key);
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

impl Thread {
    /// That of a message with one entry.
    fn of(seq: Seq) -> Self {
        Self { newest: seq, oldest: seq, deleted: false }
    }
}

impl Entry {
    fn footprint(&self) -> usize {
        footprint(&self.event)
    }

    fn is_older(&self, age: Duration, now: u32) -> bool {
        u64::from(now.saturating_sub(self.second)) > age.as_secs()
    }
}
