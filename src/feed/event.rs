//! What sessions are told: a message arrived, or messages of a room may have been missed.
//!
//! An [`Event`] is shared by all workers and kept by the ring, so it holds its text once. The
//! frames of the wires are made from it by each worker, once for all members there
//! ([`Delivery`]), and are gone when the last of them is written: what waits for a client that
//! may come back is one text, not one for each wire.

use std::{cell::OnceCell, fmt::Write, rc::Rc, sync::Arc};

use bytestring::ByteString;

use super::position::Position;
use crate::{
    models::{Message, RoomId, message::Malformed},
    mongoose::Hydrated,
    views,
};

/// One event of one room.
#[derive(Debug)]
pub struct Event {
    room: RoomId,
    /// `None` on a standalone MongoDB, which has no order to speak of.
    position: Option<Position>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// `receiveMessage`: the message as JSON.
    Message(Box<str>),
    /// `resync`: messages may have been missed, fetch the history.
    Resync,
}

/// How a frame is written. The texts are complete: a WebSocket sends them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Plain WebSocket: `{"event":"receiveMessage","data":{…},"position":"…"}`.
    Plain,
    /// Socket.IO, in Engine.IO's message packet: `42["receiveMessage",{…}]`.
    SocketIo,
    /// Socket.IO with the offset inside each event, for a client that asked for that:
    /// `42["receiveMessage",{…},"<offset>"]`.
    SocketIoOffset,
}

impl Event {
    /// A message that was stored.
    pub fn message(message: &Message<'_>, position: Option<Position>) -> Self {
        let mut json = Vec::with_capacity(message.content.len() + 256);
        views::message(&mut json, message);
        let json = String::from_utf8(json).expect("views write UTF-8");
        Self { room: message.room, position, body: Body::Message(json.into_boxed_str()) }
    }

    /// A document of another program that is no ordinary message. It has the casts and fields of the
    /// history.
    ///
    /// # Errors
    /// Its room cannot be known.
    pub fn odd_message(document: &Hydrated, position: Option<Position>) -> Result<Self, Malformed> {
        let mut json = Vec::new();
        let room = views::live_document(&mut json, document).ok_or(Malformed("room"))?;
        let json = String::from_utf8(json).expect("views write UTF-8");
        Ok(Self { room, position, body: Body::Message(json.into_boxed_str()) })
    }

    /// Messages of `room` up to `position` may have been missed.
    pub fn resync(room: RoomId, position: Option<Position>) -> Self {
        Self { room, position, body: Body::Resync }
    }

    /// The room whose members are told.
    pub fn room(&self) -> RoomId {
        self.room
    }

    /// Where it stands in the stream; `None` on a standalone MongoDB.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether this tells the members to fetch the history.
    pub fn is_resync(&self) -> bool {
        matches!(self.body, Body::Resync)
    }

