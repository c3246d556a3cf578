//! The stream of the model: what happens to the collections, and the events of it.

use bson::{DateTime, rawdoc};

use super::{MEMBERS, Model, NOWHERE, PRIVATE, ROOMS};
use crate::{
    feed::{
        event::{Event, Kind, Removal},
        position::Position,
    },
    models::{Membership, Message, MessageId, UserId},
};

/// A change of a collection. The existing messages are counted from the newest.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// A message is sent to this room.
    Send(usize),
    Edit(usize),
    /// The message is replaced by a tombstone.
    Delete(usize),
    /// Another program removes the message, so that the stream does not name its room.
    Remove(usize),
    /// A member of the private room is removed, or added again.
    Member(usize),
}

/// A place in the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Item {
    pub(super) position: Position,
    pub(super) room: usize,
    /// `None` if only time passed.
    pub(super) event: Option<What>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    Message(Kind, MessageId),
    /// To the member of this client: first for the room, then for the sessions of the user.
    Member(Kind, usize),
}

impl Item {
    pub(super) fn time(position: Position) -> Self {
        Self { position, room: NOWHERE, event: None }
    }

    pub(super) fn message(&self) -> Option<MessageId> {
        match self.event {
            Some(What::Message(_, message)) => Some(message),
            _ => None,
        }
    }

    pub(super) fn has_text(&self) -> bool {
        matches!(self.event, Some(What::Message(Kind::Message | Kind::Edited, _)))
    }

    /// Whether this client was added to the private room or removed from it.
    pub(super) fn member_change(&self, client: usize) -> Option<Kind> {
        match self.event {
            Some(What::Member(kind, of)) if of == client && self.room == PRIVATE => Some(kind),
            _ => None,
        }
    }
}

impl Model {
    /// Changes the collections, and adds that to the stream. `room_of` is the room of a message
    /// that another program removes, if it is known.
    pub(super) fn change(
        &mut self,
        change: Change,
        shared: bool,
        room_of: impl FnOnce(&Self, (MessageId, usize)) -> Option<usize>,
    ) {
        let last = self.stream.last().unwrap();
        let position = match shared && last.event.is_some() {
            true => last.position.next_of_same_time(),
            false => Position::first_of(last.position.seconds() + 1, 1),
        };
        let count = self.messages.len();
        let (kind, (message, room)) = match change {
            Change::Member(client) => return self.change_member(client % MEMBERS, position),
            Change::Edit(nth) if count > 0 => {
                (Kind::Edited, self.messages[count - 1 - nth % count])
            }
            Change::Delete(nth) if count > 0 => {
                (Kind::Deleted, self.messages.remove(count - 1 - nth % count))
            }
            Change::Remove(nth) if count > 0 => {
                let message = self.messages.remove(count - 1 - nth % count);
                (Kind::Deleted, (message.0, room_of(self, message).unwrap_or(NOWHERE)))
            }
            Change::Send(room)
            | Change::Edit(room)
            | Change::Delete(room)
            | Change::Remove(room) => {
                let sent = (MessageId::new(), room % ROOMS);
                self.messages.push(sent);
                (Kind::Message, sent)
            }
        };
        if kind == Kind::Deleted {
            self.gone.insert(message);
        }
        self.stream.push(Item { position, room, event: Some(What::Message(kind, message)) });
    }

    fn change_member(&mut self, client: usize, position: Position) {
        let is_member = &mut self.members[client];
        *is_member = !*is_member;
        let kinds = match *is_member {
            true => [Kind::MemberAdded, Kind::RoomAdded],
            false => [Kind::MemberRemoved, Kind::RoomRemoved],
        };
        let [of_room, of_user] = kinds.map(|kind| Some(What::Member(kind, client)));
        self.stream.push(Item { position, room: PRIVATE, event: of_room });
        let position = position.next_of_same_time();
        self.stream.push(Item { position, room: NOWHERE, event: of_user });
    }

    /// The event of a place in the stream, as the feed makes it.
    pub(super) fn event_of(&self, item: &Item) -> Option<Event> {
        let position = item.position;
        let at = DateTime::from_millis(0);
        let (kind, MessageId(id)) = match item.event? {
            What::Message(kind, message) => (kind, message),
            What::Member(kind, client) => {
                let (room, user) = (self.rooms[PRIVATE], self.clients[client].user);
                let positions = Some([position; 2]);
                let member = Membership { room, user, username: None, joined_at: at };
                let [of_room, of_user] = match kind {
                    Kind::MemberAdded | Kind::RoomAdded => Event::member_added(&member, positions),
                    _ => Event::member_removed(room, user, positions),
                };
                return Some(if item.room == PRIVATE { of_room } else { of_user });
            }
        };
        let room = *self.rooms.get(item.room)?;
        Some(match kind {
            Kind::Message => {
                let message = Message::new(room, UserId::new(), "hello");
                Event::message(&Message { id: MessageId(id), ..message }, Some(position))
            }
            Kind::Edited => {
                let edited = rawdoc! { "_id": id, "room": room.0, "content": "hi", "editedAt": at };
                Event::changed(&edited, Some(position)).unwrap()
            }
            // As for a tombstone.
            _ => Removal::new(&rawdoc! { "_id": id }, position).unwrap().in_room(room),
        })
    }
}
