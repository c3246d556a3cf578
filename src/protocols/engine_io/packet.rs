//! Parses and writes Engine.IO packets, protocol revision 4. Without I/O and timers.
//!
//! On a WebSocket a packet is a frame; over polling, packets are joined into a payload by
//! [`SEPARATOR`], and binary ones are written in base64.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use bytestring::ByteString;

/// The separator of the packets in a payload. JSON escapes it, so no packet with JSON contains it.
pub const SEPARATOR: char = '\x1e';

/// A packet that either side may send after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// `0`: the handshake, from the server.
    Open(ByteString),
    /// `1`: the end of the session.
    Close,
    /// `2`: a heartbeat request. With the data `probe` it tests a WebSocket before an upgrade.
    Ping(ByteString),
    /// `3`: the answer to a ping, with the same data.
    Pong(ByteString),
    /// `4…`: a text message as on the wire, including its `4`, so that many recipients can share
    /// one text.
    Text(ByteString),
    /// `4…`: a text message that supersedes every earlier one of this variant. If several wait for
    /// a poll, only the last is sent.
    Latest(ByteString),
    /// A binary message: raw on a WebSocket, `b` and base64 in a payload.
    Binary(Bytes),
    /// `5`: the WebSocket is the transport from now on.
    Upgrade,
    /// `6`: no content; ends a poll.
    Noop,
}

/// A text that is no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Engine.IO packet")]
pub struct InvalidPacket;

impl Packet {
    /// A text message.
    pub fn message(text: &str) -> Self {
        Self::Text(format!("4{text}").into())
    }

    /// Reads one text packet; its text is shared, not copied.
    ///
    /// # Errors
    /// The text is empty, of an unknown type, or has broken base64.
    pub fn parse(text: &ByteString) -> Result<Self, InvalidPacket> {
        let rest = text.get(1..).ok_or(InvalidPacket)?;
        match text.as_bytes().first() {
            Some(b'0') => Ok(Self::Open(text.slice_ref(rest))),
            Some(b'1') => Ok(Self::Close),
            Some(b'2') => Ok(Self::Ping(text.slice_ref(rest))),
            Some(b'3') => Ok(Self::Pong(text.slice_ref(rest))),
            Some(b'4') => Ok(Self::Text(text.clone())),
            Some(b'5') => Ok(Self::Upgrade),
            Some(b'6') => Ok(Self::Noop),
            Some(b'b') => {
                STANDARD.decode(rest).map(|b| Self::Binary(b.into())).or(Err(InvalidPacket))
            }
            _ => Err(InvalidPacket),
        }
    }

    /// The text of a text message without its `4`.
    pub fn text(&self) -> Option<ByteString> {
        match self {
            Self::Text(text) | Self::Latest(text) => text.get(1..).map(|rest| text.slice_ref(rest)),
            _ => None,
        }
    }

    /// The size of the packet in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Open(text) | Self::Ping(text) | Self::Pong(text) => 1 + text.len(),
            Self::Text(text) | Self::Latest(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Close | Self::Upgrade | Self::Noop => 1,
        }
    }

    /// Always false: every packet has a type.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The packet as text: the inverse of [`Packet::parse`].
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(text) => write!(f, "0{text}"),
            Self::Close => f.write_str("1"),
            Self::Ping(text) => write!(f, "2{text}"),
            Self::Pong(text) => write!(f, "3{text}"),
            Self::Text(text) | Self::Latest(text) => f.write_str(text),
            Self::Binary(bytes) => write!(f, "b{}", STANDARD.encode(bytes)),
            Self::Upgrade => f.write_str("5"),
            Self::Noop => f.write_str("6"),
        }
    }
}

/// Parses a payload: the body of a post, or of the response to a poll.
///
/// # Errors
/// A packet is invalid. An empty payload is one empty packet.
pub fn parse_payload(
    payload: &ByteString,
) -> impl Iterator<Item = Result<Packet, InvalidPacket>> + '_ {
    payload.split(SEPARATOR).map(|text| Packet::parse(&payload.slice_ref(text)))
}

