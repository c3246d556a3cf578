//! Events that the ring has let go of, while a member is still to be given them.
//!
//! An inbox may wait for longer than the ring remembers. A message that is deleted then must lose
//! its text there, too. Nothing is kept alive here, and what was given meanwhile is cleared away,
//! so that no more is known than what inboxes hold.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use smallvec::SmallVec;

use crate::{
    feed::event::{Event, MessageKey},
    models::RoomId,
};

/// From how many messages on they are looked through.
const FEW: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Detached {
    events: HashMap<MessageKey, SmallVec<[Weak<Event>; 1]>>,
    /// With so many messages, what was given is cleared away.
    full: usize,
}

impl Detached {
    /// Takes an event that leaves the ring, if anybody else holds it.
    pub(super) fn take(&mut self, event: &Arc<Event>) {
        if let Some(key) = event.key()
            && event.has_text()
            && Arc::strong_count(event) > 1
        {
            self.events.entry(key.clone()).or_default().push(Arc::downgrade(event));
            if self.events.len() >= self.full.max(FEW) {
                self.events.retain(|_, events| events.iter().any(|event| event.strong_count() > 0));
                self.full = 2 * self.events.len();
            }
        }
    }

    /// The message was deleted.
    pub(super) fn withdraw(&mut self, message: &MessageKey) {
        let events = self.events.remove(message).unwrap_or_default();
        events.iter().filter_map(Weak::upgrade).for_each(|event| event.withdraw());
    }

    /// Of how many messages something may be here.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// The room of a message of which an event is here.
    pub(super) fn room_of(&self, message: &MessageKey) -> Option<RoomId> {
        let event = self.events.get(message)?.last()?;
        Some(event.upgrade()?.room())
    }
}
