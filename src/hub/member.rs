//! One session's rooms: its memberships, the delivered positions and the next event.
//!
//! A member gets the events of its rooms in stream order, each once. A room that is joined with a
//! position is first replayed from the ring. The replay reads one event each time that the session
//! asks for the next one, so a backlog stays in the ring and takes no memory of the session. The
//! step that finds nothing more to replay also subscribes the member, without a gap and without an
//! overlap. If events cannot be delivered, the member gets a `resync`. This file knows no wire, no
//! request and no clock.

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
    inbox::{DirectWriter, Ended, Inbox, InboxItem},
    offset::{Entry, Offset},
};
use crate::{
    feed::{
        event::{Delivery, Event, Kind, Wire, encode_offset},
        position::Position,
        ring::{Lagged, RoomEvent, Seq},
    },
    models::{RoomId, TokenIdentity, UserId},
};

/// With more rooms than this that the record has in vain, the session ends.
const MAX_LEFTOVERS: usize = 100;

/// See the [module](self). Dropping it leaves all rooms.
pub struct Member {
    hub: Rc<Hub>,
    id: MemberId,
    inbox: Rc<Inbox>,
    // An `IndexMap` with one entry is searched without hashing.
    memberships: IndexMap<RoomId, Membership>,
    /// The rooms that are replayed, each with the number of its next event.
    replays: BTreeSet<(Seq, RoomId)>,
    /// Rooms that get a `resync` up to a position before any other event.
    resyncs: VecDeque<(RoomId, Option<Position>)>,
    /// The highest delivered position of all memberships so far.
    highest: Option<Position>,
    /// How many rooms the client has joined, including earlier connections.
    joins: u32,
    /// Whether one more join is in progress.
    join_announced: bool,
    /// Up to this position, the client may still have offsets from before its last joins. So new
    /// offsets up to this position contain the number of joins.
    known: Option<Position>,
    /// Whether the session has a record, in which a room stays until it is taken out.
    is_recorded: bool,
    /// Rooms that may be in the record although the member is not in them, each with the position
    /// up to which the client has got everything. Offsets name them, so that a session that is
    /// resumed with such a record has no gap in them.
    leftovers: IndexMap<RoomId, Position>,
    /// Whose session it is.
    user: Option<UserId>,
    /// It cannot be said any more which rooms the user may be in.
    must_return: bool,
    /// Whether no more events are delivered.
    muted: bool,
}

/// The state of a member in a room.
struct Membership {
    /// The value of [`Joined::recovered`].
    recovered: bool,
    /// Everything of this room up to here was delivered, or was before the join.
    through: Option<Position>,
    /// A `resync` is still to be delivered. The missed events are after `through`.
    resync_due: bool,
    /// The user was a member when this was the number of the next event, so earlier removals do not
    /// count any more.
    checked: Seq,
    state: State,
}

enum State {
    /// Live, from the event with this number on.
    Live(Seq),
    /// Replayed; the next event has this number.
    Replayed(Seq),
}

/// Where a member begins in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With new events only.
    Live,
    /// After a position that the client got, which must not be ahead of the cluster. If it is no
    /// longer recoverable, the member gets a `resync`.
    After(Position),
    /// Live since this position of this hub, which was its position a moment ago.
    From(Position),
    /// With new events only, but with a `resync` first, because the client missed some.
    Resync,
}

/// Why a room that may have members was not joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotJoined {
    /// The user was removed from it.
    #[error("the user was removed from the room")]
    Removed,
    /// Events were evicted, so it is not known whether the user was removed.
    #[error("it is not known whether the user was removed from the room")]
    Unknown,
}

/// The answer to a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The member gets everything after this position; `None` on a standalone MongoDB.
    pub position: Option<Position>,
    /// Whether that is the position of [`Start::After`].
    pub recovered: bool,
}

impl Member {
    /// A new member, which is in no room yet.
    pub fn new(hub: &Rc<Hub>) -> Self {
        let (id, inbox) = hub.register();
        Self {
            hub: Rc::clone(hub),
            id,
            inbox,
            memberships: IndexMap::new(),
            replays: BTreeSet::new(),
            resyncs: VecDeque::new(),
            highest: None,
            joins: 0,
            join_announced: false,
            known: None,
            is_recorded: false,
            leftovers: IndexMap::new(),
            user: None,
            must_return: false,
            muted: false,
        }
    }

