//! A client of `/ws`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async, connect_async};

use realtime_chat_backend::feed::position::Position;

use super::TestServer;

/// The timeout of a test that waits for something.
pub const SOON: Duration = Duration::from_secs(30);

/// A connection to `/ws`. Events that come before an awaited ack are kept for later.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pushed: VecDeque<Value>,
    last_id: u64,
    /// The pause between two frames while an ack is awaited.
    pace: Duration,
}

/// The close code and reason of the server; `None` without a closing handshake.
pub type Closed = Option<(u16, String)>;

/// The parts of a `receiveMessage` that identify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub room: String,
    pub content: String,
    pub position: Position,
}

/// The content of the last message of a room, for tests that need one.
pub const END: &str = "end";

impl Socket {
    /// Connects with a token in the query.
    pub async fn connect(server: &TestServer, token: &str) -> Self {
        Self::connect_at(server.addr, token).await
    }

    /// Connects to a path, unchanged.
    pub async fn connect_to(server: &TestServer, path: &str) -> Self {
        Self::open(server.addr, path).await
    }

    /// Connects with a token to a server at this address.
    pub async fn connect_at(addr: SocketAddr, token: &str) -> Self {
        Self::open(addr, &format!("/ws?token={token}")).await
    }

    /// Connects with a small receive buffer, and reads slowly while it waits for an ack, so that
    /// events stay in the queue of the server.
    pub async fn connect_narrow(addr: SocketAddr, token: &str) -> Self {
        let narrow = TcpSocket::new_v4().unwrap();
        narrow.set_recv_buffer_size(64 * 1024).unwrap();
        let stream = MaybeTlsStream::Plain(narrow.connect(addr).await.unwrap());
        let url = format!("ws://{addr}/ws?token={token}");
        let (stream, _) = client_async(url, stream).await.expect("the upgrade is accepted");
        Self { pace: Duration::from_millis(5), ..Self::new(stream) }
    }

    /// Connects with a token; `None` if the server refuses the upgrade.
    pub async fn try_connect(addr: SocketAddr, token: &str) -> Option<Self> {
        let url = format!("ws://{addr}/ws?token={token}");
        let connecting = tokio::time::timeout(SOON, connect_async(url));
        let (stream, _) = connecting.await.ok()?.ok()?;
        Some(Self::new(stream))
    }

    async fn open(addr: SocketAddr, path: &str) -> Self {
        let url = format!("ws://{addr}{path}");
        let (stream, _) = connect_async(url).await.expect("the upgrade is accepted");
        Self::new(stream)
    }

    /// Wraps an open WebSocket.
    pub fn of(stream: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self::new(stream)
    }

    fn new(stream: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self { stream, pushed: VecDeque::new(), last_id: 0, pace: Duration::ZERO }
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.stream.send(Message::text(text.into())).await.expect("the frame is sent");
    }

    /// Sends a request without waiting for its ack. Returns its id.
    pub async fn send(&mut self, event: &str, data: Value) -> u64 {
        self.last_id += 1;
        let frame = json!({ "event": event, "data": data, "id": self.last_id });
        self.send_text(frame.to_string()).await;
        self.last_id
    }

    /// Sends a request and waits for its ack.
    pub async fn ask(&mut self, event: &str, data: Value) -> Value {
        self.ask_or_closed(event, data).await.expect("the socket is open")
    }

    /// Sends a request and waits for its ack, or for the close frame. Events that come before are
    /// kept.
    pub async fn ask_or_closed(&mut self, event: &str, data: Value) -> Result<Value, Closed> {
        self.last_id += 1;
        let frame = json!({ "event": event, "data": data, "id": self.last_id });
        // Ignore the error: the reason is in the next frame.
        let _ = self.stream.send(Message::text(frame.to_string())).await;
        loop {
            let mut frame = self.frame_or_closed().await?;
            if frame["ack"] == json!(self.last_id) {
                return Ok(frame["data"].take());
            }
            self.pushed.push_back(frame);
            tokio::time::sleep(self.pace).await;
        }
    }

    /// Joins a room. Returns the position in the ack.
    pub async fn join(&mut self, room: &str) -> String {
        let ack = self.ask("joinRoom", json!(room)).await;
        assert_eq!(ack["room"], room, "{ack}");
        ack["position"].as_str().expect("a position").to_owned()
    }

