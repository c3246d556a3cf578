//! Which sessions of one worker watch which users.
//!
//! A watcher is told when a user comes or goes. Unlike typing, this is not dropped for a client
//! that is slow, because it would be wrong until the user comes or goes again: it waits in the
//! inbox like an event.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use bson::DateTime;

use super::inbox::{Inbox, InboxItem};
use super::{Hub, HubState, MemberId};
use crate::feed::event::{Delivery, Event};
use crate::models::UserId;

/// How many users a session may watch.
pub const MAX_WATCHED: usize = 1_000;

/// See the [module](self).
#[derive(Default)]
pub(super) struct Watching {
    watchers: HashMap<UserId, HashMap<MemberId, Rc<Inbox>>>,
    watched: HashMap<MemberId, HashSet<UserId>>,
}

impl Watching {
    /// A member watches these users, too. Returns false if that would be too many; then nothing
    /// changes.
    fn watch(&mut self, member: MemberId, inbox: &Rc<Inbox>, users: &[UserId]) -> bool {
        let watched = self.watched.entry(member).or_default();
        let new: HashSet<_> =
            users.iter().filter(|user| !watched.contains(*user)).copied().collect();
        let has_room = watched.len() + new.len() <= MAX_WATCHED;
        if has_room {
            for &user in &new {
                let watchers = self.watchers.entry(user).or_default();
                watchers.insert(member, Rc::clone(inbox));
            }
            watched.extend(new);
        }
        if watched.is_empty() {
            self.watched.remove(&member);
        }
        has_room
    }

    fn unwatch(&mut self, member: MemberId, users: &[UserId]) {
        let Some(watched) = self.watched.get_mut(&member) else { return };
        for user in users {
            if watched.remove(user) {
                forget(&mut self.watchers, *user, member);
            }
        }
        if watched.is_empty() {
            self.watched.remove(&member);
        }
    }

    /// A member is gone.
    pub(super) fn forget(&mut self, member: MemberId) {
        for user in self.watched.remove(&member).into_iter().flatten() {
            forget(&mut self.watchers, user, member);
        }
    }
}

fn forget(
    watchers: &mut HashMap<UserId, HashMap<MemberId, Rc<Inbox>>>,
    user: UserId,
    member: MemberId,
) {
    if let Some(of_user) = watchers.get_mut(&user) {
        of_user.remove(&member);
        if of_user.is_empty() {
            watchers.remove(&user);
        }
    }
}

impl Hub {
    /// A member watches these users from now on. Returns false if that would be too many.
    pub(super) fn watch(&self, member: MemberId, inbox: &Rc<Inbox>, users: &[UserId]) -> bool {
        self.state.borrow_mut().watching.watch(member, inbox, users)
    }

    /// A member does not watch these users any more; `None` is all.
    pub(super) fn unwatch(&self, member: MemberId, users: Option<&[UserId]>) {
        let watching = &mut self.state.borrow_mut().watching;
        match users {
            Some(users) => watching.unwatch(member, users),
            None => watching.forget(member),
        }
    }

    /// Tells all watchers again how it is, because signals were missed.
    pub(super) fn tell_watchers_again(&self) {
        let state = self.state.borrow();
        for &user in state.watching.watchers.keys() {
            if self.signals.online().contains(user) {
                state.tell_online(user);
            } else {
                state.tell_offline(user, None);
            }
        }
    }
}

impl HubState {
    /// Tells the watchers of a user that the user came.
    pub(super) fn tell_online(&self, user: UserId) {
        self.tell_watchers(user, || Event::user_online(user));
    }

    /// Tells the watchers of a user that the user went.
    pub(super) fn tell_offline(&self, user: UserId, last_seen: Option<DateTime>) {
        self.tell_watchers(user, || Event::user_offline(user, last_seen));
    }

    fn tell_watchers(&self, user: UserId, event: impl FnOnce() -> Event) {
        let Some(watchers) = self.watching.watchers.get(&user) else { return };
        let delivery = Delivery::new(Arc::new(event()));
        for inbox in watchers.values() {
            if !inbox.signal(&delivery) {
                inbox.put(InboxItem::Event(self.cursor, Rc::clone(&delivery)));
            }
        }
    }
}
