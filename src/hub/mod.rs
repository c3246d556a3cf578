//! The rooms of one worker and their members.
//!
//! Each worker has its own hub, and only the worker's thread uses it. A dispatcher follows the ring
//! by sequence number and puts each event into the inboxes of the local members of its room. So a
//! message wakes each worker once, instead of waking each member across threads. If a member is
//! idle, the hub writes the event to the client directly and does not wake the member's task
//! ([`DirectWriter`](inbox::DirectWriter)). Joining is atomic with respect to the stream, because
//! nothing is dispatched while a member subscribes to a room. The hub knows rooms, subscriptions
//! and inboxes, but no socket, no wire and no database.

pub mod inbox;
pub mod member;
pub mod offset;
mod pacing;
pub mod signals;
mod typing;
pub mod watching;

#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use indexmap::IndexMap;
use tokio::{sync::broadcast::error::RecvError, time::Instant};

use crate::{
    feed::{
        event::{Delivery, Event, Kind},
        position::Position,
        revoked::Revoked,
        ring::{Ring, Seq},
    },
    models::{Revocation, RoomId, TokenIdentity, UserId},
};

use inbox::{Bounds, Ended, Inbox, InboxItem};
use pacing::Pacer;
use signals::{Origin, Signal, Signals};
use typing::Typing;
use watching::Watching;

/// The maximum number of events in one round, before the sessions of this worker run.
const MAX_DISPATCHED: usize = 64;

/// The maximum number of direct writes in one round. The sessions write the rest, so that a large
/// room does not delay others.
const MAX_DIRECT_WRITES: usize = 256;

/// How often it is looked for users who have stopped typing without saying so.
const EXPIRY_CHECK: Duration = Duration::from_millis(500);

/// How many sessions of one worker may have joined a room in which others are told who has read.
/// Beyond that, each mark would cost too much.
const MAX_TOLD_OF_READING: usize = 100;

/// See the [module](self). Its members share it.
pub struct Hub {
    ring: Arc<Ring>,
    revoked: Arc<Revoked>,
    bounds: Bounds,
    signals: Signals,
    // Borrowed for one operation at a time, never across an await.
    state: RefCell<HubState>,
}

struct HubState {
    /// The number of the next event to dispatch.
    cursor: Seq,
    /// The position of the last dispatched event.
    dispatched: Option<Position>,
    /// The subscriptions of each room. Rooms without subscriptions are removed.
    rooms: HashMap<RoomId, IndexMap<MemberId, Subscription>>,
    /// The sessions of each user, with their tokens, and where what is told to a user goes.
    users: BTreeMap<(UserId, MemberId), (TokenIdentity, Rc<Inbox>)>,
    typing: Typing,
    watching: Watching,
    /// What other workers and instances have to hear of.
    signals: Signals,
    next_member: MemberId,
}

/// The number of a member of this hub.
type MemberId = u64;

/// The result of one call of `dispatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round {
    /// How many writes it causes, if each client gets all of its events in one write.
    pub writes: usize,
    /// Whether the ring may have more events already.
    pub more: bool,
}

struct Subscription {
    inbox: Rc<Inbox>,
    /// Events up to this position were delivered before, and are skipped.
    floor: Option<Position>,
}

impl Hub {
    /// A hub without members. It follows `ring` from its current end, while [`run`](Self::run)
    /// runs, and hears `signals` while [`run_signals`](Self::run_signals) runs. It ends the
    /// sessions whose tokens are revoked.
    pub fn new(
        ring: Arc<Ring>,
        revoked: Arc<Revoked>,
        bounds: Bounds,
        signals: Signals,
    ) -> Rc<Self> {
        let tail = ring.tail();
        let state = HubState {
            cursor: tail.seq,
            dispatched: tail.through,
            rooms: HashMap::new(),
            users: BTreeMap::new(),
            typing: Typing::default(),
            watching: Watching::default(),
            signals: signals.clone(),
            next_member: 0,
        };
        Rc::new(Self { ring, revoked, bounds, signals, state: RefCell::new(state) })
    }

    /// Dispatches events until the ring is dropped. Spawn it once, on the thread of this hub.
    pub async fn run(self: Rc<Self>) {
        let mut ends = self.ring.ends();
        let mut pacer = Pacer::new(Instant::now());
        loop {
            let Round { writes, more } = self.dispatch(MAX_DISPATCHED);
            match pacer.pause_after(writes, Instant::now()) {
                // Do not pause while the hub lags behind the ring.
                _ if more => tokio::task::yield_now().await,
                Some(end) => tokio::time::sleep_until(end).await,
                None if ends.changed().await.is_err() => return,
                None => {}
            }
        }
    }

