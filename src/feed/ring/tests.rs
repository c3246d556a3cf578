use bson::{DateTime, oid::ObjectId, rawdoc};

use super::state::{MAX_EVICTED, OVERHEAD};
use super::*;
use crate::models::{Message, UserId};

fn at(seconds: u32) -> Position {
    Position::first_of(seconds, 1)
}

fn ring(window: u64, bytes: usize) -> Ring {
    let ring = Ring::new(Limits { window: Duration::from_secs(window), bytes });
    ring.open(at(10));
    ring
}

/// Publishes one event without text for each second.
fn publish(ring: &Ring, room: RoomId, seconds: impl IntoIterator<Item = u32>) {
    for second in seconds {
        let position = Some(at(second));
        let events = vec![Event::resync(room, position)];
        ring.publish(Batch { events, newest: position, through: None, second });
    }
}

fn seconds(events: Result<Vec<Arc<Event>>, Lagged>) -> Vec<u32> {
    events.unwrap().iter().map(|event| event.position().unwrap().seconds()).collect()
}

#[test]
fn nothing_of_an_unopened_ring_is_recoverable() {
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
fn events_of_other_rooms_do_not_evict_a_room() {
    let (ring, room, other) = (ring(5, usize::MAX), RoomId::new(), RoomId::new());
    publish(&ring, other, 11..1_000);
    assert!(ring.recovers(room, at(10)) && !ring.recovers(other, at(10)));
    assert_eq!((ring.beginning(room), ring.beginning(other)), (Some(at(10)), None));
}

#[test]
fn the_list_of_evicted_rooms_is_bounded() {
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
fn a_quiet_ring_stays_recoverable() {
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
fn followers_see_events_that_are_not_kept_for_recovery() {
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

/// Prepends events of one room at these seconds; returns whether there may be more.
fn fill(ring: &Ring, epoch: Epoch, room: RoomId, from: u32, seconds: &[u32]) -> bool {
    let events = seconds.iter().map(|&second| Event::resync(room, Some(at(second)))).collect();
    ring.fill(epoch, at(from), events, 20)
}

#[test]
fn prepended_events_are_recovered_but_not_followed() {
    let ring = Ring::new(Limits { window: Duration::from_secs(60), bytes: usize::MAX });
    let (epoch, room) = (ring.open(at(20)), RoomId::new());
    let follower = ring.tail().seq;
    publish(&ring, room, [21]);
    assert!(fill(&ring, epoch, room, 15, &[16, 19]));
    assert!(ring.recovers(room, at(15)) && !ring.recovers(room, at(14)));
    publish(&ring, room, [22]);
    assert!(fill(&ring, epoch, room, 10, &[12]));
    assert!(!fill(&ring, epoch, room, 10, &[12]), "it is there already");
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
fn filling_ends_at_the_limits() {
    let ring = Ring::new(Limits { window: Duration::from_secs(12), bytes: 4 * OVERHEAD });
    let (epoch, room) = (ring.open(at(20)), RoomId::new());
    assert!(!fill(&ring, epoch, room, 15, &[16, 17, 18, 19, 20]));
    assert!(ring.recovers(room, at(16)) && !ring.recovers(room, at(15)));
    assert!(!fill(&ring, epoch, room, 10, &[11]), "there would be a gap behind it");
    assert!(!ring.recovers(room, at(11)));
    // Too old.
    let epoch = ring.open(at(20));
    assert!(!fill(&ring, epoch, room, 5, &[7, 19]));
    assert!(ring.recovers(room, at(7)) && !ring.recovers(room, at(6)));
}

#[test]
fn nothing_is_filled_into_another_epoch() {
    let ring = ring(60, usize::MAX);
    let (epoch, room) = (ring.open(at(20)), RoomId::new());
    ring.open(at(21));
    assert!(!fill(&ring, epoch, room, 10, &[11]));
    assert!(!ring.recovers(room, at(11)) && ring.recovers(room, at(21)));
    ring.close();
    assert!(!fill(&ring, epoch, room, 10, &[11]));
    assert_eq!(ring.size(), (0, 0));
}

#[test]
fn events_of_an_earlier_epoch_are_not_recoverable() {
    let (ring, room) = (ring(60, usize::MAX), RoomId::new());
    publish(&ring, room, [25]);
    ring.open(at(20));
    assert!(ring.recovers(room, at(25)) && !ring.recovers(room, at(24)));
    assert_eq!(ring.tail().through, Some(at(25)));
}

#[test]
fn a_follower_that_lags_is_told_where_to_go_on() {
    let ring = ring(5, usize::MAX);
    let from = ring.tail().seq;
    publish(&ring, RoomId::new(), [11, 12, 13, 30]);
    let Err(lagged) = ring.after(from, 10) else { panic!("does not lag") };
    assert_eq!(lagged.tail, ring.tail());
    assert_eq!(lagged.tail.through, Some(at(30)));
    assert!(ring.after(lagged.tail.seq, 10).unwrap().is_empty());
}

#[test]
fn after_reopening_a_follower_at_the_end_lags_too() {
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
fn rooms_without_events_are_removed() {
    let ring = ring(11, usize::MAX);
    for second in 11..1_000 {
        publish(&ring, RoomId::new(), [second]);
    }
    assert_eq!(ring.read().rooms.len(), ring.size().0);
    assert!(ring.size().0 <= 12);
}

fn sent(room: RoomId, second: u32) -> (Event, ObjectId) {
    let message = Message::new(room, UserId::new(), "secret");
    (Event::message(&message, Some(at(second))), message.id.0)
}

fn edited(room: RoomId, id: ObjectId, position: Position) -> Event {
    let now = DateTime::from_millis(0);
    let document = rawdoc! { "_id": id, "room": room.0, "content": "secret", "editedAt": now };
    Event::changed(&document, Some(position)).unwrap()
}

fn deleted(room: RoomId, id: ObjectId, second: u32) -> Event {
    let now = DateTime::from_millis(0);
    let document = rawdoc! {
        "_id": id, "room": room.0, "content": "", "deletedAt": now, "deletedBy": ObjectId::new(),
    };
    Event::changed(&document, Some(at(second))).unwrap()
}

fn publish_all(ring: &Ring, events: Vec<Event>) {
    let newest = events.last().and_then(Event::position);
    let second = newest.map_or(0, Position::seconds);
    ring.publish(Batch { events, newest, through: None, second });
}

/// Whether each event that the ring holds must not be given.
fn withdrawn(ring: &Ring) -> Vec<bool> {
    ring.read().entries.iter().map(|entry| entry.event.is_withdrawn()).collect()
}

#[test]
fn a_deletion_withdraws_every_text_of_its_message_and_nothing_else() {
    let (ring, room) = (ring(60, usize::MAX), RoomId::new());
    let (first, id) = sent(room, 11);
    let (other, _) = sent(room, 12);
    let events = vec![first, other, edited(room, id, at(13)), deleted(room, id, 14)];
    publish_all(&ring, events);
    assert_eq!(withdrawn(&ring), [true, false, true, false]);
    // Another program has put it back.
    publish_all(&ring, vec![edited(room, id, at(15))]);
    assert_eq!(withdrawn(&ring), [true, false, true, false, false]);
}

#[test]
fn what_is_filled_in_of_a_message_that_is_deleted_later_is_withdrawn() {
    let ring = Ring::new(Limits { window: Duration::from_secs(60), bytes: usize::MAX });
    let (epoch, room) = (ring.open(at(20)), RoomId::new());
    let [(live, live_id), (before, before_id), (removed, removed_id), (kept, _)] =
        [sent(room, 11), sent(room, 12), sent(room, 13), sent(room, 14)];
    publish_all(&ring, vec![deleted(room, live_id, 21)]);
    ring.note_removed(MessageKey::Id(removed_id));
    let later = vec![edited(room, before_id, at(15)), deleted(room, before_id, 16)];
    assert!(ring.fill(epoch, at(14), later, 21));
    assert!(ring.fill(epoch, at(10), vec![live, before, removed, kept], 21));
    assert_eq!(withdrawn(&ring), [true, true, true, false, true, false, false]);
}

#[test]
fn what_was_removed_is_known_until_the_ring_is_filled() {
    let ring = Ring::new(Limits { window: Duration::from_secs(60), bytes: usize::MAX });
    let (epoch, room) = (ring.open(at(20)), RoomId::new());
    for _ in 0..=MAX_REMOVED + 1 {
        ring.note_removed(MessageKey::Id(ObjectId::new()));
    }
    assert!(ring.read().removed.len() <= MAX_REMOVED + 1);
    assert!(!fill(&ring, epoch, room, 15, &[16]), "one that is not known may be among them");
    ring.filled();
    assert!(ring.read().removed.is_empty());
}

#[test]
fn the_room_of_a_message_is_known_as_long_as_one_of_its_events_is() {
    let (ring, [room, other]) = (ring(10, usize::MAX), [(); 2].map(|()| RoomId::new()));
    let (event, id) = sent(room, 11);
    let key = MessageKey::Id(id);
    assert_eq!(ring.room_of(&key), None);
    publish_all(&ring, vec![event]);
    assert_eq!(ring.room_of(&key), Some(room));
    // Another program has moved it.
    publish_all(&ring, vec![edited(other, id, at(15))]);
    assert_eq!(ring.room_of(&key), Some(other));
    publish(&ring, room, [24]);
    assert_eq!(ring.room_of(&key), Some(other), "its first event is gone");
    publish(&ring, room, [40]);
    assert_eq!(ring.room_of(&key), None);
}

#[test]
fn messages_without_events_leave_no_trace() {
    let (ring, room) = (ring(11, usize::MAX), RoomId::new());
    for second in 11..1_000 {
        let (event, id) = sent(room, second);
        publish_all(&ring, vec![event]);
        let key = at(second).next_of_same_time();
        publish_all(&ring, vec![edited(room, id, key), deleted(room, id, second)]);
    }
    assert_eq!(ring.read().messages.len(), ring.size().0 / 3);
    assert!(ring.size().0 <= 3 * 12);
    assert!(ring.read().removed.is_empty());
}

#[test]
fn a_storm_of_edits_is_withdrawn_as_a_whole() {
    const EDITS: u32 = 50_000;
    let ring = Ring::new(Limits { window: Duration::from_secs(60), bytes: usize::MAX });
    let (epoch, room) = (ring.open(at(20)), RoomId::new());
    let (event, id) = sent(room, 11);
    let storm = |second| {
        let position = move |nth| Position::first_of(second, nth);
        (1..=EDITS).map(move |nth| edited(room, id, position(nth)))
    };
    publish_all(&ring, storm(21).collect());
    let past: Vec<_> = std::iter::once(event).chain(storm(12)).collect();
    assert!(ring.fill(epoch, at(10), past, 21));
    publish_all(&ring, vec![deleted(room, id, 22)]);
    let withdrawn = withdrawn(&ring);
    assert_eq!(withdrawn.iter().filter(|withdrawn| **withdrawn).count(), 2 * EDITS as usize + 1);
    assert_eq!(withdrawn.last(), Some(&false));
    publish(&ring, room, [100]);
    assert!(ring.read().messages.is_empty());
}

#[test]
fn what_is_still_to_be_given_loses_its_text_too() {
    let (ring, room) = (ring(10, usize::MAX), RoomId::new());
    let leave: [(&str, &dyn Fn(u32)); 3] = [
        ("evicted", &|second| publish(&ring, room, [second])),
        ("reopened", &|second| {
            ring.open(at(second));
        }),
        ("closed", &|_| ring.close()),
    ];
    for (number, (what, leave)) in (1..).zip(leave) {
        let (event, id) = sent(room, 100 * number);
        let from = ring.tail().seq;
        publish_all(&ring, vec![event]);
        let waiting = ring.after(from, 1).unwrap();
        leave(100 * number + 50);
        assert_eq!(ring.room_of(&MessageKey::Id(id)), Some(room), "{what}");
        publish_all(&ring, vec![deleted(room, id, 100 * number + 51)]);
        assert!(waiting.iter().all(|event| event.is_withdrawn()), "{what}");
    }
}

#[test]
fn what_was_given_is_not_remembered() {
    let (ring, room) = (ring(10, usize::MAX), RoomId::new());
    let mut waiting = Vec::new();
    for second in 11..10_000 {
        let from = ring.tail().seq;
        publish_all(&ring, vec![sent(room, second).0]);
        // It waits for 20 s.
        waiting.push(ring.after(from, 1).unwrap());
        waiting.drain(..waiting.len().saturating_sub(20));
        assert!(ring.read().detached.len() <= 64);
    }
}
