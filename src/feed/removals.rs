//! Members who were removed from rooms, so that nothing of theirs is delivered that was stored after
//! their removal.
//!
//! A message is stored after its sender was found to be a member, so a removal can come in between.
//! The change stream has both in one order, which decides: a message behind the removal of its sender
//! is no event, on any instance, and the instance that stored it takes it back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::event::{Event, Kind, MessageKey};
use super::position::Position;
use crate::models::{RoomId, UserId};

/// How long a removal is remembered, in seconds of the cluster time. A request ends long before.
const AGE: u32 = 600;

/// How many removals are remembered at most.
const MOST: usize = 100_000;

/// The removals of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Removals {
    removed: HashSet<(RoomId, UserId)>,
    order: VecDeque<(Position, (RoomId, UserId))>,
}

/// Who waits to hear what became of a message.
#[derive(Debug, Default)]
pub(super) struct Verdicts(Mutex<HashMap<MessageKey, oneshot::Sender<bool>>>);

impl Removals {
    /// Sees the next event of the stream; whether it is to be delivered.
    pub fn admit(&mut self, event: &Event) -> bool {
        let Some(user) = event.user() else { return true };
        let member = (event.room(), user);
        match event.kind() {
            Kind::MemberAdded => {
                self.removed.remove(&member);
            }
            Kind::MemberRemoved => self.insert(event.position().unwrap_or(Position::ZERO), member),
            Kind::Message | Kind::Read if event.room().may_have_members() => {
                return !self.removed.contains(&member);
            }
            _ => {}
        }
        true
    }

    fn insert(&mut self, position: Position, member: (RoomId, UserId)) {
        self.removed.insert(member);
        self.order.push_back((position, member));
        while let Some(&(oldest, member)) = self.order.front()
            && (self.order.len() > MOST || oldest.seconds() + AGE < position.seconds())
        {
            self.order.pop_front();
            // A later removal of the same member is remembered anew.
            if !self.order.iter().any(|(_, other)| *other == member) {
                self.removed.remove(&member);
            }
        }
    }
}

impl Verdicts {
    /// Hears whether the message with this id, which is about to be stored, is delivered.
    pub fn wait_for(&self, message: MessageKey) -> oneshot::Receiver<bool> {
        let (verdict, told) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.retain(|_, verdict| !verdict.is_closed());
        waiting.insert(message, verdict);
        told
    }

    /// Says what became of a message.
    pub fn tell(&self, event: &Event, is_delivered: bool) {
        if event.kind() != Kind::Message || !event.room().may_have_members() {
            return;
        }
        let Some(verdict) = event.key().and_then(|key| self.waiting().remove(key)) else { return };
        // Whoever asked may have given up.
        let _ = verdict.send(is_delivered);
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<MessageKey, oneshot::Sender<bool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