    /// Passes signals on until no more can come. Spawn it once, on the thread of this hub.
    pub async fn run_signals(self: Rc<Self>) {
        let mut signals = self.signals.listen();
        loop {
            tokio::select! {
                heard = signals.recv() => match heard {
                    Ok((_, signal)) => self.hear(signal),
                    Err(RecvError::Lagged(_)) => self.tell_watchers_again(),
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep(EXPIRY_CHECK), if self.has_typing() => {
                    self.expire_typing();
                }
            }
        }
    }

    fn hear(&self, signal: Signal) {
        let mut state = self.state.borrow_mut();
        match signal {
            Signal::Typing { room, user, name } => state.show_typing(room, user, name.as_deref()),
            Signal::Stopped { room, user } => state.hide_typing(room, user),
            Signal::Online(user) => state.tell_online(user),
            Signal::Offline { user, last_seen } => state.tell_offline(user, last_seen),
            Signal::Census { room, reply } => {
                // There is room for the answer of each worker.
                let _ = reply.try_send(state.users_in(room));
            }
        }
    }

    /// The number and the inbox of a new member, which is in no room yet.
    fn register(&self) -> (MemberId, Rc<Inbox>) {
        let mut state = self.state.borrow_mut();
        let id = state.next_member;
        state.next_member += 1;
        (id, Inbox::new(self.bounds))
    }

    /// The position up to which everything was dispatched here; `None` before the feed has begun
    /// and on a standalone MongoDB.
    pub fn through(&self) -> Option<Position> {
        let state = self.state.borrow();
        self.ring.through_at(state.cursor, state.dispatched)
    }

    /// The ring that this hub follows.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The number of rooms with members here.
    pub fn rooms(&self) -> usize {
        self.state.borrow().rooms.len()
    }

    /// Dispatches up to `max` events, but no more bytes than inboxes can hold.
    fn dispatch(&self, max: usize) -> Round {
        let mut state = self.state.borrow_mut();
        match self.ring.after(state.cursor, max) {
            Ok(events) => {
                let mut round = Round { writes: 0, more: events.len() == max };
                let (mut bytes, mut direct_left) = (0, MAX_DIRECT_WRITES);
                for (index, event) in events.iter().enumerate() {
                    bytes += event.len();
                    if event.kind() == Kind::Revoked {
                        state.revoke(event, &self.revoked);
                        continue;
                    }
                    let is_of_room = |other: &Arc<Event>| other.room() == event.room();
                    let before = events.iter().take(index).any(is_of_room);
                    let after = events.iter().skip(index + 1).any(is_of_room);
                    // Several events of one room are cheaper in one write of the session.
                    let max_direct = if before || after { 0 } else { direct_left };
                    direct_left -= state.dispatch(Arc::clone(event), max_direct);
                    if !before {
                        round.writes += state.subscribers(event.room());
                    }
                    // A burst of large events must not overflow the inboxes of clients that read.
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
                // Revocations were missed, too, but the set has them.
                state.check_all(&self.revoked);
                Round { writes: 0, more: true }
            }
        }
    }

    /// The number of the next event to dispatch.
    pub fn cursor(&self) -> Seq {
        self.state.borrow().cursor
    }

    /// Subscribes `member` to the events of `room` that are dispatched from now on and are after
    /// `floor`.
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

    /// `member` is a session with this token: what is told to the user goes there, until the token
    /// is revoked.
    fn set_token(&self, member: MemberId, inbox: &Rc<Inbox>, token: TokenIdentity) {
        let session = (token, Rc::clone(inbox));
        self.state.borrow_mut().users.insert((token.user, member), session);
        // The event of a revocation that is known may have been dispatched before.
        if self.revoked.has(token) {
            inbox.end(Ended::Revoked);
        }
    }

    /// `member` is gone, or is not told anything more.
    fn forget_user(&self, member: MemberId, user: UserId) {
        let mut state = self.state.borrow_mut();
        state.users.remove(&(user, member));
        state.watching.forget(member);
    }

    /// Removes the subscription of `member`, a session of `user`, to `room`, if there is one.
    fn unsubscribe(&self, room: RoomId, member: MemberId, user: Option<UserId>) {
        if let Some(user) = user {
            self.stop_typing(room, user, member);
        }
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

    /// Dispatches the next event, with at most `max_direct` direct writes. Returns the number of
    /// direct writes.
    fn dispatch(&mut self, event: Arc<Event>, max_direct: usize) -> usize {
        let seq = self.cursor;
        self.cursor += 1;
        self.dispatched = event.position().or(self.dispatched);
        if event.is_withdrawn() {
            return 0;
        }
        if event.is_of_user() {
            return self.tell_user(seq, event, max_direct);
        }
        let Entry::Occupied(mut subscriptions) = self.rooms.entry(event.room()) else { return 0 };
        let (removed, passed_over) = (event.removes(), event.passes_over());
        if passed_over.is_some() && subscriptions.get().len() > MAX_TOLD_OF_READING {
            return 0;
        }
        let users = &self.users;
        let is_of = |id: &MemberId, user: Option<UserId>| {
            user.is_some_and(|user| users.contains_key(&(user, *id)))
        };
        let ends_typing = match event.kind() {
            Kind::Message | Kind::MemberRemoved => event.user(),
            _ => None,
        };
        let room = event.room();
        let delivery = Delivery::new(event);
        let position = delivery.event().position();
        let mut written = 0;
        subscriptions.get_mut().retain(|id, subscription| {
            if position.is_some() && position <= subscription.floor {
                if !is_of(id, removed) {
                    return true;
                }
                // It has joined with a position that this hub had not reached, so nobody knew of
                // the removal. If its user was added again since, its client comes back.
                subscription.inbox.end(Ended::TooSlow);
                return false;
            }
            if is_of(id, passed_over) {
                return true;
            }
            if is_of(id, removed) {
                // The member learns of it from the event, which is the last of the room.
                subscription.inbox.put(InboxItem::Event(seq, Rc::clone(&delivery)));
                return false;
            }
            if written < max_direct && subscription.inbox.write_directly(&delivery) {
                written += 1;
                return true;
            }
            subscription.inbox.put(InboxItem::Event(seq, Rc::clone(&delivery)))
        });
        if subscriptions.get().is_empty() {
            subscriptions.remove();
        }
        if self.end_typing(room, ends_typing)
            && let Some(user) = ends_typing
        {
            self.signals.send(Origin::Here, Signal::Stopped { room, user });
        }
        written
    }

    /// Whether a member is a session of this user.
    fn is_of(&self, member: MemberId, user: UserId) -> bool {
        self.users.contains_key(&(user, member))
    }

    /// The users who have joined a room here.
    fn users_in(&self, room: RoomId) -> Vec<UserId> {
        let Some(members) = self.rooms.get(&room) else { return Vec::new() };
        let sessions = self.users.keys().filter(|(_, member)| members.contains_key(member));
        let mut users: Vec<_> = sessions.map(|(user, _)| *user).collect();
        // The sessions of one user follow one another.
        users.dedup();
        users
    }

    /// Hands an event out to all sessions of its user.
    fn tell_user(&self, seq: Seq, event: Arc<Event>, most: usize) -> usize {
        let user = event.user();
        let delivery = Delivery::new(event);
        let mut written = 0;
        for (_, inbox) in user.into_iter().flat_map(|user| self.sessions_of(user)) {
            if written < most && inbox.write_directly(&delivery) {
                written += 1;
            } else {
                inbox.put(InboxItem::Event(seq, Rc::clone(&delivery)));
            }
        }
        written
    }

    fn sessions_of(&self, user: UserId) -> impl Iterator<Item = &(TokenIdentity, Rc<Inbox>)> {
        self.users.range((user, MemberId::MIN)..=(user, MemberId::MAX)).map(|(_, session)| session)
    }

    /// Ends the sessions whose tokens an event revokes. Nothing behind it is delivered to them.
    fn revoke(&mut self, event: &Event, revoked: &Revoked) {
        self.cursor += 1;
        self.dispatched = event.position().or(self.dispatched);
        let Some(revocation) = event.revocation() else { return self.check_all(revoked) };
        let Revocation { user, .. } = *revocation;
        for (_, inbox) in self.sessions_of(user).filter(|(token, _)| revocation.covers(*token)) {
            inbox.end(Ended::Revoked);
        }
    }

    /// Ends all sessions whose tokens are revoked. One whose token is older than what is known
    /// comes back, and the database is asked.
    fn check_all(&self, revoked: &Revoked) {
        for (token, inbox) in self.users.values() {
            if revoked.has(*token) {
                inbox.end(Ended::Revoked);
            } else if revoked.may_have(*token) {
                inbox.end(Ended::TooSlow);
            }
        }
    }

    /// Puts an item into the inbox of every member that is in a room, once.
    fn broadcast(&mut self, item: impl Fn() -> InboxItem) {
        let subscriptions = self.rooms.values().flatten();
        let members: HashMap<_, _> =
            subscriptions.map(|(id, subscription)| (*id, subscription.inbox.clone())).collect();
        for inbox in members.values() {
            inbox.put(item());
        }
    }
}
