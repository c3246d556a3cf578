//! Who types in the rooms of one worker.
//!
//! A client repeats `typing` while its user types. The hub of its session passes on the first and
//! then one in [`REPEATED`], and says when it has ended: the client says so, the user's message is
//! delivered, or the session leaves the room or ends. The hub of each other session passes it to
//! the client if nothing else waits there, and never into the inbox. It remembers who is shown as
//! typing, and says that it has ended when the user's message comes or nothing was heard for
//! [`EXPIRES`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::signals::{Origin, Signal};
use super::{Hub, HubState, MemberId};
use crate::feed::event::{Delivery, Event};
use crate::models::{RoomId, UserId};

/// How often the typing of a user in a room is passed on.
const REPEATED: Duration = Duration::from_secs(3);

/// How long a user is shown as typing after the last signal.
const EXPIRES: Duration = Duration::from_secs(6);

/// How many users may type at the same time on one worker, and be shown there. Beyond that, nothing
/// is passed on.
const MAX_TYPING: usize = 20_000;

/// How many sessions of one worker may have joined a room in which it is said who types.
const MAX_AUDIENCE: usize = 500;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Typing {
    /// Users of sessions here, and when their typing was last passed on.
    typists: HashMap<(RoomId, UserId), Typist>,
    /// Users who are shown to sessions here, and when that ends.
    shown: HashMap<(RoomId, UserId), Instant>,
}

#[derive(Debug)]
struct Typist {
    member: MemberId,
    passed_on: Instant,
}

impl Typing {
    fn is_empty(&self) -> bool {
        self.typists.is_empty() && self.shown.is_empty()
    }

    /// A session says that its user types. Returns whether that is passed on.
    fn begin(&mut self, room: RoomId, user: UserId, member: MemberId, now: Instant) -> bool {
        let is_full = self.typists.len() >= MAX_TYPING;
        match self.typists.entry((room, user)) {
            Entry::Occupied(mut typist) => {
                let typist = typist.get_mut();
                typist.member = member;
                let is_due = now >= typist.passed_on + REPEATED;
                if is_due {
                    typist.passed_on = now;
                }
                is_due
            }
            Entry::Vacant(_) if is_full => false,
            Entry::Vacant(free) => {
                free.insert(Typist { member, passed_on: now });
                true
            }
        }
    }

    /// A session does not type any more, or any session of the user if there is none. Returns
    /// whether that is passed on.
    fn end(&mut self, room: RoomId, user: UserId, member: Option<MemberId>) -> bool {
        match self.typists.entry((room, user)) {
            Entry::Occupied(typist)
                if member.is_none_or(|member| typist.get().member == member) =>
            {
                typist.remove();
                true
            }
            _ => false,
        }
    }

    /// Notes that a user is shown as typing. Returns false if there are too many.
    fn show(&mut self, room: RoomId, user: UserId, now: Instant) -> bool {
        if self.shown.len() >= MAX_TYPING && !self.shown.contains_key(&(room, user)) {
            return false;
        }
        self.shown.insert((room, user), now + EXPIRES);
        true
    }

    fn hide(&mut self, room: RoomId, user: UserId) -> bool {
        self.shown.remove(&(room, user)).is_some()
    }

    /// Forgets who has not been heard of for too long. Returns who was shown.
    fn expire(&mut self, now: Instant) -> Vec<(RoomId, UserId)> {
        self.typists.retain(|_, typist| now < typist.passed_on + EXPIRES);
        let mut expired = Vec::new();
        self.shown.retain(|&key, until| {
            let is_over = now >= *until;
            if is_over {
                expired.push(key);
            }
            !is_over
        });
        expired
    }
}

impl Hub {
    /// The user of a member types in a room that the member is in.
    pub(super) fn typing(
        &self,
        room: RoomId,
        user: UserId,
        member: MemberId,
        name: Option<Arc<str>>,
    ) {
        let mut state = self.state.borrow_mut();
        if state.typing.begin(room, user, member, Instant::now()) {
            self.signals.send(Origin::Here, Signal::Typing { room, user, name });
        }
    }

