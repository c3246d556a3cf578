//! One Engine.IO session: its queues and its transports.
//!
//! A session outlives its requests. Polls and posts arrive on any worker, and a WebSocket may
//! replace them. All of them share this state under one lock, which is never held across an await.
//!
//! There is one outgoing queue, so the order survives an upgrade. It is bounded: on overflow the
//! session ends, since a silent loss of a packet would be worse. While a WebSocket has nothing else
//! to write, packets are written to it directly, without the queue.
//!
//! The incoming queue is bounded as well: a transport that has filled it stops reading until there
//! is room, which slows the client down. Messages that were read before the end of the session stay
//! in that queue: the application receives all of them before it learns of the end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use bytestring::ByteString;
use tokio::time::Instant;

use super::Config;
use super::end::{CloseReason, End};
use super::heartbeat::Heartbeat;
use super::packet::Packet;
use crate::protocols::websocket::{WRITE_AT_ONCE, WriteHandle};

/// A message between an application and its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text, without the packet's `4`.
    Text(ByteString),
    /// Bytes.
    Binary(Bytes),
}

impl Message {
    /// The message in a packet; `None` for packets that only concern the transport.
    pub(super) fn of(packet: Packet) -> Option<Self> {
        match (packet.text(), packet) {
            (Some(text), _) => Some(Self::Text(text)),
            (None, Packet::Binary(bytes)) => Some(Self::Binary(bytes)),
            _ => None,
        }
    }
}

/// How packets currently reach the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Polling,
    WebSocket,
}

/// Shared by the application's task, the heartbeat and every request of the session.
#[derive(Debug)]
pub(super) struct Session {
    /// The session's secret id.
    pub(super) sid: String,
    pub(super) config: Arc<Config>,
    state: Mutex<State>,
}

/// The side for which a task waits. Each change concerns one side; the end of the session concerns
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// A poll, a post or a WebSocket.
    Transport,
    /// The application and the heartbeat.
    Application,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) transport: Transport,
    /// A WebSocket is being tried. Meanwhile polls are answered soon, at least with a noop.
    pub(super) probing: bool,
    pub(super) polling: bool,
    pub(super) posting: bool,
    queue: VecDeque<Packet>,
    bytes: usize,
    incoming: VecDeque<Message>,
    /// How many transports may still bring messages: a WebSocket, or a post whose body is arriving.
    receivers: usize,
    /// The application has ended, so messages are no longer accepted.
    abandoned: bool,
    pub(super) heartbeat: Heartbeat,
    pub(super) end: Option<End>,
    /// The session's WebSocket, for direct writes. Set only while nothing is queued.
    writer: Option<WriteHandle>,
    transports: Wakers,
    application: Wakers,
}

/// The tasks that wait for a change.
#[derive(Debug, Default)]
struct Wakers(Vec<Waker>);

/// The session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session has ended")]
pub struct Ended;

impl Session {
    pub(super) fn new(sid: String, config: Arc<Config>, transport: Transport) -> Arc<Self> {
        let ping_due = Heartbeat::PingDue(Instant::now() + config.ping_interval);
        Arc::new(Self {
            sid,
            config,
            state: Mutex::new(State {
                transport,
                probing: false,
                polling: false,
                posting: false,
                queue: VecDeque::new(),
                bytes: 0,
                incoming: VecDeque::new(),
                receivers: 0,
                abandoned: false,
                heartbeat: ping_due,
                end: None,
                writer: None,
                transports: Wakers::default(),
                application: Wakers::default(),
            }),
        })
    }

    /// Locks the state. A panic elsewhere does not matter, since the state is never left
    /// inconsistent.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues packets together, so that nothing comes between a header and its attachments. If the
    /// queue exceeds its bounds, the session ends.
    pub(super) fn send(&self, packets: impl IntoIterator<Item = Packet>) -> Result<(), Ended> {
        self.queue(packets)?.flush_queue();
        Ok(())
    }

    /// As [`send`](Self::send), but leaves the packets to the transport, which usually writes them
    /// together with those that are sent before the caller waits.
    pub(super) fn send_soon(&self, packets: impl IntoIterator<Item = Packet>) -> Result<(), Ended> {
        let mut state = self.queue(packets)?;
        // While something is queued, nobody else may write.
        state.writer = None;
        state.wake(Side::Transport);
        Ok(())
    }

