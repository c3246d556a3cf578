//! A WebSocket that owns its TCP connection: no task, no channel and no buffer while it is idle.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::time::Duration;

use actix_codec::{Decoder, Encoder};
use actix_http::ws::{self, CloseCode, CloseReason, Codec, Item};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Closed, Frame, Message, Turn, WRITE_DEADLINE};
use crate::server::{Connection, Counted};

/// How much is read at once.
const READ: usize = 16 * 1024;
/// No larger buffer is kept for the next socket.
const KEPT: usize = 4 * 1024;
/// With so much unwritten, a ping is not answered: its sender does not read.
const TOO_MUCH_FOR_PONGS: usize = 64 * 1024;
/// How long after a close the client may take to close, too.
const GOODBYE: Duration = Duration::from_secs(2);

thread_local! {
    /// What every socket of a thread reads into: an idle one has no buffer of its own.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
    /// What the next socket writes from, which is in the processor's cache when one after another
    /// writes the same event.
    static SPARE: Cell<BytesMut> = Cell::default();
}

pub(super) struct BareSocket {
    state: State,
    max_message: usize,
}

enum State {
    /// The response is being written.
    Upgrading(oneshot::Receiver<Connection>),
    Open(Open),
    Gone,
}

struct Open {
    io: TcpStream,
    _counted: Counted,
    codec: Codec,
    read: BytesMut,
    write: BytesMut,
    /// When the client last took something of `write`, or it was last empty.
    progress: Instant,
    /// The frames of a message so far, and whether it is a text.
    partial: Option<(BytesMut, bool)>,
    max_message: usize,
}

impl BareSocket {
    pub(super) fn new(connection: oneshot::Receiver<Connection>, max_message: usize) -> Self {
        Self { state: State::Upgrading(connection), max_message }
    }

    /// The connection, once it is there; `None` when it is gone.
    async fn open(&mut self) -> Option<&mut Open> {
        if let State::Upgrading(connection) = &mut self.state {
            self.state = match connection.await {
                Ok(connection) => State::Open(Open::new(connection, self.max_message)),
                Err(_) => State::Gone,
            };
        }
        match &mut self.state {
            State::Open(open) => Some(open),
            State::Upgrading(_) | State::Gone => None,
        }
    }

    pub(super) async fn turn(&mut self, receive: bool) -> Result<Turn, Closed> {
        self.open().await.ok_or(Closed::ByClient)?.turn(receive).await
    }

    pub(super) async fn feed(&mut self, frame: Frame) -> Result<(), Closed> {
        let open = self.open().await.ok_or(Closed::ByClient)?;
        open.encode(match frame {
            Frame::Text(text) => ws::Message::Text(text),
            Frame::Binary(bytes) => ws::Message::Binary(bytes),
            Frame::Ping => ws::Message::Ping(Bytes::new()),
        })
    }

    pub(super) fn buffered(&self) -> usize {
        match &self.state {
            State::Open(open) => open.write.len(),
            State::Upgrading(_) | State::Gone => 0,
        }
    }

    pub(super) async fn close(mut self: Box<Self>, code: CloseCode, reason: &str) {
        if let Some(open) = self.open().await {
            open.close(CloseReason { code, description: Some(reason.to_owned()) }).await;
        }
    }
}

impl Open {
    fn new(Connection { io, read, counted }: Connection, max_message: usize) -> Self {
        // The buffer of the HTTP connection is larger than what is left in it.
        let read = BytesMut::from(&*read);
        let codec = Codec::new().max_size(max_message);
        let (write, progress) = (BytesMut::new(), Instant::now());
        Self { io, _counted: counted, codec, read, write, progress, partial: None, max_message }
    }

    async fn turn(&mut self, receive: bool) -> Result<Turn, Closed> {
        loop {
            if !self.write.is_empty() {
                self.try_write()?;
                if self.write.is_empty() {
                    return Ok(Turn::Written);
                }
            }
            if receive {
                while let Some(frame) = self.decode()? {
                    if let Some(message) = self.take(frame)? {
                        return Ok(Turn::Received(message));
                    }
                }
            }
            // Nothing is taken or given before the socket is ready, so this future can be dropped.
            let unwritten = !self.write.is_empty();
            self.ready(receive).await?;
            if unwritten && self.write.is_empty() {
                return Ok(Turn::Written);
            }
            if receive {
                self.try_read()?;
            }
        }
    }

    /// Waits until something can be written or, if wanted, read; at the deadline it writes itself.
    async fn ready(&mut self, receive: bool) -> Result<(), Closed> {
        let interest = match (receive, self.write.is_empty()) {
            (true, true) => {
                // The one task that reads has a place for its waker, without a list.
                let readable = poll_fn(|context| self.io.poll_read_ready(context));
                return readable.await.map_err(|_| Closed::ByClient);
            }
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (false, false) => Interest::WRITABLE,
            (false, true) => return std::future::pending().await,
        };
        match timeout_at(self.progress + WRITE_DEADLINE, self.io.ready(interest)).await {
            Ok(ready) => ready.map(drop).map_err(|_| Closed::ByClient),
            Err(_) => self.write_against_readiness(),
        }
    }

