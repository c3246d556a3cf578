//! Members who were removed from rooms, so that no message of theirs is delivered that was stored
//! after their removal.
//!
//! A message is stored after a query found its sender to be a member, so a removal can happen in
//! between. The change stream has both in one order: a message after the removal of its sender is
//! refused. Every instance does not deliver it, and the instance that stored it removes it again.
//! If that instance was killed, another one removes it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bson::{RawDocumentBuf, Timestamp, doc};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Feed;
use super::end::{STALL_TIMEOUT, StreamEnd};
use super::event::{Event, Kind, MessageKey};
use super::position::{Position, back};
use super::stream::{Change, ChangeStream, ErrorClass, Reading, Scope};
use crate::models::{MessageId, RoomId, UserId, own};

/// How long a removal is remembered, in seconds of the cluster time. A request ends much earlier.
const AGE: u32 = 600;

/// The maximum number of removals that are remembered.
const MAX_REMOVALS: usize = 100_000;

/// The maximum number of refused messages that are remembered.
const MAX_REFUSED: usize = 10_000;

/// From this many waiting requests on, those that have ended are removed.
const MIN_SWEEP: usize = 64;

/// How far before the start of a stream removals are read: longer than a request takes that was
/// checked before a removal, also when its connection has ended.
const BEFORE_START: Duration = Duration::from_secs(30);

/// The removals of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Removals {
    removed: HashMap<(RoomId, UserId), Position>,
    order: VecDeque<(Position, (RoomId, UserId))>,
}

/// A message that was stored after its sender was removed from the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedMessage {
    /// The message.
    pub message: MessageId,
    /// Its room.
    pub room: RoomId,
    /// Its sender.
    pub sender: UserId,
}

/// The results of messages to rooms with members.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// Requests that wait for their message.
    waiting: Mutex<Waiting>,
    refused: Mutex<Refused>,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: HashMap<MessageKey, oneshot::Sender<bool>>,
    /// With so many, those whose request has ended are removed.
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct Refused {
    known: HashSet<MessageId>,
    /// Those that may still be in the collection.
    stored: VecDeque<RefusedMessage>,
}

impl Removals {
    /// Takes the next event of the stream. Returns whether it is delivered.
    pub fn admit(&mut self, event: &Event) -> bool {
        let Some(user) = event.user() else { return true };
        let member = (event.room(), user);
        match event.kind() {
            Kind::MemberAdded => {
                self.removed.remove(&member);
            }
            Kind::MemberRemoved => self.insert(event.position().unwrap_or(Position::ZERO), member),
            Kind::Message | Kind::Read if event.room().may_have_members() => {
                return !self.removed.contains_key(&member);
            }
            _ => {}
        }
        true
    }

    /// Whether a user was removed from a room, and not added since.
    pub fn has(&self, room: RoomId, user: UserId) -> bool {
        self.removed.contains_key(&(room, user))
    }

    fn insert(&mut self, position: Position, member: (RoomId, UserId)) {
        self.removed.insert(member, position);
        self.order.push_back((position, member));
        while let Some(&(oldest, member)) = self.order.front()
            && (self.order.len() > MAX_REMOVALS || oldest.seconds() + AGE < position.seconds())
        {
            self.order.pop_front();
            // A later removal of the same member is remembered longer.
            if self.removed.get(&member) == Some(&oldest) {
                self.removed.remove(&member);
            }
        }
    }
}

impl Verdicts {
    /// Waits for the message with this id, which is about to be stored: whether it is delivered.
    pub fn wait_for(&self, message: MessageKey) -> oneshot::Receiver<bool> {
        let (verdict, told) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        let Waiting { requests, sweep_at } = &mut *waiting;
        if requests.len() >= *sweep_at {
            requests.retain(|_, verdict| !verdict.is_closed());
            *sweep_at = 2 * requests.len() + MIN_SWEEP;
        }
        requests.insert(message, verdict);
        told
    }

    /// Takes a message and whether it is delivered. `is_live`: not read by the backfill.
    pub fn tell(&self, event: &Event, is_delivered: bool, is_live: bool) {
        if event.kind() != Kind::Message || !event.room().may_have_members() {
            return;
        }
        let (Some(MessageKey::Id(id)), Some(sender)) = (event.key(), event.user()) else { return };
        let message = MessageId(*id);
        if is_delivered {
            // It was removed, and sent again by a member.
            lock(&self.refused).known.remove(&message);
        } else {
            self.remember(RefusedMessage { message, room: event.room(), sender });
        }
        if is_live && let Some(verdict) = lock(&self.waiting).requests.remove(&MessageKey::Id(*id))
        {
            // The request may have timed out.
            let _ = verdict.send(is_delivered);
        }
    }

    /// Adds a refused message. The oldest are forgotten if there are too many.
    pub fn remember(&self, message: RefusedMessage) {
        let mut refused = lock(&self.refused);
        refused.known.insert(message.message);
        refused.stored.push_back(message);
        if refused.stored.len() > MAX_REFUSED {
            refused.stored.pop_front();
        }
        if refused.known.len() > 2 * MAX_REFUSED {
            refused.known = refused.stored.iter().map(|message| message.message).collect();
        }
    }

