//! One client's conversation, whatever its wire: join, leave, send, authenticate, receive.
//!
//! A wire hands requests in ([`Session::request`]) and writes what comes out
//! ([`Session::next`]), but for events that were written directly ([`Session::set_direct_writer`]).
//! Requests are done one at a time, in the order in which they came, but for messages that follow
//! one another, which are stored together; meanwhile events go on being given. A request that is
//! not done within the deadline since it came is answered as such. Each request asks the database
//! first and then takes effect in one step with its answer, so that the ack of a join precedes the
//! first event that it brings. Nothing here knows a frame or a packet.

pub mod recovery;
pub mod registry;
mod requests;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use actix_web::web::Data;
use bytestring::ByteString;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::auth::Claims;
use crate::error::ApiError;
use crate::feed::event::{Delivery, Wire};
use crate::feed::position::Position;
use crate::hub::inbox::DirectWriter;
use crate::hub::member::{Member, Start};
use crate::limits::SessionWindow;
use crate::models::{RoomId, UserId};
use crate::protocols::wake_flag::WakeFlag;

use recovery::RecoveryRecord;
use registry::{ConnectionPermit, Worker};
use requests::{InFlight, Outcome};

pub use requests::{Request, RequestKind};

/// See the [module](self). `T` is how the wire knows whom to answer.
pub struct Session<T> {
    worker: Data<Worker>,
    user: Option<UserId>,
    member: Member,
    record: Option<Rc<RecoveryRecord>>,
    in_flight: Option<InFlight<T>>,
    /// What the database has answered.
    done: VecDeque<(T, RequestKind, Result<Outcome, ApiError>)>,
    waiting: VecDeque<(Request, T)>,
    window: SessionWindow,
    /// Set when what ends this session is to be polled.
    end_flag: WakeFlag,
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    end_timer: Option<(Pin<Box<Sleep>>, EndReason)>,
    // Given back at the very end.
    _permit: ConnectionPermit,
}

/// What a wire is to write, or to do.
pub enum Output<T> {
    /// The answer to a request.
    Answer(Answer<T>),
    /// An event of a room.
    Event(Rc<Delivery>),
    /// The session is over.
    End(EndReason),
}

/// The answer to a request.
pub struct Answer<T> {
    /// Whom to answer.
    pub to: T,
    /// What it had asked for.
    pub kind: RequestKind,
    /// JSON, or why it was refused.
    pub result: Result<String, ApiError>,
}

/// Why a session is ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// Its token expired.
    #[error("the token expired")]
    Expired,
    /// Its client does not read.
    #[error("too slow")]
    TooSlow,
    /// Its client came back by another connection.
    #[error("taken over by another connection")]
    TakenOver,
    /// The server stops.
    #[error("the server stops")]
    Draining,
}

impl EndReason {
    /// A word for counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::TooSlow => "too_slow",
            Self::TakenOver => "taken_over",
            Self::Draining => "draining",
        }
    }
}

impl<T> Session<T> {
    /// A session of this user until the token expires, which it outlives with `LEGACY_TRUST`;
    /// `None` is an anonymous one, which only that lets in.
    pub fn new(worker: Data<Worker>, permit: ConnectionPermit, claims: Option<Claims>) -> Self {
        let member = Member::new(&worker.hub);
        let end_timer = worker.end_timer(claims);
        Self {
            worker,
            user: claims.map(|claims| claims.user),
            member,
            record: None,
            in_flight: None,
            done: VecDeque::new(),
            waiting: VecDeque::new(),
            window: SessionWindow::default(),
            end_flag: WakeFlag::default(),
            cancelled: Some(Box::pin(permit.end.clone().cancelled_owned())),
            end_timer,
            _permit: permit,
        }
    }

    /// Makes it a session that its client can come back to.
    /// It may have offsets up to `known` of earlier connections, in which it made so many `joins`.
    pub fn set_recovery_record(
        &mut self,
        record: Rc<RecoveryRecord>,
        known: Option<Position>,
        joins: u32,
    ) {
        self.record = Some(record);
        self.member.remember(known, joins);
    }

