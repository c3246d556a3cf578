//! The two wires, as far as a load needs them.

use std::net::{Ipv4Addr, SocketAddr};

use crate::Result;
use crate::websocket::Socket;

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
    /// A message of a room.
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

impl Wire {
    /// Its name in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "/ws",
            Self::SocketIo => "Socket.IO",
        }
    }

    /// Connects with a token.
    pub async fn connect(self, addr: SocketAddr, source: Ipv4Addr, token: &str) -> Result<Socket> {
        match self {
            Self::Plain => Socket::connect(addr, source, &format!("/ws?token={token}")).await,
            Self::SocketIo => {
                let path = "/socket.io/?EIO=4&transport=websocket";
                let mut socket = Socket::connect(addr, source, path).await?;
                socket.wait_for(|text| text.starts_with(b"0{").then_some(())).await?;
                socket.send_text(&format!("40{{\"token\":\"{token}\"}}")).await?;
                let refusal = |text: &[u8]| match text {
                    [b'4', b'0', ..] => Some(None),
                    [b'4', b'4', ..] => Some(Some(String::from_utf8_lossy(text).into_owned())),
                    _ => None,
                };
                match socket.wait_for(refusal).await? {
                    Some(refusal) => Err(refusal.into()),
                    None => Ok(socket),
                }
            }
        }
    }

    /// Joins a room and waits for the answer.
    pub async fn join(self, socket: &mut Socket, room: &str) -> Result<()> {
        let request = match self {
            Self::Plain => format!(r#"{{"event":"joinRoom","data":"{room}","id":1}}"#),
            Self::SocketIo => format!(r#"421["joinRoom","{room}"]"#),
        };
        socket.send_text(&request).await?;
        let answer = |text: &[u8]| match self.read(text) {
            Event::Ack(_) => Some(None),
            Event::Refusal(_) => Some(Some(String::from_utf8_lossy(text).into_owned())),
            _ => None,
        };
        match socket.wait_for(answer).await? {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// The text that sends a message.
    pub fn message(self, id: u64, room: &str, sender: &str, content: &str) -> String {
        let data = format!(r#"{{"room":"{room}","sender":"{sender}","content":"{content}"}}"#);
        match self {
            Self::Plain => format!(r#"{{"event":"sendMessage","data":{data},"id":{id}}}"#),
            Self::SocketIo => format!(r#"42{id}["sendMessage",{data}]"#),
        }
    }

    /// Reads a text of the server by its first bytes. Both servers write keys in the expected
    /// order.
    pub fn read(self, text: &[u8]) -> Event {
        let ack = match self {
            Self::Plain if text.starts_with(br#"{"event":"receiveMessage""#) => {
                return Event::Message;
            }
            Self::Plain => text.strip_prefix(br#"{"ack":"#),
            Self::SocketIo if text.starts_with(br#"42["receiveMessage""#) => return Event::Message,
            Self::SocketIo if text == b"2" => return Event::Ping,
            Self::SocketIo => text.strip_prefix(b"43"),
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

/// The decimal number at the beginning of these bytes.
pub fn number(bytes: &[u8]) -> u64 {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
