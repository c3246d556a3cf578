//! A cheap WebSocket client.
//!
//! At half a million frames a second, the load has less than a microsecond of CPU time for each
//! frame. A general client allocates a message for every frame and keeps a read buffer for every
//! socket. This one reads into one buffer for each thread and parses frames in place. It masks with
//! zeros, which does not change the bytes, and checks nothing that the tests of the servers check.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Poll, ready};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use crate::Result;

/// The key of the example in the RFC, and its `Sec-WebSocket-Accept`.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// How many loopback addresses sockets come from.
const SOURCES: usize = 8;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 * 1024]);
}

/// A frame, without its header.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A text.
    Text(&'a [u8]),
    /// A ping, which must be answered.
    Ping(&'a [u8]),
    /// A close frame with its code.
    Close(Option<u16>),
    /// Anything else.
    Other,
}

/// The first frame in these bytes, and its length in bytes; `None` if it is not complete. Masks
/// must be zeros.
pub fn parse(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let &[first, second, ref rest @ ..] = bytes else { return None };
    let (length, rest) = match second & 0x7F {
        126 => rest.split_first_chunk().map(|(n, rest)| (u16::from_be_bytes(*n).into(), rest))?,
        127 => rest.split_first_chunk().map(|(n, rest)| (u64::from_be_bytes(*n), rest))?,
        short => (short.into(), rest),
    };
    let rest = if second & 0x80 == 0 { rest } else { rest.get(4..)? };
    let payload = rest.get(..usize::try_from(length).ok()?)?;
    let frame = match first & 0x0F {
        1 => Frame::Text(payload),
        8 => Frame::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
        9 => Frame::Ping(payload),
        _ => Frame::Other,
    };
    Some((frame, bytes.len() - rest.len() + payload.len()))
}

/// Appends a text frame. A frame of a client has a mask.
pub fn push_text(out: &mut Vec<u8>, payload: &[u8], from_client: bool) {
    push_frame(out, 0x81, payload, from_client);
}

fn push_frame(out: &mut Vec<u8>, first: u8, payload: &[u8], from_client: bool) {
    let mask = if from_client { 0x80 } else { 0 };
    out.push(first);
    match payload.len() {
        short @ 0..126 => out.push(mask | short as u8),
        length => {
            // No frame here is longer than 64 KiB.
            out.push(mask | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    if from_client {
        out.extend_from_slice(&[0; 4]);
    }
    out.extend_from_slice(payload);
}

/// Where a socket connects from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// A loopback address. Each of these addresses has its own ports.
    pub address: Ipv4Addr,
    /// The size of the receive buffer in bytes, if it is not that of the system.
    pub buffer: Option<u32>,
}

impl Source {
    /// The source of the socket with this number: they take turns with some addresses.
    pub fn of(number: usize) -> Self {
        let [a, b] = ((2 + number % SOURCES) as u16).to_be_bytes();
        Self { address: Ipv4Addr::new(127, 0, a, b), buffer: None }
    }
}

/// An open WebSocket.
pub struct Socket {
    stream: TcpStream,
    /// The beginning of an incomplete frame; usually empty.
    rest: Vec<u8>,
}

impl Socket {
    /// Connects from a loopback address, which has its own ports.
    pub async fn connect(addr: SocketAddr, source: Source, path: &str) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if let Some(buffer) = source.buffer {
            socket.set_recv_buffer_size(buffer)?;
        }
        // The kernel chooses the port when it connects. When it binds, it would look through all
        // sockets that were closed in the last minute.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(IpAddr::V4(source.address), 0))?;
        let mut stream = socket.connect(addr).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut socket = Self { stream, rest: Vec::new() };
        let head = socket.read_head().await?;
        if !head.starts_with("HTTP/1.1 101") || !head.contains(ACCEPT) {
            let status = head.lines().next().unwrap_or_default();
            return Err(format!("no upgrade: {status}").into());
        }
        Ok(socket)
    }

    /// Sends encoded frames.
    pub async fn send(&mut self, frames: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(frames).await?)
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        let mut frame = Vec::with_capacity(text.len() + 8);
        push_text(&mut frame, text.as_bytes(), true);
        self.send(&frame).await
    }

    /// Sends text frames in one piece.
    pub async fn send_texts(&mut self, texts: &[String]) -> Result<()> {
        let mut frames = Vec::new();
        for text in texts {
            push_text(&mut frames, text.as_bytes(), true);
        }
        self.send(&frames).await
    }

    /// Waits for bytes, calls `on_text` for every complete text, and answers pings. Cancel-safe.
    ///
    /// # Errors
    /// The socket was closed.
    pub async fn read(&mut self, mut on_text: impl FnMut(&[u8])) -> Result<()> {
        let mut answers = Vec::new();
        let mut end = None;
        // Bytes that came together with the answer to the upgrade are there already.
        if parse(&self.rest).is_some() {
            let bytes = std::mem::take(&mut self.rest);
            self.rest = take_frames(&bytes, &mut on_text, &mut answers, &mut end).to_vec();
        } else {
            poll_fn(|cx| {
                BUFFER.with_borrow_mut(|buffer| {
                    let mut buffer = ReadBuf::new(buffer);
                    ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
                    let bytes = buffer.filled();
                    if bytes.is_empty() {
                        end = Some("closed".to_owned());
                    }
                    if self.rest.is_empty() {
                        let rest = take_frames(bytes, &mut on_text, &mut answers, &mut end);
                        self.rest.extend_from_slice(rest);
                    } else {
                        self.rest.extend_from_slice(bytes);
                        let bytes = std::mem::take(&mut self.rest);
                        let rest = take_frames(&bytes, &mut on_text, &mut answers, &mut end);
                        self.rest = rest.to_vec();
                    }
                    Poll::Ready(std::io::Result::Ok(()))
                })
            })
            .await?;
        }
        if !answers.is_empty() {
            self.send(&answers).await?;
        }
        end.map_or(Ok(()), |reason| Err(reason.into()))
    }

    /// Reads the answer to the upgrade. Later bytes are kept for [`Self::read`].
    async fn read_head(&mut self) -> Result<String> {
        use tokio::io::AsyncReadExt;

        let mut head = Vec::new();
        loop {
            if self.stream.read_buf(&mut head).await? == 0 {
                return Err("closed before the upgrade".into());
            }
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                self.rest = head.split_off(end + 4);
                return Ok(String::from_utf8_lossy(&head).into_owned());
            }
        }
    }
}

/// Takes all complete frames. Returns the remaining bytes.
fn take_frames<'a>(
    mut bytes: &'a [u8],
    on_text: &mut impl FnMut(&[u8]),
    answers: &mut Vec<u8>,
    end: &mut Option<String>,
) -> &'a [u8] {
    while let Some((frame, length)) = parse(bytes) {
        match frame {
            Frame::Text(text) => on_text(text),
            Frame::Ping(data) => push_frame(answers, 0x8A, data, true),
            Frame::Close(code) => *end = Some(format!("closed with {}", code.unwrap_or(1005))),
            Frame::Other => {}
        }
        bytes = bytes.get(length..).unwrap_or_default();
    }
    bytes
}
