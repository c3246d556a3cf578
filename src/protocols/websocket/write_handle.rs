//! A handle that writes to a WebSocket. The socket's task has one, and so has every part that
//! writes directly, without that task.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use actix_codec::Encoder;
use actix_http::ws::{self, Codec};
use bytes::{Buf, Bytes, BytesMut};
use bytestring::ByteString;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::handover::Guard;
use super::{Closed, Frame, WRITE_DEADLINE};

/// The largest buffer that is kept for the next socket, in bytes.
const MAX_SPARE: usize = 4 * 1024;

thread_local! {
    /// The buffer that the next socket writes from. It is still in the CPU cache when many sockets
    /// write the same event.
    static SPARE_BUFFER: Cell<BytesMut> = Cell::default();
}

/// Writes to a socket from any thread, without waking the task that owns it, if no other bytes wait
/// to be written. The socket's task writes what the system does not accept at once, and detects a
/// broken connection.
///
/// The connection ends when its last handle is dropped.
#[derive(Debug, Clone)]
pub struct WriteHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    io: TcpStream,
    _guard: Guard,
    outgoing: Mutex<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    bytes: BytesMut,
    /// When the client last accepted some of `bytes`, or `bytes` was last empty.
    progress: Instant,
    /// The waker of the socket's task.
    task: Option<Waker>,
    /// A close was sent; nothing may follow it (RFC 6455, section 5.5.1).
    closing: bool,
    /// Writing has failed, or the client did not read. All that is sent from now on is dropped.
    broken: bool,
}

impl WriteHandle {
    /// A handle that writes these bytes first.
    pub(super) fn new(io: TcpStream, guard: Guard, unwritten: &[u8]) -> Self {
        let (mut bytes, progress) = (SPARE_BUFFER.take(), Instant::now());
        bytes.extend_from_slice(unwritten);
        let outgoing = Outgoing { bytes, progress, task: None, closing: false, broken: false };
        Self(Arc::new(Shared { io, _guard: guard, outgoing: Mutex::new(outgoing) }))
    }

    /// Sends text messages in one write, if no other bytes wait to be written. Otherwise sends none
    /// of them and returns `false`.
    pub fn send_now(&self, texts: impl IntoIterator<Item = ByteString>) -> bool {
        let mut outgoing = self.outgoing();
        if !outgoing.bytes.is_empty() || outgoing.broken {
            return false;
        }
        let encode = |text| outgoing.encode(ws::Message::Text(text));
        if texts.into_iter().try_for_each(encode).is_err() {
            // Messages that were encoded before the error are not sent either.
            outgoing.bytes.clear();
            return false;
        }
        self.write_or_wake(&mut outgoing);
        true
    }

    /// Writes as many queued bytes as the system accepts at once.
    pub fn write_now(&self) {
        self.write_or_wake(&mut self.outgoing());
    }

    /// How many bytes wait to be written.
    pub fn buffered(&self) -> usize {
        self.outgoing().bytes.len()
    }

    /// Whether writing has failed. Messages that the client sent before may still be unread.
    pub(super) fn is_broken(&self) -> bool {
        self.outgoing().broken
    }

    /// Drops the waiting bytes, and all that is sent from now on.
    pub(super) fn discard_output(&self) {
        let mut outgoing = self.outgoing();
        outgoing.broken = true;
        outgoing.bytes = BytesMut::new();
    }

    pub(super) fn io(&self) -> &TcpStream {
        &self.0.io
    }

    /// Queues a frame for the next write.
    ///
    /// # Errors
    /// A close was sent before. A broken connection is no error: the frame is dropped.
    pub fn feed(&self, frame: Frame) -> Result<(), Closed> {
        self.feed_message(match frame {
            Frame::Text(text) => ws::Message::Text(text),
            Frame::Binary(bytes) => ws::Message::Binary(bytes),
            Frame::Ping => ws::Message::Ping(Bytes::new()),
        })
    }

    /// As [`feed`](Self::feed), also for pongs and closes, which only the socket itself sends.
    pub(super) fn feed_message(&self, message: ws::Message) -> Result<(), Closed> {
        self.outgoing().encode(message)
    }

    /// Writes from the socket's task. Ready when there were bytes to write and all are written.
    pub(super) fn poll_write(&self, context: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let mut outgoing = self.outgoing();
        match &mut outgoing.task {
            Some(task) => task.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        while !outgoing.bytes.is_empty() {
            if self.try_write(&mut outgoing)? {
                return Poll::Ready(Ok(()));
            }
            match self.0.io.poll_write_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Closed::ByClient)),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// When the client must have accepted some bytes; `None` when none wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let outgoing = self.outgoing();
        (!outgoing.bytes.is_empty()).then(|| outgoing.progress + WRITE_DEADLINE)
    }

    /// The last attempt to write to a client that seems not to read. The system reports a socket as
    /// writable only when much of its buffer is free, but accepts bytes as soon as there is any
    /// room.
    pub(super) fn write_despite_readiness(&self) -> Result<(), Closed> {
        let mut outgoing = self.outgoing();
        if outgoing.bytes.is_empty() {
            // Another handle has written the bytes meanwhile.
            return Ok(());
        }
        match SockRef::from(&self.0.io).send(&outgoing.bytes) {
            Ok(count) if count > 0 => {
                outgoing.has_written(count);
                Ok(())
            }
            _ => Err(Closed::NotRead),
        }
    }

    /// Closes the sending direction of the connection.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(&self.0.io).shutdown(Shutdown::Write)
    }

    fn write_or_wake(&self, outgoing: &mut Outgoing) {
        if !matches!(self.try_write(outgoing), Ok(true))
            && let Some(task) = &outgoing.task
        {
            task.wake_by_ref();
        }
    }

    /// Writes what the system accepts now. Returns whether that was all.
    fn try_write(&self, outgoing: &mut Outgoing) -> Result<bool, Closed> {
        while !outgoing.bytes.is_empty() {
            match self.0.io.try_write(&outgoing.bytes) {
                Ok(0) => return Err(Closed::ByClient),
                Ok(count) => outgoing.has_written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Err(Closed::ByClient),
            }
        }
        Ok(true)
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.0.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing {
    fn encode(&mut self, message: ws::Message) -> Result<(), Closed> {
        if self.closing {
            return Err(Closed::ByClient);
        }
        if self.broken {
            return Ok(());
        }
        self.closing = matches!(message, ws::Message::Close(_));
        if self.bytes.is_empty() {
            self.progress = Instant::now();
            self.bytes = SPARE_BUFFER.take();
        }
        let encoded = Codec::new().encode(message, &mut self.bytes);
        encoded.map_err(|error| Closed::from_protocol_error(&error))
    }

    fn has_written(&mut self, count: usize) {
        if count < self.bytes.len() {
            self.bytes.advance(count);
            self.progress = Instant::now();
            return;
        }
        let mut written = std::mem::take(&mut self.bytes);
        written.clear();
        // A buffer with a larger capacity is freed, however little of it was used.
        if !written.try_reclaim(MAX_SPARE + 1) {
            SPARE_BUFFER.set(written);
        }
    }
}
