//! A client of Socket.IO that keeps the same state as socket.io-client: the private id of its
//! session and its offset, which is the last argument of the last event if it is a string.

use std::collections::VecDeque;
use std::net::SocketAddr;

use futures::StreamExt;
use serde_json::{Value, json};

use super::engine_io::Ws;

const ENDPOINT: &str = "/socket.io/";

/// The state that a client keeps for its next connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pub pid: Option<String>,
    pub offset: Option<String>,
}

/// An event, with its meaning for the recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Room and content of a message.
    pub message: Option<(String, String)>,
    /// Whether the client has an offset that covers all events so far.
    pub with_offset: bool,
}

/// A connection in the main namespace.
pub struct Caller {
    ws: Ws,
    /// The public id.
    pub sid: String,
    /// Whether the server resumed the last session.
    pub recovered: bool,
    pub memory: Memory,
    /// Whether it asked for the offset as the last argument of each event.
    inside: bool,
    pushed: VecDeque<Vec<Value>>,
    last_id: u64,
}

impl Caller {
    /// Connects for the first time.
    pub async fn connect(addr: SocketAddr, token: &str) -> Self {
        Self::come_back(addr, token, Memory::default()).await
    }

    /// Reconnects with the state of an earlier connection. It asks for the offset in each event, so
    /// that it has an offset after each message.
    pub async fn come_back(addr: SocketAddr, token: &str, memory: Memory) -> Self {
        let auth = json!({ "token": token, "recovery": true });
        Self::try_connect(addr, auth, memory).await.expect("the client is let in")
    }

    /// Connects with the state of an earlier connection, if there is one, and with the default:
    /// offsets come in separate events.
    pub async fn by_default(addr: SocketAddr, token: &str, memory: Memory) -> Self {
        let auth = json!({ "token": token });
        Self::try_connect(addr, auth, memory).await.expect("the client is let in")
    }

    /// Reconnects with the state of an earlier connection, which must be recovered.
    pub async fn recover(addr: SocketAddr, token: &str, memory: &Memory) -> Self {
        let caller = Self::come_back(addr, token, memory.clone()).await;
        assert!(caller.recovered, "{memory:?}");
        caller
    }

    /// Connects. Returns the error if the server refuses it.
    pub async fn try_connect(
        addr: SocketAddr,
        mut auth: Value,
        mut memory: Memory,
    ) -> Result<Self, Value> {
        let mut ws = Ws::open(addr, ENDPOINT).await;
        let inside = auth["recovery"] == json!(true);
        if let Some(pid) = &memory.pid {
            auth["pid"] = json!(pid);
            // JSON omits `undefined`.
            if let Some(offset) = &memory.offset {
                auth["offset"] = json!(offset);
            }
        }
        ws.send(format!("40{auth}")).await;
        let answer = ws.packet().await;
        if let Some(json) = answer.strip_prefix("44") {
            return Err(serde_json::from_str(json).expect("JSON"));
        }
        let answer = answer.strip_prefix("40").expect("a CONNECT packet");
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        let pid = answer["pid"].as_str().map(str::to_owned);
        let recovered = pid.is_some() && memory.pid == pid;
        memory.pid = pid;
        let sid = answer["sid"].as_str().expect("a socket id").to_owned();
        assert_eq!(answer.as_object().unwrap().len(), 1 + usize::from(memory.pid.is_some()));
        Ok(Self { ws, sid, recovered, memory, inside, pushed: VecDeque::new(), last_id: 0 })
    }

    /// Drops the connection without closing it.
    pub fn cut(self) -> Memory {
        self.memory
    }

    /// Sends a disconnect packet, and waits until the server has processed it.
    pub async fn leave(mut self) -> Memory {
        self.ws.send("41").await;
        self.ws.send("1").await;
        self.ws.closed().await;
        self.memory
    }

