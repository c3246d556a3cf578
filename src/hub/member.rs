//! One session's rooms: what it is in, what it was given, what comes next.
//!
//! A member is given the events of its rooms in stream order, each once. A room that is joined
//! with a position is first replayed from the ring, one event at a time and only when the session
//! asks for the next one, so that a backlog waits in the ring and not in memory of its own; the
//! step that finds nothing more to replay subscribes the member in the same instant, without a gap or
//! an overlap. Whatever cannot be given becomes a `resync`, never silence. Nothing here knows a
//! wire, a request or a clock.

use std::{
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytestring::ByteString;
use indexmap::IndexMap;

use super::{
    Hub, MemberId,
    inbox::{DirectWriter, Inbox, InboxItem, TooSlow},
    offset::{Entry, Offset},
};
use crate::{
    feed::{
        event::{Delivery, Event, Wire, encode_offset},
        position::Position,
        ring::{RoomEvent, Seq},
    },
    models::RoomId,
};

/// See the [module](self). Dropping it leaves all rooms.
pub struct Member {
    hub: Hub,
    id: MemberId,
    inbox: Rc<Inbox>,
    // One room is found without hashing.
    memberships: IndexMap<RoomId, Membership>,
    /// The rooms that are replayed, by the number of the event that each goes on with.
    replays: BTreeSet<(Seq, RoomId)>,
    /// Rooms that are owed a `resync` up to a position, which is told before anything else.
    resyncs: VecDeque<(RoomId, Option<Position>)>,
    /// No membership was ever ahead of this.
    highest: Option<Position>,
    /// How many rooms the client has joined, on earlier connections, too.
    joins: u32,
    /// One more is about to be.
    join_announced: bool,
    /// Up to here the client may have offsets of before it had joined so many. So those which
    /// reach no further say how many it has.
    known: Option<Position>,
    /// Nothing is given any more.
    muted: bool,
}

/// What a member has had of a room.
struct Membership {
    /// What [`Joined::recovered`] said.
    recovered: bool,
    /// Everything of this room up to here was given, or was not wanted.
    through: Option<Position>,
    /// A `resync` is still to be told; what was missed lies behind `through`.
    resync_due: bool,
    state: State,
}

enum State {
    /// Live from the event with this number on.
    Live(Seq),
    /// Replayed, next the event with this number.
    Replayed(Seq),
}

/// Where a member wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what comes from now on.
    Live,
    /// With what came after a position that it was given, which must not be ahead of the
    /// cluster. One that is no longer recoverable is answered by a `resync`.
    After(Position),
    /// Live since a moment ago: with what came after this position of this hub.
    From(Position),
    /// From now on, but it has missed something: a `resync` first.
    Resync,
}

/// The answer to a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The member is given everything after this position; `None` on a standalone MongoDB.
    pub position: Option<Position>,
    /// Whether that is the position which it asked for.
    pub recovered: bool,
}

impl Member {
    /// A new member, in no room yet.
    pub fn new(hub: &Hub) -> Self {
        let (id, inbox) = hub.register();
        Self {
            hub: hub.clone(),
            id,
            inbox,
            memberships: IndexMap::new(),
            replays: BTreeSet::new(),
            resyncs: VecDeque::new(),
            highest: None,
            joins: 0,
            join_announced: false,
            known: None,
            muted: false,
        }
    }

    /// Events go to the client by this way as long as nothing waits, without being asked for.
    pub fn set_direct_writer(&mut self, direct_writer: impl DirectWriter + 'static) {
        self.inbox.set_direct_writer(Box::new(direct_writer));
    }

    /// The client may have offsets up to here, of earlier connections in which it joined so many
    /// rooms.
    pub fn remember(&mut self, known: Option<Position>, joins: u32) {
        self.inbox.set_idle(false);
        self.known = self.known.max(known);
        self.joins = self.joins.max(joins);
    }

    /// A room is about to be joined, from a position on. Until it [is](Self::join), or this is
    /// [cancelled](Self::cancel_join), offsets say that it is not yet. What this answers tells them
    /// apart.
    pub fn announce_join(&mut self, from: Position) -> Entry {
        self.inbox.set_idle(false);
        self.join_announced = true;
        self.known = self.known.max(self.inbox.base());
        Entry { from, known: self.known, join: self.joins.saturating_add(1) }
    }

    /// No room is about to be joined.
    pub fn cancel_join(&mut self) {
        self.join_announced = false;
    }

    /// Enters `room`. Being there already changes nothing, and the answer is that of the first
    /// time with what was given since.
    pub fn join(&mut self, room: RoomId, start: Start) -> Joined {
        if let Some(membership) = self.memberships.get(&room) {
            return Joined { position: self.given(membership), recovered: membership.recovered };
        }
        self.inbox.set_idle(false);
        self.joins = self.joins.saturating_add(1);
        self.join_announced = false;
        // The first room decides where the account of what was given begins.
        self.inbox.set_base(self.inbox.base().or(self.hub.through()));
        match start {
            Start::After(since) if self.hub.ring().recovers(room, since) => {
                self.start_after(room, since, true)
            }
            Start::From(since) if self.hub.ring().recovers(room, since) => {
                self.start_after(room, since, false)
            }
            Start::Live => self.go_live(room),
            Start::After(_) | Start::From(_) | Start::Resync => {
                let joined = self.go_live(room);
                let had = match start {
                    Start::After(since) | Start::From(since) => since,
                    _ => Position::ZERO,
                };
                self.queue_resync(room, Some(had), joined.position);
                joined
            }
        }
    }

