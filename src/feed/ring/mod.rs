//! The recent events of all rooms, in stream order, shared by all workers.
//!
//! The feed writes at one end and, after the start, puts what was before in front of the other.
//! Each worker follows the ring by sequence number, and a session that comes back reads the events
//! of its rooms behind its last position. What is kept is bounded by age and bytes; the ring knows
//! the position of the newest event of each room that it no longer promises ([`Ring::recovers`]),
//! so that a quiet room never grows too old, and tells every reader that was overtaken
//! ([`Overtaken`]), so nobody misses an event without being told. Age is counted in cluster time,
//! never by our clock.
//!
//! Nothing awaits under the lock, and each operation under it is short: some pushes, a look at one
//! end, or a binary search in the index of one room.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use tokio::sync::watch;

use super::{event::Event, position::Position};
use crate::models::RoomId;

/// The number of an event in this process, counted from 0. Unlike positions, these exist on a
/// standalone MongoDB, too, and end with the process.
pub type Seq = u64;

/// How much of the past the ring promises.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The age from which an event may be evicted (`RECOVERY_WINDOW`); zero: nothing is promised.
    pub window: Duration,
    /// The bytes beyond which the oldest events are evicted (`RECOVERY_BYTES`).
    pub bytes: usize,
}

/// What followers may lag behind, whatever the limits say: a worker must get to see an event
/// before it is gone, also where nothing is kept for recovery.
const FOLLOWERS: Limits = Limits { window: Duration::from_secs(10), bytes: 1 << 20 };

/// Of how many rooms the newest evicted event is known. With more, the oldest promises of all rooms
/// are taken back together.
const MAX_EVICTED: usize = 20_000;

/// How many events of before it was opened a ring takes.
const MAX_FILLED: Seq = 1 << 32;

/// What an event costs beside its text: its place in the ring, in the index, and itself.
const OVERHEAD: usize = 192;

/// See the [module](self).
#[derive(Debug)]
pub struct Ring {
    limits: Limits,
    // A standard lock: nothing awaits while it is held.
    kept: RwLock<Kept>,
    end: watch::Sender<Seq>,
}

/// One opening of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening(Seq);

/// The events that a reader wanted are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("overtaken by eviction")]
pub struct Overtaken {
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

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    first: Seq,
    /// The sum of the entries' footprints.
    bytes: usize,
    /// The first entry within the limits. Those before it wait for followers only.
    promised: Seq,
    /// The sum of the footprints from `promised` on.
    promised_bytes: usize,
    /// The numbers of each room's entries, in order; no room without entries.
    rooms: HashMap<RoomId, VecDeque<Seq>>,
    /// The newest event of a room that is not promised any more.
    evicted: HashMap<RoomId, Position>,
    /// Of rooms that are not in `evicted`, everything after this is still here. `None`: nothing
    /// is promised.
    floor: Option<Position>,
    /// The number of the first event since the ring was opened.
    began: Seq,
    /// Nothing is gone of what came after `floor`.
    whole: bool,
    /// See [`Tail::through`].
    through: Option<Position>,
    /// The position of the newest insert that was seen, delivered or not.
    newest: Option<Position>,
}