    /// Takes the oldest refused message that may still be in the collection.
    pub fn next_refused(&self) -> Option<RefusedMessage> {
        lock(&self.refused).stored.pop_front()
    }

    /// Whether the last insert of this message was refused.
    pub fn was_refused(&self, message: MessageId) -> bool {
        lock(&self.refused).known.contains(&message)
    }
}

impl Feed {
    /// The removals before a stream that begins after `until`. A stream that was not read there may
    /// begin with a message whose sender was removed a moment before.
    pub(super) async fn removals_before(&self, until: Timestamp) -> Result<Removals, StreamEnd> {
        let mut removals = Removals::default();
        let mut window = BEFORE_START;
        if !self.may_have_members().await {
            return Ok(removals);
        }
        loop {
            match self.read_removals(back(until, window), until, &mut removals).await {
                // The oplog does not reach back so far.
                Err(end) if end.class() == ErrorClass::Lost && !window.is_zero() => {
                    window = Duration::from_secs(window.as_secs() / 2);
                }
                read => return read.map(|()| removals),
            }
        }
    }

    /// Whether there are rooms with members. Without them, a busy oplog is not searched.
    async fn may_have_members(&self) -> bool {
        let members = self.database.collection::<RawDocumentBuf>(own::MEMBERS.collection);
        // Not the marker of the collection, whose `_id` is a text.
        let any = members.find_one(doc! { "_id": { "$type": "object" } });
        !matches!(timeout(STALL_TIMEOUT, async { any.await }).await, Ok(Ok(None)))
    }

    async fn read_removals(
        &self,
        from: Timestamp,
        until: Timestamp,
        removals: &mut Removals,
    ) -> Result<(), StreamEnd> {
        let opening = ChangeStream::open(&self.database, Scope::Members, from, Reading::Backfill);
        let mut stream = match timeout(STALL_TIMEOUT, opening).await? {
            // Rooms with members are off.
            Err(error) if error.is_privilege() => return Ok(()),
            opened => opened?,
        };
        loop {
            let next = timeout(STALL_TIMEOUT, stream.next(None)).await?;
            let reply = next.ok_or(StreamEnd::Closed)??;
            let is_empty = reply.changes.is_empty();
            for change in &reply.changes {
                let is_past = |position: Position| position.time() <= (until.time, until.increment);
                if let Change::Event(event) = change
                    && change.position().is_some_and(is_past)
                {
                    removals.admit(event);
                }
            }
            if reply.progress > until || (is_empty && reply.progress == until) {
                return Ok(());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use bson::DateTime;

    use super::*;
    use crate::models::{Membership, Message};

    fn room() -> RoomId {
        "6b0bd1279c726f6f6d000001".parse().unwrap()
    }

    fn at(seconds: u32) -> [Position; 2] {
        let position = Position::first_of(seconds, 1);
        [position, position.next_of_same_time()]
    }

    fn removed(user: UserId, seconds: u32) -> Event {
        let [event, _] = Event::member_removed(room(), user, Some(at(seconds)));
        event
    }

    fn added(user: UserId, seconds: u32) -> Event {
        let joined_at = DateTime::from_millis(0);
        let member = Membership { room: room(), user, username: None, joined_at };
        let [event, _] = Event::member_added(&member, Some(at(seconds)));
        event
    }

    fn sent(user: UserId) -> Event {
        Event::message(&Message::new(room(), user, "hello"), None)
    }

    #[test]
    fn a_message_after_the_removal_of_its_sender_is_refused() {
        let (user, other) = (UserId::new(), UserId::new());
        let mut removals = Removals::default();
        assert!(removals.admit(&sent(user)));
        assert!(removals.admit(&removed(user, 10)));
        assert!(!removals.admit(&sent(user)) && removals.admit(&sent(other)));
        assert!(removals.admit(&added(user, 20)));
        assert!(removals.admit(&sent(user)));
    }

    #[test]
    fn a_later_removal_of_the_same_member_is_remembered_longer() {
        let (user, other) = (UserId::new(), UserId::new());
        let mut removals = Removals::default();
        removals.admit(&removed(user, 10));
        removals.admit(&added(user, 20));
        removals.admit(&removed(user, 30));
        removals.admit(&removed(other, 11 + AGE));
        assert!(!removals.admit(&sent(user)));
        removals.admit(&removed(other, 31 + AGE));
        assert!(removals.admit(&sent(user)));
        assert_eq!((removals.removed.len(), removals.order.len()), (1, 2));
    }

    #[test]
    fn removals_and_refused_messages_are_bounded() {
        let mut removals = Removals::default();
        let verdicts = Verdicts::default();
        for _ in 0..2 * MAX_REMOVALS {
            removals.admit(&removed(UserId::new(), 10));
        }
        assert_eq!((removals.removed.len(), removals.order.len()), (MAX_REMOVALS, MAX_REMOVALS));
        for _ in 0..2 * MAX_REFUSED {
            verdicts.tell(&sent(UserId::new()), false, true);
        }
        assert_eq!(std::iter::from_fn(|| verdicts.next_refused()).count(), MAX_REFUSED);
    }
}