    /// From now on it is a session with this token: it is told what is told to the user, until the
    /// token is revoked.
    pub fn set_token(&mut self, token: TokenIdentity) {
        self.user = Some(token.user);
        if !self.muted {
            self.hub.set_token(self.id, &self.inbox, token);
        }
    }

    /// Goes on with what the user was told after `since`, a position that this client has had.
    pub fn resume_user(&mut self, since: Position) {
        let Some(room) = self.user.map(UserId::own_room) else { return };
        let first = self.hub.ring().first_after(room, since);
        if first < self.hub.cursor() {
            self.replays.insert((first, room));
            let state = State::Replayed(first);
            let membership = Membership {
                recovered: true,
                through: Some(since),
                resync_due: false,
                checked: 0,
                state,
            };
            self.enter(room, membership);
        }
    }

    /// Sets the writer with which the hub writes events to the client while nothing else waits.
    pub fn set_direct_writer(&mut self, direct_writer: impl DirectWriter + 'static) {
        self.inbox.set_direct_writer(Box::new(direct_writer));
    }

    /// Notes that the session has a record, and that the client may have offsets up to `known` from
    /// earlier connections, on which it made `joins` joins.
    pub fn remember(&mut self, known: Option<Position>, joins: u32) {
        self.inbox.set_idle(false);
        self.is_recorded = true;
        self.known = self.known.max(known);
        self.joins = self.joins.max(joins);
    }

    /// Begins a join from a position. Until the [join](Self::join) or its
    /// [cancellation](Self::cancel_join), offsets contain the number of joins, which does not count
    /// this one yet. With the returned entry, offsets from before the join can be told from those
    /// after it.
    pub fn announce_join(&mut self, from: Position) -> Entry {
        self.inbox.set_idle(false);
        self.join_announced = true;
        self.known = self.known.max(self.inbox.base());
        Entry { from, known: self.known, join: self.joins.saturating_add(1) }
    }

    /// Ends a join that has not happened.
    pub fn cancel_join(&mut self) {
        self.join_announced = false;
    }

    /// Notes that the record may have a room that the member is not in: a join has failed after
    /// the record was to be written, or the room could not be taken out. The client has got
    /// everything of the room up to `through`, or asked for what comes after it.
    pub fn note_leftover(&mut self, room: RoomId, through: Position) {
        if self.is_recorded && !self.is_in(room) {
            self.inbox.set_idle(false);
            self.leftovers.insert(room, through);
            // Its client comes back with an offset of before the last of them.
            self.must_return |= self.leftovers.len() > MAX_LEFTOVERS;
        }
    }

    /// Whether the record may have this room although the member is not in it.
    pub fn is_leftover(&self, room: RoomId) -> bool {
        self.leftovers.contains_key(&room)
    }

    /// A room that the record may have although the member is not in it.
    pub fn leftover(&self) -> Option<RoomId> {
        self.leftovers.last().map(|(&room, _)| room)
    }

    /// Notes that the record does not have this room, which the member is not in.
    pub fn forget_leftover(&mut self, room: RoomId) {
        self.leftovers.swap_remove(&room);
    }

    /// Joins a room that may have members. The database said that the user is one when
    /// [`Hub::cursor`] was `checked`, or later.
    ///
    /// # Errors
    /// The user was removed since, or it is not known.
    pub fn join_checked(
        &mut self,
        room: RoomId,
        start: Start,
        checked: Seq,
    ) -> Result<Joined, NotJoined> {
        if self.was_removed(room, checked).map_err(|_lagged| NotJoined::Unknown)? {
            return Err(NotJoined::Removed);
        }
        let (cursor, is_new) = (self.hub.cursor(), !self.is_in(room));
        let joined = self.join(room, start);
        if let Some(membership) = self.memberships.get_mut(&room)
            && is_new
        {
            membership.checked = cursor;
        }
        Ok(joined)
    }

    /// Ends the session at its next step: its client has to connect again.
    pub fn send_back(&mut self) {
        self.must_return = true;
    }

