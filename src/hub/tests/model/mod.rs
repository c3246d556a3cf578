//! Tests ring, hub and members together with a simple model of what a member must get.
//!
//! The model knows the whole stream as a list. A property test drives the real parts with random
//! publishes, dispatches, joins, leaves, reads, evictions and reopenings, and compares each step
//! with that list: no gap, no repetition, no other order, and an offset that says exactly what was
//! delivered. If the client has not got the offset of the last events, its offset says less, never
//! more.
//!
//! Messages are edited, deleted and removed by other programs. From the moment at which that is
//! known, nobody gets their text, wherever it waits: in the ring, in an inbox, or in the past that
//! is still to be filled in. Such an event is skipped; that of the deletion is delivered.
//!
//! One room is private. Its members are removed and added again. A removed member gets nothing of
//! it after the removal, and joins only after it was added again.
//!
//! Each session has a record, which may have rooms that the session is not in. A client that comes
//! back to such a room has no gap in it either.

mod stream;

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use proptest::{
    collection::SizeRange,
    prelude::*,
    test_runner::{FileFailurePersistence, TestCaseResult},
};

use crate::{
    feed::{
        event::{Delivery, Event, Kind, MessageKey},
        position::Position,
        ring::{Batch, Epoch, Limits, Ring, Seq},
    },
    hub::{
        Hub,
        inbox::{Bounds, DirectWriter, Ended},
        member::{Member, NotJoined, Start},
        offset::{Entry, Offset},
        signals::Signals,
    },
    models::{MessageId, RoomId, UserId},
};

use stream::{Change, Item, What};

const ROOMS: usize = 3;
const MEMBERS: usize = 2;

/// The room that only its members may join.
const PRIVATE: usize = ROOMS - 1;

/// The room of changes in the stream that are in no room.
const NOWHERE: usize = usize::MAX;

#[derive(Debug, Clone)]
enum Step {
    /// These changes, in one reply; `true` shares the cluster time of the one before.
    Publish(Vec<(Change, bool)>),
    /// Time passes and the stream says that it saw nothing.
    Quiet(u32),
    /// The worker dispatches up to so many events.
    Dispatch(usize),
    /// A join is written down; it takes effect with the next step that joins.
    Announce(usize, usize),
    JoinLive(usize, usize),
    /// Joins behind the position with this index from the end; 0 is ahead of this instance.
    JoinAfter(usize, usize, usize),
    /// The announced join fails, after it was written down.
    Fail(usize),
    /// Comes back as another session with the offset of the last one.
    Return(usize),
    /// `false`: that is not written down.
    Leave(usize, usize, bool),
    /// The rooms that the session is not in are taken out of its record.
    Forget(usize),
    /// The session reads up to so many events, which are written together. `true`: the client gets
    /// the offset behind them, too.
    Take(usize, usize, bool),
    /// So many events of before the start are filled in, the newest first.
    Fill(usize),
    /// The history was lost: the ring is opened anew.
    Reopen,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        5 => (0..ROOMS).prop_map(Change::Send),
        3 => (0..12_usize).prop_map(Change::Edit),
        2 => (0..12_usize).prop_map(Change::Delete),
        1 => (0..12_usize).prop_map(Change::Remove),
        1 => (0..MEMBERS).prop_map(Change::Member),
    ]
}

fn changes(count: impl Into<SizeRange>) -> impl Strategy<Value = Vec<(Change, bool)>> {
    proptest::collection::vec((change(), any::<bool>()), count)
}

fn step() -> impl Strategy<Value = Step> {
    let member = 0..MEMBERS;
    let room = 0..ROOMS;
    prop_oneof![
        6 => changes(1..6).prop_map(Step::Publish),
        1 => (1..4_u32).prop_map(Step::Quiet),
        4 => (1..6_usize).prop_map(Step::Dispatch),
        2 => (member.clone(), room.clone()).prop_map(|(m, r)| Step::Announce(m, r)),
        2 => (member.clone(), room.clone()).prop_map(|(m, r)| Step::JoinLive(m, r)),
        4 => (member.clone(), room.clone(), 0..20_usize)
            .prop_map(|(m, r, back)| Step::JoinAfter(m, r, back)),
        1 => member.clone().prop_map(Step::Fail),
        2 => member.clone().prop_map(Step::Return),
        1 => (member.clone(), room, any::<bool>()).prop_map(|(m, r, w)| Step::Leave(m, r, w)),
        1 => member.clone().prop_map(Step::Forget),
        6 => (member, 1..4_usize, proptest::bool::weighted(0.8))
            .prop_map(|(m, n, offset)| Step::Take(m, n, offset)),
        2 => (1..6_usize).prop_map(Step::Fill),
        1 => Just(Step::Reopen),
    ]
}