    /// Gives events to the client by this way, too: at once, when nothing else waits for it.
    pub fn set_direct_writer(&mut self, direct_writer: impl DirectWriter + 'static) {
        self.member.set_direct_writer(direct_writer);
    }

    /// Enters rooms that an earlier connection of this client was in; what was missed there is
    /// given first.
    pub fn rejoin(&mut self, rooms: impl IntoIterator<Item = (RoomId, Start)>) {
        for (room, start) in rooms {
            self.member.join(room, start);
        }
    }

    /// Whether nobody in particular is at the other end.
    pub fn is_anonymous(&self) -> bool {
        self.user.is_none()
    }

    /// What the wire is to do next, as soon as it is `ready` for more; that the session is over
    /// does not wait for that. Cancel-safe.
    pub async fn next_when(&mut self, ready: impl Future<Output = ()>) -> Output<T> {
        tokio::select! {
            biased;
            () = ready => {}
            end = poll_fn(|context| self.poll_over(context)) => return Output::End(end),
        }
        self.next().await
    }

    /// What the wire is to do next. Cancel-safe.
    pub async fn next(&mut self) -> Output<T> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// One more event to be written together with what [`next`](Self::next) has given, if there is
    /// one already. Does not see whether the session is to end.
    pub fn next_event(&mut self) -> Option<Rc<Delivery>> {
        if !self.member.has_more() {
            return None;
        }
        match self.member.poll_next(&Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(delivery)) => Some(delivery),
            // Too slow: the next `next` says so.
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// The frame of an event that was just given.
    pub fn frame(&self, delivery: &Delivery, wire: Wire) -> ByteString {
        self.member.frame(delivery, wire)
    }

    /// The frame of the offset behind all events that were given, of which `last` was the last;
    /// `None` when there is no offset.
    pub fn offset_frame(&self, last: &Delivery) -> Option<ByteString> {
        self.member.offset_frame(last)
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Output<T>> {
        if let Some(end) = self.poll_end(context) {
            return Poll::Ready(Output::End(end));
        }
        if let Some(answer) = self.poll_answer(context) {
            return Poll::Ready(Output::Answer(answer));
        }
        match self.member.poll_next(context) {
            Poll::Ready(Ok(delivery)) => Poll::Ready(Output::Event(delivery)),
            Poll::Ready(Err(_)) => Poll::Ready(Output::End(EndReason::TooSlow)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Resolves when the session is over, whatever else it has to say.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<EndReason> {
        if let Some(end) = self.poll_end(context) {
            return Poll::Ready(end);
        }
        self.member.poll_too_slow(context).map(|_| EndReason::TooSlow)
    }

    fn poll_end(&mut self, context: &Context<'_>) -> Option<EndReason> {
        let mut context = self.end_flag.take(context)?;
        if let Some(told) = &mut self.cancelled
            && told.as_mut().poll(&mut context).is_ready()
        {
            self.cancelled = None;
            if !self.worker.registry.is_draining() {
                return Some(EndReason::TakenOver);
            }
            let at = Instant::now() + self.worker.registry.drain_delay();
            self.end_timer = Some((Box::pin(sleep_until(at)), EndReason::Draining));
        }
        let (sleep, end) = self.end_timer.as_mut()?;
        sleep.as_mut().poll(&mut context).is_ready().then_some(*end)
    }
}

impl Worker {
    /// When a session with this token is over. The original never looked at tokens of sockets, so
    /// with `LEGACY_TRUST` none ends by time.
    fn end_timer(&self, claims: Option<Claims>) -> Option<(Pin<Box<Sleep>>, EndReason)> {
        let claims = claims.filter(|_| !self.config.legacy_trust)?;
        Some((Box::pin(sleep_until(expiry(claims))), EndReason::Expired))
    }
}

/// When a token expires, on the clock of timers.
fn expiry(claims: Claims) -> Instant {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.expires);
    Instant::now() + at.duration_since(SystemTime::now()).unwrap_or_default()
}
