//! The rooms of one worker and who is in them.
//!
//! Each worker has a hub of its own, which only its thread touches. A dispatcher follows the ring
//! by sequence number and puts each event into the inboxes of the local members of its room, so a
//! message costs one wake-up of each worker, not one of each member across threads; a member that
//! has nothing else to do does not even have to be woken ([`Outlet`](super::inbox::Outlet)). Joining
//! is atomic with respect to the stream, because nothing is dispatched while a member is seated.
//! The hub knows rooms, seats and inboxes; no socket, no wire, no database.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use indexmap::IndexMap;
use tokio::time::Instant;

use super::{
    event::{Delivery, Event},
    inbox::{Bounds, Inbox, Mail},
    member::Member,
    position::Position,
    ring::{Ring, Seq},
};
use crate::models::RoomId;

/// Events that are handed out before the sessions of this worker get to run.
const DISPATCH_AT_ONCE: usize = 64;

/// How many deliveries (events times members) the hub itself makes in that time. The rest is left to
/// the sessions, so that a large room holds nobody else up.
const WRITTEN_AT_ONCE: usize = 256;

/// How long no more is handed out for each client that was written to: five times what a write
/// costs. So writing takes about a fifth of a worker's time before what follows is put into fewer,
/// larger writes, which cost the server, the network and the clients less than many small ones.
const SPACING: Duration = Duration::from_micros(40);

/// The longest time that this makes an event wait, and how much of it is forgiven: a message now and
/// then, and a few at once, are handed out without delay.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// See the [module](self). Clones are handles on the same hub.
#[derive(Clone)]
pub struct Hub {
    ring: Arc<Ring>,
    bounds: Bounds,
    // Borrowed for one operation at a time, never across an await.
    shard: Rc<RefCell<Shard>>,
}

struct Shard {
    /// The number of the first event that is not yet dispatched.
    cursor: Seq,
    /// How far the events before it reach.
    dispatched: Option<Position>,
    /// No room without seats.
    rooms: HashMap<RoomId, IndexMap<MemberId, Seat>>,
    next_member: MemberId,
}

/// The number of a member of this hub.
pub(super) type MemberId = u64;

/// What was handed out in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    /// How many writes it takes, when a client is written everything at once.
    pub writes: usize,
    /// More events may be there already.
    pub more: bool,
}

/// Spreads rounds in time: a rate of writes, of which some may come early (a generic cell rate
/// algorithm, ITU-T I.371).
struct Pace {
    paid_until: Instant,
}

struct Seat {
    inbox: Rc<Inbox>,
    /// The member has had what is not after this.
    floor: Option<Position>,
}

impl Hub {
    /// A hub without members that follows `ring` from now on, once [`run`](Self::run) does.
    pub fn new(ring: Arc<Ring>, bounds: Bounds) -> Self {
        let tail = ring.tail();
        let shard = Shard {
            cursor: tail.seq,
            dispatched: tail.through,
            rooms: HashMap::new(),
            next_member: 0,
        };
        Self { ring, bounds, shard: Rc::new(RefCell::new(shard)) }
    }

    /// Dispatches events until the ring is gone. To be spawned once, on the thread of this hub.
    pub async fn run(self) {
        let mut ends = self.ring.ends();
        let mut pace = Pace { paid_until: Instant::now() };
        loop {
            let Round { writes, more } = self.dispatch(DISPATCH_AT_ONCE);
            match pace.pause_after(writes, Instant::now()) {
                // Whoever is behind must not be held up.
                _ if more => tokio::task::yield_now().await,
                Some(end) => tokio::time::sleep_until(end).await,
                None if ends.changed().await.is_err() => return,
                None => {}
            }
        }
    }

    /// A new member, in no room yet.
    pub fn enter(&self) -> Member {
        let mut shard = self.shard.borrow_mut();
        let id = shard.next_member;
        shard.next_member += 1;
        Member::new(self.clone(), id, Inbox::new(self.bounds))
    }