/// What the model knows of a member in a room.
#[derive(Debug)]
struct Expected {
    /// It must be given every event after this, unless told that it missed some.
    after: Position,
    /// It was promised a `resync` before anything else.
    resync: bool,
    /// The history was lost: sooner or later it must be told.
    lost: bool,
    /// Removals up to here are past: the user was a member again.
    checked: Position,
}

/// What the record of a session says of a room.
#[derive(Debug, Clone, Copy)]
struct Recorded {
    entry: Entry,
    /// The session is not in the room: the client has had everything of it up to here.
    absent: Option<Position>,
}

/// A join that was announced.
#[derive(Debug, Clone, Copy)]
struct Announced {
    room: usize,
    entry: Entry,
    check: Check,
}

/// How far the hub was when the database said that the user is a member.
#[derive(Debug, Clone, Copy)]
struct Check {
    cursor: Seq,
    through: Position,
    /// What the database had stored.
    stored: Position,
}

/// The short way to a client, which has nothing else to read.
#[derive(Clone, Default)]
struct Shortly(Rc<RefCell<Vec<Told>>>);

impl DirectWriter for Shortly {
    fn write(&self, delivery: &Delivery) -> bool {
        self.0.borrow_mut().push(Told::of(delivery.event()));
        true
    }
}

/// An event that was given.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    position: Position,
    room: RoomId,
    kind: Kind,
    message: Option<MessageKey>,
    /// The member who was added or removed.
    member: Option<UserId>,
}

impl Told {
    fn of(event: &Event) -> Self {
        Self {
            position: event.position().unwrap(),
            room: event.room(),
            kind: event.kind(),
            message: event.key().cloned(),
            member: event.user().filter(|_| event.key().is_none()),
        }
    }
}

/// A session and its client.
struct Client {
    user: UserId,
    member: Member,
    /// One client has a short way, the other has not.
    shortly: Option<Shortly>,
    rooms: HashMap<usize, Expected>,
    record: HashMap<usize, Recorded>,
    /// The last offset that it got, on this connection or an earlier one.
    held: Option<Offset>,
    /// It was given events since.
    is_behind: bool,
    announced: Option<Announced>,
    /// This connection resumes an earlier one.
    returned: bool,
}

struct Model {
    ring: Arc<Ring>,
    hub: Rc<Hub>,
    rooms: [RoomId; ROOMS],
    epoch: Epoch,
    /// How many events at the beginning of the stream are not yet filled in; `None` when no more of
    /// them will be.
    unfilled: Option<usize>,
    /// The whole stream.
    stream: Vec<Item>,
    /// The messages that are there, and their rooms.
    messages: Vec<(MessageId, usize)>,
    /// Those that are not there any more. A deletion of before the start is filled in before their
    /// text.
    gone: HashSet<MessageId>,
    /// Whether each client is a member of the private room.
    members: [bool; MEMBERS],
    clients: Vec<Client>,
}

impl Model {
    /// What happened before the start is `past`.
    fn new(limits: Limits, past: &[(Change, bool)]) -> Self {
        let ring = Arc::new(Ring::new(limits));
        let start = Position::first_of(100, 1);
        let epoch = ring.open(start);
        let bounds = Bounds { events: usize::MAX, bytes: usize::MAX };
        let hub = Hub::new(ring.clone(), super::revoked(), bounds, Signals::default());
        let client = |index| {
            let mut client = Client {
                user: UserId::new(),
                member: Member::new(&hub),
                shortly: (index == 0).then(Shortly::default),
                rooms: HashMap::new(),
                record: HashMap::new(),
                held: None,
                is_behind: false,
                announced: None,
                returned: false,
            };
            client.connect(&hub);
            client
        };
        let clients = (0..MEMBERS).map(client).collect();
        let mut rooms = [(); ROOMS].map(|()| RoomId::new());
        rooms[PRIVATE] = "6b0bd1279c726f6f6d000001".parse().unwrap();
        let mut model = Self {
            ring,
            hub,
            rooms,
            epoch,
            unfilled: None,
            // So that there is a position before all others.
            stream: vec![Item::time(Position::first_of(50, 1))],
            messages: Vec::new(),
            gone: HashSet::new(),
            members: [true; MEMBERS],
            clients,
        };
        for &(change, shared) in past {
            // All of it was read before anything of it is filled in, so no room is unknown.
            model.change(change, shared, |_, message| Some(message.1));
        }
        model.unfilled = Some(model.stream.len());
        model.stream.push(Item::time(start));
        model
    }