#[derive(Debug)]
struct Entry {
    event: Arc<Event>,
    /// When it happened, in seconds of the cluster time.
    second: u32,
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
    /// An empty ring that promises nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, kept: RwLock::default(), end: watch::Sender::new(0) }
    }

    /// Forgets everything and begins anew: the stream will bring all inserts after `at`. Whoever
    /// reads the ring is overtaken. Answers what [`fill`](Self::fill) needs.
    pub fn open(&self, at: Position) -> Opening {
        let mut kept = self.write();
        // Behind numbers for what is filled in. The first is that of an event that never was: also
        // a reader at the very end has missed it.
        let next = kept.end() + 1 + MAX_FILLED;
        // What was published before will not be published again.
        let whole = kept.newest <= Some(at);
        let at = Some(at).max(kept.newest);
        *kept = Kept {
            first: next,
            promised: next,
            began: next,
            whole,
            floor: at,
            through: at,
            newest: kept.newest,
            ..Kept::default()
        };
        self.end.send_replace(next);
        Opening(next)
    }

    /// Puts events in front, which came before all others of this opening: those after `from`, in
    /// stream order. Whoever follows the ring has no need of them. Answers whether there may be more
    /// in front of these; not when the limits are reached or the ring was opened anew.
    pub fn fill(&self, opening: Opening, from: Position, events: Vec<Event>, second: u32) -> bool {
        let mut kept = self.write();
        let filled = kept.began.saturating_sub(kept.first) + events.len() as Seq;
        let is_there = events.last().and_then(Event::position) > kept.floor;
        if kept.began != opening.0 || !kept.whole || is_there || filled > MAX_FILLED {
            return false;
        }
        for event in events.into_iter().rev() {
            let second = event.position().map_or(second, Position::seconds);
            kept.push_front(event, second);
        }
        kept.floor = kept.floor.min(Some(from));
        kept.evict(self.limits, second);
        kept.whole
    }

    /// Forgets everything; from now on events have no position. Whoever reads is overtaken.
    pub fn close(&self) {
        let mut kept = self.write();
        let next = kept.end() + 1;
        *kept = Kept { first: next, promised: next, ..Kept::default() };
        self.end.send_replace(next);
    }

    /// Appends what the feed read.
    pub fn publish(&self, batch: Batch) {
        let mut kept = self.write();
        let was = kept.end();
        for event in batch.events {
            let second = event.position().map_or(batch.second, Position::seconds);
            kept.push(event, second);
        }
        kept.newest = kept.newest.max(batch.newest);
        kept.through = kept.through.max(batch.newest).max(batch.through);
        kept.evict(self.limits, batch.second);
        if kept.end() != was {
            self.end.send_replace(kept.end());
        }
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
    pub fn after(&self, from: Seq, max: usize) -> Result<Vec<Arc<Event>>, Overtaken> {
        let kept = self.read();
        let skip = kept.index(from)?;
        let events = kept.entries.iter().skip(skip).take(max);
        Ok(events.map(|entry| entry.event.clone()).collect())
    }

    /// Up to where a reader has everything that has handed on what comes before number `seq`, the
    /// last of it at the position `dispatched`.
    pub fn through_at(&self, seq: Seq, dispatched: Option<Position>) -> Option<Position> {
        let kept = self.read();
        if seq >= kept.end() { kept.through } else { dispatched }
    }

    /// Whether every event of `room` after `since` is still here.
    pub fn recovers(&self, room: RoomId, since: Position) -> bool {
        let kept = self.read();
        let floor = kept.evicted.get(&room).copied().or(kept.floor);
        !self.limits.window.is_zero() && floor.is_some_and(|floor| since >= floor)
    }

    /// Where the memory of this ring begins, when it has seen nothing of `room` since then that it
    /// does not promise any more. What came before can be asked of the database only.
    pub fn beginning(&self, room: RoomId) -> Option<Position> {
        let kept = self.read();
        if kept.evicted.contains_key(&room) { None } else { kept.floor }
    }

    /// The number of the first event of `room` after `since`, or that of the ring's next event.
    pub fn first_after(&self, room: RoomId, since: Position) -> Seq {
        let kept = self.read();
        let Some(numbers) = kept.rooms.get(&room) else { return kept.end() };
        let passed = numbers.partition_point(|&seq| {
            kept.entry(seq).and_then(|entry| entry.event.position()) <= Some(since)
        });
        numbers.get(passed).copied().unwrap_or_else(|| kept.end())
    }

    /// The first event of `room` from the number `seq` on, which
    /// [`first_after`](Self::first_after) or [`RoomEvent::next`] gave; `None` when there is none
    /// yet.
    pub fn event_of(&self, room: RoomId, seq: Seq) -> Result<Option<RoomEvent>, Overtaken> {
        let kept = self.read();
        kept.index(seq)?;
        let Some(numbers) = kept.rooms.get(&room) else { return Ok(None) };
        let mut numbers = numbers.range(numbers.partition_point(|&number| number < seq)..);
        let found = numbers.next().and_then(|&seq| Some((seq, kept.entry(seq)?)));
        Ok(found.map(|(seq, entry)| RoomEvent {
            event: entry.event.clone(),
            seq,
            next: numbers.next().copied().unwrap_or_else(|| kept.end()),
        }))
    }

    /// How many events the ring holds, and the bytes that it counts for them.
    pub fn size(&self) -> (usize, usize) {
        let kept = self.read();
        (kept.entries.len(), kept.bytes)
    }

    fn read(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn end(&self) -> Seq {
        self.first + self.entries.len() as Seq
    }

    fn tail(&self) -> Tail {
        Tail { seq: self.end(), through: self.through }
    }

    /// The index of the entry `seq`, or one behind the last when it has not happened yet.
    fn index(&self, seq: Seq) -> Result<usize, Overtaken> {
        let behind = seq.checked_sub(self.first).ok_or(Overtaken { tail: self.tail() })?;
        Ok(usize::try_from(behind).unwrap_or(usize::MAX))
    }

    fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(self.index(seq).ok()?)
    }

    fn push(&mut self, event: Event, second: u32) {
        let seq = self.end();
        self.rooms.entry(event.room()).or_default().push_back(seq);
        let entry = Entry { event: Arc::new(event), second };
        self.bytes += entry.footprint();
        self.promised_bytes += entry.footprint();
        self.entries.push_back(entry);
    }

    fn push_front(&mut self, event: Event, second: u32) {
        self.first -= 1;
        self.promised = self.first;
        self.rooms.entry(event.room()).or_default().push_front(self.first);
        let entry = Entry { event: Arc::new(event), second };
        self.bytes += entry.footprint();
        self.promised_bytes += entry.footprint();
        self.entries.push_front(entry);
    }

    /// Takes back the promise for what exceeds the limits, then drops what no follower should
    /// need any more.
    fn evict(&mut self, limits: Limits, now: u32) {
        while let Some(entry) = self.entry(self.promised)
            && (self.promised_bytes > limits.bytes || entry.is_older(limits.window, now))
        {
            let (footprint, event) = (entry.footprint(), Arc::clone(&entry.event));
            self.promised_bytes -= footprint;
            self.promised += 1;
            self.whole = false;
            let Some(position) = event.position() else { continue };
            self.evicted.insert(event.room(), position);
            if self.evicted.len() > MAX_EVICTED {
                self.evicted = HashMap::new();
                self.floor = Some(position);
            }
        }
        let bytes = limits.bytes.max(FOLLOWERS.bytes);
        let window = limits.window.max(FOLLOWERS.window);
        while self.first < self.promised
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
        let room = entry.event.room();
        if let Some(numbers) = self.rooms.get_mut(&room) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.rooms.remove(&room);
            }
        }
    }
}

