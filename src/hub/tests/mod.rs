//! Tests of the hub with members, without a wire.

mod model;

use std::{
    cell::Cell,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{
    inbox::DirectWriter,
    member::{Member, Start},
    pacing::MAX_PAUSE,
    *,
};
use crate::{
    feed::ring::{Batch, Limits},
    hub::member::NotJoined,
    models::{Clock, Membership, Message, Revocation, Scope, UserId},
};

fn hub(events: usize, bytes: usize) -> Rc<Hub> {
    let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
    let ring = Arc::new(Ring::new(limits));
    ring.open(Position::ZERO);
    Hub::new(ring, revoked(), Bounds { events, bytes }, Signals::default())
}

/// A set without revocations.
fn revoked() -> Arc<Revoked> {
    Arc::new(Revoked::new(Clock::default()))
}

/// A token of a user.
fn token(user: UserId) -> TokenIdentity {
    TokenIdentity { user, issued: 100, family: None }
}

fn publish(hub: &Rc<Hub>, room: RoomId, count: u32) {
    let start = hub.ring.newest().map_or(0, |newest| newest.time().1);
    let position = |increment| Some(Position::first_of(1, increment));
    let events = (start + 1..=start + count).map(|n| Event::resync(room, position(n))).collect();
    let newest = position(start + count);
    hub.ring.publish(Batch { events, newest, through: None, second: 1 });
    while hub.dispatch(10).more {}
}

/// How many events the member gets, and whether it has not overflowed.
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

/// A client that takes direct writes unless it is busy.
#[derive(Clone, Default)]
struct Client {
    received: Rc<RefCell<Vec<Option<Position>>>>,
    busy: Rc<Cell<bool>>,
}

impl DirectWriter for Client {
    fn write(&self, delivery: &Delivery) -> bool {
        if self.busy.get() {
            return false;
        }
        self.received.borrow_mut().push(delivery.event().position());
        true
    }
}

/// A member of `room` with a client. It is idle.
fn listen(hub: &Rc<Hub>, room: RoomId) -> (Member, Client) {
    let (mut member, client) = (Member::new(hub), Client::default());
    member.set_direct_writer(client.clone());
    member.join(room, Start::Live);
    assert_eq!(drain(&mut member), (0, true));
    (member, client)
}

#[test]
fn an_event_is_written_directly_to_an_idle_client() {
    let hub = hub(10, usize::MAX);
    let room = RoomId::new();
    let (mut member, client) = listen(&hub, room);
    publish(&hub, room, 1);
    let first = Some(Position::first_of(1, 1));
    assert_eq!(*client.received.borrow(), [first]);
    assert_eq!(member.offset().map(|offset| offset.base), first);

    client.busy.set(true);
    publish(&hub, room, 1);
    client.busy.set(false);
    publish(&hub, room, 1);
    assert_eq!(client.received.borrow().len(), 1, "the third waits behind the second");
    assert_eq!(drain(&mut member), (2, true));
    publish(&hub, room, 1);
    assert_eq!(client.received.borrow().len(), 2);
    assert_eq!(drain(&mut member), (0, true));
}

#[test]
fn several_events_of_a_room_wait_for_one_write() {
    let hub = hub(10, usize::MAX);
    let [busy, quiet] = [RoomId::new(), RoomId::new()];
    let (mut member, client) = listen(&hub, busy);
    let (_quiet, quiet_client) = listen(&hub, quiet);
    let position = |n| Some(Position::first_of(1, n));
    let rooms = [(1, busy), (2, quiet), (3, busy)];
    let events = rooms.map(|(n, room)| Event::resync(room, position(n))).into();
    hub.ring.publish(Batch { events, newest: position(3), through: None, second: 1 });
    while hub.dispatch(10).more {}
    assert!(client.received.borrow().is_empty());
    assert_eq!(drain(&mut member), (2, true));
    assert_eq!(*quiet_client.received.borrow(), [position(2)]);
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
        tokio::time::sleep(MAX_PAUSE).await;
    };
    local.run_until(publishing).await;
    // An event that is alone in its round is written directly.
    let (member, client) = &mut members[0];
    let alone = client.received.borrow().len();
    assert!((1..10).contains(&alone), "{alone}");
    assert_eq!(drain(member), (100 - alone, true));
}