    /// Joins a room after a position. Returns the ack.
    pub async fn join_since(&mut self, room: &str, since: &str) -> Value {
        self.ask("joinRoom", json!({ "room": room, "since": since })).await
    }

    /// The number of kept events.
    pub fn kept(&self) -> usize {
        self.pushed.len()
    }

    /// The last kept event.
    pub fn last_kept(&self) -> Option<&Value> {
        self.pushed.back()
    }

    /// The next frame: an event, an error or a late ack.
    pub async fn next(&mut self) -> Value {
        match self.pushed.pop_front() {
            Some(frame) => frame,
            None => self.frame().await,
        }
    }

    /// Joins a room after a position, which must be recovered.
    pub async fn recover(&mut self, room: &str, since: impl ToString) {
        let since = since.to_string();
        let ack = self.join_since(room, &since).await;
        assert_eq!(ack, json!({ "room": room, "position": since, "recovered": true }));
    }

    /// The next frame, which must be a `receiveMessage`.
    pub async fn heard(&mut self) -> Heard {
        heard(&self.next().await)
    }

    /// All messages up to the [`END`] of `rooms` rooms.
    pub async fn heard_to_the_end(&mut self, rooms: usize) -> Vec<Heard> {
        let mut transcript = Vec::new();
        let mut ends = 0;
        while ends < rooms {
            let heard = self.heard().await;
            ends += usize::from(heard.content == END);
            transcript.push(heard);
        }
        transcript
    }

    /// The next frame, which must be a `resync` of this room. Returns its position.
    pub async fn resync(&mut self, room: &str) -> Position {
        let frame = self.next().await;
        assert_eq!((&frame["event"], &frame["data"]["room"]), (&json!("resync"), &json!(room)));
        frame["data"]["position"].as_str().expect("a position").parse().unwrap()
    }

    /// The next `receiveMessage`: its content and position.
    pub async fn message(&mut self) -> (String, String) {
        let Heard { content, position, .. } = self.heard().await;
        (content, position.to_string())
    }

    /// Asserts that no frame comes for this time.
    pub async fn assert_silent(&mut self, wait: Duration) {
        assert_eq!(self.pushed.pop_front(), None);
        if let Ok(frame) = tokio::time::timeout(wait, self.stream.next()).await {
            panic!("came unasked: {frame:?}");
        }
    }

    /// Reads until the server closes the connection.
    pub async fn closed(&mut self) -> Closed {
        let closed = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Close(frame))) => return frame.map(code_and_reason),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        };
        tokio::time::timeout(SOON * 2, closed).await.expect("the server closes")
    }

    /// The next frame, or the close code and reason.
    pub async fn next_or_closed(&mut self) -> Result<Value, Closed> {
        match self.pushed.pop_front() {
            Some(frame) => Ok(frame),
            None => self.frame_or_closed().await,
        }
    }

    async fn frame(&mut self) -> Value {
        self.frame_or_closed().await.expect("the socket is open")
    }

    async fn frame_or_closed(&mut self) -> Result<Value, Closed> {
        let text = self.text_or_closed().await?;
        Ok(serde_json::from_str(&text).expect("frames are JSON"))
    }

    /// The raw text of the next frame. Ignores kept events.
    pub async fn next_text(&mut self) -> String {
        self.text_or_closed().await.expect("the socket is open").to_string()
    }

    async fn text_or_closed(&mut self) -> Result<Utf8Bytes, Closed> {
        let text = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(frame))) => return Err(frame.map(code_and_reason)),
                    Some(Ok(other)) => panic!("not a text: {other:?}"),
                    Some(Err(_)) | None => return Err(None),
                }
            }
        };
        tokio::time::timeout(SOON, text).await.expect("a frame in time")
    }
}

/// Reads a `receiveMessage`.
pub fn heard(frame: &Value) -> Heard {
    assert_eq!(frame["event"], "receiveMessage", "{frame}");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    Heard {
        room: text(&frame["data"]["room"]),
        content: text(&frame["data"]["content"]),
        position: text(&frame["position"]).parse().expect("a position"),
    }
}

fn code_and_reason(frame: CloseFrame) -> (u16, String) {
    (frame.code.into(), frame.reason.to_string())
}