    /// Up to where everything was handed out here; `None` before the feed has begun and on a
    /// standalone MongoDB.
    pub fn through(&self) -> Option<Position> {
        let shard = self.shard.borrow();
        self.ring.through_at(shard.cursor, shard.dispatched)
    }

    /// The ring that this hub follows.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// How many rooms have members here.
    pub fn rooms(&self) -> usize {
        self.shard.borrow().rooms.len()
    }

    /// Hands out up to `max` events, and no more at once than inboxes can hold.
    pub(super) fn dispatch(&self, max: usize) -> Round {
        let mut shard = self.shard.borrow_mut();
        match self.ring.after(shard.cursor, max) {
            Ok(events) => {
                let mut round = Round { writes: 0, more: events.len() == max };
                let (mut bytes, mut at_once) = (0, WRITTEN_AT_ONCE);
                for (index, event) in events.iter().enumerate() {
                    bytes += event.len();
                    let is_of_room = |other: &Arc<Event>| other.room() == event.room();
                    let before = events.iter().take(index).any(is_of_room);
                    let after = events.iter().skip(index + 1).any(is_of_room);
                    // Several of one room are cheaper in one write, which their sessions make.
                    let most = if before || after { 0 } else { at_once };
                    at_once -= shard.dispatch(Arc::clone(event), most);
                    if !before {
                        round.writes += shard.seats(event.room());
                    }
                    // A burst of large events must not fill the inboxes of those who do read.
                    if bytes >= self.bounds.bytes / 4 {
                        round.more = true;
                        break;
                    }
                }
                round
            }
            Err(overtaken) => {
                let tail = overtaken.tail;
                shard.cursor = tail.seq;
                shard.dispatched = tail.through;
                shard.tell_all(|| Mail::Resync { before: tail.seq, position: tail.through });
                Round { writes: 0, more: true }
            }
        }
    }

    /// The number of the first event that the members are still to be given.
    pub(super) fn cursor(&self) -> Seq {
        self.shard.borrow().cursor
    }

    /// Gives `member` what is dispatched to `room` from now on and comes after `floor`.
    pub(super) fn seat(
        &self,
        room: RoomId,
        member: MemberId,
        inbox: &Rc<Inbox>,
        floor: Option<Position>,
    ) {
        let seat = Seat { inbox: inbox.clone(), floor };
        self.shard.borrow_mut().rooms.entry(room).or_default().insert(member, seat);
    }

    /// Takes `member` out of `room`, where it need not be.
    pub(super) fn unseat(&self, room: RoomId, member: MemberId) {
        let mut shard = self.shard.borrow_mut();
        if let Entry::Occupied(mut seats) = shard.rooms.entry(room) {
            seats.get_mut().swap_remove(&member);
            if seats.get().is_empty() {
                seats.remove();
            }
        }
    }
}

impl Pace {
    /// Until when to wait after a round with so many writes.
    fn pause_after(&mut self, writes: usize, now: Instant) -> Option<Instant> {
        let writes = u32::try_from(writes).unwrap_or(u32::MAX);
        let price = SPACING.saturating_mul(writes).min(LONGEST_PAUSE);
        self.paid_until = (self.paid_until.max(now) + price).min(now + LONGEST_PAUSE * 2);
        let end = self.paid_until.checked_sub(LONGEST_PAUSE)?;
        (end > now).then_some(end)
    }
}

impl Shard {
    fn seats(&self, room: RoomId) -> usize {
        self.rooms.get(&room).map_or(0, IndexMap::len)
    }

    /// Hands an event out, to at most so many members by the short way; to how many it was.
    fn dispatch(&mut self, event: Arc<Event>, most: usize) -> usize {
        let seq = self.cursor;
        self.cursor += 1;
        self.dispatched = event.position().or(self.dispatched);
        let Entry::Occupied(mut seats) = self.rooms.entry(event.room()) else { return 0 };
        let delivery = Delivery::new(event);
        let position = delivery.event().position();
        let mut written = 0;
        seats.get_mut().retain(|_, seat| {
            if position.is_some() && position <= seat.floor {
                return true;
            }
            if written < most && seat.inbox.give(&delivery) {
                written += 1;
                return true;
            }
            seat.inbox.put(Mail::Event(seq, Rc::clone(&delivery)))
        });
        if seats.get().is_empty() {
            seats.remove();
        }
        written
    }

