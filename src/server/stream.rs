//! A TCP connection that is counted, and closed when its client is too slow.
//!
//! actix-http limits only the time for the head of a connection's first request, and no time for
//! reading a response. Here, a connection without a running request must bring the next request
//! within a timeout, and a client must accept some bytes of the response within the same time.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_codec::{AsyncRead, AsyncWrite};
use actix_http::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;
use futures::ready;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::refusals::{Tally, limit_reached};

/// Counts the open connections of a server, including WebSockets. All clones share one count.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    most: usize,
    open: AtomicUsize,
    refused: Tally,
    slow: AtomicU64,
}

/// A counted connection. Dropping it removes it from the count.
#[derive(Debug)]
pub(super) struct ConnectionGuard(Connections);

/// See the [module](self).
pub(super) struct Stream {
    io: TcpStream,
    counted: ConnectionGuard,
    activity: Rc<Activity>,
    /// Since when the client has accepted no bytes.
    stalled: Option<Instant>,
    /// Reset only when it has elapsed, so that a request does not touch the timer.
    timer: Pin<Box<Sleep>>,
}

/// The running requests of a connection, and its deadline.
pub(super) struct Activity {
    timeout: Duration,
    /// Requests that are being served.
    running: Cell<usize>,
    /// When the next request must have arrived, if none is running.
    deadline: Cell<Instant>,
}

/// A request that is being served.
pub(super) struct RunningRequest(Rc<Activity>);

/// The body of a response. Its request counts as running until the end of the body.
pub(super) struct TrackedBody {
    body: BoxBody,
    running: Option<RunningRequest>,
}

impl Connections {
    /// No connection is open; at most `most` may be.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Counts {
            most,
            open: AtomicUsize::new(0),
            refused: Tally::default(),
            slow: AtomicU64::new(0),
        }))
    }

    /// Counts one more connection; `None` if there are too many.
    pub(super) fn open(&self) -> Option<ConnectionGuard> {
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        // Created before the check, so that dropping it also undoes the count of a refused
        // connection.
        let counted = ConnectionGuard(self.clone());
        if before < self.0.most {
            return Some(counted);
        }
        let (most, what) = (self.0.most, "a connection was refused");
        self.0.refused.note(|| limit_reached("The number of connections that fit", most, what));
        None
    }

    /// How many connections are open.
    pub fn count(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// How many connections were refused because there were too many.
    pub fn refused(&self) -> u64 {
        self.0.refused.count()
    }

    /// How many connections were closed because the client did not send or read in time.
    pub fn slow(&self) -> u64 {
        self.0.slow.load(Ordering::Relaxed)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream {
    /// A connection whose client has this timeout.
    pub(super) fn new(io: TcpStream, counted: ConnectionGuard, timeout: Duration) -> Self {
        let deadline = Instant::now() + timeout;
        let activity = Activity { timeout, running: Cell::new(0), deadline: Cell::new(deadline) };
        let timer = Box::pin(sleep_until(deadline));
        Self { io, counted, activity: Rc::new(activity), stalled: None, timer }
    }

    pub(super) fn activity(&self) -> Rc<Activity> {
        Rc::clone(&self.activity)
    }

    /// The connection, without a timeout from now on.
    pub(super) fn into_inner(self) -> (TcpStream, ConnectionGuard) {
        (self.io, self.counted)
    }

    /// Fails if the client has exceeded its timeout.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let Activity { timeout, running, deadline } = &*self.activity;
            let read = if running.get() > 0 { now + *timeout } else { deadline.get() };
            let written = self.stalled.map_or(read, |since| since + *timeout);
            let next = read.min(written);
            if next <= now {
                self.counted.0.0.slow.fetch_add(1, Ordering::Relaxed);
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(next);
        }
        Ok(())
    }

    fn written(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(_) => {
                self.stalled = None;
                // A client that accepts a long response slowly is not idle.
                self.activity.extend();
            }
            Poll::Pending => {
                self.stalled.get_or_insert_with(Instant::now);
            }
        }
        result
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let result = Pin::new(&mut self.io).poll_write(context, bytes);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let result = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl Activity {
    /// Counts a request as running until the result is dropped.
    pub(super) fn begin(self: &Rc<Self>) -> RunningRequest {
        self.running.set(self.running.get() + 1);
        RunningRequest(Rc::clone(self))
    }

    fn extend(&self) {
        self.deadline.set(Instant::now() + self.timeout);
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.extend();
    }
}

impl TrackedBody {
    pub(super) fn new(body: BoxBody, running: Option<RunningRequest>) -> Self {
        Self { body, running }
    }
}

impl MessageBody for TrackedBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let next = ready!(Pin::new(&mut self.body).poll_next(context));
        if next.is_none() {
            self.running = None;
        }
        Poll::Ready(next)
    }

    fn try_into_bytes(self) -> Result<Bytes, Self> {
        let Self { body, running } = self;
        body.try_into_bytes().map_err(|body| Self { body, running })
    }
}
