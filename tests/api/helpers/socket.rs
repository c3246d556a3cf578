//! A client of `/ws`.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::TestServer;

/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(10);

/// A connection to `/ws`; what is pushed while an ack is awaited is kept for later.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pushed: VecDeque<Value>,
    last_id: u64,
}

/// What the server says at the end: code and reason; `None` without a closing handshake.
pub type Closed = Option<(u16, String)>;

impl Socket {
    /// Connects with a token in the query.
    pub async fn connect(server: &TestServer, token: &str) -> Self {
        Self::connect_to(server, &format!("/ws?token={token}")).await
    }

    /// Connects to a path, as it is.
    pub async fn connect_to(server: &TestServer, path: &str) -> Self {
        let url = format!("ws://{}{path}", server.addr);
        let (stream, _) = connect_async(url).await.expect("the upgrade is accepted");
        Self { stream, pushed: VecDeque::new(), last_id: 0 }
    }

    /// Sends a text frame as it is.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.stream.send(Message::text(text.into())).await.expect("the frame is sent");
    }

    /// Sends a request without waiting for its ack; answers its id.
    pub async fn send(&mut self, event: &str, data: Value) -> u64 {
        self.last_id += 1;
        let frame = json!({ "event": event, "data": data, "id": self.last_id });
        self.send_text(frame.to_string()).await;
        self.last_id
    }

    /// Sends a request and waits for its ack.
    pub async fn ask(&mut self, event: &str, data: Value) -> Value {
        let id = self.send(event, data).await;
        self.ack(id).await
    }

    /// Waits for the ack of a request; events that come before it are kept.
    pub async fn ack(&mut self, id: u64) -> Value {
        loop {
            let mut frame = self.frame().await;
            if frame["ack"] == json!(id) {
                return frame["data"].take();
            }
            self.pushed.push_back(frame);
        }
    }

    /// Joins a room; answers the position of the ack.
    pub async fn join(&mut self, room: &str) -> String {
        let ack = self.ask("joinRoom", json!(room)).await;
        assert_eq!(ack["room"], room, "{ack}");
        ack["position"].as_str().expect("a position").to_owned()
    }

    /// Joins a room behind a position; answers the whole ack.
    pub async fn join_since(&mut self, room: &str, since: &str) -> Value {
        self.ask("joinRoom", json!({ "room": room, "since": since })).await
    }

    /// The next pushed frame: an event, an error, a late ack.
    pub async fn next(&mut self) -> Value {
        match self.pushed.pop_front() {
            Some(frame) => frame,
            None => self.frame().await,
        }
    }

    /// The next `receiveMessage`: its content and position.
    pub async fn message(&mut self) -> (String, String) {
        let frame = self.next().await;
        assert_eq!(frame["event"], "receiveMessage", "{frame}");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&frame["data"]["content"]), text(&frame["position"]))
    }

    /// The next frames' contents and positions.
    pub async fn messages(&mut self, count: usize) -> Vec<(String, String)> {
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            messages.push(self.message().await);
        }
        messages
    }

    /// Asserts that nothing comes for a while.
    pub async fn assert_silent(&mut self, wait: Duration) {
        assert_eq!(self.pushed.pop_front(), None);
        if let Ok(frame) = tokio::time::timeout(wait, self.stream.next()).await {
            panic!("came unasked: {frame:?}");
        }
    }

    /// Reads until the server closes.
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
        tokio::time::timeout(SOON * 6, closed).await.expect("the server closes")
    }

    /// The stream itself, for what has no verb here.
    pub fn stream(&mut self) -> &mut WebSocketStream<MaybeTlsStream<TcpStream>> {
        &mut self.stream
    }

    async fn frame(&mut self) -> Value {
        let text = async {
            loop {
                match self.stream.next().await.expect("the socket is open").expect("a frame") {
                    Message::Text(text) => return text,
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("not a text: {other:?}"),
                }
            }
        };
        let text = tokio::time::timeout(SOON, text).await.expect("a frame in time");
        serde_json::from_str(&text).expect("frames are JSON")
    }
}

fn code_and_reason(frame: CloseFrame) -> (u16, String) {
    (frame.code.into(), frame.reason.to_string())
}
