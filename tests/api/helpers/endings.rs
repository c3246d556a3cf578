//! Clients that send messages and end their connection directly after them, on every transport and
//! in every way.
//!
//! They write bytes, so that the last message and the end are sent together, like from a closed
//! browser tab.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The timeout of an answer.
const SOON: Duration = Duration::from_secs(30);

/// The transport of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `/ws`.
    Plain,
    /// Socket.IO on a WebSocket.
    WebSocket,
    /// Socket.IO on long-polling.
    Polling,
}

/// How a connection ends, directly after its last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With the close frame of the WebSocket, or the close packet of Engine.IO.
    Close,
    /// The TCP connections are dropped, with unread answers.
    Cut,
    /// `socket.disconnect()`: the packet of Socket.IO, and then a close.
    Goodbye,
    /// Another connection takes the session over.
    TakenOver,
    /// The client sends nothing more and answers no ping.
    Silence,
}

/// All immediate endings of a transport.
pub fn endings(transport: Transport) -> &'static [Ending] {
    match transport {
        Transport::Plain => &[Ending::Close, Ending::Cut],
        Transport::WebSocket | Transport::Polling => {
            &[Ending::Close, Ending::Cut, Ending::Goodbye, Ending::TakenOver]
        }
    }
}

/// An admitted client that has joined `room`.
pub struct Leaver {
    addr: SocketAddr,
    token: String,
    room: String,
    number: usize,
    line: Line,
    /// The private id of a Socket.IO session.
    pid: Option<String>,
}

enum Line {
    WebSocket { stream: TcpStream, plain: bool },
    Polling { target: String },
}

impl Leaver {
    /// Connects and joins.
    pub async fn connect(
        addr: SocketAddr,
        transport: Transport,
        token: &str,
        room: &str,
        number: usize,
    ) -> Self {
        let (token, room) = (token.to_owned(), room.to_owned());
        let (line, pid) = match transport {
            Transport::Plain => {
                let mut stream = upgrade(addr, &format!("/ws?token={token}")).await;
                let join = json!({ "event": "joinRoom", "data": room, "id": 1 });
                stream.write_all(&frame(TEXT, join.to_string().as_bytes())).await.unwrap();
                next_with(&mut stream, r#"{"ack":1"#).await;
                (Line::WebSocket { stream, plain: true }, None)
            }
            Transport::WebSocket => {
                let (stream, pid) = enter(addr, &token, &room, &json!({})).await;
                (Line::WebSocket { stream, plain: false }, pid)
            }
            Transport::Polling => {
                let target = "/socket.io/?EIO=4&transport=polling";
                let open = exchange(addr, "GET", target, "").await;
                let open: Value = serde_json::from_str(open.trim_start_matches('0')).unwrap();
                let target = format!("{target}&sid={}", open["sid"].as_str().unwrap());
                let connect = format!("40{}", json!({ "token": token }));
                exchange(addr, "POST", &target, &connect).await;
                let connected = exchange(addr, "GET", &target, "").await;
                let join = format!("420{}", json!(["joinRoom", room]));
                exchange(addr, "POST", &target, &join).await;
                let mut heard = String::new();
                while !heard.contains("430[") {
                    heard = exchange(addr, "GET", &target, "").await;
                }
                (Line::Polling { target }, pid(&connected))
            }
        };
        Self { addr, token, room, number, line, pid }
    }

    /// Sends `count` messages and ends the connection, all at once.
    pub async fn send_and_end(self, count: usize, ending: Ending) {
        let Self { addr, token, room, number, line, pid } = self;
        let contents = (0..count).map(|nth| format!("{number} {nth}"));
        let messages = contents.map(|content| json!({ "room": room, "content": content }));
        match line {
            Line::WebSocket { mut stream, plain } => {
                let mut bytes = Vec::new();
                for (nth, message) in messages.enumerate() {
                    let text = if plain {
                        json!({ "event": "sendMessage", "data": message, "id": nth }).to_string()
                    } else {
                        format!("42{nth}{}", json!(["sendMessage", message]))
                    };
                    bytes.extend(frame(TEXT, text.as_bytes()));
                }
                if ending == Ending::Goodbye {
                    bytes.extend(frame(TEXT, b"41"));
                }
                if matches!(ending, Ending::Close | Ending::Goodbye) {
                    bytes.extend(frame(CLOSE, &1000_u16.to_be_bytes()));
                }
                stream.write_all(&bytes).await.unwrap();
                take_over_or_wait(ending, addr, &token, &room, pid, &mut stream).await;
            }
            Line::Polling { target } => {
                let packets = messages.enumerate();
                let mut packets: Vec<_> = packets
                    .map(|(nth, message)| format!("42{nth}{}", json!(["sendMessage", message])))
                    .collect();
                if ending == Ending::Goodbye {
                    packets.push("41".to_owned());
                }
                if matches!(ending, Ending::Close | Ending::Goodbye) {
                    packets.push("1".to_owned());
                }
                let poll = encode("GET", &target, "");
                let mut polling = TcpStream::connect(addr).await.unwrap();
                polling.write_all(&poll).await.unwrap();
                let mut posting = TcpStream::connect(addr).await.unwrap();
                let post = encode("POST", &target, &packets.join("\x1e"));
                posting.write_all(&post).await.unwrap();
                take_over_or_wait(ending, addr, &token, &room, pid, &mut posting).await;
                drop((posting, polling));
            }
        }
    }
}

/// Does the part of the ending that is not in the sent bytes.
async fn take_over_or_wait(
    ending: Ending,
    addr: SocketAddr,
    token: &str,
    room: &str,
    pid: Option<String>,
    stream: &mut TcpStream,
) {
    match ending {
        Ending::TakenOver => {
            let returning = json!({ "pid": pid.expect("the session can be taken over") });
            let _new = enter(addr, token, room, &returning).await;
        }
        Ending::Silence => {
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard).await;
        }
        Ending::Close | Ending::Cut | Ending::Goodbye => {}
    }
}

