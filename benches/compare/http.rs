//! A cheap HTTP/1.1 client: it encodes a request once, and reads only the status and the length of
//! an answer.
//!
//! The load runs on the same processors as the server. A general client would take much of their
//! time.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Result;

/// The bytes of a request with keep-alive.
pub fn request(method: &str, path: &str, token: Option<&str>, body: Option<&str>) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if let Some(token) = token {
        text.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    match body {
        Some(body) => {
            let length = body.len();
            text.push_str("Content-Type: application/json\r\n");
            text.push_str(&format!("Content-Length: {length}\r\n\r\n{body}"));
        }
        None => text.push_str("\r\n"),
    }
    text.into_bytes()
}

/// A connection, with one request at a time.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// The status and the length of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The length of the body, in bytes.
    pub length: usize,
    body_at: usize,
}

impl Connection {
    /// Opens a connection.
    pub async fn open(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Sends a request and reads its answer. A chunked body is counted and discarded.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let body_at = loop {
            self.read_more().await?;
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = std::str::from_utf8(self.buffer.get(..body_at).unwrap_or_default())?;
        let status = head.get(9..12).ok_or("no status")?.parse()?;
        let length = header(head, "content-length").map(str::parse::<usize>).transpose()?;
        if header(head, "transfer-encoding").is_some() {
            let length = self.discard_chunks(body_at).await?;
            return Ok(Answer { status, length, body_at });
        }
        let length = length.unwrap_or_default();
        while self.buffer.len() < body_at + length {
            self.read_more().await?;
        }
        Ok(Answer { status, length, body_at })
    }

    /// Sends a request and reads its JSON. Another status is an error.
    pub async fn json(&mut self, request: &[u8], status: u16) -> Result<Value> {
        let answer = self.exchange(request).await?;
        let body = self.buffer.get(answer.body_at..).unwrap_or_default();
        if answer.status != status {
            let body = String::from_utf8_lossy(body);
            return Err(format!("{} instead of {status}: {body}", answer.status).into());
        }
        Ok(serde_json::from_slice(body)?)
    }

    async fn read_more(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("the connection was closed".into()),
            _ => Ok(()),
        }
    }

    /// Reads up to the last chunk, which is empty. Keeps only the last bytes, because the answers
    /// can be very large.
    async fn discard_chunks(&mut self, body_at: usize) -> Result<usize> {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        let mut length = self.buffer.len() - body_at;
        while !self.buffer.ends_with(END) {
            let kept = self.buffer.len().saturating_sub(END.len());
            self.buffer.drain(..kept);
            let before = self.buffer.len();
            self.read_more().await?;
            length += self.buffer.len() - before;
        }
        Ok(length)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
