//! Clients of Engine.IO that only do what the test calls: a poller and a WebSocket.
//!
//! They read packets as text, and answer pings only in the methods that say so.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::wire::{Response, exchange};

/// The timeout of a test that waits for something.
const SOON: Duration = Duration::from_secs(20);

/// The separator of the packets in a payload.
pub const SEPARATOR: char = '\x1e';

impl Response {
    /// The body, which is text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Asserts an error of the protocol: its status and its body.
    #[track_caller]
    pub fn assert_refused(&self, code: u8, message: &str) {
        let body = format!("{{\"code\":{code},\"message\":\"{message}\"}}");
        let status = if code == 4 { 403 } else { 400 };
        assert_eq!((self.status, self.text()), (status, body.as_str()));
        assert_eq!(self.header("content-type"), ["application/json"]);
    }

    /// Asserts that a poll was answered with these packets.
    #[track_caller]
    pub fn assert_packets(&self, packets: &str) {
        assert_eq!((self.status, self.text()), (200, packets));
    }

    /// Asserts that a post was accepted.
    #[track_caller]
    pub fn assert_ok(&self) {
        self.assert_packets("ok");
    }

    /// Asserts that the session is unknown.
    #[track_caller]
    pub fn assert_unknown(&self) {
        self.assert_refused(1, "Session ID unknown");
    }
}

/// Sends a request on a new connection.
pub async fn request(
    addr: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let bytes = encode(method, target, headers, body);
    let answers = exchange(addr, method == "HEAD", &bytes, 1).await.expect("an answer");
    answers.into_iter().next().expect("one answer")
}

/// Unzips text.
pub fn inflated(gzip: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(gzip).read_to_string(&mut text).expect("gzip of UTF-8");
    text
}

