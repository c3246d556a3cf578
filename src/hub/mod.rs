//! The rooms of one worker and who is in them.
//!
//! Each worker has a hub of its own, which only its thread touches. A dispatcher follows the ring
//! by sequence number and puts each event into the inboxes of the local members of its room, so a
//! message costs one wake-up of each worker, not one of each member across threads; a member that
//! has nothing else to do does not even have to be woken ([`DirectWriter`](inbox::DirectWriter)). Joining
//! is atomic with respect to the stream, because nothing is dispatched while a member
//! subscribes to a room.
//! The hub knows rooms, subscriptions and inboxes; no socket, no wire, no database.

pub mod inbox;
pub mod member;
pub mod offset;
mod pacing;

#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
    sync::Arc,
};

use indexmap::IndexMap;
use tokio::time::Instant;

use crate::{
    feed::{
        event::{Delivery, Event},
        position::Position,
        ring::{Ring, Seq},
    },
    models::RoomId,
};

use inbox::{Bounds, Inbox, InboxItem};
use pacing::Pacer;

/// Events that are handed out before the sessions of this worker get to run.
const MAX_DISPATCHED: usize = 64;

/// How many deliveries (events times members) the hub itself makes in that time. The rest is left to
/// the sessions, so that a large room holds nobody else up.
const MAX_DIRECT_WRITES: usize = 256;

/// See the [module](self). Clones are handles on the same hub.
#[derive(Clone)]
pub struct Hub {
    ring: Arc<Ring>,
    bounds: Bounds,
    // Borrowed for one operation at a time, never across an await.
    state: Rc<RefCell<HubState>>,
}

struct HubState {
    /// The number of the first event that is not yet dispatched.
    cursor: Seq,
    /// How far the events before it reach.
    dispatched: Option<Position>,
    /// No room without subscriptions.
    rooms: HashMap<RoomId, IndexMap<MemberId, Subscription>>,
    next_member: MemberId,
}

/// The number of a member of this hub.
type MemberId = u64;

/// What was handed out in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round {
    /// How many writes it takes, when a client is written everything at once.
    pub writes: usize,
    /// More events may be there already.
    pub more: bool,
}

struct Subscription {
    inbox: Rc<Inbox>,
    /// The member has had what is not after this.
    floor: Option<Position>,
}

impl Hub {
    /// A hub without members that follows `ring` from now on, once [`run`](Self::run) does.
    pub fn new(ring: Arc<Ring>, bounds: Bounds) -> Self {
        let tail = ring.tail();
        let state = HubState {
            cursor: tail.seq,
            dispatched: tail.through,
            rooms: HashMap::new(),
            next_member: 0,
        };
        Self { ring, bounds, state: Rc::new(RefCell::new(state)) }
    }

    /// Dispatches events until the ring is gone. To be spawned once, on the thread of this hub.
    pub async fn run(self) {
        let mut ends = self.ring.ends();
        let mut pacer = Pacer::new(Instant::now());
        loop {
            let Round { writes, more } = self.dispatch(MAX_DISPATCHED);
            match pacer.pause_after(writes, Instant::now()) {
                // Whoever is behind must not be held up.
                _ if more => tokio::task::yield_now().await,
                Some(end) => tokio::time::sleep_until(end).await,
                None if ends.changed().await.is_err() => return,
                None => {}
            }
        }
    }

    /// The number and the inbox of a new member, in no room yet.
    fn register(&self) -> (MemberId, Rc<Inbox>) {
        let mut state = self.state.borrow_mut();
        let id = state.next_member;
        state.next_member += 1;
        (id, Inbox::new(self.bounds))
    }

    /// Up to where everything was handed out here; `None` before the feed has begun and on a
    /// standalone MongoDB.
    pub fn through(&self) -> Option<Position> {
        let state = self.state.borrow();
        self.ring.through_at(state.cursor, state.dispatched)
    }

    /// The ring that this hub follows.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// How many rooms have members here.
    pub fn rooms(&self) -> usize {
        self.state.borrow().rooms.len()
    }