/// Checks the contents of a room, which are the number of the sender and the number of the message.
/// Returns how many messages are missing, and how many are not in the order of their sender.
pub fn missing_and_misordered<'a>(
    contents: impl IntoIterator<Item = &'a str>,
    senders: usize,
    count: usize,
) -> (usize, usize) {
    let mut next: HashMap<&str, usize> = HashMap::new();
    let (mut stored, mut misordered) = (0, 0);
    for content in contents {
        let (sender, nth) = content.split_once(' ').expect("a message of a leaver");
        let nth: usize = nth.parse().unwrap();
        let expected = next.entry(sender).or_default();
        misordered += usize::from(nth < *expected);
        *expected = nth + 1;
        stored += 1;
    }
    (senders * count - stored, misordered)
}

/// The first byte of a text frame with a complete message.
pub const TEXT: u8 = 0x81;
/// The first byte of a close frame.
pub const CLOSE: u8 = 0x88;

/// A frame of a client (RFC 6455, section 5.2), with a mask of zeros.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).expect("a short text").to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// Connects to the main namespace on a WebSocket and joins the room.
async fn enter(
    addr: SocketAddr,
    token: &str,
    room: &str,
    more: &Value,
) -> (TcpStream, Option<String>) {
    let mut auth = json!({ "token": token });
    auth.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut stream = upgrade(addr, "/socket.io/?EIO=4&transport=websocket").await;
    stream.write_all(&frame(TEXT, format!("40{auth}").as_bytes())).await.unwrap();
    let connected = next_with(&mut stream, "40{").await;
    let join = format!("420{}", json!(["joinRoom", room]));
    stream.write_all(&frame(TEXT, join.as_bytes())).await.unwrap();
    next_with(&mut stream, "430[").await;
    (stream, pid(&connected))
}

fn pid(connected: &str) -> Option<String> {
    let (_, rest) = connected.split_once(r#""pid":""#)?;
    rest.split_once('"').map(|(pid, _)| pid.to_owned())
}

/// Opens a WebSocket.
pub async fn upgrade(addr: SocketAddr, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = next_with(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream
}

/// Reads until `wanted` has come. Returns everything that was read.
async fn next_with(stream: &mut TcpStream, wanted: &str) -> String {
    let mut heard = String::new();
    let reading = async {
        let mut part = vec![0; 1 << 16];
        // Search only the new bytes, because there may be many before.
        let mut searched = 0;
        while !heard.get(searched..).is_some_and(|new| new.contains(wanted)) {
            searched = heard.floor_char_boundary(heard.len().saturating_sub(wanted.len()));
            let count = stream.read(&mut part).await.unwrap();
            assert_ne!(count, 0, "closed before {wanted:?}: {heard:?}");
            heard.push_str(&String::from_utf8_lossy(&part[..count]));
        }
    };
    let in_time = timeout(SOON, reading).await.is_ok();
    assert!(in_time, "no {wanted:?}: {heard:?}");
    heard
}

fn encode(method: &str, target: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}");
    format!("{head}\r\nContent-Type: text/plain;charset=UTF-8\r\n\r\n{body}").into_bytes()
}

/// Sends a request on a new connection. Returns the body of the answer, which must be 200.
async fn exchange(addr: SocketAddr, method: &str, target: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = encode(method, target, body);
    let request = String::from_utf8(request).unwrap();
    let request = request.replacen("Host:", "Connection: close\r\nHost:", 1);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}
