//! The queue of events for one session, bounded by count and bytes.
//!
//! The hub of the same worker puts events in and never waits; the session takes them out. If the
//! inbox of a session overflows, the session is too slow: the queued events are dropped and the
//! session ends. Its client can resume from the last position that it got. The same happens when
//! the token of the session is revoked. Both ends are on one thread, so there is no lock and no
//! channel.
//!
//! When the inbox is empty and the session is idle, the hub writes an event to the client with a
//! [`DirectWriter`] and moves the session's base position. This does not wake the session's task.

use std::{
    any::Any,
    cell::{Cell, RefCell, RefMut},
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::feed::{event::Delivery, position::Position, ring::Seq};

/// The bounds of one inbox.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The maximum number of events.
    pub events: usize,
    /// The maximum number of their bytes.
    pub bytes: usize,
}

impl Bounds {
    /// The bounds for a session: enough for a burst, and small enough for thousands of clients that
    /// do not read.
    pub const SESSION: Self = Self { events: 1_024, bytes: 1 << 20 };
}

/// Why nothing more comes out of an inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It overflowed.
    #[error("too slow")]
    TooSlow,
    /// The token of the session was revoked.
    #[error("token_revoked")]
    Revoked,
}

/// An item in an inbox.
#[derive(Debug)]
pub(super) enum InboxItem {
    /// The event with this number, of a room that the session is in.
    Event(Seq, Rc<Delivery>),
    /// The hub itself lagged: rooms that the session joined before the number `before` may have
    /// missed messages up to `position`.
    Resync { before: Seq, position: Option<Position> },
}

/// Writes events to a client without the inbox and the session's task.
pub trait DirectWriter {
    /// Writes all frames of an event at once, or none. The frames are those that all members share.
    /// Returns `false` if something else must be written to the client first. Never waits.
    fn write(&self, delivery: &Delivery) -> bool;
}

/// See the [module](self).
pub(super) struct Inbox {
    bounds: Bounds,
    state: RefCell<State>,
    direct_writer: RefCell<Option<Box<dyn DirectWriter>>>,
    /// Whether the session only waits for the next event.
    is_idle: Cell<bool>,
    /// Whether the session waits for the next event, even if it cannot take the shared frame.
    waits: Cell<bool>,
    /// The last live position that was delivered.
    base: Cell<Option<Position>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<InboxItem>,
    bytes: usize,
    reader: Option<Waker>,
    ended: Option<Ended>,
    /// A panic of the direct writer, for the session's task.
    panic: Option<Box<dyn Any + Send>>,
}

/// The bytes that are counted for an event beside its text.
const OVERHEAD: usize = 64;

/// An empty queue with more capacity than this is freed, because most sessions are idle.
const KEPT_CAPACITY: usize = 32;

impl Inbox {
    pub(super) fn new(bounds: Bounds) -> Rc<Self> {
        Rc::new(Self {
            bounds,
            state: RefCell::default(),
            direct_writer: RefCell::default(),
            is_idle: Cell::default(),
            waits: Cell::default(),
            base: Cell::default(),
        })
    }

    /// Sets the writer for direct writes.
    pub(super) fn set_direct_writer(&self, direct_writer: Box<dyn DirectWriter>) {
        self.direct_writer.replace(Some(direct_writer));
    }

    /// Sets whether the session only waits for the next event, and can take the shared frame.
    pub(super) fn set_idle(&self, is_idle: bool) {
        self.is_idle.set(is_idle);
        self.waits.set(is_idle);
    }

    /// Notes that the session waits for the next event. Signals, which have no offset, can be
    /// written to it.
    pub(super) fn set_waiting(&self) {
        self.waits.set(true);
    }

    /// The last live position that was delivered.
    pub(super) fn base(&self) -> Option<Position> {
        self.base.get()
    }

    /// Sets that position.
    pub(super) fn set_base(&self, base: Option<Position>) {
        self.base.set(base);
    }