    /// The length of the text that this event keeps, in bytes.
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Message(json) => json.len(),
            Body::Resync => 0,
        }
    }

    /// Whether this event keeps no text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frame for `wire`, with the event's own position as offset.
    pub fn encode(&self, wire: Wire) -> ByteString {
        match (wire, self.position) {
            (Wire::Plain, _) => self.encode_plain(),
            (Wire::SocketIoOffset, Some(position)) => self.encode_with_offset(position),
            (Wire::SocketIo | Wire::SocketIoOffset, _) => self.encode_socket_io(|_| Ok(())),
        }
    }

    /// The Socket.IO frame with an offset that is this session's own.
    pub fn encode_with_offset(&self, offset: impl std::fmt::Display) -> ByteString {
        self.encode_socket_io(|text| write!(text, ",\"{offset}\""))
    }

    fn encode_plain(&self) -> ByteString {
        let mut text = String::with_capacity(self.len() + 112);
        let written = match (&self.body, self.position) {
            (Body::Message(json), Some(position)) => write!(
                text,
                r#"{{"event":"receiveMessage","data":{json},"position":"{position}"}}"#
            ),
            (Body::Message(json), None) => {
                write!(text, r#"{{"event":"receiveMessage","data":{json}}}"#)
            }
            (Body::Resync, _) => {
                text.push_str(r#"{"event":"resync","data":"#);
                self.write_resync(&mut text).and_then(|()| text.write_char('}'))
            }
        };
        written.expect(STRINGS_GROW);
        text.into()
    }

    fn encode_socket_io(
        &self,
        write_offset: impl FnOnce(&mut String) -> std::fmt::Result,
    ) -> ByteString {
        let mut text = String::with_capacity(self.len() + 112);
        let written = match &self.body {
            Body::Message(json) => write!(text, r#"42["receiveMessage",{json}"#),
            Body::Resync => {
                text.push_str(r#"42["resync","#);
                self.write_resync(&mut text)
            }
        };
        written
            .and_then(|()| write_offset(&mut text))
            .and_then(|()| text.write_char(']'))
            .expect(STRINGS_GROW);
        text.into()
    }

    fn write_resync(&self, text: &mut String) -> std::fmt::Result {
        write!(text, r#"{{"room":"{}","position":"#, self.room)?;
        match self.position {
            Some(position) => write!(text, r#""{position}"}}"#),
            None => text.write_str("null}"),
        }
    }
}

const STRINGS_GROW: &str = "writing to a string cannot fail";

/// The Socket.IO frame of an offset alone, which covers what was written before it:
/// `42["position","<offset>"]`. socket.io-client keeps the last argument of any event as its
/// offset, when that argument is a string.
pub fn encode_offset(offset: impl std::fmt::Display) -> ByteString {
    format!(r#"42["position","{offset}"]"#).into()
}

/// An event on its way to members of one worker, with the frames that they share.
#[derive(Debug)]
pub struct Delivery {
    event: Arc<Event>,
    frames: [OnceCell<ByteString>; 3],
    offset_frame: OnceCell<ByteString>,
}

impl Delivery {
    /// An event without frames yet.
    pub fn new(event: Arc<Event>) -> Rc<Self> {
        Rc::new(Self { event, frames: Default::default(), offset_frame: OnceCell::new() })
    }

    /// What is delivered.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The frame for `wire`, encoded when the first member asks for it.
    pub fn frame(&self, wire: Wire) -> ByteString {
        let [plain, socket_io, socket_io_offset] = &self.frames;
        let frame = match wire {
            Wire::Plain => plain,
            Wire::SocketIo => socket_io,
            Wire::SocketIoOffset => socket_io_offset,
        };
        frame.get_or_init(|| self.event.encode(wire)).clone()
    }

    /// The [frame](encode_offset) of the event's own position as an offset, encoded when the first
    /// member asks for it; `None` on a standalone MongoDB.
    pub fn offset_frame(&self) -> Option<ByteString> {
        let position = self.event.position()?;
        Some(self.offset_frame.get_or_init(|| encode_offset(position)).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::UserId;

    fn hello(position: Option<Position>) -> (Event, String) {
        let room = RoomId::new();
        let message = Message::new(room, UserId::new(), "say \"hi\"");
        let mut json = Vec::new();
        views::message(&mut json, &message);
        (Event::message(&message, position), String::from_utf8(json).unwrap())
    }

    #[test]
    fn a_message_is_written_for_each_wire() {
        let (event, json) = hello(Some(Position::first_of(5, 2).next_of_same_time()));
        assert_eq!(
            event.encode(Wire::Plain),
            format!(r#"{{"event":"receiveMessage","data":{json},"position":"5.2.1"}}"#)
        );
        assert_eq!(event.encode(Wire::SocketIo), format!(r#"42["receiveMessage",{json}]"#));
        assert_eq!(
            event.encode(Wire::SocketIoOffset),
            format!(r#"42["receiveMessage",{json},"5.2.1"]"#)
        );
        assert_eq!(
            event.encode_with_offset("5.2;x"),
            format!(r#"42["receiveMessage",{json},"5.2;x"]"#)
        );
    }

    #[test]
    fn a_message_without_position_carries_none() {
        let (event, json) = hello(None);
        assert_eq!(
            event.encode(Wire::Plain),
            format!(r#"{{"event":"receiveMessage","data":{json}}}"#)
        );
        assert_eq!(event.encode(Wire::SocketIoOffset), format!(r#"42["receiveMessage",{json}]"#));
    }

    #[test]
    fn a_resync_names_room_and_position() {
        let room = RoomId::new();
        let event = Event::resync(room, Some(Position::first_of(5, 2)));
        let data = format!(r#"{{"room":"{room}","position":"5.2"}}"#);
        assert_eq!(event.encode(Wire::Plain), format!(r#"{{"event":"resync","data":{data}}}"#));
        assert_eq!(event.encode(Wire::SocketIo), format!(r#"42["resync",{data}]"#));
        assert_eq!(event.encode(Wire::SocketIoOffset), format!(r#"42["resync",{data},"5.2"]"#));
        let local = Event::resync(room, None);
        assert_eq!(
            local.encode(Wire::Plain),
            format!(r#"{{"event":"resync","data":{{"room":"{room}","position":null}}}}"#)
        );
    }

    #[test]
    fn members_share_one_frame() {
        let (event, _) = hello(Some(Position::first_of(1, 1)));
        let delivery = Delivery::new(Arc::new(event));
        let (one, other) = (delivery.frame(Wire::Plain), delivery.frame(Wire::Plain));
        assert_eq!(one.as_bytes().as_ptr(), other.as_bytes().as_ptr());
        let (one, other) = (delivery.offset_frame().unwrap(), delivery.offset_frame().unwrap());
        assert_eq!(one, r#"42["position","1.1"]"#);
        assert_eq!(one.as_bytes().as_ptr(), other.as_bytes().as_ptr());
    }

    #[test]
    fn without_a_position_there_is_no_offset() {
        let (event, _) = hello(None);
        assert_eq!(Delivery::new(Arc::new(event)).offset_frame(), None);
    }
}
