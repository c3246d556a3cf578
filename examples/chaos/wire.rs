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

/// The timeout of a connection, after which a client tries another instance.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);

/// The wire of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// The default: the offset is a separate event after the messages.
    SocketIo,
    /// With `recovery: true`: the offset is the last argument of each event.
    SocketIoInline,
}

/// The state that a Socket.IO client keeps from its last connection, for the recovery.
#[derive(Debug, Default, Clone)]
pub struct ResumeState {
    /// The private id.
    pub pid: Option<String>,
    /// The offset: the last argument of the last event, if it is a string.
    pub offset: Option<String>,
}

/// An admitted connection.
pub struct Connection {
    kind: Kind,
    stream: WebSocketStream<TcpStream>,
    last_id: u64,
    /// Whether the server resumed the session of the last connection.
    pub recovered: bool,
    /// For the next connection.
    pub resume_state: ResumeState,
}

/// A frame of the server.
#[derive(Debug)]
pub enum Incoming {
    /// The answer to a request.
    Ack { id: u64, data: Value },
    /// A message, with its position unless the offset comes later.
    Message { room: String, id: String, content: String, position: Option<String> },
    /// The offset of everything before it.
    Offset(String),
    /// Messages of this room may have been missed.
    Resync { room: String, position: Option<String> },
    /// An error that is not an ack.
    Error(Value),
}

/// The connection cannot be used any more; the text says why.
#[derive(Debug)]
pub struct Disconnected(pub String);

impl Disconnected {
    /// The same because of an error.
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
        resume_state: ResumeState,
    ) -> Result<Self, Disconnected> {
        let opening = async {
            let stream = TcpStream::connect(addr).await.map_err(Disconnected::because)?;
            Self::open_on(stream, kind, addr, token, resume_state).await
        };
        timeout(CONNECT_TIMEOUT, opening).await.map_err(Disconnected::because)?
    }

    /// Authenticates on an open TCP connection, without a timeout.
    pub async fn open_on(
        stream: TcpStream,
        kind: Kind,
        addr: SocketAddr,
        token: &str,
        resume_state: ResumeState,
    ) -> Result<Self, Disconnected> {
        let path = match kind {
            Kind::Plain => format!("/ws?token={token}"),
            Kind::SocketIo | Kind::SocketIoInline => {
                "/socket.io/?EIO=4&transport=websocket".to_owned()
            }
        };
        // Small buffers, because thousands of connections are idle.
        let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
        let url = format!("ws://{addr}{path}");
        let opened = client_async_with_config(url, stream, Some(config)).await;
        let (stream, _) = opened.map_err(Disconnected::because)?;
        let mut connection = Self { kind, stream, last_id: 0, recovered: false, resume_state };
        if kind != Kind::Plain {
            connection.enter(token).await?;
        }
        Ok(connection)
    }

    /// Enters the namespace, with the state of the last connection.
    async fn enter(&mut self, token: &str) -> Result<(), Disconnected> {
        let open = self.text().await?;
        if !open.starts_with("0{") {
            return Err(Disconnected(format!("no open packet: {open}")));
        }
        let mut auth = json!({ "token": token });
        if self.kind == Kind::SocketIoInline {
            auth["recovery"] = json!(true);
        }
        let ResumeState { pid, offset } = self.resume_state.clone();
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
                None => return Err(Disconnected(format!("not admitted: {text}"))),
            }
        };
        let answer: Value = serde_json::from_str(&answer).map_err(Disconnected::because)?;
        let given = answer["pid"].as_str().map(str::to_owned);
        self.recovered = given.is_some() && given == pid;
        // As in socket.io-client: the offset is kept even if nothing was recovered.
        self.resume_state.pid = given;
        Ok(())
    }

    /// Sends a request. Returns the id of its ack.
    pub async fn request(&mut self, event: &str, data: &Value) -> Result<u64, Disconnected> {
        self.last_id += 1;
        let id = self.last_id;
        let text = match self.kind {
            Kind::Plain => json!({ "event": event, "data": data, "id": id }).to_string(),
            Kind::SocketIo | Kind::SocketIoInline => format!("42{id}{}", json!([event, data])),
        };
        self.send(text).await?;
        Ok(id)
    }

    /// The next frame of the server. Cancel-safe.
    pub async fn next(&mut self) -> Result<Incoming, Disconnected> {
        loop {
            let text = self.text().await?;
            let incoming = match self.kind {
                Kind::Plain => plain(&text),
                Kind::SocketIo | Kind::SocketIoInline if text == "2" => {
                    self.send("3".to_owned()).await?;
                    continue;
                }
                Kind::SocketIo | Kind::SocketIoInline => self.packet(&text),
            };
            return incoming.ok_or_else(|| Disconnected(format!("not understood: {text}")));
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
            self.resume_state.offset = Some(offset.clone());
        }
        let offset = arguments.get(2).and_then(Value::as_str);
        event(arguments.first()?.as_str()?, arguments.get(1)?, offset)
    }

    async fn send(&mut self, text: String) -> Result<(), Disconnected> {
        let sending = self.stream.send(Message::text(text));
        timeout(CONNECT_TIMEOUT, sending)
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
        "receiveMessage" => Incoming::Message {
            room: text("room")?,
            id: text("_id")?,
            content: text("content")?,
            position: position.map(str::to_owned),
        },
        "position" => Incoming::Offset(data.as_str()?.to_owned()),
        "resync" => Incoming::Resync { room: text("room")?, position: text("position") },
        "error" => Incoming::Error(data.clone()),
        _ => return None,
    })
}
