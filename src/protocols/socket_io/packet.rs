//! Parses and writes Socket.IO packets, protocol revision 5. Without I/O and timers.
//!
//! `<type>[<attachments>-][<namespace>,][<ack id>][json]`, parsed as leniently as by
//! socket.io-parser. JSON stays text: an argument that is only passed on is never decoded.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use serde_json::Value;
use serde_json::value::RawValue;

/// The main namespace: that of a packet that names none.
pub const MAIN: &str = "/";

/// Event names that the protocol reserves.
const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// A packet without its attachments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The namespace, with its `/`.
    pub namespace: ByteString,
    /// The type and content.
    pub body: Body,
}

/// The type and content of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// `0`: the request to enter the namespace, or its acceptance; a JSON object or empty.
    Connect(ByteString),
    /// `1`: leave the namespace.
    Disconnect,
    /// `2`, or `5` with attachments: an event, and the id of the ack that it asks for.
    Event(Arguments, Option<u64>),
    /// `3`, or `6` with attachments: the ack of the event with this id.
    Ack(Arguments, u64),
    /// `4`: the client may not enter the namespace; JSON.
    ConnectError(ByteString),
}

/// The JSON values of an event, its name first, or of an ack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The values, each as JSON.
    pub values: Vec<ByteString>,
    /// How many binary messages follow. Placeholders among the values refer to them.
    pub attachments: usize,
}

/// A text that is no packet, or one that may not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Socket.IO packet")]
pub struct InvalidPacket;

impl Packet {
    /// A packet of a namespace.
    pub fn new(namespace: impl Into<ByteString>, body: Body) -> Self {
        Self { namespace: namespace.into(), body }
    }

    /// Reads a packet; its parts are shared, not copied.
    ///
    /// # Errors
    /// The type is unknown, the JSON is invalid or not of this type, or the event name is reserved.
    pub fn parse(text: &ByteString) -> Result<Self, InvalidPacket> {
        let kind = *text.as_bytes().first().ok_or(InvalidPacket)?;
        let mut rest = text.get(1..).ok_or(InvalidPacket)?;
        let mut attachments = 0;
        if matches!(kind, b'5' | b'6') {
            let (count, behind) = rest.split_once('-').ok_or(InvalidPacket)?;
            attachments = number(count).ok_or(InvalidPacket)?;
            rest = behind;
        }
        let mut namespace = MAIN;
        if rest.starts_with('/') {
            (namespace, rest) = rest.split_once(',').unwrap_or((rest, ""));
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (id, json) = rest.split_at(digits);
        let id = if id.is_empty() { None } else { Some(number(id).ok_or(InvalidPacket)?) };
        let body = match (kind, id) {
            (b'0', None) => Body::Connect(object_or_nothing(text, json)?),
            (b'1', None) if json.is_empty() => Body::Disconnect,
            (b'2' | b'5', id) => Body::Event(Arguments::of_event(text, json, attachments)?, id),
            (b'3' | b'6', Some(id)) => Body::Ack(Arguments::parse(text, json, attachments)?, id),
            (b'4', None) if json.starts_with(['{', '"']) => {
                serde_json::from_str::<&RawValue>(json).map_err(|_| InvalidPacket)?;
                Body::ConnectError(text.slice_ref(json))
            }
            _ => return Err(InvalidPacket),
        };
        Ok(Self { namespace: text.slice_ref_or(namespace), body })
    }
}

/// As `slice_ref`, also for `MAIN`, which a text without a namespace does not contain.
trait SliceOr {
    fn slice_ref_or(&self, part: &str) -> ByteString;
}

impl SliceOr for ByteString {
    fn slice_ref_or(&self, part: &str) -> ByteString {
        if part == MAIN { ByteString::from_static(MAIN) } else { self.slice_ref(part) }
    }
}

impl Arguments {
    /// Arguments without attachments.
    pub fn new(values: impl IntoIterator<Item = impl Into<ByteString>>) -> Self {
        Self { values: values.into_iter().map(Into::into).collect(), attachments: 0 }
    }

    fn parse(text: &ByteString, json: &str, attachments: usize) -> Result<Self, InvalidPacket> {
        let values: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| InvalidPacket)?;
        let values: Vec<_> = values.iter().map(|value| text.slice_ref(value.get())).collect();
        if attachments > 0 && !values.iter().all(|value| placeholders_fit(value, attachments)) {
            return Err(InvalidPacket);
        }
        Ok(Self { values, attachments })
    }

