//! Compares ring, hub and members with a simple model of what a member must get.
//!
//! The model has the whole stream as a list. A property test runs random publishes, dispatches,
//! joins, leaves, reads, evictions and reopenings on the real parts, and compares each step with
//! that list: no gap, no repetition, no other order, and an offset that matches what was delivered.
//! If the client did not get the offset after the last events, its older offset covers less, never
//! more.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, TestCaseResult},
};

use crate::{
    feed::{
        event::Event,
        position::Position,
        ring::{Batch, Epoch, Limits, Ring},
    },
    hub::{
        Hub,
        inbox::{Bounds, TooSlow},
        member::{Member, Start},
        offset::{Entry, Offset},
    },
    models::{Message, RoomId, UserId},
};

const ROOMS: usize = 3;
const MEMBERS: usize = 2;
/// The number of events before the start.
const PAST: u32 = 12;

#[derive(Debug, Clone)]
enum Step {
    /// Inserts into these rooms, in one reply. `true`: with the cluster time of the insert before.
    Publish(Vec<(usize, bool)>),
    /// Time passes, and the stream brings an empty reply.
    Quiet(u32),
    /// The hub dispatches up to so many events.
    Dispatch(usize),
    /// A join is stored in the record. It takes effect with the next step that joins.
    Announce(usize, usize),
    JoinLive(usize, usize),
    /// Joins after the position with this index from the end; 0 is ahead of this instance.
    JoinAfter(usize, usize, usize),
    /// The client reconnects with the offset of its last session.
    Reconnect(usize),
    Leave(usize, usize),
    /// The session takes up to so many events and writes them together. `true`: the client also
    /// gets the offset after them.
    Take(usize, usize, bool),
    /// The backfill prepends so many events, the newest first.
    Fill(usize),
    /// Events were lost: the ring is opened again.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let member = 0..MEMBERS;
    let room = 0..ROOMS;
    prop_oneof![
        6 => proptest::collection::vec((room.clone(), any::<bool>()), 1..6).prop_map(Step::Publish),
        1 => (1..4_u32).prop_map(Step::Quiet),
        4 => (1..6_usize).prop_map(Step::Dispatch),
        2 => (member.clone(), room.clone()).prop_map(|(m, r)| Step::Announce(m, r)),
        2 => (member.clone(), room.clone()).prop_map(|(m, r)| Step::JoinLive(m, r)),
        4 => (member.clone(), room.clone(), 0..20_usize)
            .prop_map(|(m, r, back)| Step::JoinAfter(m, r, back)),
        2 => member.clone().prop_map(Step::Reconnect),
        1 => (member.clone(), room).prop_map(|(m, r)| Step::Leave(m, r)),
        6 => (member, 1..4_usize, proptest::bool::weighted(0.8))
            .prop_map(|(m, n, offset)| Step::Take(m, n, offset)),
        2 => (1..6_usize).prop_map(Step::Fill),
        1 => Just(Step::Reopen),
    ]
}

/// What a member must get of a room.
#[derive(Debug)]
struct Expected {
    /// It must get every event after this, or a `resync`.
    after: Position,
    /// It must get a `resync` before any other event.
    resync: bool,
    /// Events were lost: it must get a `resync` later.
    lost: bool,
    /// The entry in the record of the session.
    entry: Entry,
}

/// A session and its client.
struct Client {
    member: Member,
    rooms: HashMap<usize, Expected>,
    /// The last offset that the client got, on this connection or an earlier one.
    held: Option<Offset>,
    /// Whether it got events after that offset.
    is_behind: bool,
    announced: Option<(usize, Entry)>,
}

struct Model {
    ring: Arc<Ring>,
    hub: Hub,
    rooms: [RoomId; ROOMS],
    epoch: Epoch,
    /// How many events at the beginning of the stream are not yet in the ring.
    unfilled: usize,
    /// The whole stream.
    stream: Vec<(Position, usize)>,
    clients: Vec<Client>,
}

impl Model {
    fn new(limits: Limits) -> Self {
        let ring = Arc::new(Ring::new(limits));
        let start = Position::first_of(100, 1);
        let epoch = ring.open(start);
        let hub = Hub::new(ring.clone(), Bounds { events: usize::MAX, bytes: usize::MAX });
        let client = |_| Client {
            member: Member::new(&hub),
            rooms: HashMap::new(),
            held: None,
            is_behind: false,
            announced: None,
        };
        let clients = (0..MEMBERS).map(client).collect();
        let rooms = [(); ROOMS].map(|()| RoomId::new());
        // It begins with an event of a room without members, so that there is a position before all
        // others.
        let past =
            (0..PAST).map(|n| (Position::first_of(60 + n, 1), (n as usize + ROOMS - 1) % ROOMS));
        let mut stream = vec![(Position::first_of(50, 1), usize::MAX)];
        stream.extend(past);
        let unfilled = stream.len();
        stream.push((start, usize::MAX));
        Self { ring, hub, rooms, epoch, unfilled, stream, clients }
    }

