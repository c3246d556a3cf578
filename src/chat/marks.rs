//! Marking messages as read.
//!
//! A user who scrolls marks many messages. So the mark of a user in a room is written at most once
//! a second in each process: the first at once, and what comes within the second together behind
//! it. The feed tells of a mark when it is stored.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};

use super::Chat;
use crate::casts::required_id;
use crate::config::ErrorMode;
use crate::error::ApiError;
use crate::feed::event::Event;
use crate::js::{Fields, Js};
use crate::metrics::Outcome;
use crate::models::{Mark, MessageId, RoomId, StoreError, UserId};
use crate::views;

/// How often the mark of a user in a room is written at most.
const PERIOD: Duration = Duration::from_secs(1);

/// How often it is looked for marks whose time has come.
const TICK: Duration = Duration::from_millis(100);

/// How many marks are remembered at most; beyond that, each is written at once.
const MAX_RECENT: usize = 100_000;

/// How many marks are written at the same time.
const AT_ONCE: usize = 16;

/// A message that a client has read, with uncast fields.
#[derive(Debug)]
pub struct MarkAsRead {
    room: Js,
    message: Js,
}

/// An accepted mark.
#[derive(Debug, Clone, Copy)]
pub struct Marked(Mark);

/// The marks of the last second; shared by all workers.
#[derive(Debug, Default)]
pub struct RecentMarks(Mutex<HashMap<(RoomId, UserId), Recent>>);

#[derive(Debug)]
struct Recent {
    written: Instant,
    /// The last message that the user has marked.
    message: MessageId,
    /// Whether it is still to be written.
    waits: bool,
}

impl MarkAsRead {
    /// Takes `room` and `message` out of a request.
    pub fn take(fields: &mut Fields) -> Self {
        Self { room: fields.take("room"), message: fields.take("message") }
    }

    /// Sets the room to the one in the path.
    pub fn in_room(mut self, room: &str) -> Self {
        self.room = Js::String(room.to_owned());
        self
    }
}

impl Marked {
    /// `{"room","message"}`: the body of REST's answer and the ack on sockets.
    pub fn to_json(self) -> Vec<u8> {
        let mut json = Vec::new();
        views::marked(&mut json, &self.0);
        json
    }
}

impl Chat {
    /// Marks a room as read up to a message. A mark that is not ahead of the stored one changes
    /// nothing and gets the same answer. `None` is an anonymous socket of `LEGACY_TRUST`, which is
    /// refused.
    ///
    /// # Errors
    /// The room does not exist for this user, it has no such message, a field cannot be cast, or
    /// the rate limit is reached.
    pub async fn mark_as_read(
        &self,
        request: MarkAsRead,
        user: Option<UserId>,
    ) -> Result<Marked, ApiError> {
        let marked = self.advance_mark(request, user).await;
        self.metrics.read_mark(match &marked {
            Ok((_, is_new)) => {
                if *is_new {
                    Outcome::Stored
                } else {
                    Outcome::Repeated
                }
            }
            Err(error) if error.status(ErrorMode::Precise).is_server_error() => Outcome::Failed,
            Err(_) => Outcome::Refused,
        });
        marked.map(|(mark, _)| Marked(mark))
    }

    /// Stores a mark now or within a second. Returns it, and whether it is ahead of the last one.
    async fn advance_mark(
        &self,
        MarkAsRead { room, message }: MarkAsRead,
        user: Option<UserId>,
    ) -> Result<(Mark, bool), ApiError> {
        let user = user.ok_or(ApiError::TokenMissing)?;
        let room: RoomId = required_id("room", &room)?;
        let message: MessageId = required_id("message", &message)?;
        self.limits.signals.take(user)?;
        self.check_visible(room, Some(user)).await?;
        if !self.store.messages.is_in(room, message).await? {
            return Err(ApiError::MessageNotFound);
        }
        let mark = Mark { room, user, message };
        if let Some(is_new) = self.recent_marks.defer(mark) {
            return Ok((mark, is_new));
        }
        let stored = self.write_mark(mark).await;
        if stored.is_err() {
            self.recent_marks.forget(mark);
        }
        Ok((mark, stored?))
    }

    async fn write_mark(&self, mark: Mark) -> Result<bool, StoreError> {
        let is_stored = self.store.marks.advance(mark).await?;
        if is_stored {
            self.feed.publish_local(|| Event::read(&mark, None));
        }
        Ok(is_stored)
    }