    fn of_event(text: &ByteString, json: &str, attachments: usize) -> Result<Self, InvalidPacket> {
        let arguments = Self::parse(text, json, attachments)?;
        let name = arguments.values.first().ok_or(InvalidPacket)?;
        let allowed = match name.as_bytes().first() {
            Some(b'"') => !name_of(name).is_ok_and(|name| RESERVED.contains(&name.as_str())),
            Some(b'-' | b'0'..=b'9') => true,
            _ => false,
        };
        if allowed { Ok(arguments) } else { Err(InvalidPacket) }
    }

    /// The name of an event: its first value, as text.
    pub fn name(&self) -> String {
        let name = self.values.first().map(|name| &**name).unwrap_or_default();
        name_of(name).unwrap_or_else(|_| name.to_owned())
    }
}

fn name_of(json: &str) -> Result<String, serde_json::Error> {
    serde_json::from_str(json)
}

/// Parses decimal digits, without a sign.
fn number<N: std::str::FromStr>(digits: &str) -> Option<N> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

fn object_or_nothing(text: &ByteString, json: &str) -> Result<ByteString, InvalidPacket> {
    if json.is_empty() {
        return Ok(ByteString::new());
    }
    serde_json::from_str::<&RawValue>(json).map_err(|_| InvalidPacket)?;
    if json.starts_with('{') { Ok(text.slice_ref(json)) } else { Err(InvalidPacket) }
}

/// Whether every placeholder in a value refers to one of this many attachments.
fn placeholders_fit(json: &str, attachments: usize) -> bool {
    fn fit(value: &Value, attachments: usize) -> bool {
        match value {
            Value::Array(values) => values.iter().all(|value| fit(value, attachments)),
            Value::Object(fields) if fields.get("_placeholder") == Some(&Value::Bool(true)) => {
                let index = fields.get("num").and_then(Value::as_u64);
                index.is_some_and(|index| index < attachments as u64)
            }
            Value::Object(fields) => fields.values().all(|value| fit(value, attachments)),
            _ => true,
        }
    }
    serde_json::from_str(json).is_ok_and(|value| fit(&value, attachments))
}

/// The packet as text: the inverse of [`Packet::parse`].
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, attachments) = match &self.body {
            Body::Connect(_) => ('0', 0),
            Body::Disconnect => ('1', 0),
            Body::Event(Arguments { attachments: 0, .. }, _) => ('2', 0),
            Body::Ack(Arguments { attachments: 0, .. }, _) => ('3', 0),
            Body::ConnectError(_) => ('4', 0),
            Body::Event(arguments, _) => ('5', arguments.attachments),
            Body::Ack(arguments, _) => ('6', arguments.attachments),
        };
        write!(f, "{kind}")?;
        if attachments > 0 {
            write!(f, "{attachments}-")?;
        }
        if self.namespace != MAIN {
            write!(f, "{},", self.namespace)?;
        }
        match &self.body {
            Body::Connect(json) | Body::ConnectError(json) => f.write_str(json),
            Body::Disconnect => Ok(()),
            Body::Event(arguments, None) => arguments.fmt(f),
            Body::Event(arguments, Some(id)) | Body::Ack(arguments, id) => {
                write!(f, "{id}{arguments}")
            }
        }
    }
}

impl fmt::Display for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, value) in self.values.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(value)?;
        }
        f.write_str("]")
    }
}

/// Reassembles packets and their attachments from the messages of an Engine.IO session.
#[derive(Debug)]
pub struct Decoder {
    limits: AttachmentLimits,
    waiting: Option<(Packet, Vec<Bytes>, usize)>,
}

/// The limits of the attachments of one packet.
#[derive(Debug, Clone, Copy)]
pub struct AttachmentLimits {
    /// How many there may be.
    pub count: usize,
    /// How many bytes they may have in total.
    pub bytes: usize,
}

impl Decoder {
    /// A decoder that waits for no attachments.
    pub fn new(limits: AttachmentLimits) -> Self {
        Self { limits, waiting: None }
    }

    /// Whether attachments are missing.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes a text. `None` when attachments must follow.
    ///
    /// # Errors
    /// The text is no packet, has too many attachments, or comes before all attachments of another
    /// packet.
    pub fn text(
        &mut self,
        text: &ByteString,
    ) -> Result<Option<(Packet, Vec<Bytes>)>, InvalidPacket> {
        if self.waiting.is_some() {
            return Err(InvalidPacket);
        }
        let packet = Packet::parse(text)?;
        let attachments = match &packet.body {
            Body::Event(arguments, _) | Body::Ack(arguments, _) => arguments.attachments,
            _ => 0,
        };
        if attachments > self.limits.count {
            return Err(InvalidPacket);
        }
        if attachments == 0 {
            return Ok(Some((packet, Vec::new())));
        }
        self.waiting = Some((packet, Vec::new(), 0));
        Ok(None)
    }

