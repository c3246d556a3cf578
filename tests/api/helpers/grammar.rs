//! Malformed input: requests, frames and packets that are made by the grammar and then broken,
//! determined by a seed. It uses no other helper but the random numbers, because `examples/siege`
//! uses it, too.

use super::random::Random;

/// The kind of malformed input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An HTTP request.
    Request,
    /// A frame on `/ws`, after a valid upgrade.
    Frame,
    /// A payload for a long-polling session.
    EnginePacket,
    /// A packet on a WebSocket of Socket.IO, in a namespace.
    SocketPacket,
}

/// All kinds.
pub const KINDS: [Kind; 4] = [Kind::Request, Kind::Frame, Kind::EnginePacket, Kind::SocketPacket];

const METHODS: [&str; 8] = ["GET", "POST", "PUT", "OPTIONS", "HEAD", "get", "G\0T", "PRI"];
const PATHS: [&str; 12] = [
    "/api/auth/login",
    "/api/auth/register",
    "/api/chat/room",
    "/api/chat/messages/%ff",
    "/api/chat/messages/0123456789abcdef01234567?limit=x&before=%00",
    "/socket.io/?EIO=4&transport=polling",
    "/socket.io/?EIO=4&transport=websocket&sid=AAAAAAAAAAAAAAAAAAAA",
    "/ws?token=%zz",
    "/%2e%2e/%2e%2e/etc/passwd",
    "*",
    "http://x:99999/",
    "/\u{1b}[31mred\r\nX: y",
];
const VERSIONS: [&str; 6] = [" HTTP/1.1", " HTTP/1.1", " HTTP/1.0", " HTTP/2.0", "", " HTCPCP/1.0"];
const HEADERS: [&str; 16] = [
    "Host: x",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, gzip",
    "Content-Type: application/json; charset=utf-7",
    "Content-Type: application/json",
    "Content-Encoding: gzip",
    "Authorization: Bearer a.b.c",
    "Authorization: \u{1b}[2J",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: x",
    " folded: line",
    "no colon",
];
const BODIES: [&str; 8] = [
    "",
    "{",
    "{\"username\":{\"$ne\":null},\"password\":[]}",
    "{\"name\":\"\\ud800\"}",
    "5\r\nhello\r\n0\r\n\r\n",
    "zz\r\n",
    "[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\u{1f}\u{8b}\u{8}\0",
];
const EVENTS: [&str; 14] = [
    "{\"event\":\"joinRoom\",\"data\":\"x\",\"id\":1}",
    "{\"event\":\"joinRoom\",\"data\":{\"room\":{\"$ne\":1},\"since\":\"9.9.9.9\"},\"id\":[]}",
    "{\"event\":\"sendMessage\",\"data\":{\"content\":\"\\u0000\"},\"id\":{\"a\":1}}",
    "{\"event\":\"authenticate\",\"data\":{\"token\":\"\"}}",
    "{\"event\":\"nothing\"}",
    "{\"event\":7}",
    "{\"data\":1}",
    "{",
    "null",
    "[]",
    "\"\u{1b}[31m\"",
    "",
    "{\"event\":\"leaveRoom\",\"data\":",
    "{\"event\":\"joinRoom\",\"event\":\"leaveRoom\",\"data\":1e999}",
];
const PACKETS: [&str; 22] = [
    "0",
    "1",
    "2",
    "2probe",
    "3",
    "4",
    "5",
    "6",
    "7",
    "b",
    "bAAAA=",
    "b!!",
    "40",
    "41",
    "42[]",
    "42[\"joinRoom\",1]",
    "420[\"sendMessage\",{}]",
    "451-[\"x\",{\"_placeholder\":true,\"num\":0}]",
    "4599999999999-[\"x\"]",
    "42/admin,[\"x\"]",
    "4299999999999999999999[\"x\"]",
    "42[\"\u{1b}[31m\\n\",{\"a\":",
];

/// A request with one or more mistakes.
pub fn request(random: &mut Random) -> Vec<u8> {
    let method =
        if random.once_in(4) { one(&METHODS, random) } else { one(&["GET", "POST"], random) };
    let version = if random.once_in(8) { one(&VERSIONS, random) } else { " HTTP/1.1" };
    let mut text = format!("{method} {}{version}\r\nHost: x", one(&PATHS, random));
    for _ in 0..random.below(4) {
        text += if random.once_in(12) { one(&["\n", "\r", ""], random) } else { "\r\n" };
        text += one(&HEADERS, random);
    }
    text += if random.once_in(12) { one(&["\n\n", "\r\n", ""], random) } else { "\r\n\r\n" };
    text += one(&BODIES, random);
    broken(text.into_bytes(), random)
}

/// A WebSocket frame, often with a wrong opcode, length, mask or flag.
pub fn frame(random: &mut Random) -> Vec<u8> {
    let payload = match random.below(3) {
        0 => one(&PACKETS, random).as_bytes().to_vec(),
        1 => one(&EVENTS, random).as_bytes().to_vec(),
        _ => (0..random.below(200)).map(|_| random.next() as u8).collect(),
    };
    let flags = *random.of(&[0x80, 0x80, 0x80, 0x00, 0xc0, 0xf0]);
    let opcode = *random.of(&[1, 1, 1, 1, 2, 0, 8, 9, 10, 3, 15]);
    let claimed = match random.below(6) {
        0 => random.below(1 << 17),
        1 => usize::MAX / 2,
        _ => payload.len(),
    };
    let masked = !random.once_in(6);
    broken(encode(flags | opcode, claimed, masked, &payload), random)
}

/// A valid text frame.
pub fn text_frame(text: &str) -> Vec<u8> {
    encode(0x81, text.len(), true, text.as_bytes())
}

/// A text for `/ws`.
pub fn event(random: &mut Random) -> String {
    broken_text(one(&EVENTS, random), random)
}

/// An Engine.IO packet, perhaps with a Socket.IO packet.
pub fn packet(random: &mut Random) -> String {
    broken_text(one(&PACKETS, random), random)
}

/// The body of a post: packets with separators.
pub fn payload(random: &mut Random) -> String {
    let packets: Vec<_> = (0..=random.below(4)).map(|_| packet(random)).collect();
    packets.join("\u{1e}")
}

fn one(texts: &[&'static str], random: &mut Random) -> &'static str {
    texts[random.below(texts.len())]
}

fn encode(first: u8, claimed: usize, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match claimed {
        0..=125 => bytes.push(mask | claimed as u8),
        126..=65_535 => {
            bytes.push(mask | 126);
            bytes.extend((claimed as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask | 127);
            bytes.extend((claimed as u64).to_be_bytes());
        }
    }
    if masked {
        // A mask of zeros changes nothing.
        bytes.extend([0; 4]);
    }
    bytes.extend(payload);
    bytes
}

fn broken_text(text: &str, random: &mut Random) -> String {
    String::from_utf8_lossy(&broken(text.as_bytes().to_vec(), random)).into_owned()
}

/// The same bytes, or with a part removed, changed or duplicated.
fn broken(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    if bytes.is_empty() {
        return bytes;
    }
    let at = random.below(bytes.len());
    match random.below(12) {
        0 => bytes.truncate(at),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.insert(at, random.next() as u8),
        3 => bytes.extend_from_within(at..),
        _ => {}
    }
    bytes
}
