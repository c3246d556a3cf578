//! The users of the sessions of this process, and which rows are to be written for them.

use std::collections::{HashMap, HashSet, VecDeque};

use bson::DateTime;
use tokio::time::Instant;

use super::{LINGER, PAUSE};
use crate::models::UserId;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Sessions {
    users: HashMap<UserId, Local>,
    /// Users whose row is to be written.
    come: HashSet<UserId>,
    /// Users whose last session has ended, and when their row is to be removed, in that order.
    gone: VecDeque<(Instant, UserId)>,
}

#[derive(Debug)]
struct Local {
    sessions: u32,
    /// When the last session ended, if there is none.
    left: Option<(Instant, DateTime)>,
    is_written: bool,
}

impl Sessions {
    /// A session has begun.
    pub fn enter(&mut self, user: UserId) {
        let local =
            self.users.entry(user).or_insert(Local { sessions: 0, left: None, is_written: false });
        local.sessions += 1;
        local.left = None;
        if !local.is_written {
            self.come.insert(user);
        }
    }

    /// A session has ended.
    pub fn leave(&mut self, user: UserId, now: Instant, date: DateTime) {
        let Some(local) = self.users.get_mut(&user) else { return };
        local.sessions = local.sessions.saturating_sub(1);
        if local.sessions == 0 {
            local.left = Some((now, date));
            self.gone.push_back((now + LINGER, user));
        }
    }

    /// Takes users whose row is to be written, at most `most`. They count as written.
    pub fn take_come(&mut self, most: usize) -> Vec<UserId> {
        let come: Vec<_> = self.come.iter().copied().take(most).collect();
        for user in &come {
            self.come.remove(user);
        }
        let is_wanted = |user: &UserId| match self.users.get_mut(user) {
            Some(local) => {
                local.is_written = true;
                true
            }
            None => false,
        };
        come.into_iter().filter(is_wanted).collect()
    }

    /// The rows of these users could not be written.
    pub fn put_back_come(&mut self, users: Vec<UserId>) {
        for user in users {
            self.removed(user);
        }
    }

    /// Takes users who are gone for long enough, at most `most`, and when their last session ended.
    /// Their row is to be removed.
    pub fn take_gone(&mut self, most: usize, now: Instant) -> Vec<(UserId, DateTime)> {
        let mut gone = Vec::new();
        while gone.len() < most
            && let Some(&(due, user)) = self.gone.front()
            && due <= now
        {
            self.gone.pop_front();
            let Some(local) = self.users.get(&user) else { continue };
            // A session that began since has ended again, or goes on.
            let Some((left, date)) = local.left.filter(|(left, _)| *left + LINGER <= now) else {
                continue;
            };
            debug_assert!(left <= now);
            self.users.remove(&user);
            self.come.remove(&user);
            gone.push((user, date));
        }
        gone
    }

    /// The rows of these users could not be removed.
    pub fn put_back_gone(&mut self, users: Vec<(UserId, DateTime)>, now: Instant) {
        for (user, date) in users {
            match self.users.get_mut(&user) {
                // The user came back, and the row is there or not.
                Some(_) => self.removed(user),
                None => {
                    let long_ago = now.checked_sub(LINGER).unwrap_or(now);
                    let left = Some((long_ago, date));
                    self.users.insert(user, Local { sessions: 0, left, is_written: true });
                    self.gone.push_front((now + PAUSE, user));
                }
            }
        }
    }

    /// The row of a user was removed, perhaps by another instance: it is written again if the user
    /// is still here.
    pub fn removed(&mut self, user: UserId) {
        if let Some(local) = self.users.get_mut(&user) {
            local.is_written = false;
            self.come.insert(user);
        }
    }

    /// Writes all rows again that are not there.
    pub fn rewrite_unless(&mut self, is_there: impl Fn(UserId) -> bool) {
        for (&user, local) in &mut self.users {
            if local.is_written && !is_there(user) {
                local.is_written = false;
                self.come.insert(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_row_is_written_with_the_first_session_and_removed_after_the_last() {
        let (mut sessions, user, start) = (Sessions::default(), UserId::new(), Instant::now());
        let date = DateTime::from_millis(5);
        sessions.enter(user);
        sessions.enter(user);
        assert_eq!(sessions.take_come(10), [user]);
        sessions.enter(user);
        assert!(sessions.take_come(10).is_empty());
        for _ in 0..3 {
            sessions.leave(user, start, date);
        }
        assert!(sessions.take_gone(10, at(start, 14)).is_empty());
        assert_eq!(sessions.take_gone(10, at(start, 15)), [(user, date)]);
        assert!(sessions.users.is_empty() && sessions.come.is_empty() && sessions.gone.is_empty());
    }

    #[test]
    fn a_reload_is_not_noticed() {
        let (mut sessions, user, start) = (Sessions::default(), UserId::new(), Instant::now());
        let date = DateTime::from_millis(5);
        sessions.enter(user);
        assert_eq!(sessions.take_come(10), [user]);
        sessions.leave(user, start, date);
        sessions.enter(user);
        assert!(sessions.take_come(10).is_empty());
        assert!(sessions.take_gone(10, at(start, 60)).is_empty());
        // Gone later, with a shorter visit in between: the time counts from the last.
        sessions.leave(user, at(start, 60), date);
        sessions.enter(user);
        sessions.leave(user, at(start, 70), date);
        assert!(sessions.take_gone(10, at(start, 80)).is_empty());
        assert_eq!(sessions.take_gone(10, at(start, 85)).len(), 1);
    }

    #[test]
    fn what_fails_is_tried_again() {
        let (mut sessions, user, start) = (Sessions::default(), UserId::new(), Instant::now());
        let date = DateTime::from_millis(5);
        sessions.enter(user);
        let come = sessions.take_come(10);
        sessions.put_back_come(come);
        assert_eq!(sessions.take_come(10), [user]);
        sessions.removed(user);
        assert_eq!(sessions.take_come(10), [user], "another instance has removed it");
        sessions.rewrite_unless(|_| true);
        assert!(sessions.take_come(10).is_empty());
        sessions.rewrite_unless(|_| false);
        assert_eq!(sessions.take_come(10), [user]);
        sessions.leave(user, start, date);
        let gone = sessions.take_gone(10, at(start, 15));
        sessions.put_back_gone(gone, at(start, 15));
        assert!(sessions.take_gone(10, at(start, 15)).is_empty());
        assert_eq!(sessions.take_gone(10, at(start, 16)), [(user, date)]);
        // He comes back while the removal fails.
        sessions.enter(user);
        sessions.put_back_gone(vec![(user, date)], at(start, 17));
        assert_eq!(sessions.take_come(10), [user]);
        assert!(sessions.take_gone(10, at(start, 60)).is_empty());
    }
}
