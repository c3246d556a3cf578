//! A client of both wires: `/ws`, and Socket.IO over a WebSocket with recovery. The siege uses it,
//! too.

#![allow(dead_code, reason = "the chaos and the siege each use a part of it")]

use std::net::SocketAddr;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// The timeout of connecting and of each write.
const CONNECT: Duration = Duration::from_secs(6);

/// The wire of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// The default: the offset is an event of its own after the messages.
    SocketIo,
    /// With `recovery: true`: the offset is the last argument of each event.
    SocketIoInside,
}

/// What a Socket.IO client keeps from its last connection, to recover it.
#[derive(Debug, Default, Clone)]
pub struct ResumeState {
    /// The private id.
    pub pid: Option<String>,
    /// The last argument of the last event that ended in a string.
    pub offset: Option<String>,
}

/// An accepted connection.
pub struct Connection {
    kind: Kind,
    stream: WebSocketStream<TcpStream>,
    last_id: u64,
    /// Whether the server resumed the session of the last connection.
    pub recovered: bool,
    /// For the next connection.
    pub memory: ResumeState,
}

/// A frame from the server.
#[derive(Debug)]
pub enum Incoming {
    /// The answer to a request.
    Ack { id: u64, data: Value },
    /// An event of a room, with its position, unless an offset follows.
    Event { told: Told, position: Option<String> },
    /// The offset of everything before it.
    Offset(String),
    /// Events of this room may have been missed.
    Resync { room: String, position: Option<String> },
    /// The user was added to this room, or removed from it.
    Membership { room: String, added: bool },
    /// A user types or has stopped, came or went.
    Signal { event: String, data: Value },
    /// The answer to a request without an id.
    Error(Value),
}

/// An event of a room: a change of a message or of a member, or a read mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub change: Change,
    pub room: String,
    /// The message, or the user who was added or removed; for a mark, the message and the user.
    pub id: String,
    /// The text of the message after the change; otherwise empty.
    pub content: String,
    /// The `__v` of the message after the change; 0 in an event that has none.
    pub version: i64,
}

/// The kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    Sent,
    Edited,
    Deleted,
    MemberAdded,
    MemberRemoved,
    Read,
}

impl Change {
    /// Whether this is about a message.
    pub fn is_of_message(self) -> bool {
        matches!(self, Self::Sent | Self::Edited | Self::Deleted)
    }

    /// Whether a member was added or removed.
    pub fn is_of_member(self) -> bool {
        matches!(self, Self::MemberAdded | Self::MemberRemoved)
    }
}

impl Told {
    /// The event of a member who was added to a room or removed from it.
    pub fn of_member(change: Change, room: String, user: String) -> Self {
        Self { change, room, id: user, content: String::new(), version: 0 }
    }

    /// The event of a user who has read a room up to a message.
    pub fn of_mark(room: String, user: &str, message: &str) -> Self {
        let id = format!("{message} {user}");
        Self { change: Change::Read, room, id, content: String::new(), version: 0 }
    }

    /// Whether this user has read, and up to which message.
    pub fn mark_of(&self, user: &str) -> Option<&str> {
        let (message, reader) = self.id.split_once(' ')?;
        (self.change == Change::Read && reader == user).then_some(message)
    }

    /// Identifies a change of a message, and a mark. A member can be added many times.
    pub fn key(&self) -> (Change, &str, i64) {
        (self.change, &self.id, self.version)
    }
}

/// The connection has ended or must not be used any more; the text says why.
#[derive(Debug)]
pub struct Disconnected(pub String);

