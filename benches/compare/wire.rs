//! The two wires, as far as a load needs them.

use std::net::SocketAddr;

use crate::Result;
use crate::websocket::{Socket, Source};

/// A wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// JSON text at `/ws`.
    Plain,
    /// Socket.IO over a WebSocket, without polling.
    SocketIo,
}

/// A text of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A message of a room, new or edited.
    Message,
    /// The answer to the request with this number.
    Ack(u64),
    /// The error for the request with this number.
    Refusal(u64),
    /// A ping as text, which must be answered by [`PONG`].
    Ping,
    /// Anything else.
    Other,
}

/// The answer to [`Event::Ping`].
pub const PONG: &str = "3";
/// How many joins are sent together.
const JOINS: usize = 100;

impl Wire {
    /// Its name in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "/ws",
            Self::SocketIo => "Socket.IO",
        }
    }

    /// Opens a connection. On Socket.IO it is not admitted yet.
    pub async fn open(self, addr: SocketAddr, source: Source, token: &str) -> Result<Socket> {
        match self {
            Self::Plain => Socket::connect(addr, source, &format!("/ws?token={token}")).await,
            Self::SocketIo => {
                let path = "/socket.io/?EIO=4&transport=websocket";
                let mut socket = Socket::connect(addr, source, path).await?;
                self.wait_for(&mut socket, |text| text.starts_with(b"0{").then_some(())).await?;
                Ok(socket)
            }
        }
    }

    /// Connects with a token. Returns also what the server said to it on Socket.IO.
    pub async fn connect(
        self,
        addr: SocketAddr,
        source: Source,
        token: &str,
    ) -> Result<(Socket, String)> {
        let mut socket = self.open(addr, source, token).await?;
        if self == Self::Plain {
            return Ok((socket, String::new()));
        }
        socket.send_text(&format!("40{{\"token\":\"{token}\"}}")).await?;
        let answer = |text: &[u8]| match text {
            [b'4', b'0' | b'4', ..] => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        };
        let answer = self.wait_for(&mut socket, answer).await?;
        if answer.starts_with("44") { Err(answer.into()) } else { Ok((socket, answer)) }
    }

    /// Joins rooms and waits for the answers.
    pub async fn join(self, socket: &mut Socket, rooms: &[String]) -> Result<()> {
        for rooms in rooms.chunks(JOINS) {
            let requests: Vec<String> = rooms
                .iter()
                .enumerate()
                .map(|(id, room)| match self {
                    Self::Plain => format!(r#"{{"event":"joinRoom","data":"{room}","id":{id}}}"#),
                    Self::SocketIo => format!(r#"42{id}["joinRoom","{room}"]"#),
                })
                .collect();
            socket.send_texts(&requests).await?;
            let (mut answers, mut refusal) = (0, None);
            self.wait_for(socket, |text| {
                match self.read(text) {
                    Event::Ack(_) => answers += 1,
                    Event::Refusal(_) => {
                        answers += 1;
                        refusal = Some(String::from_utf8_lossy(text).into_owned());
                    }
                    Event::Message | Event::Ping | Event::Other => {}
                }
                (answers == rooms.len()).then_some(())
            })
            .await?;
            if let Some(refusal) = refusal {
                return Err(refusal.into());
            }
        }
        Ok(())
    }

    /// Reads until `wanted` returns a value for a text. Answers pings, which can come at any time:
    /// socketioxide sends the first one at once.
    async fn wait_for<T>(
        self,
        socket: &mut Socket,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let mut found = None;
        while found.is_none() {
            let mut ping = false;
            let read = socket.read(|text| {
                ping |= self.read(text) == Event::Ping;
                if found.is_none() {
                    found = wanted(text);
                }
            });
            read.await?;
            if ping {
                socket.send_text(PONG).await?;
            }
        }
        found.ok_or_else(|| "nothing came".into())
    }

    /// Reads what comes to a socket and answers its pings, until it is closed.
    pub async fn keep(self, mut socket: Socket) {
        // Nothing is wanted, so this ends with an error.
        let _ = self.wait_for(&mut socket, |_| None::<()>).await;
    }

    /// The position that a client keeps of a text of the server: the one of an event, or what ends
    /// an event as its last argument.
    pub fn position(self, text: &[u8]) -> Option<&str> {
        let text = std::str::from_utf8(text).ok()?;
        let position = match self {
            Self::Plain => text.strip_suffix("\"}")?.rsplit_once("\"position\":\"")?.1,
            Self::SocketIo if text.starts_with("42") => {
                text.strip_suffix("\"]")?.rsplit_once(",\"")?.1
            }
            Self::SocketIo => return None,
        };
        (!position.contains('"')).then_some(position)
    }

    /// The text that sends a message.
    pub fn message(self, id: u64, room: &str, sender: &str, content: &str) -> String {
        let data = format!(r#"{{"room":"{room}","sender":"{sender}","content":"{content}"}}"#);
        match self {
            Self::Plain => format!(r#"{{"event":"sendMessage","data":{data},"id":{id}}}"#),
            Self::SocketIo => format!(r#"42{id}["sendMessage",{data}]"#),
        }
    }

    /// The text that edits a message.
    pub fn edit(self, id: u64, message: &str, content: &str) -> String {
        let data = format!(r#"{{"message":"{message}","content":"{content}"}}"#);
        match self {
            Self::Plain => format!(r#"{{"event":"editMessage","data":{data},"id":{id}}}"#),
            Self::SocketIo => format!(r#"42{id}["editMessage",{data}]"#),
        }
    }

    /// Reads a text of the server by its first bytes. All servers write keys in the expected
    /// order.
    pub fn read(self, text: &[u8]) -> Event {
        let ack = match self {
            Self::Plain => match text.strip_prefix(br#"{"event":""#) {
                Some(event) if is_message(event) => return Event::Message,
                _ => text.strip_prefix(br#"{"ack":"#),
            },
            Self::SocketIo if text == b"2" => return Event::Ping,
            Self::SocketIo => match text.strip_prefix(br#"42[""#) {
                Some(event) if is_message(event) => return Event::Message,
                _ => text.strip_prefix(b"43"),
            },
        };
        let Some(answer) = ack else { return Event::Other };
        let id = number(answer);
        // An error begins with "error". Later in the text, "error" may be part of a message.
        let begin = answer.get(..40).unwrap_or(answer);
        match begin.windows(8).any(|window| window == b"\"error\":") {
            true => Event::Refusal(id),
            false => Event::Ack(id),
        }
    }
}

fn is_message(event: &[u8]) -> bool {
    event.starts_with(b"receiveMessage\"") || event.starts_with(b"messageEdited\"")
}

/// The decimal number at the beginning of these bytes.
pub fn number(bytes: &[u8]) -> u64 {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
