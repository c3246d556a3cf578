//! A TCP connection that is counted, and ended when its client dawdles.
//!
//! actix-http watches the head of the first request only, and nobody's reading. Here a connection
//! on which no request is served has so long to bring the next one whole, and one that is written
//! to so long to take something.

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

/// The open connections of a server, WebSockets among them; clones count the same.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    most: usize,
    open: AtomicUsize,
    refused: Tally,
    slow: AtomicU64,
}

/// Counted as long as it lives.
#[derive(Debug)]
pub(super) struct Counted(Connections);

/// See the [module](self).
pub(super) struct Stream {
    io: TcpStream,
    counted: Counted,
    activity: Rc<Activity>,
    /// Since when nothing more could be written.
    stalled: Option<Instant>,
    /// Set anew only when it is over, so that a request costs no timer.
    timer: Pin<Box<Sleep>>,
}

/// What a connection is busy with.
pub(super) struct Activity {
    patience: Duration,
    /// Requests that are being served.
    running: Cell<usize>,
    /// When the next one must be there, if none is.
    deadline: Cell<Instant>,
}

/// A request that is being served.
pub(super) struct Running(Rc<Activity>);

/// The body of an answer, until whose end the request is being served.
pub(super) struct Answering {
    body: BoxBody,
    running: Option<Running>,
}

impl Connections {
    /// None, of at most so many.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Counts {
            most,
            open: AtomicUsize::new(0),
            refused: Tally::default(),
            slow: AtomicU64::new(0),
        }))
    }

    /// One more; `None` when there are too many.
    pub(super) fn open(&self) -> Option<Counted> {
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        // Made at once, so that it takes back what was counted also when that was too much.
        let counted = Counted(self.clone());
        if before < self.0.most {
            return Some(counted);
        }
        let (most, what) = (self.0.most, "a connection was refused");
        self.0.refused.note(|| limit_reached("The number of connections that fit", most, what));
        None
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// How many were refused, as there were too many.
    pub fn refused(&self) -> u64 {
        self.0.refused.count()
    }

    /// How many were ended, as their client did not send or read in time.
    pub fn slow(&self) -> u64 {
        self.0.slow.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream {
    /// A connection whose client may take so long.
    pub(super) fn new(io: TcpStream, counted: Counted, patience: Duration) -> Self {
        let deadline = Instant::now() + patience;
        let activity = Activity { patience, running: Cell::new(0), deadline: Cell::new(deadline) };
        let timer = Box::pin(sleep_until(deadline));
        Self { io, counted, activity: Rc::new(activity), stalled: None, timer }
    }

    pub(super) fn activity(&self) -> Rc<Activity> {
        Rc::clone(&self.activity)
    }

    /// The connection, no longer watched.
    pub(super) fn into_inner(self) -> (TcpStream, Counted) {
        (self.io, self.counted)
    }

    /// Fails once the client has had its time.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let Activity { patience, running, deadline } = &*self.activity;
            let read = if running.get() > 0 { now + *patience } else { deadline.get() };
            let written = self.stalled.map_or(read, |since| since + *patience);
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
                // Who takes a long answer slowly, but takes it, is not idle.
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
    /// A request is served from now on.
    pub(super) fn begin(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(Rc::clone(self))
    }

    fn extend(&self) {
        self.deadline.set(Instant::now() + self.patience);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.extend();
    }
}

impl Answering {
    pub(super) fn new(body: BoxBody, running: Option<Running>) -> Self {
        Self { body, running }
    }
}

impl MessageBody for Answering {
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