    /// Fills in as the feed does, until the ring takes no more.
    fn fill(&mut self, count: usize) {
        let Some(unfilled) = self.unfilled else { return };
        let front = unfilled.saturating_sub(count).max(1);
        let events = self.stream[front..unfilled].iter();
        let events = events.filter_map(|item| self.event_of(item)).collect();
        let from = self.stream[front - 1].position;
        let goes_on = self.ring.fill(self.epoch, from, events, self.newest().seconds());
        self.unfilled = (goes_on && front > 1).then_some(front);
        if self.unfilled.is_none() {
            self.ring.filled();
        }
    }

    fn newest(&self) -> Position {
        self.stream.last().unwrap().position
    }

    /// The next event for a member of `room` that got everything up to `after`.
    fn next(&self, room: usize, after: Position) -> Option<&Item> {
        self.stream
            .iter()
            .find(|item| item.room == room && item.position > after && !self.is_skipped(item))
    }

    /// Whether it has the text of a message that is known to be gone.
    fn is_skipped(&self, item: &Item) -> bool {
        item.has_text() && item.message().is_some_and(|message| self.gone.contains(&message))
    }

    /// The database is asked whether a client may join a room; `None` if not.
    fn check(&self, client: usize, room: usize) -> Option<Check> {
        let (cursor, through) = (self.hub.cursor(), self.hub.through().unwrap());
        let check = Check { cursor, through, stored: self.newest() };
        (room != PRIVATE || self.members[client]).then_some(check)
    }

    /// Whether a client may get an event of the private room: it was a member then, or is one
    /// again, or the event is its removal.
    fn may_see(&self, client: usize, position: Position) -> bool {
        let changes = self
            .stream
            .iter()
            .filter_map(|item| Some((item.position, item.member_change(client)?)));
        let (before, later): (Vec<_>, Vec<_>) = changes.partition(|(at, _)| *at <= position);
        let is_allowed =
            |&(at, kind): &(Position, Kind)| kind == Kind::MemberAdded || at == position;
        before.last().is_none_or(is_allowed)
            || later.iter().any(|(_, kind)| *kind == Kind::MemberAdded)
    }

    /// Whether the last change of the member that was dispatched since the check is a removal.
    fn was_removed_since(&self, check: Check, client: usize) -> bool {
        let through = self.hub.through().unwrap();
        let dispatched = self
            .stream
            .iter()
            .rev()
            .filter(|item| item.position <= through && item.position > check.through);
        let mut changes = dispatched.filter_map(|item| item.member_change(client));
        changes.next() == Some(Kind::MemberRemoved)
    }

