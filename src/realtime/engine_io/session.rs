//! One Engine.IO session: its outgoing queue, its heartbeat and its end.
//!
//! The session outlives the requests that carry it. Polls and posts come on any worker, a
//! WebSocket may take over; all of them meet here, under one lock that is never held across an
//! await. There is one outgoing queue, so the order survives an upgrade, and it is bounded:
//! overflow ends the session, since a packet that is dropped in silence is worse.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::packet::Packet;

/// What an application exchanges with its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text, without the packet's `4`.
    Text(ByteString),
    /// Bytes.
    Binary(Bytes),
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CloseReason {
    /// The client said so.
    #[error("closed by the client")]
    Client,
    /// The application did.
    #[error("closed by the server")]
    Server,
    /// The server stops.
    #[error("the server stops")]
    GoingAway,
    /// The transport went away: a lost WebSocket, an aborted poll or post.
    #[error("the transport was lost")]
    Transport,
    /// The client did not answer a ping in time.
    #[error("ping timeout")]
    PingTimeout,
    /// What it sent is no packet, or one that it may not send.
    #[error("parse error")]
    Parse,
    /// Two polls or two posts at once.
    #[error("overlapping requests")]
    Overlap,
    /// A message that is longer than allowed.
    #[error("a message is too long")]
    TooLong,
    /// It did not take what was queued for it.
    #[error("too slow")]
    TooSlow,
    /// The application panicked.
    #[error("internal error")]
    Panic,
}

impl CloseReason {
    /// A word for counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::GoingAway => "draining",
            Self::Transport => "transport",
            Self::PingTimeout => "ping_timeout",
            Self::Parse => "parse_error",
            Self::Overlap => "overlap",
            Self::TooLong => "too_long",
            Self::TooSlow => "too_slow",
            Self::Panic => "panic",
        }
    }
}

/// How packets reach the client at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Polling,
    WebSocket,
}

/// Shared by the application's task, the heartbeat and every request of the session.
#[derive(Debug)]
pub(super) struct Session {
    /// The session's secret name.
    pub(super) sid: String,
    pub(super) config: Arc<Config>,
    /// To the application, bounded: a sender that waits is what slows the client down.
    pub(super) incoming: mpsc::Sender<Message>,
    /// Cancelled at the end, whatever the reason.
    pub(super) ended: CancellationToken,
    /// Something that a poll, a WebSocket or a writer may wait for has changed.
    pub(super) changed: Notify,
    /// A pong came: the heartbeat has another deadline.
    pulse: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) transport: Transport,
    /// A WebSocket is being tried. Polls are answered soon meanwhile, if only by a noop.
    pub(super) probing: bool,
    pub(super) polling: bool,
    pub(super) posting: bool,
    queue: VecDeque<Packet>,
    bytes: usize,
    heartbeat: Heartbeat,
    pub(super) end: Option<End>,
}

/// The end of a session, and what one poll is still told of it.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) reason: CloseReason,
    pub(super) last_word: Option<Packet>,
    at: Instant,
}

/// How long a session that its client has closed is still found: a poll may be under way on
/// another worker while the close arrives.
const LATE_POLL: Duration = Duration::from_millis(100);
/// How long one that the server has closed is: until the client polls again.
const NEXT_POLL: Duration = Duration::from_secs(20);

impl End {
    /// Until when a poll that comes late is told the last word. After a mistake of the client's
    /// there is none for it.
    pub(super) fn told_until(&self) -> Instant {
        let wait = match self.reason {
            CloseReason::Client => LATE_POLL,
            CloseReason::Server | CloseReason::GoingAway | CloseReason::Panic => NEXT_POLL,
            _ => Duration::ZERO,
        };
        self.at + wait
    }
}

/// Absolute times, so that delays of the timer do not add up.
#[derive(Debug, Clone, Copy)]
enum Heartbeat {
    PingDue(Instant),
    PongDue(Instant),
}

/// The queue has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session has ended")]
pub struct Ended;