    /// Queues packets. If the queue exceeds its bounds, the session ends.
    fn queue(
        &self,
        packets: impl IntoIterator<Item = Packet>,
    ) -> Result<MutexGuard<'_, State>, Ended> {
        let mut state = self.state();
        if state.end.is_some() {
            return Err(Ended);
        }
        let before = state.queue.len();
        for packet in packets {
            state.push(packet);
        }
        // A single call always fits, however large: the client has not been slow.
        let full =
            state.queue.len() > self.config.max_queue || state.bytes > self.config.max_queue_bytes;
        if full && before > 0 {
            drop(state);
            self.end(CloseReason::TooSlow, None);
            return Err(Ended);
        }
        Ok(state)
    }

    /// Sends texts in one direct write if nothing else waits to be written; otherwise sends none of
    /// them and returns `false`.
    pub(super) fn send_now(&self, texts: impl IntoIterator<Item = ByteString>) -> bool {
        let mut state = self.state();
        let Some(writer) = &state.writer else { return false };
        let sent = writer.send_now(texts);
        if writer.buffered() > 0 {
            state.writer = None;
        }
        sent
    }

    /// Allows direct writes to the session's idle WebSocket, until bytes have to wait there.
    pub(super) fn share_writer(&self, writer: &Option<WriteHandle>) {
        let mut state = self.state();
        if state.writer.is_none() && state.queue.is_empty() && state.end.is_none() {
            state.writer.clone_from(writer);
        }
    }

    /// Waits until little is queued, that is, until the client has received what was sent before.
    pub(super) fn ready(&self) -> impl Future<Output = ()> {
        self.wait_for(Side::Application, |state| {
            (state.has_little_queued(&self.config) || state.end.is_some()).then_some(())
        })
    }

    /// The next message for the application. `None` when the session has ended and all messages
    /// that were read before were returned.
    pub(super) fn receive(&self) -> impl Future<Output = Option<Message>> {
        self.wait_for(Side::Application, |state| {
            let Some(message) = state.incoming.pop_front() else {
                return (state.end.is_some() && state.receivers == 0).then_some(None);
            };
            if state.incoming.len() + 1 == self.config.incoming {
                state.wake(Side::Transport);
            }
            if state.incoming.is_empty() {
                // Free the memory: most sessions are idle.
                state.incoming = VecDeque::new();
            }
            Some(Some(message))
        })
    }

    /// Queues a message, if there is one, for the application. The bound is only checked before the
    /// next read ([`wait_for_room`](Self::wait_for_room)). After the application has ended,
    /// messages are dropped.
    pub(super) fn deliver(&self, message: Option<Message>) {
        let Some(message) = message else { return };
        let mut state = self.state();
        if !state.abandoned {
            state.incoming.push_back(message);
            state.wake(Side::Application);
        }
    }

    /// Whether a transport may read more.
    pub(super) fn has_room(&self) -> bool {
        self.state().incoming.len() < self.config.incoming
    }

    /// Waits until a transport may read more, or the session has ended.
    pub(super) fn wait_for_room(&self) -> impl Future<Output = ()> {
        self.wait_for(Side::Transport, |state| {
            let has_room = state.incoming.len() < self.config.incoming;
            (has_room || state.end.is_some()).then_some(())
        })
    }

    /// Registers a transport that may bring messages. Until the result is dropped, the application
    /// does not learn of the session's end.
    pub(super) fn receiving(self: &Arc<Self>) -> ReceiverGuard {
        self.state().receivers += 1;
        ReceiverGuard(Arc::clone(self))
    }

    /// Whether a transport may still bring messages.
    pub(super) fn is_receiving(&self) -> bool {
        let state = self.state();
        state.receivers > 0 && !state.abandoned
    }

    /// Marks the application as ended. Returns how many messages it has not received.
    pub(super) fn abandon(&self) -> usize {
        let mut state = self.state();
        state.abandoned = true;
        std::mem::take(&mut state.incoming).len()
    }

    /// Waits for the end of the session.
    pub(super) fn wait_for_end(&self, side: Side) -> impl Future<Output = ()> {
        self.wait_for(side, |state| state.end.is_some().then_some(()))
    }

    /// Waits until `look` returns a value. No change between the check and the wait is missed.
    ///
    /// Not an `async fn`, and neither are those that only call it: each would keep its arguments
    /// twice, in every connection.
    pub(super) fn wait_for<T>(
        &self,
        side: Side,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> impl Future<Output = T> {
        poll_fn(move |context| {
            let mut state = self.state();
            match look(&mut state) {
                Some(found) => Poll::Ready(found),
                None => {
                    state.wakers(side).add(context.waker());
                    Poll::Pending
                }
            }
        })
    }

    /// Ends the session, unless it has ended before. `final_packet` is the response to the pending
    /// or next poll.
    pub(super) fn end(&self, reason: CloseReason, final_packet: Option<Packet>) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        state.end = Some(End { reason, final_packet, at: Instant::now() });
        state.queue = VecDeque::new();
        state.bytes = 0;
        state.writer = None;
        state.wake(Side::Transport);
        state.wake(Side::Application);
        drop(state);
        log::debug!("An Engine.IO session ended: {reason}");
    }

    /// The end of the session, if it has ended. A missed deadline counts, even if the heartbeat has
    /// not run yet: a request at exactly that time must not find the session.
    pub(super) fn ended(&self) -> Option<End> {
        let overdue = self.state().heartbeat.is_overdue(Instant::now());
        if overdue {
            self.end(CloseReason::PingTimeout, None);
        }
        self.state().end.clone()
    }

    /// Handles a packet of any transport, except messages, which have to wait for room.
    ///
    /// # Errors
    /// The packet ends the session: a close, or a packet that the client may not send.
    pub(super) fn control(&self, packet: &Packet) -> Result<(), CloseReason> {
        match packet {
            Packet::Pong(_) => {
                let mut state = self.state();
                if let Heartbeat::PongDue(_) = state.heartbeat {
                    let due = Instant::now() + self.config.ping_interval;
                    state.heartbeat = Heartbeat::PingDue(due);
                    // The heartbeat still sleeps until the old deadline.
                    state.wake(Side::Application);
                }
                Ok(())
            }
            // In this revision of the protocol only servers ping.
            Packet::Ping(_) => Err(CloseReason::Parse),
            Packet::Close => Err(CloseReason::Client),
            Packet::Open(_) | Packet::Upgrade | Packet::Noop => Ok(()),
            Packet::Text(_) | Packet::Latest(_) | Packet::Binary(_) => Ok(()),
        }
    }
}