    fn run(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Publish(changes) => self.publish(&changes),
            Step::Quiet(seconds) => self.quiet(seconds),
            Step::Dispatch(max) => {
                self.hub.dispatch(max);
                self.hear()?;
            }
            Step::Announce(member, room) => {
                let check = self.check(member, room);
                let client = &mut self.clients[member];
                if client.announced.is_none()
                    && !client.rooms.contains_key(&room)
                    && let Some(check) = check
                {
                    let entry = client.member.announce_join(check.through);
                    client.announced = Some(Announced { room, entry, check });
                }
            }
            Step::JoinLive(member, room) => self.join(member, room, Start::Live)?,
            Step::JoinAfter(member, room, 0) => {
                let ahead = Position::first_of(self.newest().seconds() + 1, 0);
                // The cluster has reached it, so nothing happens before it any more.
                self.stream.push(Item::time(ahead));
                self.join(member, room, Start::After(ahead))?;
            }
            Step::JoinAfter(member, room, back) => {
                let since = self.stream[self.stream.len().saturating_sub(back)].position;
                self.join(member, room, Start::After(since))?;
            }
            Step::Fail(member) => {
                let client = &mut self.clients[member];
                if let Some((room, through)) = client.record_announced() {
                    client.member.note_leftover(self.rooms[room], through);
                }
                client.member.cancel_join();
            }
            Step::Return(member) => self.come_back(member)?,
            Step::Leave(member, room, is_written) => {
                let client = &mut self.clients[member];
                let id = self.rooms[room];
                let left = client.member.leave(id);
                let expected = client.rooms.remove(&room);
                if is_written {
                    client.member.forget_leftover(id);
                    client.record.remove(&room);
                } else if let (Some(through), Some(expected)) = (left, expected) {
                    client.member.note_leftover(id, through);
                    let recorded = client.record.get_mut(&room);
                    // A `resync` that was not given yet is given when the client comes back.
                    let absent = if expected.resync { through } else { expected.after };
                    recorded.into_iter().for_each(|recorded| recorded.absent = Some(absent));
                }
            }
            Step::Forget(member) => {
                let client = &mut self.clients[member];
                while let Some(room) = client.member.leftover() {
                    client.member.forget_leftover(room);
                    client.record.retain(|&number, _| self.rooms[number] != room);
                }
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
                self.stream.push(Item::time(now));
                self.ring.open(now);
                for client in &mut self.clients {
                    client.rooms.values_mut().for_each(|expected| expected.lost = true);
                }
            }
        }
        (0..MEMBERS).try_for_each(|member| self.check_offset(member))
    }

    fn publish(&mut self, changes: &[(Change, bool)]) {
        let begin = self.stream.len();
        for &(change, shared) in changes {
            let added = self.stream.len();
            self.change(change, shared, |model, (message, room)| {
                let is_here = |item: &Item| item.message() == Some(message);
                let is_known = model.stream[begin..].iter().any(is_here)
                    || model.ring.room_of(&MessageKey::Id(message.0)).is_some();
                is_known.then_some(room)
            });
            let item = self.stream[added];
            if let (NOWHERE, Some(message), Some(_)) = (item.room, item.message(), self.unfilled) {
                self.ring.note_removed(MessageKey::Id(message.0));
            }
        }
        let events = self.stream[begin..].iter().filter_map(|item| self.event_of(item)).collect();
        let newest = self.newest();
        let second = newest.seconds();
        self.ring.publish(Batch { events, newest: Some(newest), through: None, second });
    }

    fn quiet(&mut self, seconds: u32) {
        let now = Position::first_of(self.newest().seconds() + seconds, 0);
        self.stream.push(Item::time(now));
        let second = now.seconds();
        self.ring.publish(Batch { events: vec![], newest: None, through: Some(now), second });
    }

    fn join(&mut self, member: usize, room: usize, start: Start) -> TestCaseResult {
        let check = self.check(member, room);
        let client = &mut self.clients[member];
        let (room, start, entry, check) = match (client.announced.take(), start, check) {
            (Some(Announced { room, entry, check }), Start::Live, _) => {
                (room, Start::From(entry.from), entry, check)
            }
            // A session asks the database for a state that includes its position.
            (Some(Announced { room: PRIVATE, check, .. }), Start::After(from), _)
                if from > check.stored =>
            {
                client.member.cancel_join();
                return Ok(());
            }
            (Some(Announced { room, entry, check }), Start::After(from), _) => {
                (room, start, Entry { from, ..entry }, check)
            }
            (_, start, Some(check)) => {
                let from = if let Start::After(since) = start { since } else { check.through };
                (room, start, client.member.announce_join(from), check)
            }
            (_, _, None) => return Ok(()),
        };
        let whole = matches!(
            start,
            Start::After(since) | Start::From(since) if self.ring.recovers(self.rooms[room], since)
        );
        let recoverable = whole && matches!(start, Start::After(_));
        let joined = client.member.join_checked(self.rooms[room], start, check.cursor);
        client.member.cancel_join();
        let joined = match joined {
            Ok(joined) => joined,
            // The ring has let go of what came since the check.
            Err(NotJoined::Unknown) => return Ok(()),
            Err(NotJoined::Removed) => {
                prop_assert!(room == PRIVATE && self.was_removed_since(check, member));
                return Ok(());
            }
        };
        prop_assert!(room != PRIVATE || !self.was_removed_since(check, member));
        let checked = self.hub.through().unwrap();
        let client = &mut self.clients[member];
        let position = joined.position.expect("the ring is open");
        if let Some(expected) = client.rooms.get(&room) {
            // A second join changes nothing, and promises nothing that was not yet given.
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
        let expected = Expected { after: position, resync, lost: false, checked };
        client.rooms.insert(room, expected);
        client.record.insert(room, Recorded { entry, absent: None });
        Ok(())
    }

    /// The connection is lost with whatever waited in it; the client reconnects.
    fn come_back(&mut self, index: usize) -> TestCaseResult {
        let client = &mut self.clients[index];
        // A join that was read is written down, although its answer does not reach the client.
        client.record_announced();
        client.connect(&self.hub);
        client.returned = true;
        client.rooms = HashMap::new();
        let held = client.held.as_ref().map(|held| held.to_string().parse().unwrap());
        if let Some(Offset { base, joins, .. }) = held {
            client.member.remember(Some(base), joins.unwrap_or(0));
        }
        let mut record = std::mem::take(&mut client.record);
        record.retain(|&room, _| self.check(index, room).is_some());
        let client = &mut self.clients[index];
        for Recorded { entry, .. } in record.values() {
            client.member.remember(entry.known, entry.join);
        }
        if let Some(held) = &held {
            let since = held.of(client.user.own_room());
            client.member.resume_user(since);
        }
        for (number, Recorded { entry, .. }) in record {
            let room = self.rooms[number];
            let since = held.as_ref().map_or(entry.from, |held| held.since(room, entry));
            self.join(index, number, Start::After(since))?;
            // The record is not written again.
            let recorded = self.clients[index].record.get_mut(&number);
            recorded.into_iter().for_each(|recorded| recorded.entry = entry);
        }
        Ok(())
    }

    /// Lets a session read one event; `false` when there is none.
    fn take(&mut self, index: usize) -> Result<bool, TestCaseError> {
        let client = &mut self.clients[index];
        let Poll::Ready(next) = client.member.poll_next(&Context::from_waker(Waker::noop())) else {
            return Ok(false);
        };
        match next {
            Ok(delivery) => self.given(index, Told::of(delivery.event()))?,
            // It may have missed a removal, or what its user was told while it was away. So its
            // client connects again.
            Err(ended) => {
                let Client { rooms, returned, .. } = &self.clients[index];
                prop_assert_eq!(ended, Ended::TooSlow);
                prop_assert!(rooms.contains_key(&PRIVATE) || *returned, "too slow");
                self.come_back(index)?;
            }
        }
        Ok(true)
    }

    /// Takes note of what came by the short way, with its own position as offset.
    fn hear(&mut self) -> TestCaseResult {
        for index in 0..MEMBERS {
            let shortly = self.clients[index].shortly.as_ref();
            for told in shortly.map(|shortly| shortly.0.take()).unwrap_or_default() {
                let client = &mut self.clients[index];
                client.held = Some(Offset::from(told.position));
                client.is_behind = false;
                self.given(index, told)?;
            }
        }
        Ok(())
    }

    /// Judges an event that was given to a client.
    fn given(&mut self, index: usize, told: Told) -> TestCaseResult {
        if matches!(told.kind, Kind::RoomAdded | Kind::RoomRemoved) {
            prop_assert_eq!(told.member, Some(self.clients[index].user), "of another user");
            return Ok(());
        }
        let room = self.rooms.iter().position(|&room| room == told.room).unwrap();
        let expected = self.clients[index].rooms.get_mut(&room);
        prop_assert!(expected.is_some(), "an event of a room that it is not in");
        let expected = expected.unwrap();
        if told.kind == Kind::Resync {
            // It may lie before an event that was given, never ahead of the stream.
            prop_assert!(told.position <= self.stream.last().unwrap().position);
            expected.after = expected.after.max(told.position);
            (expected.resync, expected.lost) = (false, false);
        } else {
            prop_assert!(!expected.resync, "an event before the promised resync");
            let after = std::mem::replace(&mut expected.after, told.position);
            let checked = expected.checked;
            let next = self.next(room, after).and_then(|item| {
                let (kind, message, member) = match item.event? {
                    What::Message(kind, id) => (kind, Some(MessageKey::Id(id.0)), None),
                    What::Member(kind, client) => (kind, None, Some(self.clients[client].user)),
                };
                let (position, room) = (item.position, self.rooms[room]);
                Some(Told { position, room, kind, message, member })
            });
            let position = told.position;
            let is_removed = told.kind == Kind::MemberRemoved
                && told.member == Some(self.clients[index].user)
                && told.position > checked;
            prop_assert!(room != PRIVATE || self.may_see(index, told.position), "not a member");
            prop_assert_eq!(Some(told), next, "not the next event of this room");
            if is_removed {
                let client = &mut self.clients[index];
                client.rooms.remove(&room);
                let recorded = client.record.get_mut(&room);
                recorded.into_iter().for_each(|recorded| recorded.absent = Some(position));
            }
        }
        Ok(())
    }

    /// What the client has at hand names, for each room, a position up to which all was given and
    /// behind which nothing was, but for events since.
    fn check_offset(&self, index: usize) -> TestCaseResult {
        let Client { rooms, record, held, .. } = &self.clients[index];
        for (&room, &Recorded { entry, absent }) in record {
            let had = match rooms.get(&room) {
                Some(expected) if expected.resync => continue,
                Some(expected) => expected.after,
                None => absent.expect("a room that the session is not in"),
            };
            let given =
                held.as_ref().map_or(entry.from, |held| held.since(self.rooms[room], entry));
            let (low, high) = (given.min(had), given.max(had));
            let is_between = self.next(room, low).is_some_and(|next| next.position <= high);
            let lost = self.ring.tail().through.unwrap();
            // A reopened ring has yet to tell this member; until then the account may differ.
            let stale = !self.ring.recovers(self.rooms[room], given) || lost < given;
            let repeats = self.clients[index].is_behind && given <= had;
            prop_assert!(
                stale || repeats || !is_between,
                "offset {:?} of room {} is not {}",
                held,
                room,
                had
            );
        }
        Ok(())
    }

    /// When everything has come to rest, everyone has had everything.
    fn settle(&mut self) -> TestCaseResult {
        while self.hub.dispatch(100).more {}
        self.hear()?;
        for index in 0..MEMBERS {
            while self.take(index)? {}
            for (&room, expected) in &self.clients[index].rooms {
                prop_assert!(!expected.resync && !expected.lost, "a resync that never came");
                prop_assert_eq!(self.next(room, expected.after), None, "never given");
            }
        }
        Ok(())
    }
}