    /// Whether an event from the number `from` on, which was dispatched already, has removed the
    /// user from the room.
    fn was_removed(&self, room: RoomId, from: Seq) -> Result<bool, Lagged> {
        let cursor = self.hub.cursor();
        let (mut next, mut is_removed) = (from, false);
        if !room.may_have_members() {
            return Ok(false);
        }
        while let Some(found) = self.hub.ring().event_of(room, next)?
            && found.seq < cursor
        {
            next = found.next;
            if found.event.user() == self.user {
                match found.event.kind() {
                    Kind::MemberAdded => is_removed = false,
                    Kind::MemberRemoved => is_removed = true,
                    _ => {}
                }
            }
        }
        Ok(is_removed)
    }

    /// Joins `room`. If the member is in it already, nothing changes, and the answer is that of the
    /// first join with the position that was delivered since.
    pub fn join(&mut self, room: RoomId, start: Start) -> Joined {
        if let Some(membership) = self.memberships.get(&room) {
            return Joined {
                position: self.delivered(membership),
                recovered: membership.recovered,
            };
        }
        self.inbox.set_idle(false);
        self.leftovers.swap_remove(&room);
        self.joins = self.joins.saturating_add(1);
        self.join_announced = false;
        // The base position begins with the first room.
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

    /// Leaves `room`. No more events of it are delivered. Returns the position up to which
    /// everything was delivered, if the member was in it.
    pub fn leave(&mut self, room: RoomId) -> Option<Position> {
        let membership = self.memberships.swap_remove(&room);
        let delivered = membership.as_ref().and_then(|membership| self.delivered(membership));
        match membership.map(|membership| membership.state) {
            Some(State::Live(_)) => self.hub.unsubscribe(room, self.id, self.user),
            Some(State::Replayed(next)) => {
                self.replays.remove(&(next, room));
            }
            None => {}
        }
        self.resyncs.retain(|&(due, _)| due != room);
        delivered
    }

    /// The user types in `room`, which the member is in.
    pub fn typing(&self, room: RoomId, name: Option<Arc<str>>) {
        if let Some(user) = self.user.filter(|_| self.is_in(room) && !self.muted) {
            self.hub.typing(room, user, self.id, name);
        }
    }

    /// The user does not type in `room` any more.
    pub fn stop_typing(&self, room: RoomId) {
        if let Some(user) = self.user {
            self.hub.stop_typing(room, user, self.id);
        }
    }

    /// Watches these users from now on. Returns false if it would watch too many; then nothing
    /// changes.
    pub fn watch(&self, users: &[UserId]) -> bool {
        self.muted || self.hub.watch(self.id, &self.inbox, users)
    }

    /// Watches these users no more; `None` is all.
    pub fn unwatch(&self, users: Option<&[UserId]>) {
        self.hub.unwatch(self.id, users);
    }

    /// Delivers no more events. The member stays in its rooms, and can still join and leave rooms.
    pub fn mute(&mut self) {
        self.muted = true;
        for (&room, membership) in &self.memberships {
            if let State::Live(_) = membership.state {
                self.hub.unsubscribe(room, self.id, self.user);
            }
        }
        self.forget_user();
        self.replays.clear();
        self.resyncs.clear();
    }

    fn forget_user(&self) {
        if let Some(user) = self.user {
            self.hub.forget_user(self.id, user);
        }
    }

    /// The rooms of this member.
    pub fn rooms(&self) -> impl Iterator<Item = RoomId> {
        let own = self.user.map(UserId::own_room);
        self.memberships.keys().copied().filter(move |room| Some(*room) != own)
    }

    /// Whether this member is in `room`.
    pub fn is_in(&self, room: RoomId) -> bool {
        self.memberships.contains_key(&room)
    }

    /// The next event for this session: live events first, because they wait in the bounded inbox,
    /// then replayed events, those of all rooms in stream order.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Result<Rc<Delivery>, Ended>> {
        self.inbox.set_idle(false);
        loop {
            if let Some(ended) = self.ended() {
                return Poll::Ready(Err(ended));
            }
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
                        self.inbox.set_waiting();
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    /// Whether there may be a next event already.
    pub fn has_more(&self) -> bool {
        !(self.inbox.is_empty() && self.replays.is_empty() && self.resyncs.is_empty())
    }

    /// Why no more events are delivered.
    pub fn ended(&self) -> Option<Ended> {
        self.inbox.ended().or(self.must_return.then_some(Ended::TooSlow))
    }

    /// Ready when no more events are delivered.
    pub fn poll_ended(&self, context: &Context<'_>) -> Poll<Ended> {
        self.inbox.poll_ended(context)
    }

    /// The frame of an event that [`poll_next`](Self::poll_next) has just returned, with this
    /// session's offset if the wire has one. Shared by all members if possible.
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

    /// The frame with only this session's offset. It must be written after all events that
    /// [`poll_next`](Self::poll_next) has returned; `last` is the last of them. Shared by all
    /// members if possible; `None` if there is no offset.
    pub fn offset_frame(&self, last: &Delivery) -> Option<ByteString> {
        let offset = self.offset()?;
        if is_position_of(&offset, last) {
            last.offset_frame()
        } else {
            Some(encode_offset(offset))
        }
    }

    /// The offset of everything that this session has got; `None` before its first room and on a
    /// standalone MongoDB.
    pub fn offset(&self) -> Option<Offset> {
        let base = self.inbox.base()?;
        let mut exceptions = Vec::new();
        if !self.replays.is_empty() || !self.resyncs.is_empty() || self.highest > Some(base) {
            let memberships = self.memberships.iter();
            let delivered = memberships
                .filter_map(|(&room, membership)| Some((self.delivered(membership)?, room)));
            exceptions.extend(delivered);
        }
        exceptions.extend(self.leftovers.iter().map(|(&room, &through)| (through, room)));
        exceptions.retain(|&(delivered, _)| delivered != base);
        exceptions.sort_unstable();
        let joins = self.counts_joins(base).then_some(self.joins);
        Some(Offset { base, exceptions, joins })
    }

    /// Whether offsets with this base contain the number of joins.
    fn counts_joins(&self, base: Position) -> bool {
        self.join_announced || self.known >= Some(base)
    }

    /// Whether the offset of the next live event is only that event's position.
    fn shares_frames(&self) -> bool {
        let Some(base) = self.inbox.base() else {
            // The next event is one for all sessions of the user, and it can come during a join.
            return self.replays.is_empty()
                && self.leftovers.is_empty()
                && !self.join_announced
                && self.known.is_none();
        };
        self.replays.is_empty()
            && self.resyncs.is_empty()
            && self.leftovers.is_empty()
            && self.highest <= Some(base)
            && !self.counts_joins(base)
    }

    /// Joins a room with the events after `since`. `recovered` goes into the answer.
    fn start_after(&mut self, room: RoomId, since: Position, recovered: bool) -> Joined {
        let first = self.hub.ring().first_after(room, since);
        let through = Some(since);
        let membership =
            |state| Membership { recovered, through, resync_due: false, checked: 0, state };
        if first < self.hub.cursor() {
            self.replays.insert((first, room));
            self.enter(room, membership(State::Replayed(first)));
        } else {
            // Nothing to replay. The floor is the client's position, which may be ahead of this
            // hub.
            self.enter(room, membership(State::Live(0)));
            self.go_live_from(room, through, through);
        }
        Joined { position: Some(since), recovered }
    }

    fn enter(&mut self, room: RoomId, membership: Membership) {
        if self.memberships.is_empty() {
            // Most sessions are in one room, and a map makes room for three at first.
            self.memberships.reserve_exact(1);
        }
        self.memberships.insert(room, membership);
    }

    fn go_live(&mut self, room: RoomId) -> Joined {
        let live = self.hub.through();
        let membership = Membership {
            recovered: false,
            through: live,
            resync_due: false,
            checked: 0,
            state: State::Live(0),
        };
        self.enter(room, membership);
        self.go_live_from(room, live, live);
        Joined { position: live, recovered: false }
    }

    /// The user's own room is live without a subscription: the hub knows the sessions of each user.
    fn is_own_room(&self, room: RoomId) -> bool {
        self.user.map(UserId::own_room) == Some(room)
    }

    /// Makes a membership live: everything up to `through` was delivered, and the hub delivers what
    /// it dispatches after `floor`.
    fn go_live_from(&mut self, room: RoomId, through: Option<Position>, floor: Option<Position>) {
        if self.is_own_room(room) {
            self.memberships.swap_remove(&room);
            return;
        }
        if let Some(membership) = self.memberships.get_mut(&room) {
            membership.state = State::Live(self.hub.cursor());
            membership.through = through;
            self.highest = self.highest.max(through);
            if !self.muted {
                self.hub.subscribe(room, self.id, &self.inbox, floor);
            }
        }
    }

    /// The event of an item, if this member is still in its room and joined it before the item was
    /// put in.
    fn unpack(&mut self, item: InboxItem) -> Option<Rc<Delivery>> {
        match item {
            InboxItem::Event(_, delivery) if delivery.event().is_signal() => Some(delivery),
            InboxItem::Event(seq, delivery) => {
                let room = delivery.event().room();
                match self.memberships.get(&room).map(|membership| &membership.state) {
                    Some(State::Live(from)) if seq >= *from => {}
                    // It is told in its turn by the replay of what the user was told before.
                    None if delivery.event().is_of_user() => {}
                    _ => return None,
                }
                if delivery.event().removes().is_some_and(|user| self.user == Some(user)) {
                    self.leave(room);
                    self.note_removal(room, delivery.event());
                }
                self.inbox.set_base(delivery.event().position().or(self.inbox.base()));
                Some(delivery).filter(|delivery| !delivery.event().is_withdrawn())
            }
            InboxItem::Resync { before, position } => {
                // Removals may have been missed, too: the client has to come back and ask again.
                self.must_return |= self.memberships.keys().any(|room| room.may_have_members());
                let missed = self
                    .memberships
                    .iter()
                    .filter(|(_, membership)| matches!(membership.state, State::Live(from) if from < before));
                let missed: Vec<_> =
                    missed.map(|(&room, membership)| (room, self.delivered(membership))).collect();
                for (room, delivered) in missed {
                    self.queue_resync(room, delivered, position);
                }
                self.inbox.set_base(self.inbox.base().max(position));
                None
            }
        }
    }

    /// One step of the replay of `room`: returns its next event, or subscribes to the room if every
    /// dispatched event was replayed.
    fn replay(&mut self, room: RoomId, next: Seq) -> Option<Rc<Delivery>> {
        let cursor = self.hub.cursor();
        match self.hub.ring().event_of(room, next) {
            Ok(Some(RoomEvent { event, seq, next })) if seq < cursor => {
                let membership = self.memberships.get_mut(&room)?;
                membership.through = event.position();
                let is_removal = event.removes().is_some_and(|user| self.user == Some(user));
                if is_removal && seq >= membership.checked {
                    self.memberships.swap_remove(&room);
                    self.note_removal(room, &event);
                } else if next < cursor {
                    membership.state = State::Replayed(next);
                    self.replays.insert((next, room));
                } else {
                    let through = event.position().max(self.hub.through());
                    self.go_live_from(room, through, event.position());
                }
                let passed_over = event.passes_over();
                let is_told = passed_over.is_none() || passed_over != self.user;
                Some(event).filter(|event| is_told && !event.is_withdrawn()).map(Delivery::new)
            }
            Ok(_) => {
                let through = self.hub.through();
                self.go_live_from(room, through, None);
                None
            }
            Err(_lagged) => {
                // Also what the user was told, or a removal, was missed.
                self.must_return |= room.may_have_members() || self.is_own_room(room);
                let delivered = self.memberships.get(&room)?.through;
                let live = self.hub.through();
                self.go_live_from(room, live, live);
                self.queue_resync(room, delivered, live);
                None
            }
        }
    }

    /// The user was removed from a room: nobody has taken it out of the record.
    fn note_removal(&mut self, room: RoomId, removal: &Event) {
        if let Some(position) = removal.position() {
            self.note_leftover(room, position);
        }
    }

    /// The position up to which everything of a room was delivered.
    fn delivered(&self, membership: &Membership) -> Option<Position> {
        match membership.state {
            State::Live(_) if !membership.resync_due => membership.through.max(self.inbox.base()),
            _ => membership.through,
        }
    }

    /// Queues a `resync` of `room` up to `position`. `delivered` is the position up to which
    /// everything was delivered before it.
    fn queue_resync(
        &mut self,
        room: RoomId,
        delivered: Option<Position>,
        position: Option<Position>,
    ) {
        if let Some(membership) = self.memberships.get_mut(&room) {
            if !membership.resync_due {
                membership.through = delivered;
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

/// Whether an offset is only the position of this event.
fn is_position_of(offset: &Offset, delivery: &Delivery) -> bool {
    Some(offset.base) == delivery.event().position()
        && offset.exceptions.is_empty()
        && offset.joins.is_none()
}

impl Drop for Member {
    fn drop(&mut self) {
        self.forget_user();
        for (&room, membership) in &self.memberships {
            if let State::Live(_) = membership.state {
                self.hub.unsubscribe(room, self.id, self.user);
            }
        }
    }
}