#[test]
fn a_resync_or_a_join_prevents_direct_writes() {
    let hub = hub(10, usize::MAX);
    let [room, other] = [RoomId::new(), RoomId::new()];
    let (mut member, client) = listen(&hub, room);
    member.join(other, Start::Resync);
    publish(&hub, room, 1);
    assert!(client.received.borrow().is_empty());
    assert_eq!(drain(&mut member), (2, true));
    member.announce_join(Position::ZERO);
    publish(&hub, room, 1);
    assert!(client.received.borrow().is_empty(), "its offset must count the joins");
    member.cancel_join();
    assert_eq!(drain(&mut member), (1, true));
    publish(&hub, room, 1);
    assert_eq!(client.received.borrow().len(), 1);
}

#[test]
fn an_overflowed_member_gets_nothing_more() {
    let hub = hub(2, usize::MAX);
    let [room, other] = [RoomId::new(), RoomId::new()];
    let (mut member, client) = listen(&hub, room);
    member.join(other, Start::Live);
    assert_eq!(drain(&mut member), (0, true));
    client.busy.set(true);
    publish(&hub, room, 3);
    client.busy.set(false);
    publish(&hub, other, 1);
    assert!(client.received.borrow().is_empty());
    assert_eq!(drain(&mut member), (0, false));
}

#[test]
fn an_event_before_the_last_one_is_not_written_directly() {
    let hub = hub(10, usize::MAX);
    let room = RoomId::new();
    let (mut member, client) = listen(&hub, room);
    let position = |n| Some(Position::first_of(1, n));
    for n in [5, 3, 6] {
        let events = vec![Event::resync(room, position(n))];
        hub.ring.publish(Batch { events, newest: position(n), through: None, second: 1 });
        while hub.dispatch(10).more {}
    }
    assert_eq!(*client.received.borrow(), [position(5)]);
    assert_eq!(drain(&mut member), (2, true));
}

#[test]
fn a_panic_of_a_direct_write_ends_one_session_only() {
    struct Faulty;
    impl DirectWriter for Faulty {
        fn write(&self, _: &Delivery) -> bool {
            std::panic::resume_unwind(Box::new("fault"))
        }
    }

    let hub = hub(10, usize::MAX);
    let room = RoomId::new();
    let (mut faulty, _) = listen(&hub, room);
    faulty.set_direct_writer(Faulty);
    let (_other, client) = listen(&hub, room);
    publish(&hub, room, 1);
    assert_eq!(client.received.borrow().len(), 1);
    let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drain(&mut faulty)));
    assert_eq!(polled.unwrap_err().downcast_ref(), Some(&"fault"));
}

#[test]
fn a_member_that_joined_before_the_backfill_gets_live_events_only() {
    let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
    let ring = Arc::new(Ring::new(limits));
    let position = |second| Some(Position::first_of(second, 1));
    let epoch = ring.open(Position::first_of(30, 1));
    let bounds = Bounds { events: 10, bytes: usize::MAX };
    let hub = Hub::new(ring, revoked(), bounds, Signals::default());
    let room = RoomId::new();
    let (_member, client) = listen(&hub, room);
    let past = [11, 29].map(|second| Event::resync(room, position(second))).into();
    assert!(hub.ring.fill(epoch, Position::first_of(10, 1), past, 31));
    let live = vec![Event::resync(room, position(31))];
    hub.ring.publish(Batch { events: live, newest: position(31), through: None, second: 31 });
    while hub.dispatch(10).more {}
    assert_eq!(*client.received.borrow(), [position(31)]);
    // A client that resumes gets both.
    let mut back = Member::new(&hub);
    let joined = back.join(room, Start::After(Position::first_of(10, 1)));
    assert!(joined.recovered);
    assert_eq!(drain(&mut back), (3, true));
}