/// Joins packets into a payload.
pub fn join_payload(packets: &[Packet]) -> String {
    use fmt::Write;

    let mut payload = String::with_capacity(packets.iter().map(|packet| packet.len() + 1).sum());
    for (index, packet) in packets.iter().enumerate() {
        if index > 0 {
            payload.push(SEPARATOR);
        }
        write!(payload, "{packet}").expect("writing to a string cannot fail");
    }
    payload
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_are_read_and_written_as_the_protocol_shows_them() {
        for (text, packet) in [
            ("0{\"sid\":\"x\"}", Packet::Open("{\"sid\":\"x\"}".into())),
            ("1", Packet::Close),
            ("2", Packet::Ping("".into())),
            ("2probe", Packet::Ping("probe".into())),
            ("3probe", Packet::Pong("probe".into())),
            ("4hello €", Packet::message("hello €")),
            ("4", Packet::message("")),
            ("5", Packet::Upgrade),
            ("6", Packet::Noop),
            ("bAQIDBA==", Packet::Binary(Bytes::from_static(&[1, 2, 3, 4]))),
        ] {
            assert_eq!(Packet::parse(&text.into()), Ok(packet.clone()), "{text}");
            assert_eq!(packet.to_string(), text);
        }
        for text in ["", "7", "x", "abc", "b$", "bAQIDBA", "€"] {
            assert_eq!(Packet::parse(&text.into()), Err(InvalidPacket), "{text}");
        }
        assert_eq!(Packet::message("x").text().unwrap(), "x");
    }

    #[test]
    fn a_payload_is_packets_with_a_separator_between() {
        let payload = "4hello\x1e2\x1ebAQID".into();
        let packets: Vec<_> = parse_payload(&payload).collect::<Result<_, _>>().unwrap();
        assert_eq!(packets.len(), 3);
        assert_eq!(join_payload(&packets), *payload);
        for broken in ["", "4a\x1e", "\x1e4a", "4a\x1e\x1e4b", "4a\x1ex"] {
            assert!(parse_payload(&broken.into()).any(|packet| packet.is_err()), "{broken:?}");
        }
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let text = "[^\x1e]{0,40}";
        prop_oneof![
            text.prop_map(|text| Packet::message(&text)),
            text.prop_map(|text| Packet::Ping(text.into())),
            text.prop_map(|text| Packet::Pong(text.into())),
            text.prop_map(|text| Packet::Open(text.into())),
            any::<Vec<u8>>().prop_map(|bytes| Packet::Binary(bytes.into())),
            Just(Packet::Close),
            Just(Packet::Upgrade),
            Just(Packet::Noop),
        ]
    }

    proptest! {
        #[test]
        fn a_payload_reads_back_what_was_joined(packets in prop::collection::vec(packet(), 1..10)) {
            let payload = ByteString::from(join_payload(&packets));
            let read: Result<Vec<_>, _> = parse_payload(&payload).collect();
            prop_assert_eq!(read, Ok(packets));
        }

        #[test]
        fn no_text_panics_and_what_is_read_means_the_same_when_written(
            text in prop_oneof![".{0,60}", "[0-7b][a-zA-Z0-9+/=\x1e€]{0,60}"]
        ) {
            let text = ByteString::from(text);
            if let Ok(packet) = Packet::parse(&text) {
                let written = ByteString::from(packet.to_string());
                prop_assert_eq!(Packet::parse(&written), Ok(packet));
            }
            if let Ok(packets) = parse_payload(&text).collect::<Result<Vec<_>, _>>() {
                let written = ByteString::from(join_payload(&packets));
                let read: Result<Vec<_>, _> = parse_payload(&written).collect();
                prop_assert_eq!(read, Ok(packets));
            }
        }
    }
}