impl Client {
    /// Begins a connection.
    fn connect(&mut self, hub: &Rc<Hub>) {
        self.member = Member::new(hub);
        self.member.set_token(super::token(self.user));
        if let Some(shortly) = &self.shortly {
            self.member.set_direct_writer(shortly.clone());
        }
        self.member.remember(None, 0);
        self.announced = None;
        self.is_behind = false;
    }

    /// The announced join is written down, and never happens. Returns its room and where it would
    /// have begun.
    fn record_announced(&mut self) -> Option<(usize, Position)> {
        let Announced { room, entry, .. } = self.announced.take()?;
        self.record.insert(room, Recorded { entry, absent: Some(entry.from) });
        Some((room, entry.from))
    }

    /// The client gets the offset behind what it was given.
    fn hold_offset(&mut self) {
        self.held = self.member.offset();
        self.is_behind = false;
    }
}

/// A case that fails is kept beside this file, to be tried first from then on.
fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::WithSource("failures");
    ProptestConfig { cases: 2_000, failure_persistence: Some(Box::new(kept)), ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn members_are_given_every_event_once_in_order(
        steps in proptest::collection::vec(step(), 1..80),
        past in changes(12),
        bytes in prop_oneof![Just(usize::MAX), 1_000..20_000_usize],
        window in prop_oneof![Just(u64::MAX), 1..60_u64],
    ) {
        let mut model = Model::new(Limits { window: Duration::from_secs(window), bytes }, &past);
        for step in steps {
            model.run(step)?;
        }
        model.settle()?;
    }
}
