//! The events of the changes that the stream brings.

use std::collections::HashMap;

use super::PresenceChange;
use super::event::{Event, MessageKey};
use super::position::Position;
use super::stream::Change;
use crate::models::RoomId;

/// The events of a reply.
pub(super) struct Read {
    pub events: Vec<Event>,
    /// Messages that were removed and whose room is not known.
    pub unknown: Vec<MessageKey>,
    /// Changes of who is connected.
    pub presence: Vec<PresenceChange>,
}

/// The room and the last position of each message that was seen.
pub(super) type Rooms = HashMap<MessageKey, (RoomId, Option<Position>)>;

/// Turns changes into events, except those that are not `admitted`. A removal does not name its
/// room: the room is that of an earlier event of the message, in `rooms` or by `room_of`. Without a
/// room there is no event. The caller keeps `rooms` from reply to reply.
pub(super) fn events_of(
    changes: Vec<Change>,
    rooms: &mut Rooms,
    room_of: impl Fn(&MessageKey) -> Option<RoomId>,
    mut admitted: impl FnMut(&Event) -> bool,
) -> Read {
    let events = Vec::with_capacity(changes.len());
    let mut read = Read { events, unknown: Vec::new(), presence: Vec::new() };
    for change in changes {
        let event = match change {
            Change::Event(event) => event,
            Change::Presence(change) => {
                read.presence.push(change);
                continue;
            }
            Change::Removal(removal) => {
                let seen = rooms.get(removal.key()).map(|&(room, _)| room);
                let Some(room) = seen.or_else(|| room_of(removal.key())) else {
                    read.unknown.push(removal.key().clone());
                    continue;
                };
                removal.in_room(room)
            }
        };
        if !admitted(&event) {
            continue;
        }
        if let Some(key) = event.key() {
            rooms.insert(key.clone(), (event.room(), event.position()));
        }
        read.events.push(event);
    }
    read
}
