//! Sends the malformed input of [`grammar`](super::grammar) and reads the answers. It only uses
//! that helper and the random numbers, because `examples/siege` uses it, too.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::grammar::{self, Kind};
use super::random::Random;

/// How long to wait for an answer. Some requests are incomplete and get none.
const ANSWER: Duration = Duration::from_millis(20);
/// The timeout of the answer to a valid request.
const VALID: Duration = Duration::from_secs(5);
/// The maximum number of inputs on one connection. Most inputs end it.
const ON_ONE: usize = 4;

/// Sends `count` inputs of a kind. Returns how often each status was answered; 0 means no answer.
pub async fn send(
    kind: Kind,
    count: usize,
    addr: SocketAddr,
    token: &str,
    random: &mut Random,
) -> BTreeMap<u16, usize> {
    let mut seen = BTreeMap::new();
    let mut left = count;
    while left > 0 {
        let batch = left.min(if kind == Kind::Request { 1 } else { ON_ONE });
        // The server may do anything with the connection, but must not crash.
        let status = match kind {
            Kind::Request => raw(addr, &grammar::request(random)).await,
            Kind::Frame | Kind::SocketPacket => frames(kind, batch, addr, token, random).await,
            Kind::EnginePacket => posts(batch, addr, random).await,
        };
        *seen.entry(status.unwrap_or(0)).or_default() += batch;
        left -= batch;
    }
    seen
}

/// Sends bytes. Returns the status of the first answer.
async fn raw(addr: SocketAddr, bytes: &[u8]) -> io::Result<u16> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    Ok(status(&read(&mut stream, VALID).await))
}

/// Opens a valid WebSocket, and then sends malformed frames.
async fn frames(
    kind: Kind,
    count: usize,
    addr: SocketAddr,
    token: &str,
    random: &mut Random,
) -> io::Result<u16> {
    let path = match kind {
        Kind::SocketPacket => "/socket.io/?EIO=4&transport=websocket".to_owned(),
        _ => format!("/ws?token={token}"),
    };
    let upgrade = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(upgrade.as_bytes()).await?;
    let status = status(&read(&mut stream, VALID).await);
    if kind == Kind::SocketPacket {
        let enter = grammar::text_frame(&format!("40{{\"token\":\"{token}\"}}"));
        stream.write_all(&enter).await?;
    }
    for _ in 0..count {
        let bytes = match (random.below(2), kind) {
            (0, _) => grammar::frame(random),
            (_, Kind::SocketPacket) => grammar::text_frame(&grammar::packet(random)),
            _ => grammar::text_frame(&grammar::event(random)),
        };
        if stream.write_all(&bytes).await.is_err() {
            break;
        }
    }
    read(&mut stream, ANSWER).await;
    Ok(status)
}

/// Opens a session by long-polling and posts malformed payloads.
async fn posts(count: usize, addr: SocketAddr, random: &mut Random) -> io::Result<u16> {
    let path = "/socket.io/?EIO=4&transport=polling";
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
    let open = String::from_utf8_lossy(&read(&mut stream, VALID).await).into_owned();
    let sid = open.split("\"sid\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let path = format!("{path}&sid={}", sid.unwrap_or_default());
    for _ in 0..count {
        let body = grammar::payload(random);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain;charset=UTF-8\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
            break;
        }
        read(&mut stream, ANSWER).await;
    }
    Ok(status(open.as_bytes()))
}

/// The first bytes, if they come in time.
async fn read(stream: &mut TcpStream, patience: Duration) -> Vec<u8> {
    let mut answer = vec![0; 4_096];
    let read = timeout(patience, stream.read(&mut answer)).await;
    answer.truncate(read.ok().and_then(Result::ok).unwrap_or(0));
    answer
}

fn status(answer: &[u8]) -> u16 {
    let text = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}