impl Session {
    pub(super) fn new(
        sid: String,
        config: Arc<Config>,
        transport: Transport,
    ) -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (incoming, received) = mpsc::channel(config.incoming);
        let ping_due = Heartbeat::PingDue(Instant::now() + config.ping_interval);
        let session = Self {
            sid,
            config,
            incoming,
            ended: CancellationToken::new(),
            changed: Notify::new(),
            pulse: Notify::new(),
            state: Mutex::new(State {
                transport,
                probing: false,
                polling: false,
                posting: false,
                queue: VecDeque::new(),
                bytes: 0,
                heartbeat: ping_due,
                end: None,
            }),
        };
        (Arc::new(session), received)
    }

    /// The state, which is never left inconsistent, so that a panic elsewhere does not matter.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues packets, all together, so that nothing comes between a header and its attachments.
    /// Beyond the bounds the session ends.
    pub(super) fn send(&self, packets: impl IntoIterator<Item = Packet>) -> Result<(), Ended> {
        let mut state = self.state();
        if state.end.is_some() {
            return Err(Ended);
        }
        let before = state.queue.len();
        for packet in packets {
            state.push(packet);
        }
        // One call alone always fits, however large: its reader has not been slow.
        let full =
            state.queue.len() > self.config.max_queue || state.bytes > self.config.max_queue_bytes;
        drop(state);
        if full && before > 0 {
            self.end(CloseReason::TooSlow, None);
            return Err(Ended);
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Waits until little is queued: until the client has taken what was sent before.
    pub(super) async fn ready(&self) {
        self.wait_for(|state| {
            let little = state.queue.len() <= self.config.max_queue / 4
                && state.bytes <= self.config.max_queue_bytes / 4;
            (little || state.end.is_some()).then_some(())
        })
        .await;
    }

    /// Waits until the state gives an answer. Nothing is missed between look and wait.
    pub(super) async fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.state()) {
                return found;
            }
            changed.await;
        }
    }

    /// Ends the session, unless it has ended. `last_word` is what a poll that is pending, or the
    /// next one, is answered.
    pub(super) fn end(&self, reason: CloseReason, last_word: Option<Packet>) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        state.end = Some(End { reason, last_word, at: Instant::now() });
        state.queue = VecDeque::new();
        state.bytes = 0;
        drop(state);
        log::debug!("An Engine.IO session ended: {reason}");
        self.ended.cancel();
        self.changed.notify_waiters();
    }

    /// Why it ended, if it has. A deadline that has passed counts, whether or not the heartbeat
    /// has come round to it: a request at exactly that time must find the session gone.
    pub(super) fn ended(&self) -> Option<End> {
        let overdue = self.state().overdue(Instant::now());
        if overdue {
            self.end(CloseReason::PingTimeout, None);
        }
        self.state().end.clone()
    }

    /// A packet that any transport brought, but for messages, which need to wait for room.
    ///
    /// # Errors
    /// The client may not send it.
    pub(super) fn control(&self, packet: &Packet) -> Result<(), CloseReason> {
        match packet {
            Packet::Pong(_) => {
                let mut state = self.state();
                if let Heartbeat::PongDue(_) = state.heartbeat {
                    let due = Instant::now() + self.config.ping_interval;
                    state.heartbeat = Heartbeat::PingDue(due);
                    drop(state);
                    // The heartbeat sleeps towards the old deadline.
                    self.pulse.notify_one();
                }
                Ok(())
            }
            // In this revision of the protocol only servers ping.
            Packet::Ping(_) => Err(CloseReason::Parse),
            Packet::Close => Err(CloseReason::Client),
            Packet::Open(_) | Packet::Upgrade | Packet::Noop => Ok(()),
            Packet::Text(_) | Packet::Binary(_) => Ok(()),
        }
    }

    /// Pings at each interval after the last pong and ends the session when one is late. Runs
    /// also while an upgrade is tried, so that none that is abandoned is kept.
    pub(super) async fn beat(&self) {
        loop {
            let deadline = self.state().heartbeat.deadline();
            tokio::select! {
                () = self.ended.cancelled() => return,
                () = self.pulse.notified() => continue,
                () = tokio::time::sleep_until(deadline) => {}
            }
            let mut state = self.state();
            if state.heartbeat.deadline() > Instant::now() {
                // A pong came in this very moment.
                continue;
            }
            match state.heartbeat {
                Heartbeat::PingDue(due) => {
                    state.heartbeat = Heartbeat::PongDue(due + self.config.ping_timeout);
                    // Not through `send`: a ping must go out even when the queue is full.
                    state.push(Packet::Ping(ByteString::new()));
                    drop(state);
                    self.changed.notify_waiters();
                }
                Heartbeat::PongDue(_) => {
                    drop(state);
                    self.end(CloseReason::PingTimeout, None);
                    return;
                }
            }
        }
    }
}

impl State {
    fn push(&mut self, packet: Packet) {
        self.bytes += packet.len();
        self.queue.push_back(packet);
    }

    /// Takes of what is queued about so many bytes.
    pub(super) fn take_some(&mut self, bytes: usize) -> Option<Vec<Packet>> {
        let mut taken = 0;
        let mut more = |packet: &Packet| {
            let more = taken < bytes;
            taken += packet.len();
            more
        };
        let count = self.queue.iter().take_while(|packet| more(packet)).count();
        if count == self.queue.len() {
            return self.take_queue();
        }
        let packets: Vec<_> = self.queue.drain(..count).collect();
        self.bytes -= packets.iter().map(Packet::len).sum::<usize>();
        Some(packets)
    }

    /// Takes all that is queued.
    pub(super) fn take_queue(&mut self) -> Option<Vec<Packet>> {
        if self.queue.is_empty() {
            return None;
        }
        self.bytes = 0;
        Some(std::mem::take(&mut self.queue).into())
    }

    fn overdue(&self, now: Instant) -> bool {
        matches!(self.heartbeat, Heartbeat::PongDue(due) if due <= now + EARLY)
            || matches!(self.heartbeat, Heartbeat::PingDue(due) if due + LATE <= now)
    }
}

/// A request that comes as little as this before the deadline comes at it: timers of clients count
/// whole milliseconds.
const EARLY: Duration = Duration::from_millis(1);

/// A ping so late that the heartbeat itself is gone. It is never reached by a living one.
const LATE: Duration = Duration::from_secs(60);

impl Heartbeat {
    fn deadline(self) -> Instant {
        match self {
            Self::PingDue(at) | Self::PongDue(at) => at,
        }
    }
}