#[test]
fn a_large_room_is_written_to_by_its_sessions_too() {
    let hub = hub(10, usize::MAX);
    let room = RoomId::new();
    let members: Vec<_> = (0..MAX_DIRECT_WRITES + 3).map(|_| listen(&hub, room)).collect();
    publish(&hub, room, 1);
    let written = members.iter().filter(|(_, client)| client.received.borrow().len() == 1);
    assert_eq!(written.count(), MAX_DIRECT_WRITES);
    let waiting = members.into_iter().map(|(mut member, _)| drain(&mut member).0);
    assert_eq!(waiting.sum::<usize>(), 3);
}

#[test]
fn a_full_inbox_ends_its_member_and_no_other() {
    let hub = hub(10, usize::MAX);
    let room = RoomId::new();
    let [mut quick, mut slow] = [(); 2].map(|()| Member::new(&hub));
    quick.join(room, Start::Live);
    slow.join(room, Start::Live);
    for _ in 0..3 {
        publish(&hub, room, 5);
        assert_eq!(drain(&mut quick), (5, true));
    }
    assert_eq!(drain(&mut slow), (0, false));
    assert_eq!(hub.state.borrow().rooms[&room].len(), 1);
}

#[test]
fn an_inbox_is_bounded_in_bytes_but_for_a_single_event() {
    let hub = hub(usize::MAX, 100);
    let room = RoomId::new();
    let mut member = Member::new(&hub);
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
    let mut member = Member::new(&hub);
    member.join(room, Start::Live);
    let message = Message::new(room, UserId::new(), "x".repeat(800));
    let event = |n| Event::message(&message, Some(Position::first_of(1, n)));
    let (events, newest) = ((1..=10).map(event).collect(), Some(Position::first_of(1, 10)));
    hub.ring.publish(Batch { events, newest, through: None, second: 1 });
    let mut delivered = 0;
    while hub.dispatch(10).more {
        let (count, served) = drain(&mut member);
        assert!(served && count > 0, "{delivered}");
        delivered += count;
    }
    assert_eq!(delivered + drain(&mut member).0, 10);
}