fn encode(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// A session over long-polling. Every request has a new connection. Clones share the session.
#[derive(Debug, Clone)]
pub struct Poller {
    addr: SocketAddr,
    target: String,
    /// The open packet.
    pub open: Value,
}

impl Poller {
    /// Opens a session. `endpoint` is a path with an optional query.
    pub async fn open(addr: SocketAddr, endpoint: &str) -> Self {
        let between = if endpoint.contains('?') { '&' } else { '?' };
        let target = format!("{endpoint}{between}EIO=4&transport=polling");
        let answer = request(addr, "GET", &target, &[], &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let json = answer.text().strip_prefix('0').expect("an open packet");
        let open: Value = serde_json::from_str(json).expect("JSON");
        let sid = open["sid"].as_str().expect("a session id");
        Self { addr, target: format!("{target}&sid={sid}"), open }
    }

    /// The target of this session's requests, for this transport.
    pub fn target(&self, transport: &str) -> String {
        self.target.replace("transport=polling", &format!("transport={transport}"))
    }

    /// Sends a request.
    pub async fn request(&self, method: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        request(self.addr, method, &self.target, headers, body).await
    }

    /// Polls once.
    pub async fn poll(&self) -> Response {
        self.request("GET", &[], &[]).await
    }

    /// Polls once in the background.
    pub fn polling(&self) -> tokio::task::JoinHandle<Response> {
        let poller = self.clone();
        tokio::spawn(async move { poller.poll().await })
    }

    /// Posts a payload.
    pub async fn post(&self, payload: &str) -> Response {
        let headers = [("Content-Type", "text/plain;charset=UTF-8")];
        self.request("POST", &headers, payload.as_bytes()).await
    }

    /// Sends a request without its last `missing` bytes, and does not wait for the answer. Dropping
    /// the stream aborts the connection.
    pub async fn begin(&self, method: &str, body: &str, missing: usize) -> TcpStream {
        let whole = [body.as_bytes(), &vec![b'.'; missing]].concat();
        let bytes = encode(method, &self.target, &[], &whole);
        let mut stream = TcpStream::connect(self.addr).await.expect("the server listens");
        stream.write_all(&bytes[..bytes.len() - missing]).await.expect("the request is sent");
        stream
    }

    /// Polls and answers pings, until there are packets other than pings and noops.
    pub async fn packets(&self) -> Vec<String> {
        loop {
            let answer = self.poll().await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let packets = answer.text().split(SEPARATOR).map(str::to_owned);
            let (silent, packets): (Vec<_>, Vec<_>) =
                packets.partition(|packet| packet == "2" || packet == "6");
            if silent.iter().any(|packet| packet == "2") {
                self.post("3").await.assert_ok();
            }
            if !packets.is_empty() {
                return packets;
            }
        }
    }

    /// Polls until `count` packets have come.
    pub async fn collect(&self, count: usize) -> Vec<String> {
        let mut packets = Vec::new();
        while packets.len() < count {
            packets.extend(self.packets().await);
        }
        packets
    }

    /// Waits until the session is unknown. Sends pongs meanwhile.
    pub async fn gone(&self) {
        super::eventually("the session is gone", async || self.post("3").await.status == 400).await;
        self.post("3").await.assert_unknown();
    }
}

/// A WebSocket of Engine.IO.
#[derive(Debug)]
pub struct Ws {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Ws {
    /// Opens a session. `endpoint` is a path with an optional query.
    pub async fn open(addr: SocketAddr, endpoint: &str) -> Self {
        let between = if endpoint.contains('?') { '&' } else { '?' };
        let target = format!("{endpoint}{between}EIO=4&transport=websocket");
        let mut ws = Self::connect(addr, &target).await;
        let open = ws.next().await;
        assert!(open.to_text().is_ok_and(|text| text.starts_with("0{")), "{open:?}");
        ws
    }

    /// Wraps an open WebSocket.
    pub fn of(stream: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self { stream }
    }

    /// Connects, without waiting for a packet.
    pub async fn connect(addr: SocketAddr, target: &str) -> Self {
        Self::try_connect(addr, target).await.expect("the upgrade is accepted")
    }

    /// Connects. Returns the status if the server refuses it.
    pub async fn try_connect(addr: SocketAddr, target: &str) -> Result<Self, u16> {
        match connect_async(format!("ws://{addr}{target}")).await {
            Ok((stream, _)) => Ok(Self { stream }),
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("neither accepted nor refused: {error}"),
        }
    }

    /// Upgrades a session from polling.
    pub async fn upgrade(poller: &Poller) -> Self {
        let mut ws = Self::connect(poller.addr, &poller.target("websocket")).await;
        ws.send("2probe").await;
        assert_eq!(ws.text().await, "3probe");
        ws.send("5").await;
        ws
    }

    /// Sends a text frame.
    pub async fn send(&mut self, text: impl Into<String>) {
        self.stream.send(Message::text(text.into())).await.expect("the frame is sent");
    }

    /// Sends a binary frame.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) {
        self.stream.send(Message::binary(bytes)).await.expect("the frame is sent");
    }

    /// The next frame of any kind.
    pub async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(SOON, self.stream.next());
        next.await.expect("a frame in time").expect("the socket is open").expect("a frame")
    }

    /// The next frame, which must be text.
    pub async fn text(&mut self) -> String {
        self.next().await.into_text().expect("a text frame").as_str().to_owned()
    }

    /// The next frame that is not a ping. Answers pings.
    pub async fn message(&mut self) -> Message {
        loop {
            match self.next().await {
                Message::Text(text) if text == "2" => self.send("3").await,
                message => return message,
            }
        }
    }

    /// The next frame as text; `None` at the end.
    pub async fn next_text(&mut self) -> Option<String> {
        match tokio::time::timeout(SOON, self.stream.next()).await.expect("a frame in time") {
            Some(Ok(Message::Text(text))) => Some(text.as_str().to_owned()),
            _ => None,
        }
    }

    /// The next text that is not a ping. Answers pings.
    pub async fn packet(&mut self) -> String {
        self.message().await.into_text().expect("a text frame").as_str().to_owned()
    }

    /// Waits for raw bytes of the server and reads all that are there. Only call it between
    /// messages.
    pub async fn read_once(&mut self) -> Vec<u8> {
        let MaybeTlsStream::Plain(stream) = self.stream.get_mut() else { panic!("no TLS here") };
        let mut bytes = vec![0; 64 * 1024];
        let reading = tokio::time::timeout(SOON, stream.read(&mut bytes));
        let count = reading.await.expect("bytes in time").expect("the connection holds");
        bytes.truncate(count);
        bytes
    }

    /// The next texts that are not pings. Answers pings.
    pub async fn collect(&mut self, count: usize) -> Vec<String> {
        let mut packets = Vec::with_capacity(count);
        for _ in 0..count {
            packets.push(self.packet().await);
        }
        packets
    }

    /// Reads until the server closes, and answers pings. Returns the close code.
    pub async fn closed(&mut self) -> Option<u16> {
        self.read_to_end(true).await.0
    }

    /// Reads until the server closes, without answering pings. Returns the texts before.
    pub async fn closed_on_silence(&mut self) -> Vec<String> {
        self.read_to_end(false).await.1
    }

    async fn read_to_end(&mut self, polite: bool) -> (Option<u16>, Vec<String>) {
        let mut texts = Vec::new();
        let closed = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        if polite && text == "2" {
                            // The socket may be closed already.
                            let _ = self.stream.send(Message::text("3")).await;
                        }
                        texts.push(text.as_str().to_owned());
                    }
                    Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        };
        let code = tokio::time::timeout(SOON, closed).await.expect("the server closes");
        (code, texts)
    }

    /// The stream, for everything else.
    pub fn stream(&mut self) -> &mut WebSocketStream<MaybeTlsStream<TcpStream>> {
        &mut self.stream
    }
}