impl Disconnected {
    /// The connection failed with this error.
    pub fn because(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

impl Connection {
    /// Connects and authenticates.
    pub async fn open(
        kind: Kind,
        addr: SocketAddr,
        token: &str,
        memory: ResumeState,
    ) -> Result<Self, Disconnected> {
        let opening = async {
            let stream = TcpStream::connect(addr).await.map_err(Disconnected::because)?;
            Self::open_on(stream, kind, addr, token, memory).await
        };
        timeout(CONNECT, opening).await.map_err(Disconnected::because)?
    }

    /// Authenticates on an open TCP connection, without a timeout.
    pub async fn open_on(
        stream: TcpStream,
        kind: Kind,
        addr: SocketAddr,
        token: &str,
        memory: ResumeState,
    ) -> Result<Self, Disconnected> {
        let path = match kind {
            Kind::Plain => format!("/ws?token={token}"),
            Kind::SocketIo | Kind::SocketIoInside => {
                "/socket.io/?EIO=4&transport=websocket".to_owned()
            }
        };
        // The siege opens thousands of them.
        let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
        let url = format!("ws://{addr}{path}");
        let opened = client_async_with_config(url, stream, Some(config)).await;
        let (stream, _) = opened.map_err(Disconnected::because)?;
        let mut connection = Self { kind, stream, last_id: 0, recovered: false, memory };
        if kind != Kind::Plain {
            connection.enter(token).await?;
        }
        Ok(connection)
    }

    /// Connects to the namespace, with the state of the last connection.
    async fn enter(&mut self, token: &str) -> Result<(), Disconnected> {
        let open = self.text().await?;
        if !open.starts_with("0{") {
            return Err(Disconnected(format!("no open packet: {open}")));
        }
        let mut auth = json!({ "token": token });
        if self.kind == Kind::SocketIoInside {
            auth["recovery"] = json!(true);
        }
        let ResumeState { pid, offset } = self.memory.clone();
        if let Some(pid) = &pid {
            auth["pid"] = json!(pid);
        }
        if let Some(offset) = &offset {
            auth["offset"] = json!(offset);
        }
        self.send(format!("40{auth}")).await?;
        let answer = loop {
            let text = self.text().await?;
            match text.strip_prefix("40") {
                Some(answer) => break answer.to_owned(),
                None if text == "2" => self.send("3".to_owned()).await?,
                None => return Err(Disconnected(format!("refused: {text}"))),
            }
        };
        let answer: Value = serde_json::from_str(&answer).map_err(Disconnected::because)?;
        let given = answer["pid"].as_str().map(str::to_owned);
        self.recovered = given.is_some() && given == pid;
        // Like socket.io-client, keep the offset even if nothing was recovered.
        self.memory.pid = given;
        Ok(())
    }

    /// Sends a request. Returns the id of its ack.
    pub async fn request(&mut self, event: &str, data: &Value) -> Result<u64, Disconnected> {
        self.last_id += 1;
        let id = self.last_id;
        let text = match self.kind {
            Kind::Plain => json!({ "event": event, "data": data, "id": id }).to_string(),
            Kind::SocketIo | Kind::SocketIoInside => format!("42{id}{}", json!([event, data])),
        };
        self.send(text).await?;
        Ok(id)
    }

    /// The next frame. Cancel-safe.
    pub async fn next(&mut self) -> Result<Incoming, Disconnected> {
        loop {
            let text = self.text().await?;
            let said = match self.kind {
                Kind::Plain => plain(&text),
                Kind::SocketIo | Kind::SocketIoInside if text == "2" => {
                    self.send("3".to_owned()).await?;
                    continue;
                }
                Kind::SocketIo | Kind::SocketIoInside => self.packet(&text),
            };
            return said.ok_or_else(|| Disconnected(format!("not understood: {text}")));
        }
    }

    fn packet(&mut self, text: &str) -> Option<Incoming> {
        if let Some(ack) = text.strip_prefix("43") {
            let (id, arguments) = ack.split_at(ack.find('[')?);
            let arguments: Value = serde_json::from_str(arguments).ok()?;
            return Some(Incoming::Ack { id: id.parse().ok()?, data: arguments[0].clone() });
        }
        let arguments: Vec<Value> = serde_json::from_str(text.strip_prefix("42")?).ok()?;
        if let Some(Value::String(offset)) = arguments.last() {
            self.memory.offset = Some(offset.clone());
        }
        let offset = arguments.get(2).and_then(Value::as_str);
        event(arguments.first()?.as_str()?, arguments.get(1)?, offset)
    }

    async fn send(&mut self, text: String) -> Result<(), Disconnected> {
        let sending = self.stream.send(Message::text(text));
        timeout(CONNECT, sending)
            .await
            .map_err(Disconnected::because)?
            .map_err(Disconnected::because)
    }

    async fn text(&mut self) -> Result<String, Disconnected> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    return Err(Disconnected(format!("closed: {frame:?}")));
                }
                Some(Ok(other)) => return Err(Disconnected(format!("not a text: {other:?}"))),
                Some(Err(error)) => return Err(Disconnected::because(error)),
                None => return Err(Disconnected("the stream has ended".to_owned())),
            }
        }
    }
}

fn plain(text: &str) -> Option<Incoming> {
    let mut frame: Value = serde_json::from_str(text).ok()?;
    if let Some(id) = frame["ack"].as_u64() {
        return Some(Incoming::Ack { id, data: frame["data"].take() });
    }
    event(frame["event"].as_str()?, &frame["data"], frame["position"].as_str())
}

fn event(name: &str, data: &Value, position: Option<&str>) -> Option<Incoming> {
    let text = |key: &str| data[key].as_str().map(str::to_owned);
    Some(match name {
        "receiveMessage" | "messageEdited" | "messageDeleted" => {
            let change = match name {
                "receiveMessage" => Change::Sent,
                "messageEdited" => Change::Edited,
                _ => Change::Deleted,
            };
            let has_text = change != Change::Deleted;
            let told = Told {
                change,
                room: text("room")?,
                id: text(if has_text { "_id" } else { "message" })?,
                content: if has_text { text("content")? } else { String::new() },
                version: if has_text { data["__v"].as_i64()? } else { 0 },
            };
            Incoming::Event { told, position: position.map(str::to_owned) }
        }
        "memberAdded" | "memberRemoved" => {
            let (change, user) = match name {
                "memberAdded" => (Change::MemberAdded, data["user"]["_id"].as_str()?.to_owned()),
                _ => (Change::MemberRemoved, text("user")?),
            };
            let told = Told::of_member(change, text("room")?, user);
            Incoming::Event { told, position: position.map(str::to_owned) }
        }
        "messageRead" => {
            let told = Told::of_mark(text("room")?, &text("user")?, &text("message")?);
            Incoming::Event { told, position: position.map(str::to_owned) }
        }
        "roomAdded" => Incoming::Membership { room: text("room")?, added: true },
        "roomRemoved" => Incoming::Membership { room: text("room")?, added: false },
        "position" => Incoming::Offset(data.as_str()?.to_owned()),
        "resync" => Incoming::Resync { room: text("room")?, position: text("position") },
        "typing" | "stopTyping" | "userOnline" | "userOffline" => {
            Incoming::Signal { event: name.to_owned(), data: data.clone() }
        }
        "error" => Incoming::Error(data.clone()),
        _ => return None,
    })
}