    /// The user of a member does not type any more.
    pub(super) fn stop_typing(&self, room: RoomId, user: UserId, member: MemberId) {
        if self.state.borrow_mut().typing.end(room, user, Some(member)) {
            self.signals.send(Origin::Here, Signal::Stopped { room, user });
        }
    }

    /// Says that users are not shown as typing any more of whom nothing was heard for too long.
    pub(super) fn expire_typing(&self) {
        let mut state = self.state.borrow_mut();
        for (room, user) in state.typing.expire(Instant::now()) {
            state.say_stopped(room, user);
        }
    }

    /// Whether somebody types.
    pub(super) fn has_typing(&self) -> bool {
        !self.state.borrow().typing.is_empty()
    }
}

impl HubState {
    /// Tells the sessions here that a user types.
    pub(super) fn show_typing(&mut self, room: RoomId, user: UserId, name: Option<&str>) {
        let audience = self.subscribers(room);
        if audience > 0 && audience <= MAX_AUDIENCE && self.typing.show(room, user, Instant::now())
        {
            self.pass_on(room, user, Event::typing(room, user, name));
        }
    }

    /// Tells the sessions here that a user does not type any more, if they were told that the user
    /// does.
    pub(super) fn hide_typing(&mut self, room: RoomId, user: UserId) {
        if self.typing.hide(room, user) {
            self.say_stopped(room, user);
        }
    }

    /// The user has sent a message, or is out of the room. Returns whether other workers and
    /// instances have to hear it.
    pub(super) fn end_typing(&mut self, room: RoomId, user: Option<UserId>) -> bool {
        let Some(user) = user.filter(|_| !self.typing.is_empty()) else { return false };
        self.hide_typing(room, user);
        self.typing.end(room, user, None)
    }

    fn say_stopped(&self, room: RoomId, user: UserId) {
        self.pass_on(room, user, Event::stopped_typing(room, user));
    }

    /// Writes a signal to the members of a room who have nothing else waiting, except those of
    /// `user`.
    fn pass_on(&self, room: RoomId, user: UserId, event: Event) {
        let Some(subscriptions) = self.rooms.get(&room) else { return };
        let delivery = Delivery::new(Arc::new(event));
        for (id, subscription) in subscriptions {
            if !self.is_of(*id, user) {
                subscription.inbox.signal(&delivery);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_signal_in_three_seconds_is_passed_on() {
        let (room, user, now) = (RoomId::new(), UserId::new(), Instant::now());
        let mut typing = Typing::default();
        let at = |seconds| now + Duration::from_secs(seconds);
        let passed_on = [0, 1, 2, 3, 5, 6].map(|second| typing.begin(room, user, 1, at(second)));
        assert_eq!(passed_on, [true, false, false, true, false, true]);
        assert!(typing.begin(RoomId::new(), user, 1, at(6)));
        assert!(!typing.end(room, user, Some(2)), "another session types");
        assert!(typing.end(room, user, Some(1)));
        assert!(!typing.end(room, user, Some(1)));
        assert!(typing.begin(room, user, 1, at(6)), "it begins anew");
    }

    #[test]
    fn who_is_not_heard_of_is_forgotten() {
        let (room, user, now) = (RoomId::new(), UserId::new(), Instant::now());
        let mut typing = Typing::default();
        typing.begin(room, user, 1, now);
        typing.show(room, user, now);
        assert!(typing.expire(now + Duration::from_secs(5)).is_empty());
        typing.show(room, user, now + Duration::from_secs(5));
        assert!(typing.expire(now + EXPIRES).is_empty());
        assert_eq!(typing.expire(now + Duration::from_secs(11)), [(room, user)]);
        assert!(typing.is_empty());
    }

    #[test]
    fn the_number_of_users_who_type_is_bounded() {
        let (user, now) = (UserId::new(), Instant::now());
        let mut typing = Typing::default();
        let begun = (0..MAX_TYPING + 10).filter(|_| typing.begin(RoomId::new(), user, 1, now));
        assert_eq!(begun.count(), MAX_TYPING);
        let shown = (0..MAX_TYPING + 10).filter(|_| typing.show(RoomId::new(), user, now));
        assert_eq!(shown.count(), MAX_TYPING);
    }
}