    /// A last look at a client that seems not to read: the system calls a socket writable only
    /// when a good part of its buffer is free, but takes bytes as soon as there is any room.
    fn write_against_readiness(&mut self) -> Result<(), Closed> {
        match SockRef::from(&self.io).send(&self.write) {
            Ok(count) if count > 0 => {
                self.has_written(count);
                Ok(())
            }
            _ => Err(Closed::NotRead),
        }
    }

    fn try_read(&mut self) -> Result<(), Closed> {
        SCRATCH.with_borrow_mut(|scratch| match self.io.try_read(scratch) {
            Ok(0) => Err(Closed::ByClient),
            Ok(count) => {
                self.read.extend_from_slice(scratch.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(Closed::ByClient),
        })
    }

    fn decode(&mut self) -> Result<Option<ws::Frame>, Closed> {
        if self.read.is_empty() {
            // What was parsed may still be held by a message; this must not hold it as well.
            self.read = BytesMut::new();
            return Ok(None);
        }
        self.codec.decode(&mut self.read).map_err(|error| Closed::against(&error))
    }

    /// Takes a frame; `None` when it is not the end of a message.
    fn take(&mut self, frame: ws::Frame) -> Result<Option<Message>, Closed> {
        match frame {
            ws::Frame::Text(bytes) => text(bytes).map(Some),
            ws::Frame::Binary(bytes) => Ok(Some(Message::Binary(bytes))),
            ws::Frame::Continuation(item) => self.continue_with(item),
            ws::Frame::Ping(data) => {
                if self.write.len() < TOO_MUCH_FOR_PONGS
                    && self.encode(ws::Message::Pong(data)).is_ok()
                {
                    // What cannot be written now goes with the next frame.
                    let _ = self.try_write();
                }
                Ok(Some(Message::Alive))
            }
            ws::Frame::Pong(_) => Ok(Some(Message::Alive)),
            ws::Frame::Close(reason) => {
                if self.encode(ws::Message::Close(reason)).is_ok() {
                    let _ = self.try_write();
                }
                Err(Closed::ByClient)
            }
        }
    }

    fn continue_with(&mut self, item: Item) -> Result<Option<Message>, Closed> {
        let (part, last) = match item {
            Item::FirstText(part) => {
                self.partial = Some((BytesMut::new(), true));
                (part, false)
            }
            Item::FirstBinary(part) => {
                self.partial = Some((BytesMut::new(), false));
                (part, false)
            }
            Item::Continue(part) => (part, false),
            Item::Last(part) => (part, true),
        };
        // The codec lets no part come before the first.
        let Some((message, is_text)) = &mut self.partial else { return Ok(None) };
        if message.len() + part.len() > self.max_message {
            return Err(Closed::TooLong);
        }
        message.extend_from_slice(&part);
        if !last {
            return Ok(None);
        }
        let (message, is_text) = (std::mem::take(message).freeze(), *is_text);
        self.partial = None;
        if is_text { text(message).map(Some) } else { Ok(Some(Message::Binary(message))) }
    }

    fn encode(&mut self, message: ws::Message) -> Result<(), Closed> {
        if self.write.is_empty() {
            self.progress = Instant::now();
            self.write = SPARE.take();
        }
        self.codec.encode(message, &mut self.write).map_err(|error| Closed::against(&error))
    }

    /// Writes what the system takes now.
    fn try_write(&mut self) -> Result<(), Closed> {
        while !self.write.is_empty() {
            match self.io.try_write(&self.write) {
                Ok(0) => return Err(Closed::ByClient),
                Ok(count) => self.has_written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Closed::ByClient),
            }
        }
        Ok(())
    }

    fn has_written(&mut self, count: usize) {
        if count < self.write.len() {
            bytes::Buf::advance(&mut self.write, count);
            self.progress = Instant::now();
            return;
        }
        let mut written = std::mem::take(&mut self.write);
        written.clear();
        // One that could hold more than this is let go, however much of it was used.
        if !written.try_reclaim(KEPT + 1) {
            SPARE.set(written);
        }
    }

    /// Closes and waits for the client to close, too, as a connection that is dropped with unread
    /// bytes takes back what was written.
    async fn close(&mut self, reason: CloseReason) {
        if self.encode(ws::Message::Close(Some(reason))).is_err() {
            return;
        }
        if !matches!(timeout(WRITE_DEADLINE, self.turn(false)).await, Ok(Ok(_))) {
            return;
        }
        if self.io.shutdown().await.is_err() {
            return;
        }
        let goodbye = async {
            loop {
                self.read = BytesMut::new();
                if self.io.readable().await.is_err() {
                    return;
                }
                let read = SCRATCH.with_borrow_mut(|scratch| self.io.try_read(scratch));
                match read {
                    Ok(0) => return,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }
}

fn text(bytes: Bytes) -> Result<Message, Closed> {
    ByteString::try_from(bytes).map(Message::Text).map_err(|_| Closed::NotUtf8)
}