    /// Sends a disconnect packet and closes, like `socket.disconnect()`, without waiting. The
    /// closing handshake goes on in the background, as in a browser.
    pub async fn disconnect(mut self) -> Memory {
        self.ws.send("41").await;
        let _ = self.ws.stream().close(None).await;
        let Self { mut ws, memory, .. } = self;
        tokio::spawn(async move { while let Some(Ok(_)) = ws.stream().next().await {} });
        memory
    }

    /// Sends an event and waits for its ack.
    pub async fn ask(&mut self, event: &str, data: Value) -> Value {
        self.last_id += 1;
        let ack = format!("43{}[", self.last_id);
        self.ws.send(format!("42{}{}", self.last_id, json!([event, data]))).await;
        loop {
            let packet = self.ws.packet().await;
            if packet.starts_with(&ack) {
                let (_, json) = packet.split_at(ack.len() - 1);
                let [answer]: [Value; 1] = serde_json::from_str(json).expect("one argument");
                return answer;
            }
            self.pushed.push_back(event_of(&packet));
        }
    }

    /// Sends an event without an ack.
    pub async fn emit(&mut self, event: &str, data: Value) {
        self.ws.send(format!("42{}", json!([event, data]))).await;
    }

    /// Joins a room that it was not in before.
    pub async fn join(&mut self, room: &str) {
        let ack = self.ask("joinRoom", json!(room)).await;
        assert_eq!((&ack["room"], &ack["recovered"]), (&json!(room), &json!(false)), "{ack}");
    }

    /// The next event: its name and its arguments. Only events that this returns count as received.
    pub async fn event(&mut self) -> Vec<Value> {
        let event = match self.pushed.pop_front() {
            Some(event) => event,
            None => event_of(&self.ws.packet().await),
        };
        if self.memory.pid.is_some()
            && let Some(Value::String(text)) = event.last()
        {
            self.memory.offset = Some(text.clone());
        }
        event
    }

    /// The next event, which must be a `receiveMessage` with an offset: its room and content.
    pub async fn heard(&mut self) -> (String, String) {
        match self.told().await {
            Told { message: Some(message), with_offset: true } => message,
            told => panic!("not a message with an offset: {told:?}"),
        }
    }

    /// The next event, which must be a `receiveMessage`. It must have an offset if this client
    /// asked for it; otherwise, it can also be a `position` event.
    pub async fn told(&mut self) -> Told {
        let event = self.event().await;
        let message = match &event[..] {
            [name, Value::Object(message)] if name == "receiveMessage" && !self.inside => message,
            [name, Value::Object(message), Value::String(_)]
                if name == "receiveMessage" && self.inside =>
            {
                message
            }
            [name, Value::String(_)] if name == "position" && !self.inside => {
                return Told { message: None, with_offset: true };
            }
            _ => panic!("unexpected: {event:?}"),
        };
        let text = |name: &str| message[name].as_str().expect("a text").to_owned();
        Told { message: Some((text("room"), text("content"))), with_offset: self.inside }
    }

    /// The contents of the next messages.
    pub async fn contents(&mut self, count: usize) -> Vec<String> {
        let mut contents = Vec::with_capacity(count);
        for _ in 0..count {
            contents.push(self.heard().await.1);
        }
        contents
    }

    /// Asserts that no event comes before the ack of a request that is sent now.
    pub async fn assert_nothing_came(&mut self) {
        self.ask("leaveRoom", json!("0123456789abcdef01234567")).await;
        assert_eq!(self.pushed, VecDeque::<Vec<Value>>::new());
    }

    /// Reads until the server closes. Returns the close code.
    pub async fn closed(&mut self) -> Option<u16> {
        self.ws.closed().await
    }
}

fn event_of(packet: &str) -> Vec<Value> {
    let json = packet.strip_prefix("42").unwrap_or_else(|| panic!("not an event: {packet}"));
    serde_json::from_str(json).expect("an array")
}
