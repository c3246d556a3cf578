//! What waits to be written to one session, bounded by count and bytes.
//!
//! The hub of the same worker puts in and never waits; the session takes out. A session that
//! lets its inbox overflow is too slow: what waited is dropped at once and the session ends, as
//! it can resume from the last position that it was given. One thread owns both ends, so there
//! is no lock and no channel.
//!
//! When nothing waits in the inbox, the hub writes an event to the client itself, by a
//! [`DirectWriter`], and moves the session's base on. The session's task is not woken for such a
//! delivery.

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
    /// How many events may wait.
    pub events: usize,
    /// How many bytes they may have in all.
    pub bytes: usize,
}

/// This session let its inbox overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too slow")]
pub struct TooSlow;

/// What the hub has for a session.
#[derive(Debug)]
pub(super) enum InboxItem {
    /// The event with this number, for a room in which the session is.
    Event(Seq, Rc<Delivery>),
    /// The hub itself lagged: all that the session was in before the number `before` may
    /// have missed messages up to `position`.
    Resync { before: Seq, position: Option<Position> },
}

/// Writes events to a session's client directly, without the inbox and the session's task.
pub trait DirectWriter {
    /// Writes an event at once, in the frames that all members share: all of its frames or none. The
    /// answer is `false` when something else waits to be written to the client before the event. Never
    /// waits.
    fn write(&self, delivery: &Delivery) -> bool;
}

/// See the [module](self).
pub(super) struct Inbox {
    bounds: Bounds,
    state: RefCell<State>,
    direct_writer: RefCell<Option<Box<dyn DirectWriter>>>,
    /// The session waits for nothing but the next event.
    is_idle: Cell<bool>,
    /// The last live position that was given.
    base: Cell<Option<Position>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<InboxItem>,
    bytes: usize,
    reader: Option<Waker>,
    overflowed: bool,
    /// A panic of the direct writer.
    panic: Option<Box<dyn Any + Send>>,
}

/// What an event counts beside its text.
const OVERHEAD: usize = 64;

/// A drained queue with more room than this gives its memory back: most sessions are idle.
const KEPT_CAPACITY: usize = 32;

impl Inbox {
    pub(super) fn new(bounds: Bounds) -> Rc<Self> {
        Rc::new(Self {
            bounds,
            state: RefCell::default(),
            direct_writer: RefCell::default(),
            is_idle: Cell::default(),
            base: Cell::default(),
        })
    }

    /// From now on events may be written directly.
    pub(super) fn set_direct_writer(&self, direct_writer: Box<dyn DirectWriter>) {
        self.direct_writer.replace(Some(direct_writer));
    }

    /// Says whether the session waits for nothing but the next event, in the shared frame.
    pub(super) fn set_idle(&self, is_idle: bool) {
        self.is_idle.set(is_idle);
    }

    /// The last live position that the session was given.
    pub(super) fn base(&self) -> Option<Position> {
        self.base.get()
    }

    /// It was given another.
    pub(super) fn set_base(&self, base: Option<Position>) {
        self.base.set(base);
    }

    /// Writes an event to the client directly, if that is possible now. The session's task continues a
    /// panic of the writer.
    pub(super) fn write_directly(&self, delivery: &Delivery) -> bool {
        let (base, position) = (self.base.get(), delivery.event().position());
        // After the past was lost, positions may go back: such an offset is not shared.
        if !self.is_idle.get() || (base.is_some() && position <= base) {
            return false;
        }
        let direct_writer = self.direct_writer.borrow();
        let Some(direct_writer) = direct_writer.as_ref() else { return false };
        match catch_unwind(AssertUnwindSafe(|| direct_writer.write(delivery))) {
            Ok(written) => {
                if written {
                    self.base.set(position.or(base));
                }
                written
            }
            Err(panic) => {
                self.state.borrow_mut().panic = Some(panic);
                false
            }
        }
    }

    /// Puts `item` in; `false` when this inbox has overflowed, now or earlier.
    pub(super) fn put(&self, item: InboxItem) -> bool {
        self.is_idle.set(false);
        let mut state = self.state.borrow_mut();
        if state.overflowed {
            return false;
        }
        state.bytes += item.weight();
        state.waiting.push_back(item);
        let waiting = state.waiting.len();
        // One event alone always fits, however large: its reader has not been slow.
        if waiting > 1 && (waiting > self.bounds.events || state.bytes > self.bounds.bytes) {
            *state = State { overflowed: true, reader: state.reader.take(), ..State::default() };
        }
        // Only who found it empty waits.
        if (waiting == 1 || state.overflowed)
            && let Some(reader) = &state.reader
        {
            reader.wake_by_ref();
        }
        !state.overflowed
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.state.borrow().waiting.is_empty()
    }

    /// Resolves when this inbox has overflowed.
    pub(super) fn poll_overflow(&self, context: &Context<'_>) -> Poll<TooSlow> {
        let mut state = self.state();
        if state.overflowed {
            return Poll::Ready(TooSlow);
        }
        state.wait(context);
        Poll::Pending
    }

    /// Takes the oldest item out; pending when there is none.
    pub(super) fn poll_take(&self, context: &Context<'_>) -> Poll<Result<InboxItem, TooSlow>> {
        let mut state = self.state();
        if state.overflowed {
            return Poll::Ready(Err(TooSlow));
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

    /// The state, for the session.
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
