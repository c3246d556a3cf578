//! Both wires as far as a client needs them: `/ws`, and Socket.IO over a WebSocket with recovery.
//! The siege uses it, too.

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

/// How long a connection may take to be there, before a client tries another instance.
const CONNECT: Duration = Duration::from_secs(6);

/// Which wire a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// As every client that asks for nothing: the offset is an event behind the messages.
    SocketIo,
    /// With `recovery: true`: the offset is the last argument of each event.
    SocketIoInside,
}

/// What a Socket.IO client knows of its last connection: it has to be there again for a recovery.
#[derive(Debug, Default, Clone)]
pub struct ResumeState {
    /// The private id.
    pub pid: Option<String>,
    /// The last string of the last event.
    pub offset: Option<String>,
}

/// A connection that was let in.
pub struct Connection {
    kind: Kind,
    stream: WebSocketStream<TcpStream>,
    last_id: u64,
    /// Whether the server says that this goes on where the last connection ended.
    pub recovered: bool,
    /// For the next connection.
    pub memory: ResumeState,
}

/// What the server says.
#[derive(Debug)]
pub enum Incoming {
    /// The answer to a request.
    Ack { id: u64, data: Value },
    /// A message or what became of it, and where the client is with that, unless an offset says so
    /// later.
    Message { told: Told, position: Option<String> },
    /// Where the client is with everything that was said before.
    Offset(String),
    /// Something may have been missed in this room.
    Resync { room: String, position: Option<String> },
    /// A request without an id was refused, or so it seems.
    Error(Value),
}

/// What happened to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub change: Change,
    pub room: String,
    pub id: String,
    /// Its text since then; empty for a deletion.
    pub content: String,
    /// How often it was edited by then; 0 for a deletion, which does not say it.
    pub version: i64,
}

/// How a message changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    Sent,
    Edited,
    Deleted,
}

impl Told {
    /// What tells it from everything else that happens.
    pub fn key(&self) -> (Change, &str, i64) {
        (self.change, &self.id, self.version)
    }
}

/// The connection is of no more use; the text says why.
#[derive(Debug)]
pub struct Disconnected(pub String);

impl Disconnected {
    /// What is of no more use because of an error.
    pub fn because(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

impl Connection {
    /// Connects and is let in.
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

    /// Is let in on a connection that is there; without a deadline.
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
        // Thousands of these are idle.
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

    /// Enters the namespace, with what is left of the last connection.
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
                None => return Err(Disconnected(format!("not let in: {text}"))),
            }
        };
        let answer: Value = serde_json::from_str(&answer).map_err(Disconnected::because)?;
        let given = answer["pid"].as_str().map(str::to_owned);
        self.recovered = given.is_some() && given == pid;
        // As socket.io-client has it: the offset stays, whatever was recovered.
        self.memory.pid = given;
        Ok(())
    }

    /// Sends a request; answers the id that its ack will have.
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

    /// The next thing that the server says. Cancel-safe.
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
            let is_there = change != Change::Deleted;
            let told = Told {
                change,
                room: text("room")?,
                id: text(if is_there { "_id" } else { "message" })?,
                content: if is_there { text("content")? } else { String::new() },
                version: if is_there { data["__v"].as_i64()? } else { 0 },
            };
            Incoming::Message { told, position: position.map(str::to_owned) }
        }
        "position" => Incoming::Offset(data.as_str()?.to_owned()),
        "resync" => Incoming::Resync { room: text("room")?, position: text("position") },
        "error" => Incoming::Error(data.clone()),
        _ => return None,
    })
}
