use super::state::{MAX_EVICTED, OVERHEAD};
use super::*;

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