    /// Writes an event to the client directly, if that is possible now. A panic of the writer is
    /// resumed in the session's task.
    pub(super) fn write_directly(&self, delivery: &Delivery) -> bool {
        let (base, position) = (self.base.get(), delivery.event().position());
        // After events were lost, positions may go back. Then the shared frame has the wrong
        // offset.
        if !self.is_idle.get() || (base.is_some() && position <= base) {
            return false;
        }
        let written = self.write(delivery);
        if written {
            self.base.set(position.or(base));
        }
        written
    }

    /// Writes a signal to the client, if nothing else waits for it.
    pub(super) fn signal(&self, delivery: &Delivery) -> bool {
        self.waits.get() && self.is_empty() && self.write(delivery)
    }

    fn write(&self, delivery: &Delivery) -> bool {
        let direct_writer = self.direct_writer.borrow();
        let Some(direct_writer) = direct_writer.as_ref() else { return false };
        match catch_unwind(AssertUnwindSafe(|| direct_writer.write(delivery))) {
            Ok(written) => written,
            Err(panic) => {
                self.state.borrow_mut().panic = Some(panic);
                false
            }
        }
    }

    /// Puts an item in. Returns `false` if this inbox has ended, now or earlier.
    pub(super) fn put(&self, item: InboxItem) -> bool {
        self.set_idle(false);
        let mut state = self.state.borrow_mut();
        if state.ended.is_some() {
            return false;
        }
        state.bytes += item.weight();
        state.waiting.push_back(item);
        let waiting = state.waiting.len();
        // A single event always fits, however large: its reader is not slow.
        if waiting > 1 && (waiting > self.bounds.events || state.bytes > self.bounds.bytes) {
            state.end(Ended::TooSlow);
        } else if waiting == 1 {
            // The reader waits only if it found the inbox empty.
            state.wake();
        }
        state.ended.is_none()
    }

    /// Drops everything that waits, and takes nothing more.
    pub(super) fn end(&self, ended: Ended) {
        self.is_idle.set(false);
        self.state.borrow_mut().end(ended);
    }

    /// Why nothing more comes out of it.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.state.borrow().ended
    }

    /// Whether it has no items.
    pub(super) fn is_empty(&self) -> bool {
        self.state.borrow().waiting.is_empty()
    }

    /// Ready when this inbox has ended.
    pub(super) fn poll_ended(&self, context: &Context<'_>) -> Poll<Ended> {
        let mut state = self.state();
        if let Some(ended) = state.ended {
            return Poll::Ready(ended);
        }
        state.wait(context);
        Poll::Pending
    }

    /// Takes the oldest item out. Pending while there is none.
    pub(super) fn poll_take(&self, context: &Context<'_>) -> Poll<Result<InboxItem, Ended>> {
        let mut state = self.state();
        if let Some(ended) = state.ended {
            return Poll::Ready(Err(ended));
        }
        let Some(item) = state.waiting.pop_front() else {
            state.wait(context);
            return Poll::Pending;
        };
        state.bytes -= item.weight();
        if state.waiting.is_empty() && state.waiting.capacity() > KEPT_CAPACITY {
            state.waiting = VecDeque::new();
        }
        Poll::Ready(Ok(item))
    }

    /// The state, for the session's task. Resumes a panic of the direct writer.
    fn state(&self) -> RefMut<'_, State> {
        let mut state = self.state.borrow_mut();
        if let Some(panic) = state.panic.take() {
            drop(state);
            resume_unwind(panic);
        }
        state
    }
}

impl State {
    fn end(&mut self, ended: Ended) {
        let ended = Some(self.ended.unwrap_or(ended));
        *self =
            Self { ended, reader: self.reader.take(), panic: self.panic.take(), ..Self::default() };
        self.wake();
    }

    fn wake(&self) {
        if let Some(reader) = &self.reader {
            reader.wake_by_ref();
        }
    }

    fn wait(&mut self, context: &Context<'_>) {
        match &mut self.reader {
            Some(reader) => reader.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
    }
}

impl InboxItem {
    fn weight(&self) -> usize {
        match self {
            Self::Event(_, delivery) => OVERHEAD + delivery.event().len(),
            Self::Resync { .. } => OVERHEAD,
        }
    }
}