/// A transport that may bring messages, until this is dropped.
#[derive(Debug)]
pub(super) struct ReceiverGuard(Arc<Session>);

impl Drop for ReceiverGuard {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.receivers -= 1;
        if state.end.is_some() {
            state.wake(Side::Application);
        }
    }
}

impl State {
    pub(super) fn push(&mut self, packet: Packet) {
        self.bytes += packet.len();
        self.queue.push_back(packet);
    }

    /// Sends what is queued: directly if possible, else by the transport's task.
    pub(super) fn flush_queue(&mut self) {
        // If the socket's task has unwritten bytes, it also writes what comes after them.
        if let Some(writer) = self.writer.take().filter(|writer| writer.buffered() == 0) {
            while writer.buffered() < WRITE_AT_ONCE
                && let Some(packet) = self.queue.pop_front()
            {
                self.bytes -= packet.len();
                // After a close frame, packets are dropped.
                let _ = writer.feed(packet.into());
            }
            writer.write_now();
            if self.queue.is_empty() {
                self.queue = VecDeque::new();
                if writer.buffered() == 0 {
                    self.writer = Some(writer);
                }
                return;
            }
        }
        self.wake(Side::Transport);
    }

    /// Takes the first packet that is queued.
    pub(super) fn take_packet(&mut self, config: &Config) -> Option<Packet> {
        let held_little = self.has_little_queued(config);
        let packet = self.queue.pop_front()?;
        self.bytes -= packet.len();
        if self.queue.is_empty() {
            // Most sessions are idle; the memory can be reused by the next one that sends.
            self.queue = VecDeque::new();
        }
        if !held_little && self.has_little_queued(config) {
            self.wake(Side::Application);
        }
        Some(packet)
    }

    /// Takes all queued packets, but only the last [`Packet::Latest`]; `None` when nothing is
    /// queued.
    pub(super) fn take_queue(&mut self, config: &Config) -> Option<Vec<Packet>> {
        let mut packets: Vec<_> = std::iter::from_fn(|| self.take_packet(config)).collect();
        let is_latest = |packet: &Packet| matches!(packet, Packet::Latest(_));
        let last = packets.iter().rposition(is_latest);
        let mut index = 0..;
        packets.retain(|packet| index.next() == last || !is_latest(packet));
        (!packets.is_empty()).then_some(packets)
    }

    fn has_little_queued(&self, config: &Config) -> bool {
        self.queue.len() <= config.max_queue / 4 && self.bytes <= config.max_queue_bytes / 4
    }

    fn wakers(&mut self, side: Side) -> &mut Wakers {
        match side {
            Side::Transport => &mut self.transports,
            Side::Application => &mut self.application,
        }
    }

    /// Wakes the tasks that wait on this side. Called under the lock, since waking runs no task.
    pub(super) fn wake(&mut self, side: Side) {
        self.wakers(side).0.drain(..).for_each(Waker::wake);
    }
}

impl Wakers {
    fn add(&mut self, waker: &Waker) {
        if !self.0.iter().any(|known| known.will_wake(waker)) {
            // One or two tasks wait in an open connection.
            self.0.reserve_exact(1);
            self.0.push(waker.clone());
        }
    }
}