    /// Hands out up to `max` events, and no more at once than inboxes can hold.
    fn dispatch(&self, max: usize) -> Round {
        let mut state = self.state.borrow_mut();
        match self.ring.after(state.cursor, max) {
            Ok(events) => {
                let mut round = Round { writes: 0, more: events.len() == max };
                let (mut bytes, mut at_once) = (0, MAX_DIRECT_WRITES);
                for (index, event) in events.iter().enumerate() {
                    bytes += event.len();
                    let is_of_room = |other: &Arc<Event>| other.room() == event.room();
                    let before = events.iter().take(index).any(is_of_room);
                    let after = events.iter().skip(index + 1).any(is_of_room);
                    // Several of one room are cheaper in one write, which their sessions make.
                    let most = if before || after { 0 } else { at_once };
                    at_once -= state.dispatch(Arc::clone(event), most);
                    if !before {
                        round.writes += state.subscribers(event.room());
                    }
                    // A burst of large events must not fill the inboxes of those who do read.
                    if bytes >= self.bounds.bytes / 4 {
                        round.more = true;
                        break;
                    }
                }
                round
            }
            Err(lagged) => {
                let tail = lagged.tail;
                state.cursor = tail.seq;
                state.dispatched = tail.through;
                state.broadcast(|| InboxItem::Resync { before: tail.seq, position: tail.through });
                Round { writes: 0, more: true }
            }
        }
    }

    /// The number of the first event that the members are still to be given.
    fn cursor(&self) -> Seq {
        self.state.borrow().cursor
    }

    /// Gives `member` what is dispatched to `room` from now on and comes after `floor`.
    fn subscribe(
        &self,
        room: RoomId,
        member: MemberId,
        inbox: &Rc<Inbox>,
        floor: Option<Position>,
    ) {
        let subscription = Subscription { inbox: inbox.clone(), floor };
        self.state.borrow_mut().rooms.entry(room).or_default().insert(member, subscription);
    }

    /// Takes `member` out of `room`, where it need not be.
    fn unsubscribe(&self, room: RoomId, member: MemberId) {
        let mut state = self.state.borrow_mut();
        if let Entry::Occupied(mut subscriptions) = state.rooms.entry(room) {
            subscriptions.get_mut().swap_remove(&member);
            if subscriptions.get().is_empty() {
                subscriptions.remove();
            }
        }
    }
}

impl HubState {
    fn subscribers(&self, room: RoomId) -> usize {
        self.rooms.get(&room).map_or(0, IndexMap::len)
    }

    /// Hands an event out, to at most so many members by a direct write; to how many it was.
    fn dispatch(&mut self, event: Arc<Event>, most: usize) -> usize {
        let seq = self.cursor;
        self.cursor += 1;
        self.dispatched = event.position().or(self.dispatched);
        if event.is_withdrawn() {
            return 0;
        }
        let Entry::Occupied(mut subscriptions) = self.rooms.entry(event.room()) else { return 0 };
        let delivery = Delivery::new(event);
        let position = delivery.event().position();
        let mut written = 0;
        subscriptions.get_mut().retain(|_, subscription| {
            if position.is_some() && position <= subscription.floor {
                return true;
            }
            if written < most && subscription.inbox.write_directly(&delivery) {
                written += 1;
                return true;
            }
            subscription.inbox.put(InboxItem::Event(seq, Rc::clone(&delivery)))
        });
        if subscriptions.get().is_empty() {
            subscriptions.remove();
        }
        written
    }

    /// Puts the same item into the inbox of everyone who is in a room, once.
    fn broadcast(&mut self, item: impl Fn() -> InboxItem) {
        let subscriptions = self.rooms.values().flatten();
        let members: HashMap<_, _> =
            subscriptions.map(|(id, subscription)| (*id, subscription.inbox.clone())).collect();
        for inbox in members.values() {
            inbox.put(item());
        }
    }
}