    /// Leaves `room`; nothing of it is given any more.
    pub fn leave(&mut self, room: RoomId) {
        match self.memberships.swap_remove(&room).map(|membership| membership.state) {
            Some(State::Live(_)) => self.hub.unsubscribe(room, self.id),
            Some(State::Replayed(next)) => {
                self.replays.remove(&(next, room));
            }
            None => {}
        }
        self.resyncs.retain(|&(due, _)| due != room);
    }

    /// Gives no more events. The member stays in its rooms, and can still join and leave some.
    pub fn mute(&mut self) {
        self.muted = true;
        for (&room, membership) in &self.memberships {
            if let State::Live(_) = membership.state {
                self.hub.unsubscribe(room, self.id);
            }
        }
        self.replays.clear();
        self.resyncs.clear();
    }

    /// The rooms that it is in.
    pub fn rooms(&self) -> impl ExactSizeIterator<Item = RoomId> {
        self.memberships.keys().copied()
    }

    /// Whether it is in `room`.
    pub fn is_in(&self, room: RoomId) -> bool {
        self.memberships.contains_key(&room)
    }

    /// The next event for this session: live ones first, because those are what its bounded
    /// inbox holds; then what is replayed, of all such rooms in stream order.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Result<Rc<Delivery>, TooSlow>> {
        self.inbox.set_idle(false);
        loop {
            if let Some((room, position)) = self.resyncs.pop_front() {
                return Poll::Ready(Ok(self.resync(room, position)));
            }
            match self.inbox.poll_take(context)? {
                Poll::Ready(item) => {
                    if let Some(delivery) = self.unpack(item) {
                        return Poll::Ready(Ok(delivery));
                    }
                }
                Poll::Pending => match self.replays.pop_first() {
                    Some((next, room)) => {
                        if let Some(delivery) = self.replay(room, next) {
                            return Poll::Ready(Ok(delivery));
                        }
                    }
                    None => {
                        self.inbox.set_idle(self.shares_frames());
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    /// Whether there is more to give at once, as far as can be said without looking at it.
    pub fn has_more(&self) -> bool {
        !(self.inbox.is_empty() && self.replays.is_empty() && self.resyncs.is_empty())
    }

    /// Resolves when more waits for this session than may.
    pub fn poll_too_slow(&self, context: &Context<'_>) -> Poll<TooSlow> {
        self.inbox.poll_overflow(context)
    }

    /// The frame of an event that [`poll_next`](Self::poll_next) has just given, with the offset
    /// of this session where the wire carries one. Shared by all members wherever it can be.
    pub fn frame(&self, delivery: &Delivery, wire: Wire) -> ByteString {
        if wire != Wire::SocketIoOffset {
            return delivery.frame(wire);
        }
        match self.offset() {
            Some(offset) if !is_position_of(&offset, delivery) => {
                delivery.event().encode_with_offset(offset)
            }
            _ => delivery.frame(wire),
        }
    }

    /// The frame of this session's offset alone, to be written behind everything that
    /// [`poll_next`](Self::poll_next) has given, of which `last` was the last. Shared by all
    /// members wherever it can be; `None` when there is no offset.
    pub fn offset_frame(&self, last: &Delivery) -> Option<ByteString> {
        let offset = self.offset()?;
        if is_position_of(&offset, last) {
            last.offset_frame()
        } else {
            Some(encode_offset(offset))
        }
    }

    /// What this session has been given; `None` before it is in a room and on a standalone
    /// MongoDB.
    pub fn offset(&self) -> Option<Offset> {
        let base = self.inbox.base()?;
        let mut exceptions = Vec::new();
        if !self.replays.is_empty() || !self.resyncs.is_empty() || self.highest > Some(base) {
            let memberships = self.memberships.iter();
            let given =
                memberships.filter_map(|(&room, membership)| Some((self.given(membership)?, room)));
            exceptions.extend(given.filter(|&(given, _)| given != base));
            exceptions.sort_unstable();
        }
        let joins = self.counts_joins(base).then_some(self.joins);
        Some(Offset { base, exceptions, joins })
    }

    /// Whether offsets that reach to `base` say how many rooms were joined.
    fn counts_joins(&self, base: Position) -> bool {
        self.join_announced || self.known >= Some(base)
    }

    /// Whether the offset with the next live event is no more than that event's position.
    fn shares_frames(&self) -> bool {
        let Some(base) = self.inbox.base() else { return true };
        self.replays.is_empty()
            && self.resyncs.is_empty()
            && self.highest <= Some(base)
            && !self.counts_joins(base)
    }

    /// Goes on after `since`, of which the client knows when it is `recovered`.
    fn start_after(&mut self, room: RoomId, since: Position, recovered: bool) -> Joined {
        let first = self.hub.ring().first_after(room, since);
        let through = Some(since);
        let membership = |state| Membership { recovered, through, resync_due: false, state };
        if first < self.hub.cursor() {
            self.replays.insert((first, room));
            self.memberships.insert(room, membership(State::Replayed(first)));
        } else {
            // Nothing to replay; its own position is the floor, which may be ahead of this hub's.
            self.memberships.insert(room, membership(State::Live(0)));
            self.go_live_from(room, through, through);
        }
        Joined { position: Some(since), recovered }
    }

    fn go_live(&mut self, room: RoomId) -> Joined {
        let live = self.hub.through();
        let membership = Membership {
            recovered: false,
            through: live,
            resync_due: false,
            state: State::Live(0),
        };
        self.memberships.insert(room, membership);
        self.go_live_from(room, live, live);
        Joined { position: live, recovered: false }
    }

    /// Makes a membership live: everything up to `through` was given, what the hub dispatches after
    /// `floor` will be.
    fn go_live_from(&mut self, room: RoomId, through: Option<Position>, floor: Option<Position>) {
        if let Some(membership) = self.memberships.get_mut(&room) {
            membership.state = State::Live(self.hub.cursor());
            membership.through = through;
            self.highest = self.highest.max(through);
            if !self.muted {
                self.hub.subscribe(room, self.id, &self.inbox, floor);
            }
        }
    }

    /// The event of an item, if this member is still in its room, and in it since before the item was
    /// put in.
    fn unpack(&mut self, item: InboxItem) -> Option<Rc<Delivery>> {
        match item {
            InboxItem::Event(seq, delivery) => {
                let membership = self.memberships.get(&delivery.event().room())?;
                let State::Live(from) = membership.state else { return None };
                if seq < from {
                    return None;
                }
                self.inbox.set_base(delivery.event().position().or(self.inbox.base()));
                Some(delivery).filter(|delivery| !delivery.event().is_withdrawn())
            }
            InboxItem::Resync { before, position } => {
                let missed = self
                    .memberships
                    .iter()
                    .filter(|(_, membership)| matches!(membership.state, State::Live(from) if from < before));
                let missed: Vec<_> =
                    missed.map(|(&room, membership)| (room, self.given(membership))).collect();
                for (room, given) in missed {
                    self.queue_resync(room, given, position);
                }
                self.inbox.set_base(self.inbox.base().max(position));
                None
            }
        }
    }

    /// One step of the replay of `room`: its next event, or, when there is nothing more that was
    /// dispatched before, its subscription.
    fn replay(&mut self, room: RoomId, next: Seq) -> Option<Rc<Delivery>> {
        let cursor = self.hub.cursor();
        match self.hub.ring().event_of(room, next) {
            Ok(Some(RoomEvent { event, seq, next })) if seq < cursor => {
                let membership = self.memberships.get_mut(&room)?;
                membership.through = event.position();
                if next < cursor {
                    membership.state = State::Replayed(next);
                    self.replays.insert((next, room));
                } else {
                    let through = event.position().max(self.hub.through());
                    self.go_live_from(room, through, event.position());
                }
                Some(event).filter(|event| !event.is_withdrawn()).map(Delivery::new)
            }
            Ok(_) => {
                let through = self.hub.through();
                self.go_live_from(room, through, None);
                None
            }
            Err(_lagged) => {
                let given = self.memberships.get(&room)?.through;
                let live = self.hub.through();
                self.go_live_from(room, live, live);
                self.queue_resync(room, given, live);
                None
            }
        }
    }

    /// Up to where everything of a room was given.
    fn given(&self, membership: &Membership) -> Option<Position> {
        match membership.state {
            State::Live(_) if !membership.resync_due => membership.through.max(self.inbox.base()),
            _ => membership.through,
        }
    }

    /// From now on `room`, of which everything up to `given` was given, owes a `resync` up to
    /// `position`.
    fn queue_resync(&mut self, room: RoomId, given: Option<Position>, position: Option<Position>) {
        if let Some(membership) = self.memberships.get_mut(&room) {
            if !membership.resync_due {
                membership.through = given;
            }
            membership.resync_due = true;
            self.resyncs.retain(|&(due, _)| due != room);
            self.resyncs.push_back((room, position));
        }
    }

    fn resync(&mut self, room: RoomId, position: Option<Position>) -> Rc<Delivery> {
        if let Some(membership) = self.memberships.get_mut(&room) {
            membership.resync_due = false;
            membership.through = membership.through.max(position);
            self.highest = self.highest.max(membership.through);
        }
        Delivery::new(Arc::new(Event::resync(room, position)))
    }
}

/// Whether an offset is no more than the position of this event.
fn is_position_of(offset: &Offset, delivery: &Delivery) -> bool {
    Some(offset.base) == delivery.event().position()
        && offset.exceptions.is_empty()
        && offset.joins.is_none()
}

impl Drop for Member {
    fn drop(&mut self) {
        for (&room, membership) in &self.memberships {
            if let State::Live(_) = membership.state {
                self.hub.unsubscribe(room, self.id);
            }
        }
    }
}