    /// Takes an attachment. Returns the packet after its last attachment.
    ///
    /// # Errors
    /// No packet waits for it, or there are too many bytes.
    pub fn binary(&mut self, bytes: Bytes) -> Result<Option<(Packet, Vec<Bytes>)>, InvalidPacket> {
        let (packet, mut attachments, mut size) = self.waiting.take().ok_or(InvalidPacket)?;
        size += bytes.len();
        attachments.push(bytes);
        if size > self.limits.bytes {
            return Err(InvalidPacket);
        }
        let wanted = match &packet.body {
            Body::Event(arguments, _) | Body::Ack(arguments, _) => arguments.attachments,
            _ => 0,
        };
        if attachments.len() < wanted {
            self.waiting = Some((packet, attachments, size));
            return Ok(None);
        }
        Ok(Some((packet, attachments)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: AttachmentLimits = AttachmentLimits { count: 10, bytes: 100 };

    fn parse(text: &str) -> Result<Packet, InvalidPacket> {
        Packet::parse(&text.into())
    }

    fn event(namespace: &'static str, values: &[&'static str], id: Option<u64>) -> Packet {
        Packet::new(namespace, Body::Event(Arguments::new(values.iter().copied()), id))
    }

    #[test]
    fn packets_read_and_print_as_in_the_protocol() {
        for (text, packet) in [
            ("0", Packet::new("/", Body::Connect("".into()))),
            (
                "0/admin,{\"token\":\"x\"}",
                Packet::new("/admin", Body::Connect("{\"token\":\"x\"}".into())),
            ),
            ("1/admin,", Packet::new("/admin", Body::Disconnect)),
            ("2[\"ev\",1]", event("/", &["\"ev\"", "1"], None)),
            ("2/admin,12[\"ev\"]", event("/admin", &["\"ev\""], Some(12))),
            ("2[5,{\"a\":[]}]", event("/", &["5", "{\"a\":[]}"], None)),
            (
                "3/admin,12[\"res\"]",
                Packet::new("/admin", Body::Ack(Arguments::new(["\"res\""]), 12)),
            ),
            ("30[]", Packet::new("/", Body::Ack(Arguments::default(), 0))),
            (
                "4{\"message\":\"m\"}",
                Packet::new("/", Body::ConnectError("{\"message\":\"m\"}".into())),
            ),
        ] {
            assert_eq!(parse(text), Ok(packet.clone()), "{text}");
            assert_eq!(packet.to_string(), text);
        }
    }

    #[test]
    fn a_comma_is_optional_when_nothing_follows() {
        assert_eq!(parse("0/custom"), Ok(Packet::new("/custom", Body::Connect("".into()))));
        assert_eq!(parse("1/custom"), Ok(Packet::new("/custom", Body::Disconnect)));
        assert_eq!(parse("0/a?b=c,"), Ok(Packet::new("/a?b=c", Body::Connect("".into()))));
    }

    #[test]
    fn other_texts_are_no_packets() {
        for text in [
            "",
            "7",
            "abc",
            "2",
            "2{}",
            "2[]",
            "2abc[\"a\"]",
            "2[null]",
            "2[true]",
            "2[[]]",
            "2[\"connect\"]",
            "2[\"disconnect\"]",
            "2[\"connect_error\"]",
            "2[\"disconnecting\"]",
            "2[\"newListener\"]",
            "2[\"removeListener\"]",
            "2[\"a\"",
            "2[\"a\"]]",
            "0[]",
            "0\"x\"",
            "0null",
            "0{",
            "1{}",
            "1[]",
            "3[]",
            "4",
            "4{",
            "5[\"a\"]",
            "5-[\"a\"]",
            "5x-[\"a\"]",
            "5-1-[\"a\"]",
            "51.5-[\"a\"]",
            "5+1-[\"a\"]",
            "299999999999999999999[\"a\"]",
            "51-[\"a\",{\"_placeholder\":true,\"num\":1}]",
            "51-[\"a\",{\"_placeholder\":true,\"num\":-1}]",
            "51-[\"a\",{\"_placeholder\":true,\"num\":\"0\"}]",
            "51-[\"a\",[{\"b\":{\"_placeholder\":true}}]]",
        ] {
            assert_eq!(parse(text), Err(InvalidPacket), "{text:?}");
        }
    }

    #[test]
    fn reserved_names_are_found_behind_escapes() {
        assert_eq!(parse("2[\"\\u0063onnect\"]"), Err(InvalidPacket));
        assert!(parse("2[\"\\ud800\"]").is_ok());
    }

    #[test]
    fn attachments_complete_their_packet() {
        let mut decoder = Decoder::new(LIMITS);
        let text = "52-[\"a\",{\"_placeholder\":true,\"num\":0},{\"_placeholder\":true,\"num\":1}]";
        assert_eq!(decoder.text(&text.into()), Ok(None));
        assert_eq!(decoder.binary(Bytes::from_static(b"x")), Ok(None));
        let (packet, attachments) = decoder.binary(Bytes::from_static(b"y")).unwrap().unwrap();
        assert_eq!(packet.to_string(), text);
        assert_eq!(attachments, ["x", "y"]);
        assert!(!decoder.is_waiting());
        let (packet, attachments) = decoder.text(&"50-[\"a\"]".into()).unwrap().unwrap();
        assert_eq!((packet.to_string().as_str(), attachments.len()), ("2[\"a\"]", 0));
    }

    #[test]
    fn attachments_come_at_once_and_are_bounded() {
        let waiting = || {
            let mut decoder = Decoder::new(LIMITS);
            assert_eq!(decoder.text(&"51-[\"a\"]".into()), Ok(None));
            decoder
        };
        assert_eq!(waiting().text(&"2[\"a\"]".into()), Err(InvalidPacket));
        assert_eq!(waiting().binary(Bytes::from(vec![0; 101])), Err(InvalidPacket));
        let mut idle = Decoder::new(LIMITS);
        assert_eq!(idle.binary(Bytes::new()), Err(InvalidPacket));
        assert_eq!(idle.text(&"511-[\"a\"]".into()), Err(InvalidPacket));
    }

    fn value() -> impl Strategy<Value = ByteString> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map("[a-z_]{0,8}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        });
        value.prop_map(|value| value.to_string().into())
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let namespace = prop_oneof![Just("/".to_owned()), "/[^,]{1,12}"];
        let values = || proptest::collection::vec(value(), 0..4);
        let body = prop_oneof![
            Just(Body::Disconnect),
            Just(Body::Connect("".into())),
            Just(Body::Connect("{\"token\":\"x\"}".into())),
            value().prop_map(|why| Body::ConnectError(format!("{{\"message\":{why}}}").into())),
            (values(), any::<u64>())
                .prop_map(|(values, id)| Body::Ack(Arguments { values, attachments: 0 }, id)),
            ("[a-z]{1,9}[0-9]", values(), any::<Option<u64>>()).prop_map(
                |(name, mut values, id)| {
                    values.insert(0, format!("\"{name}\"").into());
                    Body::Event(Arguments { values, attachments: 0 }, id)
                }
            ),
        ];
        (namespace, body).prop_map(|(namespace, body)| Packet::new(namespace, body))
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(packet in packet()) {
            prop_assert_eq!(parse(&packet.to_string()), Ok(packet));
        }

        #[test]
        fn what_reads_prints_something_that_reads_the_same(
            text in "[0-6][0-9]{0,2}-?(/[a-z,]{0,4})?[0-9]{0,3}[\\[{]?\"?[a-z\"\\\\,:0-9{}\\]\\[]{0,12}[\\]}]?"
        ) {
            if let Ok(packet) = parse(&text) {
                prop_assert_eq!(parse(&packet.to_string()), Ok(packet));
            }
        }

        #[test]
        fn attachments_come_back_with_their_packet(
            attachments in proptest::collection::vec(any::<[u8; 7]>(), 1..=10),
            values in proptest::collection::vec(value(), 0..4),
            id in any::<Option<u64>>(),
            is_ack in any::<bool>(),
        ) {
            let places = (0..attachments.len())
                .map(|num| format!("{{\"_placeholder\":true,\"num\":{num}}}").into());
            let values: Vec<_> = std::iter::once("\"name\"".into()).chain(places).chain(values).collect();
            let arguments = Arguments { values, attachments: attachments.len() };
            let body = match id {
                Some(id) if is_ack => Body::Ack(arguments, id),
                id => Body::Event(arguments, id),
            };
            let packet = Packet::new("/custom", body);
            let attachments: Vec<_> = attachments.iter().map(|bytes| Bytes::copy_from_slice(bytes)).collect();
            let mut decoder = Decoder::new(LIMITS);
            let mut decoded = decoder.text(&packet.to_string().into());
            for bytes in &attachments {
                prop_assert_eq!(decoded, Ok(None));
                decoded = decoder.binary(bytes.clone());
            }
            prop_assert_eq!(decoded, Ok(Some((packet, attachments))));
            prop_assert!(!decoder.is_waiting());
        }

        #[test]
        fn no_text_panics(texts in proptest::collection::vec(".*", 0..4)) {
            let mut decoder = Decoder::new(LIMITS);
            for text in texts {
                let _ = decoder.text(&text.as_str().into());
                let _ = decoder.binary(text.into());
            }
        }
    }
}