    /// Fills the ring as the feed does, even if the ring does not take more.
    fn fill(&mut self, count: usize) {
        let front = self.unfilled.saturating_sub(count).max(1);
        let events = self.stream[front..self.unfilled].iter().map(|&(position, room)| {
            let message = Message::new(self.rooms[room], UserId::new(), "hello");
            Event::message(&message, Some(position))
        });
        let (events, from) = (events.collect(), self.stream[front - 1].0);
        self.ring.fill(self.epoch, from, events, self.newest().seconds());
        self.unfilled = front;
    }

    fn newest(&self) -> Position {
        self.stream.last().unwrap().0
    }

    fn run(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Publish(inserts) => self.publish(&inserts),
            Step::Quiet(seconds) => self.quiet(seconds),
            Step::Dispatch(max) => {
                self.hub.dispatch(max);
            }
            Step::Announce(member, room) => {
                let client = &mut self.clients[member];
                if client.announced.is_none() && !client.rooms.contains_key(&room) {
                    let from = self.hub.through().unwrap();
                    client.announced = Some((room, client.member.announce_join(from)));
                }
            }
            Step::JoinLive(member, room) => self.join(member, room, Start::Live)?,
            Step::JoinAfter(member, room, 0) => {
                let ahead = Position::first_of(self.newest().seconds() + 1, 0);
                self.join(member, room, Start::After(ahead))?;
            }
            Step::JoinAfter(member, room, back) => {
                let since = self.stream[self.stream.len().saturating_sub(back)].0;
                self.join(member, room, Start::After(since))?;
            }
            Step::Reconnect(member) => self.reconnect(member)?,
            Step::Leave(member, room) => {
                let client = &mut self.clients[member];
                client.member.leave(self.rooms[room]);
                client.rooms.remove(&room);
            }
            Step::Take(member, max, offset) => {
                let mut taken = false;
                for _ in 0..max {
                    taken |= self.take(member)?;
                }
                let client = &mut self.clients[member];
                match (taken, offset) {
                    (true, true) => client.hold_offset(),
                    (taken, _) => client.is_behind |= taken,
                }
            }
            Step::Fill(count) => self.fill(count),
            Step::Reopen => {
                let now = Position::first_of(self.newest().seconds() + 1, 0);
                self.stream.push((now, usize::MAX));
                self.ring.open(now);
                for client in &mut self.clients {
                    client.rooms.values_mut().for_each(|expected| expected.lost = true);
                }
            }
        }
        (0..MEMBERS).try_for_each(|member| self.check_offset(member))
    }

    fn publish(&mut self, inserts: &[(usize, bool)]) {
        let mut events = Vec::new();
        for &(room, shared) in inserts {
            let (last, of) = *self.stream.last().unwrap();
            let position = match shared && of != usize::MAX {
                true => last.next_of_same_time(),
                false => Position::first_of(last.seconds() + 1, 1),
            };
            self.stream.push((position, room));
            let message = Message::new(self.rooms[room], UserId::new(), "hello");
            events.push(Event::message(&message, Some(position)));
        }
        let newest = self.newest();
        let second = newest.seconds();
        self.ring.publish(Batch { events, newest: Some(newest), through: None, second });
    }

    fn quiet(&mut self, seconds: u32) {
        let now = Position::first_of(self.newest().seconds() + seconds, 0);
        self.stream.push((now, usize::MAX));
        let second = now.seconds();
        self.ring.publish(Batch { events: vec![], newest: None, through: Some(now), second });
    }

    fn join(&mut self, member: usize, room: usize, start: Start) -> TestCaseResult {
        let client = &mut self.clients[member];
        let (room, start, entry) = match (client.announced.take(), start) {
            (Some((room, entry)), Start::Live) => (room, Start::From(entry.from), entry),
            (Some((room, entry)), Start::After(from)) => (room, start, Entry { from, ..entry }),
            (_, start) => {
                let live = self.hub.through().unwrap();
                let from = if let Start::After(since) = start { since } else { live };
                (room, start, client.member.announce_join(from))
            }
        };
        let whole = matches!(
            start,
            Start::After(since) | Start::From(since) if self.ring.recovers(self.rooms[room], since)
        );
        let recoverable = whole && matches!(start, Start::After(_));
        let joined = client.member.join(self.rooms[room], start);
        client.member.cancel_join();
        let position = joined.position.expect("the ring is open");
        if let Some(expected) = client.rooms.get(&room) {
            // A second join changes nothing, and its position is not before that of the delivered
            // events.
            prop_assert!(position >= expected.after || expected.resync);
            return Ok(());
        }
        prop_assert_eq!(joined.recovered, recoverable);
        if let Start::After(since) = start
            && recoverable
        {
            prop_assert_eq!(position, since);
        }
        let resync = start != Start::Live && !whole;
        client.rooms.insert(room, Expected { after: position, resync, lost: false, entry });
        Ok(())
    }

    /// The connection is lost with its queued events, and the client reconnects.
    fn reconnect(&mut self, index: usize) -> TestCaseResult {
        let client = &mut self.clients[index];
        client.member = Member::new(&self.hub);
        client.announced = None;
        client.is_behind = false;
        let held = client.held.as_ref().map(|held| held.to_string().parse().unwrap());
        if let Some(Offset { base, joins, .. }) = held {
            client.member.remember(Some(base), joins.unwrap_or(0));
        }
        let rooms = std::mem::take(&mut client.rooms);
        for expected in rooms.values() {
            client.member.remember(expected.entry.known, expected.entry.join);
        }
        for (number, Expected { entry, .. }) in rooms {
            let room = self.rooms[number];
            let since = held.as_ref().map_or(entry.from, |held| held.since(room, entry));
            self.join(index, number, Start::After(since))?;
            // The record keeps its entry.
            self.clients[index].rooms.get_mut(&number).unwrap().entry = entry;
        }
        Ok(())
    }

    /// Takes one event for a session; `false` if there is none.
    fn take(&mut self, index: usize) -> Result<bool, TestCaseError> {
        let client = &mut self.clients[index];
        let Poll::Ready(next) = client.member.poll_next(&Context::from_waker(Waker::noop())) else {
            return Ok(false);
        };
        let delivery = next.map_err(|TooSlow| TestCaseError::fail("too slow"))?;
        let event = delivery.event();
        let room = self.rooms.iter().position(|&room| room == event.room()).unwrap();
        let position = event.position().unwrap();
        let expected = client.rooms.get_mut(&room);
        prop_assert!(expected.is_some(), "an event of a room that the member is not in");
        let expected = expected.unwrap();
        if event.is_resync() {
            // It may be before a delivered event, but not ahead of the stream.
            prop_assert!(position <= self.stream.last().unwrap().0);
            expected.after = expected.after.max(position);
            (expected.resync, expected.lost) = (false, false);
        } else {
            prop_assert!(!expected.resync, "an event before the promised resync");
            let next = self.stream.iter().find(|&&(at, of)| of == room && at > expected.after);
            prop_assert_eq!(Some(&(position, room)), next, "not the next event of this room");
            expected.after = position;
        }
        Ok(true)
    }

    /// For each room, the client's offset is a position up to which everything was delivered and
    /// after which nothing was, except events after that offset.
    fn check_offset(&self, index: usize) -> TestCaseResult {
        let Client { rooms, held, .. } = &self.clients[index];
        for (&room, expected) in rooms.iter().filter(|(_, expected)| !expected.resync) {
            let entry = expected.entry;
            let covered =
                held.as_ref().map_or(entry.from, |held| held.since(self.rooms[room], entry));
            let (low, high) = (covered.min(expected.after), covered.max(expected.after));
            let between =
                self.stream.iter().filter(|&&(at, of)| of == room && at > low && at <= high);
            let lost = self.ring.tail().through.unwrap();
            // After the ring was opened again, the offset may differ until the member gets its
            // `resync`.
            let stale = !self.ring.recovers(self.rooms[room], covered) || lost < covered;
            let repeats = self.clients[index].is_behind && covered <= expected.after;
            prop_assert!(
                stale || repeats || between.count() == 0,
                "offset {:?} of room {} is not {}",
                held,
                room,
                expected.after
            );
        }
        Ok(())
    }

    /// After all events are dispatched and taken, every member has got everything.
    fn settle(&mut self) -> TestCaseResult {
        while self.hub.dispatch(100).more {}
        for index in 0..MEMBERS {
            while self.take(index)? {}
            for (&room, expected) in &self.clients[index].rooms {
                prop_assert!(!expected.resync && !expected.lost, "a resync that never came");
                let missing =
                    self.stream.iter().find(|&&(at, of)| of == room && at > expected.after);
                prop_assert_eq!(missing, None, "never delivered");
            }
        }
        Ok(())
    }
}

impl Client {
    /// The client gets the offset after its events.
    fn hold_offset(&mut self) {
        self.held = self.member.offset();
        self.is_behind = false;
    }
}

/// A failing case is stored beside this file, and is tried first from then on.
fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::WithSource("failures");
    ProptestConfig { cases: 2_000, failure_persistence: Some(Box::new(kept)), ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn members_get_every_event_once_in_order(
        steps in proptest::collection::vec(step(), 1..80),
        bytes in prop_oneof![Just(usize::MAX), 1_000..20_000_usize],
        window in prop_oneof![Just(u64::MAX), 1..60_u64],
    ) {
        let mut model = Model::new(Limits { window: Duration::from_secs(window), bytes });
        for step in steps {
            model.run(step)?;
        }
        model.settle()?;
    }
}