/// What an event takes of the bytes of a ring.
pub(super) fn footprint(event: &Event) -> usize {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u32) -> Position {
        Position::first_of(seconds, 1)
    }

    fn ring(window: u64, bytes: usize) -> Ring {
        let ring = Ring::new(Limits { window: Duration::from_secs(window), bytes });
        ring.open(at(10));
        ring
    }

    /// Publishes one event of no text for each second.
    fn publish(ring: &Ring, room: RoomId, seconds: impl IntoIterator<Item = u32>) {
        for second in seconds {
            let position = Some(at(second));
            let events = vec![Event::resync(room, position)];
            ring.publish(Batch { events, newest: position, through: None, second });
        }
    }

    fn seconds(events: Result<Vec<Arc<Event>>, Overtaken>) -> Vec<u32> {
        events.unwrap().iter().map(|event| event.position().unwrap().seconds()).collect()
    }

    #[test]
    fn an_unopened_ring_promises_nothing() {
        let ring = Ring::new(Limits { window: Duration::from_secs(60), bytes: 1 << 20 });
        assert!(!ring.recovers(RoomId::new(), at(u32::MAX)));
        assert_eq!(ring.tail().through, None);
    }

    #[test]
    fn a_position_at_or_after_the_newest_evicted_event_is_recoverable() {
        let (ring, room) = (ring(5, usize::MAX), RoomId::new());
        assert!(ring.recovers(room, at(10)) && !ring.recovers(room, at(9)));
        publish(&ring, room, [11, 12, 16, 17]);
        assert!(ring.recovers(room, at(11)) && !ring.recovers(room, at(10)));
        publish(&ring, RoomId::new(), [18]);
        assert!(ring.recovers(room, at(12)) && !ring.recovers(room, at(11)));
    }

    #[test]
    fn a_room_does_not_grow_old_by_the_events_of_others() {
        let (ring, room, other) = (ring(5, usize::MAX), RoomId::new(), RoomId::new());
        publish(&ring, other, 11..1_000);
        assert!(ring.recovers(room, at(10)) && !ring.recovers(other, at(10)));
        assert_eq!((ring.beginning(room), ring.beginning(other)), (Some(at(10)), None));
    }

    #[test]
    fn the_memory_of_evicted_rooms_is_bounded() {
        let ring = ring(5, usize::MAX);
        let last = 100 + u32::try_from(MAX_EVICTED).unwrap();
        for second in 11..=last {
            publish(&ring, RoomId::new(), [second]);
        }
        assert!(ring.read().evicted.len() <= MAX_EVICTED);
        let floor = ring.beginning(RoomId::new()).unwrap();
        assert!(floor > at(10) && ring.recovers(RoomId::new(), floor));
        assert!(!ring.recovers(RoomId::new(), at(10)));
    }

    #[test]
    fn a_quiet_ring_never_grows_too_old() {
        let (ring, room) = (ring(5, usize::MAX), RoomId::new());
        publish(&ring, room, [11]);
        let through = Some(at(100_000));
        ring.publish(Batch { events: vec![], newest: None, through, second: 100_000 });
        assert!(ring.recovers(room, at(11)) && !ring.recovers(room, at(10)));
        assert_eq!(ring.size(), (0, 0));
    }

    #[test]
    fn bytes_are_bounded() {
        let (ring, room) = (ring(u64::MAX, 3 << 20), RoomId::new());
        for _ in 0..4 {
            publish(&ring, room, 11..10_011);
            assert!(ring.size().1 <= 3 << 20);
        }
        assert_eq!(ring.size().0, (3 << 20) / OVERHEAD);
        assert!(!ring.recovers(room, at(10)));
    }

    #[test]
    fn followers_see_what_is_not_kept_for_recovery() {
        for (window, bytes) in [(0, usize::MAX), (60, 0)] {
            let (ring, room) = (ring(window, bytes), RoomId::new());
            let from = ring.tail().seq;
            publish(&ring, room, [11, 12]);
            assert_eq!(seconds(ring.after(from, 10)), [11, 12]);
            assert!(!ring.recovers(room, at(11)));
        }
    }

    #[test]
    fn without_a_window_nothing_is_recoverable() {
        assert!(!ring(0, usize::MAX).recovers(RoomId::new(), at(11)));
    }

    /// Fills events of one room in, at these seconds; whether there may be more.
    fn fill(ring: &Ring, opening: Opening, room: RoomId, from: u32, seconds: &[u32]) -> bool {
        let events = seconds.iter().map(|&second| Event::resync(room, Some(at(second)))).collect();
        ring.fill(opening, at(from), events, 20)
    }

    #[test]
    fn what_is_filled_in_is_recovered_and_followed_by_nobody() {
        let ring = Ring::new(Limits { window: Duration::from_secs(60), bytes: usize::MAX });
        let (opening, room) = (ring.open(at(20)), RoomId::new());
        let follower = ring.tail().seq;
        publish(&ring, room, [21]);
        assert!(fill(&ring, opening, room, 15, &[16, 19]));
        assert!(ring.recovers(room, at(15)) && !ring.recovers(room, at(14)));
        publish(&ring, room, [22]);
        assert!(fill(&ring, opening, room, 10, &[12]));
        assert!(!fill(&ring, opening, room, 10, &[12]), "it is there already");
        assert!(ring.recovers(room, at(10)) && !ring.recovers(room, at(9)));
        assert_eq!(seconds(ring.after(follower, 10)), [21, 22]);
        let (mut next, mut seen) = (ring.first_after(room, at(12)), Vec::new());
        while let Some(found) = ring.event_of(room, next).unwrap() {
            seen.push(found.event.position().unwrap());
            next = found.next;
        }
        assert_eq!(seen, [16, 19, 21, 22].map(at));
    }

    #[test]
    fn filling_ends_where_the_limits_do() {
        let ring = Ring::new(Limits { window: Duration::from_secs(12), bytes: 4 * OVERHEAD });
        let (opening, room) = (ring.open(at(20)), RoomId::new());
        assert!(!fill(&ring, opening, room, 15, &[16, 17, 18, 19, 20]));
        assert!(ring.recovers(room, at(16)) && !ring.recovers(room, at(15)));
        assert!(!fill(&ring, opening, room, 10, &[11]), "there would be a gap behind it");
        assert!(!ring.recovers(room, at(11)));
        // Too old.
        let opening = ring.open(at(20));
        assert!(!fill(&ring, opening, room, 5, &[7, 19]));
        assert!(ring.recovers(room, at(7)) && !ring.recovers(room, at(6)));
    }

    #[test]
    fn nothing_is_filled_into_another_opening() {
        let ring = ring(60, usize::MAX);
        let (opening, room) = (ring.open(at(20)), RoomId::new());
        ring.open(at(21));
        assert!(!fill(&ring, opening, room, 10, &[11]));
        assert!(!ring.recovers(room, at(11)) && ring.recovers(room, at(21)));
        ring.close();
        assert!(!fill(&ring, opening, room, 10, &[11]));
        assert_eq!(ring.size(), (0, 0));
    }

    #[test]
    fn what_was_published_in_an_earlier_opening_is_not_promised() {
        let (ring, room) = (ring(60, usize::MAX), RoomId::new());
        publish(&ring, room, [25]);
        ring.open(at(20));
        assert!(ring.recovers(room, at(25)) && !ring.recovers(room, at(24)));
        assert_eq!(ring.tail().through, Some(at(25)));
    }

    #[test]
    fn a_follower_that_is_overtaken_is_told_where_to_go_on() {
        let ring = ring(5, usize::MAX);
        let from = ring.tail().seq;
        publish(&ring, RoomId::new(), [11, 12, 13, 30]);
        let Err(overtaken) = ring.after(from, 10) else { panic!("not overtaken") };
        assert_eq!(overtaken.tail, ring.tail());
        assert_eq!(overtaken.tail.through, Some(at(30)));
        assert!(ring.after(overtaken.tail.seq, 10).unwrap().is_empty());
    }

    #[test]
    fn reopening_overtakes_also_a_follower_at_the_end() {
        let ring = ring(60, usize::MAX);
        let end = ring.tail().seq;
        ring.open(at(20));
        assert!(ring.after(end, 10).is_err());
        let room = RoomId::new();
        assert!(!ring.recovers(room, at(19)) && ring.recovers(room, at(20)));
    }

    #[test]
    fn a_room_is_read_without_the_others() {
        let ring = ring(60, usize::MAX);
        let [room, other] = [(); 2].map(|()| RoomId::new());
        publish(&ring, other, [11]);
        publish(&ring, room, [12]);
        publish(&ring, other, [13, 14]);
        publish(&ring, room, [15, 16]);
        let mut seen = Vec::new();
        let mut next = ring.first_after(room, at(12));
        while let Some(found) = ring.event_of(room, next).unwrap() {
            assert_eq!(found.event.room(), room);
            seen.push(found.event.position().unwrap());
            next = found.next;
        }
        assert_eq!(seen, [15, 16].map(at));
        assert_eq!(next, ring.tail().seq);
    }

    #[test]
    fn rooms_without_events_leave_no_trace() {
        let ring = ring(11, usize::MAX);
        for second in 11..1_000 {
            publish(&ring, RoomId::new(), [second]);
        }
        assert_eq!(ring.read().rooms.len(), ring.size().0);
        assert!(ring.size().0 <= 12);
    }
}
