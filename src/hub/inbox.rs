//! What waits to be written to one session, bounded by count and bytes.
//!
//! The hub of the same worker puts in and never waits; the session takes out. A session that
//! lets its inbox overflow is too slow: what waited is dropped at once and the session ends, as
//! it can resume from the last position that it was given. One thread owns both ends, so there
//! is no lock and no channel.
//!
//! When nothing waits, an event need not: it goes past the inbox, through an [`Outlet`], to the
//! client, and the session finds its base moved on. That spares a turn of the session's task for
//! each delivery.

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
pub(super) enum Mail {
    /// The event with this number, for a room in which the session is.
    Event(Seq, Rc<Delivery>),
    /// The hub itself was overtaken: all that the session was in before the number `before` may
    /// have missed messages up to `position`.
    Resync { before: Seq, position: Option<Position> },
}

/// The short way to a session's client.
pub trait Outlet {
    /// Gives it an event at once, in the frames that all members share, of which either all are
    /// given or none; `false` when something else waits for the client, behind which the event
    /// belongs. Never waits.
    fn give(&self, delivery: &Delivery) -> bool;
}

/// See the [module](self).
pub(super) struct Inbox {
    bounds: Bounds,
    state: RefCell<State>,
    outlet: RefCell<Option<Box<dyn Outlet>>>,
    /// The session waits for nothing but the next event.
    at_rest: Cell<bool>,
    /// The last live position that was given.
    base: Cell<Option<Position>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Mail>,
    bytes: usize,
    reader: Option<Waker>,
    overflowed: bool,
    /// What happened on the short way.
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
            outlet: RefCell::default(),
            at_rest: Cell::default(),
            base: Cell::default(),
        })
    }

    /// From now on there is a short way.
    pub(super) fn set_outlet(&self, outlet: Box<dyn Outlet>) {
        self.outlet.replace(Some(outlet));
    }

    /// Says whether the session waits for nothing but the next event, in the shared frame.
    pub(super) fn rest(&self, at_rest: bool) {
        self.at_rest.set(at_rest);
    }

    /// The last live position that the session was given.
    pub(super) fn base(&self) -> Option<Position> {
        self.base.get()
    }

    /// It was given another.
    pub(super) fn set_base(&self, base: Option<Position>) {
        self.base.set(base);
    }

    /// Gives an event to the client at once, if that is possible now. A panic on the way is the
    /// session's: it goes on in its task.
    pub(super) fn give(&self, delivery: &Delivery) -> bool {
        let (base, position) = (self.base.get(), delivery.event().position());
        // After the past was lost, positions may go back: such an offset is not shared.
        if !self.at_rest.get() || (base.is_some() && position <= base) {
            return false;
        }
        let outlet = self.outlet.borrow();
        let Some(outlet) = outlet.as_ref() else { return false };
        match catch_unwind(AssertUnwindSafe(|| outlet.give(delivery))) {
            Ok(given) => {
                if given {
                    self.base.set(position.or(base));
                }
                given
            }
            Err(panic) => {
                self.state.borrow_mut().panic = Some(panic);
                false
            }
        }
    }

    /// Puts `mail` in; `false` when this inbox has overflowed, now or earlier.
    pub(super) fn put(&self, mail: Mail) -> bool {
        self.at_rest.set(false);
        let mut state = self.state.borrow_mut();
        if state.overflowed {
            return false;
        }
        state.bytes += mail.weight();
        state.waiting.push_back(mail);
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

    /// Takes the oldest mail out; pending when there is none.
    pub(super) fn poll_take(&self, context: &Context<'_>) -> Poll<Result<Mail, TooSlow>> {
        let mut state = self.state();
        if state.overflowed {
            return Poll::Ready(Err(TooSlow));
        }
        let Some(mail) = state.waiting.pop_front() else {
            state.wait(context);
            return Poll::Pending;
        };
        state.bytes -= mail.weight();
        if state.waiting.is_empty() && state.waiting.capacity() > KEPT_CAPACITY {
            state.waiting = VecDeque::new();
        }
        Poll::Ready(Ok(mail))
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

impl Mail {
    fn weight(&self) -> usize {
        match self {
            Self::Event(_, delivery) => OVERHEAD + delivery.event().len(),
            Self::Resync { .. } => OVERHEAD,
        }
    }
}