    /// Writes the marks that wait, for ever. Run it once in a process.
    pub async fn write_marks_for_ever(self) {
        loop {
            tokio::time::sleep(TICK).await;
            self.write_marks(self.recent_marks.take_due(PERIOD)).await;
        }
    }

    /// Writes all marks that wait, because the process stops.
    pub async fn write_last_marks(&self) {
        self.write_marks(self.recent_marks.take_due(Duration::ZERO)).await;
    }

    async fn write_marks(&self, marks: Vec<Mark>) {
        let write = |mark| async move {
            if let Err(error) = self.write_mark(mark).await {
                log::debug!("A mark is not stored yet: {error}");
                self.recent_marks.retry(mark);
            }
        };
        stream::iter(marks).for_each_concurrent(AT_ONCE, write).await;
    }
}

impl RecentMarks {
    /// Leaves a mark for later if that of the same user and room was written within the last
    /// second. Returns whether it is ahead of that one; `None` if it is to be written now.
    fn defer(&self, mark: Mark) -> Option<bool> {
        let mut recent = self.recent();
        let is_full = recent.len() >= MAX_RECENT;
        match recent.entry((mark.room, mark.user)) {
            Entry::Occupied(mut recent) if recent.get().is_recent() => {
                let recent = recent.get_mut();
                let is_ahead = mark.message > recent.message;
                if is_ahead {
                    recent.message = mark.message;
                    recent.waits = true;
                }
                Some(is_ahead)
            }
            Entry::Occupied(mut recent) => {
                recent.insert(Recent::of(mark));
                None
            }
            Entry::Vacant(free) => {
                if !is_full {
                    free.insert(Recent::of(mark));
                }
                None
            }
        }
    }

    /// A mark could not be written: the next one is written at once, unless one waits.
    fn forget(&self, mark: Mark) {
        if let Entry::Occupied(recent) = self.recent().entry((mark.room, mark.user))
            && !recent.get().waits
        {
            recent.remove();
        }
    }

    /// A mark that was taken could not be written: it waits again.
    fn retry(&self, mark: Mark) {
        if let Some(recent) = self.recent().get_mut(&(mark.room, mark.user)) {
            recent.waits = true;
        }
    }

    /// Takes the marks that wait, where the last one was written at least so long ago.
    fn take_due(&self, age: Duration) -> Vec<Mark> {
        let mut recent = self.recent();
        let mut due = Vec::new();
        recent.retain(|&(room, user), recent| {
            if recent.written.elapsed() < age {
                return true;
            }
            let waited = recent.waits;
            if waited {
                let mark = Mark { room, user, message: recent.message };
                *recent = Recent::of(mark);
                due.push(mark);
            }
            waited
        });
        due
    }

    fn recent(&self) -> MutexGuard<'_, HashMap<(RoomId, UserId), Recent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn of(mark: Mark) -> Self {
        Self { written: Instant::now(), message: mark.message, waits: false }
    }

    /// Whether the next mark has to wait.
    fn is_recent(&self) -> bool {
        self.waits || self.written.elapsed() < PERIOD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_second_only_the_last_mark_is_written() {
        let marks = RecentMarks::default();
        let (room, user) = (RoomId::new(), UserId::new());
        let mut messages = [(); 4].map(|()| MessageId::new());
        messages.sort_unstable();
        let [one, two, three, four] = messages.map(|message| Mark { room, user, message });
        assert_eq!(marks.defer(two), None);
        assert_eq!(marks.defer(one), Some(false));
        assert!(marks.take_due(Duration::ZERO).is_empty());
        assert_eq!(marks.defer(two), None);
        assert_eq!(marks.defer(four), Some(true));
        assert_eq!(marks.defer(three), Some(false));
        assert!(marks.take_due(PERIOD).is_empty());
        assert_eq!(marks.take_due(Duration::ZERO), [four]);
        // It could not be written.
        marks.retry(four);
        assert_eq!(marks.take_due(Duration::ZERO), [four]);
        assert!(marks.take_due(Duration::ZERO).is_empty());
        assert!(marks.recent().is_empty());
    }

    #[test]
    fn the_first_mark_that_fails_is_tried_again_at_once() {
        let marks = RecentMarks::default();
        let mark = Mark { room: RoomId::new(), user: UserId::new(), message: MessageId::new() };
        assert_eq!(marks.defer(mark), None);
        marks.forget(mark);
        assert_eq!(marks.defer(mark), None);
    }
}
