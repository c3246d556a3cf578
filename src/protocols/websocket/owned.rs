//! A WebSocket that owns its TCP connection: no task, no channel and no buffer while it is idle.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_codec::Decoder;
use actix_http::ws::{self, CloseCode, CloseReason, Codec, Item};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep_until, timeout};

use super::handover::Connection;
use super::write_handle::WriteHandle;
use super::{Closed, Message, Progress, WRITE_DEADLINE};

/// How many bytes are read at once.
const READ: usize = 16 * 1024;
/// From this many unwritten bytes on, pings are not answered: the client does not read.
const MAX_BUFFERED_FOR_PONG: usize = 64 * 1024;
/// How long the client may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

thread_local! {
    /// The read buffer of all sockets of a thread, so that an idle socket has none.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
}

pub(super) struct OwnedSocket {
    state: State,
    max_message: usize,
}

enum State {
    /// The server has not handed the connection over yet.
    Upgrading(oneshot::Receiver<Connection>),
    Open(Open),
    Gone,
}

struct Open {
    writer: WriteHandle,
    /// The write timeout, set while bytes wait to be written.
    write_timer: Option<Pin<Box<Sleep>>>,
    codec: Codec,
    read: BytesMut,
    /// The frames of an incomplete message, and whether it is text.
    partial: Option<(BytesMut, bool)>,
    /// The client has sent a close frame: what follows is discarded (RFC 6455, section 1.4).
    closed: bool,
    max_message: usize,
}

impl OwnedSocket {
    pub(super) fn new(connection: oneshot::Receiver<Connection>, max_message: usize) -> Self {
        Self { state: State::Upgrading(connection), max_message }
    }

    /// Waits for the connection; `None` if it was lost.
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

    pub(super) async fn advance(&mut self, receive: bool) -> Result<Progress, Closed> {
        let open = self.open().await.ok_or(Closed::ByClient)?;
        poll_fn(|context| open.poll_advance(context, receive)).await
    }

    pub(super) async fn opened(&mut self) -> Result<&WriteHandle, Closed> {
        self.open().await.map(|open| &open.writer).ok_or(Closed::ByClient)
    }

    pub(super) fn writer(&self) -> Option<&WriteHandle> {
        match &self.state {
            State::Open(open) => Some(&open.writer),
            State::Upgrading(_) | State::Gone => None,
        }
    }

    pub(super) async fn close(mut self: Box<Self>, code: CloseCode, reason: &str) {
        if let Some(open) = self.open().await {
            open.close(CloseReason { code, description: Some(reason.to_owned()) }).await;
        }
    }
}

impl Open {
    fn new(connection: Connection, max_message: usize) -> Self {
        let Connection { io, read, unwritten, guard } = connection;
        let writer = WriteHandle::new(io, guard, &unwritten);
        // Copied, since the buffer of the HTTP connection is larger than the bytes left in it.
        let read = BytesMut::from(&*read);
        let codec = Codec::new().max_size(max_message);
        Self { writer, write_timer: None, codec, read, partial: None, closed: false, max_message }
    }

    fn poll_advance(
        &mut self,
        context: &mut Context<'_>,
        receive: bool,
    ) -> Poll<Result<Progress, Closed>> {
        match self.poll_write(context) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(Progress::Written)),
            Poll::Ready(Err(closed)) => {
                // Messages that the client sent before can still be read.
                self.writer.discard_output();
                self.write_timer = None;
                if closed != Closed::ByClient {
                    return Poll::Ready(Err(closed));
                }
            }
            Poll::Pending => {}
        }
        if !receive {
            // On a broken connection no write will complete, so do not wait for one.
            let broken = self.writer.is_broken();
            return if broken { Poll::Ready(Ok(Progress::Written)) } else { Poll::Pending };
        }
        if self.closed {
            return Poll::Ready(Err(Closed::ByClient));
        }
        loop {
            while let Some(frame) = self.decode()? {
                if let Some(message) = self.take(frame)? {
                    return Poll::Ready(Ok(Progress::Received(message)));
                }
            }
            ready!(self.writer.io().poll_read_ready(context)).map_err(|_| Closed::ByClient)?;
            self.try_read()?;
        }
    }

    /// Ready when there were bytes to write and all are written.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        loop {
            let written = self.writer.poll_write(context)?;
            let Some(deadline) = self.writer.deadline() else {
                self.write_timer = None;
                return written.map(Ok);
            };
            let write_timer =
                self.write_timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if write_timer.deadline() != deadline {
                write_timer.as_mut().reset(deadline);
            }
            ready!(write_timer.as_mut().poll(context));
            self.writer.write_despite_readiness()?;
            if self.writer.buffered() == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn try_read(&mut self) -> Result<(), Closed> {
        READ_BUFFER.with_borrow_mut(|scratch| match self.writer.io().try_read(scratch) {
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
            // A parsed message may still share this buffer, so release it here.
            self.read = BytesMut::new();
            return Ok(None);
        }
        self.codec.decode(&mut self.read).map_err(|error| Closed::from_protocol_error(&error))
    }

    /// Handles a frame. Returns the message that the frame completes, if any.
    fn take(&mut self, frame: ws::Frame) -> Result<Option<Message>, Closed> {
        match frame {
            ws::Frame::Text(bytes) => text(bytes).map(Some),
            ws::Frame::Binary(bytes) => Ok(Some(Message::Binary(bytes))),
            ws::Frame::Continuation(item) => self.continue_with(item),
            ws::Frame::Ping(data) => {
                if self.writer.buffered() < MAX_BUFFERED_FOR_PONG
                    && self.writer.feed_message(ws::Message::Pong(data)).is_ok()
                {
                    self.writer.write_now();
                }
                Ok(Some(Message::Alive))
            }
            ws::Frame::Pong(_) => Ok(Some(Message::Alive)),
            ws::Frame::Close(reason) => {
                self.closed = true;
                if self.writer.feed_message(ws::Message::Close(reason)).is_ok() {
                    self.writer.write_now();
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
        // The codec rejects a continuation without a first frame.
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

    /// Closes, and waits until the client closes, too: dropping a connection with unread bytes
    /// resets it, and written bytes would be lost.
    async fn close(&mut self, reason: CloseReason) {
        if self.writer.feed_message(ws::Message::Close(Some(reason))).is_err() {
            return;
        }
        let writing = poll_fn(|context| self.poll_advance(context, false));
        if !matches!(timeout(WRITE_DEADLINE, writing).await, Ok(Ok(_))) || self.writer.is_broken() {
            return;
        }
        if self.writer.shutdown_write().is_err() {
            return;
        }
        let closed_by_client = async {
            loop {
                self.read = BytesMut::new();
                if self.writer.io().readable().await.is_err() {
                    return;
                }
                let read =
                    READ_BUFFER.with_borrow_mut(|scratch| self.writer.io().try_read(scratch));
                match read {
                    Ok(0) => return,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closed_by_client).await;
    }
}

fn text(bytes: Bytes) -> Result<Message, Closed> {
    ByteString::try_from(bytes).map(Message::Text).map_err(|_| Closed::NotUtf8)
}