#[test]
fn rooms_without_members_are_removed() {
    let hub = hub(10, usize::MAX);
    let mut member = Member::new(&hub);
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
fn a_member_that_left_gets_nothing_more() {
    let hub = hub(10, usize::MAX);
    let room = RoomId::new();
    let mut member = Member::new(&hub);
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
    let mut member = Member::new(&hub);
    let joined = member.join(room, Start::After(Position::ZERO));
    assert!(joined.recovered);
    assert_eq!(drain(&mut member), (1_000, true));
    publish(&hub, room, 1);
    assert_eq!(drain(&mut member), (1, true));
}

#[test]
fn without_positions_events_are_delivered_and_nothing_is_recovered() {
    let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
    let bounds = Bounds { events: 10, bytes: usize::MAX };
    let hub = Hub::new(Arc::new(Ring::new(limits)), revoked(), bounds, Signals::default());
    let [room, other] = [(); 2].map(|()| RoomId::new());
    let mut member = Member::new(&hub);
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

/// Publishes these events at the next positions, and hands them out.
fn publish_events(hub: &Rc<Hub>, events: impl FnOnce(&mut dyn FnMut() -> Position) -> Vec<Event>) {
    let mut last = hub.ring.newest().map_or(0, |newest| newest.time().1);
    let events = events(&mut || {
        last += 1;
        Position::first_of(1, last)
    });
    let newest = Some(Position::first_of(1, last));
    hub.ring.publish(Batch { events, newest, through: None, second: 1 });
    while hub.dispatch(10).more {}
}

fn message(room: RoomId, position: Position) -> Event {
    Event::message(&Message::new(room, UserId::new(), "x"), Some(position))
}

/// The names of the events that wait for a member.
fn told(member: &mut Member) -> Vec<&'static str> {
    let context = Context::from_waker(Waker::noop());
    let mut names = Vec::new();
    while let Poll::Ready(Ok(delivery)) = member.poll_next(&context) {
        names.push(delivery.event().kind().name());
    }
    names
}

/// A message, the removal of `user`, and a message behind it.
fn remove_between_messages(hub: &Rc<Hub>, room: RoomId, user: UserId) {
    publish_events(hub, |next| {
        let mut events = vec![message(room, next())];
        events.extend(Event::member_removed(room, user, Some([next(), next()])));
        events.push(message(room, next()));
        events
    });
}

#[test]
fn a_removed_user_is_given_what_came_before_and_nothing_behind() {
    let hub = hub(100, usize::MAX);
    let (room, user) = (RoomId::new(), UserId::new());
    let member_of = |user: UserId| {
        let mut member = Member::new(&hub);
        member.set_token(token(user));
        member
    };
    let since = Position::first_of(1, 1);
    publish(&hub, room, 1);
    // Live in the room, in another one, and of another user.
    let (mut live, mut elsewhere, mut other) =
        (member_of(user), member_of(user), member_of(UserId::new()));
    live.join_checked(room, Start::Live, hub.cursor()).unwrap();
    other.join_checked(room, Start::Live, hub.cursor()).unwrap();
    // In the middle of a replay, of which it has been given nothing yet.
    publish_events(&hub, |next| vec![message(room, next())]);
    let mut replayed = member_of(user);
    replayed.join_checked(room, Start::After(since), hub.cursor()).unwrap();
    remove_between_messages(&hub, room, user);

    let all = ["receiveMessage", "receiveMessage", "memberRemoved", "receiveMessage"];
    assert_eq!(told(&mut other), all);
    let mut expected = all[..3].to_vec();
    expected.push("roomRemoved");
    assert_eq!(told(&mut live), expected);
    // What is told to the user comes when it happens, the replay in between.
    let mut heard = told(&mut replayed);
    heard.sort_unstable();
    expected.sort_unstable();
    assert_eq!(heard, expected);
    assert_eq!(told(&mut elsewhere), ["roomRemoved"]);
    for member in [&mut live, &mut replayed] {
        assert!(!member.is_in(room));
        publish_events(&hub, |next| vec![message(room, next())]);
        assert!(told(member).is_empty());
    }
}

#[test]
fn a_removal_that_was_taken_back_before_the_join_removes_nobody() {
    let hub = hub(100, usize::MAX);
    let (room, user) = (RoomId::new(), UserId::new());
    publish(&hub, room, 1);
    remove_between_messages(&hub, room, user);
    let mut member = Member::new(&hub);
    member.set_token(token(user));
    let since = Position::first_of(1, 1);
    member.join_checked(room, Start::After(since), hub.cursor()).unwrap();
    assert_eq!(told(&mut member), ["receiveMessage", "memberRemoved", "receiveMessage"]);
    assert!(member.is_in(room));
    publish_events(&hub, |next| vec![message(room, next())]);
    assert_eq!(told(&mut member), ["receiveMessage"]);
}

#[test]
fn a_member_whose_hub_has_missed_events_has_to_ask_again() {
    let hub = hub(100, usize::MAX);
    let mut member = Member::new(&hub);
    member.set_token(token(UserId::new()));
    // As the models make them.
    let room = RoomId(bson::oid::ObjectId::from_bytes(*b"\0\0\0\0\x9croom\0\0\0"));
    assert!(room.may_have_members());
    member.join_checked(room, Start::Live, hub.cursor()).unwrap();
    hub.ring.open(Position::first_of(9, 1));
    while hub.dispatch(10).more {}
    assert_eq!(drain(&mut member), (0, false));
}

/// Publishes and dispatches the events of a member who was added to or removed from a room.
fn change_member(hub: &Rc<Hub>, room: RoomId, user: UserId, added: bool) {
    let first = hub.ring.newest().map_or(0, |newest| newest.time().1) + 1;
    let position = Position::first_of(1, first);
    let positions = Some([position, position.next_of_same_time()]);
    let joined_at = bson::DateTime::from_millis(0);
    let events = match added {
        true => {
            Event::member_added(&Membership { room, user, username: None, joined_at }, positions)
        }
        false => Event::member_removed(room, user, positions),
    };
    let newest = positions.map(|[_, last]| last);
    hub.ring.publish(Batch { events: events.into(), newest, through: None, second: 1 });
    while hub.dispatch(10).more {}
}

/// Publishes a revocation of all tokens of a user that were issued before a second, in front of
/// `behind` events of a room.
fn revoke(hub: &Rc<Hub>, user: UserId, before: u64, room: RoomId, behind: u32) {
    let start = hub.ring.newest().map_or(0, |newest| newest.time().1);
    let position = |increment| Some(Position::first_of(1, increment));
    let revocation = Revocation { user, scope: Scope::All, before };
    let mut events = vec![Event::revoked(Some(revocation), position(start + 1))];
    events.extend((0..behind).map(|n| Event::resync(room, position(start + 2 + n))));
    let newest = position(start + 1 + behind);
    hub.ring.publish(Batch { events, newest, through: None, second: 1 });
    while hub.dispatch(10).more {}
}

#[test]
fn an_event_for_the_user_does_not_cover_a_room_that_is_being_joined() {
    let hub = hub(10, usize::MAX);
    let (lounge, user) = (RoomId::new(), UserId::new());
    publish(&hub, lounge, 1);
    let (mut member, client) = (Member::new(&hub), Client::default());
    member.set_token(token(user));
    member.set_direct_writer(client.clone());
    let from = hub.through().unwrap();
    let entry = member.announce_join(from);
    assert_eq!(drain(&mut member), (0, true));
    publish(&hub, lounge, 1);
    change_member(&hub, RoomId::new(), user, true);
    assert_eq!(drain(&mut member), (1, true));
    let offset = member.offset().unwrap();
    member.join(lounge, Start::From(from));
    assert_eq!(offset.since(lounge, entry), from);
    assert_eq!(drain(&mut member), (1, true));
}

#[test]
fn a_room_that_only_the_record_has_is_named_by_offsets_until_it_is_taken_out() {
    let hub = hub(10, usize::MAX);
    let (room, left) = (RoomId::new(), RoomId::new());
    let (mut member, client) = listen(&hub, room);
    publish(&hub, room, 1);
    let through = member.offset().unwrap().base;
    member.note_leftover(left, through);
    assert_eq!(member.leftover(), None, "there is no record");
    member.remember(None, 0);
    member.note_leftover(room, through);
    assert_eq!(member.leftover(), None, "the member is in this room");
    member.note_leftover(left, through);
    assert_eq!((member.leftover(), drain(&mut member)), (Some(left), (0, true)));
    publish(&hub, room, 1);
    assert_eq!(drain(&mut member), (1, true));
    let offset = member.offset().unwrap();
    assert!(offset.of(left) == through && offset.of(room) > through, "{offset}");

    member.forget_leftover(left);
    assert_eq!(drain(&mut member), (0, true));
    publish(&hub, room, 1);
    assert_eq!(client.received.borrow().len(), 2, "with the frame that all members share again");
    for _ in 0..100 {
        member.note_leftover(RoomId::new(), through);
    }
    assert_eq!(member.ended(), None);
    member.note_leftover(RoomId::new(), through);
    assert_eq!(member.ended(), Some(Ended::TooSlow));
}

#[test]
fn a_join_that_was_checked_before_a_removal_is_refused() {
    let hub = hub(10, usize::MAX);
    let room: RoomId = "6b0bd1279c726f6f6d000001".parse().unwrap();
    let (user, other) = (UserId::new(), UserId::new());
    let ahead = Start::After(Position::first_of(1, 100));
    for start in [Start::Live, ahead, Start::After(Position::ZERO), Start::Resync] {
        let mut member = Member::new(&hub);
        member.set_token(token(user));
        let checked = hub.cursor();
        change_member(&hub, room, other, false);
        change_member(&hub, room, user, false);
        change_member(&hub, room, other, true);
        assert_eq!(member.join_checked(room, start, checked), Err(NotJoined::Removed), "{start:?}");
        assert_eq!(member.rooms().count(), 0);
        change_member(&hub, room, user, true);
        assert!(member.join_checked(room, start, checked).is_ok());
        assert_eq!(member.rooms().count(), 1);
    }
    let mut member = Member::new(&hub);
    member.set_token(token(user));
    let checked = hub.cursor();
    hub.ring.open(Position::first_of(2, 1));
    assert_eq!(member.join_checked(room, Start::Live, checked), Err(NotJoined::Unknown));
    // A public room has no members.
    assert!(member.join_checked(RoomId::new(), Start::Live, checked).is_ok());
}

#[test]
fn a_session_of_a_revoked_token_ends_and_others_go_on() {
    let hub = hub(10_000, usize::MAX);
    let [room, replayed] = [(); 2].map(|()| RoomId::new());
    publish(&hub, replayed, 20);
    let [user, other] = [(); 2].map(|()| UserId::new());
    let tokens = [(user, 100), (user, 101), (other, 100)];
    let mut members = tokens.map(|(user, issued)| {
        let mut member = Member::new(&hub);
        member.set_token(TokenIdentity { issued, ..token(user) });
        member.join(room, Start::Live);
        member.join(replayed, Start::After(Position::ZERO));
        member
    });
    revoke(&hub, user, 101, room, 5);
    let [revoked, newer, foreign] = &mut members;
    // Nothing comes any more, not even what was before.
    assert_eq!(drain(revoked), (0, false));
    assert_eq!(revoked.ended(), Some(Ended::Revoked));
    assert_eq!(drain(newer), (25, true));
    assert_eq!(drain(foreign), (25, true));
    assert_eq!(newer.ended(), None);
    drop(members);
    assert!(hub.state.borrow().users.is_empty());
}

#[test]
fn nobody_enters_with_a_token_that_is_known_to_be_revoked() {
    let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
    let (ring, revoked) = (Arc::new(Ring::new(limits)), revoked());
    ring.open(Position::ZERO);
    let bounds = Bounds { events: 10, bytes: usize::MAX };
    let hub = Hub::new(ring, Arc::clone(&revoked), bounds, Signals::default());
    let user = UserId::new();
    let mut early = Member::new(&hub);
    early.set_token(token(user));
    revoked.insert(Revocation { user, scope: Scope::All, before: 101 });
    assert_eq!(early.ended(), None, "its event comes");
    let mut late = Member::new(&hub);
    late.set_token(token(user));
    assert_eq!(late.ended(), Some(Ended::Revoked));
    // A session can change its token, in both directions.
    early.set_token(TokenIdentity { issued: 101, ..token(user) });
    revoke(&hub, user, 101, user.own_room(), 0);
    assert_eq!(early.ended(), None);
    early.set_token(token(user));
    assert_eq!(early.ended(), Some(Ended::Revoked));
}

#[test]
fn a_hub_that_missed_revocations_checks_all_sessions() {
    let limits = Limits { window: Duration::from_secs(60), bytes: 1 << 20 };
    let (ring, revoked) = (Arc::new(Ring::new(limits)), revoked());
    ring.open(Position::ZERO);
    let bounds = Bounds { events: 10, bytes: usize::MAX };
    let hub = Hub::new(ring, Arc::clone(&revoked), bounds, Signals::default());
    let [user, other] = [(); 2].map(|()| UserId::new());
    let mut members = [user, other].map(|user| {
        let mut member = Member::new(&hub);
        member.set_token(token(user));
        member
    });
    revoked.insert(Revocation { user, scope: Scope::All, before: 101 });
    hub.ring.open(Position::first_of(9, 1));
    while hub.dispatch(10).more {}
    assert_eq!(members.each_mut().map(|member| member.ended()), [Some(Ended::Revoked), None]);
    revoked.insert(Revocation { user: other, scope: Scope::All, before: 101 });
    let events = vec![Event::revoked(None, hub.ring.newest())];
    hub.ring.publish(Batch { events, newest: None, through: None, second: 9 });
    while hub.dispatch(10).more {}
    assert_eq!(members[1].ended(), Some(Ended::Revoked));
}