    /// Puts the same mail into the inbox of everyone who is in a room, once.
    fn tell_all(&mut self, mail: impl Fn() -> Mail) {
        let seats = self.rooms.values().flatten();
        let members: HashMap<_, _> = seats.map(|(id, seat)| (*id, seat.inbox.clone())).collect();
        for inbox in members.values() {
            inbox.put(mail());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::{
        models::{Message, UserId},
        realtime::{
            inbox::Outlet,
            member::Start,
            ring::{Batch, Limits},
        },
    };

    fn hub(events: usize, bytes: usize) -> Hub {
        let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
        let ring = Arc::new(Ring::new(limits));
        ring.open(Position::ZERO);
        Hub::new(ring, Bounds { events, bytes })
    }

    fn publish(hub: &Hub, room: RoomId, count: u32) {
        let start = hub.ring.newest().map_or(0, |newest| newest.time().1);
        let position = |increment| Some(Position::first_of(1, increment));
        let events =
            (start + 1..=start + count).map(|n| Event::resync(room, position(n))).collect();
        let newest = position(start + count);
        hub.ring.publish(Batch { events, newest, through: None, second: 1 });
        while hub.dispatch(10).more {}
    }

    /// How many events wait, and whether the member is still served.
    fn drain(member: &mut Member) -> (usize, bool) {
        let context = Context::from_waker(Waker::noop());
        for count in 0.. {
            match member.poll_next(&context) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return (count, false),
                Poll::Pending => return (count, true),
            }
        }
        unreachable!("the members of these tests have few events")
    }

    /// A client that hears at once, unless something waits for it.
    #[derive(Clone, Default)]
    struct Client {
        heard: Rc<RefCell<Vec<Option<Position>>>>,
        busy: Rc<Cell<bool>>,
    }

    impl Outlet for Client {
        fn give(&self, delivery: &Delivery) -> bool {
            if self.busy.get() {
                return false;
            }
            self.heard.borrow_mut().push(delivery.event().position());
            true
        }
    }

    /// A member of `room` with a client, which waits for the next event.
    fn listen(hub: &Hub, room: RoomId) -> (Member, Client) {
        let (mut member, client) = (hub.enter(), Client::default());
        member.set_outlet(client.clone());
        member.join(room, Start::Live);
        assert_eq!(drain(&mut member), (0, true));
        (member, client)
    }

    #[test]
    fn an_event_goes_to_the_client_at_once_when_nothing_waits() {
        let hub = hub(10, usize::MAX);
        let room = RoomId::new();
        let (mut member, client) = listen(&hub, room);
        publish(&hub, room, 1);
        let first = Some(Position::first_of(1, 1));
        assert_eq!(*client.heard.borrow(), [first]);
        assert_eq!(member.offset().map(|offset| offset.base), first);

        client.busy.set(true);
        publish(&hub, room, 1);
        client.busy.set(false);
        publish(&hub, room, 1);
        assert_eq!(client.heard.borrow().len(), 1, "the third waits behind the second");
        assert_eq!(drain(&mut member), (2, true));
        publish(&hub, room, 1);
        assert_eq!(client.heard.borrow().len(), 2);
        assert_eq!(drain(&mut member), (0, true));
    }

    #[test]
    fn several_events_of_a_room_wait_for_one_write() {
        let hub = hub(10, usize::MAX);
        let [busy, quiet] = [RoomId::new(), RoomId::new()];
        let (mut member, client) = listen(&hub, busy);
        let (_quiet, heard) = listen(&hub, quiet);
        let position = |n| Some(Position::first_of(1, n));
        let rooms = [(1, busy), (2, quiet), (3, busy)];
        let events = rooms.map(|(n, room)| Event::resync(room, position(n))).into();
        hub.ring.publish(Batch { events, newest: position(3), through: None, second: 1 });
        while hub.dispatch(10).more {}
        assert!(client.heard.borrow().is_empty());
        assert_eq!(drain(&mut member), (2, true));
        assert_eq!(*heard.heard.borrow(), [position(2)]);
    }

    #[test]
    fn a_round_counts_each_client_of_a_room_once() {
        let hub = hub(10, usize::MAX);
        let [full, single, empty] = [RoomId::new(), RoomId::new(), RoomId::new()];
        let _listening = [full, full, full, single].map(|room| listen(&hub, room));
        let position = |n| Some(Position::first_of(1, n));
        let rooms = [(1, full), (2, single), (3, full), (4, empty), (5, full)];
        let events = rooms.map(|(n, room)| Event::resync(room, position(n))).into();
        hub.ring.publish(Batch { events, newest: position(5), through: None, second: 1 });
        assert_eq!(hub.dispatch(5), Round { writes: 4, more: true });
        assert_eq!(hub.dispatch(5), Round { writes: 0, more: false });
    }

    /// When rounds of so many writes take place of which one is due every `gap`.
    fn rounds(writes: usize, gap: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace { paid_until: start }, start);
        let round = |number| {
            now = now.max(start + gap * number);
            let at = now;
            now = pace.pause_after(writes, now).unwrap_or(now);
            at - start
        };
        (0..100).map(round).collect()
    }

    #[test]
    fn only_a_stream_of_messages_to_many_is_spaced() {
        let millis = Duration::from_millis;
        // 500 clients on two workers at 50 a second; a burst to few; and what no pause can help.
        for (writes, gap) in [(250, millis(20)), (5, Duration::ZERO), (100_000, millis(800))] {
            let on_time: Vec<_> = (0..100).map(|number| gap * number).collect();
            assert_eq!(rounds(writes, gap), on_time, "{writes} writes every {gap:?}");
        }
        let spaced = rounds(250, millis(2));
        // 10 ms each, but for what is forgiven.
        assert_eq!(spaced.get(..5), Some(&[0, 2, 4, 10, 20].map(millis)[..]));
        assert_eq!(spaced.last(), Some(&millis(970)));
        let longest = rounds(100_000, Duration::ZERO);
        assert_eq!(longest.get(..4), Some(&[0, 0, 20, 40].map(millis)[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_messages_to_many_comes_in_few_rounds() {
        let hub = hub(1_000, usize::MAX);
        let room = RoomId::new();
        let mut members: Vec<_> = (0..250).map(|_| listen(&hub, room)).collect();
        let local = tokio::task::LocalSet::new();
        local.spawn_local(hub.clone().run());
        let publishing = async {
            for n in 1..=100 {
                let position = Some(Position::first_of(1, n));
                let events = vec![Event::resync(room, position)];
                hub.ring.publish(Batch { events, newest: position, through: None, second: 1 });
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(LONGEST_PAUSE).await;
        };
        local.run_until(publishing).await;
        // What comes alone in its round goes to the client at once.
        let (member, client) = &mut members[0];
        let alone = client.heard.borrow().len();
        assert!((1..10).contains(&alone), "{alone}");
        assert_eq!(drain(member), (100 - alone, true));
    }

    #[test]
    fn nothing_goes_by_the_short_way_past_what_is_owed() {
        let hub = hub(10, usize::MAX);
        let [room, other] = [RoomId::new(), RoomId::new()];
        let (mut member, client) = listen(&hub, room);
        member.join(other, Start::Resync);
        publish(&hub, room, 1);
        assert!(client.heard.borrow().is_empty());
        assert_eq!(drain(&mut member), (2, true));
        member.announce(Position::ZERO);
        publish(&hub, room, 1);
        assert!(client.heard.borrow().is_empty(), "its offset must count the joins");
        member.retract();
        assert_eq!(drain(&mut member), (1, true));
        publish(&hub, room, 1);
        assert_eq!(client.heard.borrow().len(), 1);
    }

    #[test]
    fn who_has_overflowed_is_given_nothing_behind_what_it_lost() {
        let hub = hub(2, usize::MAX);
        let [room, other] = [RoomId::new(), RoomId::new()];
        let (mut member, client) = listen(&hub, room);
        member.join(other, Start::Live);
        assert_eq!(drain(&mut member), (0, true));
        client.busy.set(true);
        publish(&hub, room, 3);
        client.busy.set(false);
        publish(&hub, other, 1);
        assert!(client.heard.borrow().is_empty());
        assert_eq!(drain(&mut member), (0, false));
    }

    #[test]
    fn an_event_of_before_the_last_one_has_an_offset_of_its_own() {
        let hub = hub(10, usize::MAX);
        let room = RoomId::new();
        let (mut member, client) = listen(&hub, room);
        let position = |n| Some(Position::first_of(1, n));
        for n in [5, 3, 6] {
            let events = vec![Event::resync(room, position(n))];
            hub.ring.publish(Batch { events, newest: position(n), through: None, second: 1 });
            while hub.dispatch(10).more {}
        }
        assert_eq!(*client.heard.borrow(), [position(5)]);
        assert_eq!(drain(&mut member), (2, true));
    }

    #[test]
    fn a_panic_on_the_short_way_is_that_of_one_session() {
        struct Faulty;
        impl Outlet for Faulty {
            fn give(&self, _: &Delivery) -> bool {
                std::panic::resume_unwind(Box::new("fault"))
            }
        }

        let hub = hub(10, usize::MAX);
        let room = RoomId::new();
        let (mut faulty, _) = listen(&hub, room);
        faulty.set_outlet(Faulty);
        let (_other, client) = listen(&hub, room);
        publish(&hub, room, 1);
        assert_eq!(client.heard.borrow().len(), 1);
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drain(&mut faulty)));
        assert_eq!(polled.unwrap_err().downcast_ref(), Some(&"fault"));
    }

    #[test]
    fn who_is_there_before_the_past_is_given_what_is_live_and_only_that() {
        let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
        let ring = Arc::new(Ring::new(limits));
        let position = |second| Some(Position::first_of(second, 1));
        let opening = ring.open(Position::first_of(30, 1));
        let hub = Hub::new(ring, Bounds { events: 10, bytes: usize::MAX });
        let room = RoomId::new();
        let (_member, client) = listen(&hub, room);
        let past = [11, 29].map(|second| Event::resync(room, position(second))).into();
        assert!(hub.ring.fill(opening, Position::first_of(10, 1), past, 31));
        let live = vec![Event::resync(room, position(31))];
        hub.ring.publish(Batch { events: live, newest: position(31), through: None, second: 31 });
        while hub.dispatch(10).more {}
        assert_eq!(*client.heard.borrow(), [position(31)]);
        // One who comes back is given both.
        let mut back = hub.enter();
        let joined = back.join(room, Start::After(Position::first_of(10, 1)));
        assert!(joined.recovered);
        assert_eq!(drain(&mut back), (3, true));
    }

    #[test]
    fn a_large_room_is_written_to_by_its_sessions_too() {
        let hub = hub(10, usize::MAX);
        let room = RoomId::new();
        let members: Vec<_> = (0..WRITTEN_AT_ONCE + 3).map(|_| listen(&hub, room)).collect();
        publish(&hub, room, 1);
        let written = members.iter().filter(|(_, client)| client.heard.borrow().len() == 1);
        assert_eq!(written.count(), WRITTEN_AT_ONCE);
        let waiting = members.into_iter().map(|(mut member, _)| drain(&mut member).0);
        assert_eq!(waiting.sum::<usize>(), 3);
    }

    #[test]
    fn a_full_inbox_ends_its_member_and_no_other() {
        let hub = hub(10, usize::MAX);
        let room = RoomId::new();
        let [mut quick, mut slow] = [(); 2].map(|()| hub.enter());
        quick.join(room, Start::Live);
        slow.join(room, Start::Live);
        for _ in 0..3 {
            publish(&hub, room, 5);
            assert_eq!(drain(&mut quick), (5, true));
        }
        assert_eq!(drain(&mut slow), (0, false));
        assert_eq!(hub.shard.borrow().rooms[&room].len(), 1);
    }

    #[test]
    fn an_inbox_is_bounded_in_bytes_but_for_a_single_event() {
        let hub = hub(usize::MAX, 100);
        let room = RoomId::new();
        let mut member = hub.enter();
        member.join(room, Start::Live);
        publish(&hub, room, 1);
        assert_eq!(drain(&mut member), (1, true));
        publish(&hub, room, 2);
        assert_eq!(drain(&mut member), (0, false));
    }

    #[test]
    fn a_burst_is_handed_out_in_portions_that_inboxes_hold() {
        let hub = hub(usize::MAX, 4_000);
        let room = RoomId::new();
        let mut member = hub.enter();
        member.join(room, Start::Live);
        let message = Message::new(room, UserId::new(), "x".repeat(800));
        let event = |n| Event::message(&message, Some(Position::first_of(1, n)));
        let (events, newest) = ((1..=10).map(event).collect(), Some(Position::first_of(1, 10)));
        hub.ring.publish(Batch { events, newest, through: None, second: 1 });
        let mut given = 0;
        while hub.dispatch(10).more {
            let (count, served) = drain(&mut member);
            assert!(served && count > 0, "{given}");
            given += count;
        }
        assert_eq!(given + drain(&mut member).0, 10);
    }

    #[test]
    fn rooms_that_nobody_is_in_cost_nothing() {
        let hub = hub(10, usize::MAX);
        let mut member = hub.enter();
        for _ in 0..100 {
            let room = RoomId::new();
            member.join(room, Start::Live);
            member.leave(room);
            publish(&hub, RoomId::new(), 1);
        }
        assert_eq!(hub.rooms(), 0);
        let rooms = [(); 5].map(|()| RoomId::new());
        for room in rooms {
            member.join(room, Start::Live);
        }
        assert_eq!(hub.rooms(), 5);
        drop(member);
        assert_eq!(hub.rooms(), 0);
    }

    #[test]
    fn who_leaves_is_given_nothing_more() {
        let hub = hub(10, usize::MAX);
        let room = RoomId::new();
        let mut member = hub.enter();
        member.join(room, Start::Live);
        publish(&hub, room, 3);
        member.leave(room);
        assert_eq!(drain(&mut member), (0, true));
        member.join(room, Start::Live);
        publish(&hub, room, 1);
        assert_eq!(drain(&mut member), (1, true));
    }

    #[test]
    fn a_backlog_waits_in_the_ring_and_not_in_the_inbox() {
        let hub = hub(10, usize::MAX);
        let room = RoomId::new();
        publish(&hub, room, 1_000);
        let mut member = hub.enter();
        let joined = member.join(room, Start::After(Position::ZERO));
        assert!(joined.recovered);
        assert_eq!(drain(&mut member), (1_000, true));
        publish(&hub, room, 1);
        assert_eq!(drain(&mut member), (1, true));
    }

    #[test]
    fn without_positions_events_are_delivered_and_nothing_is_recovered() {
        let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
        let hub = Hub::new(Arc::new(Ring::new(limits)), Bounds { events: 10, bytes: usize::MAX });
        let [room, other] = [(); 2].map(|()| RoomId::new());
        let mut member = hub.enter();
        let joined = member.join(room, Start::Live);
        assert_eq!((joined.position, joined.recovered), (None, false));
        let joined = member.join(other, Start::After(Position::first_of(1, 1)));
        assert_eq!((joined.position, joined.recovered), (None, false));
        assert_eq!(drain(&mut member), (1, true), "a resync of the other room");
        let events = vec![Event::resync(room, None), Event::resync(other, None)];
        hub.ring.publish(Batch { events, newest: None, through: None, second: 7 });
        while hub.dispatch(10).more {}
        assert_eq!(drain(&mut member), (2, true));
    }
}
