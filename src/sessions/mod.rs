//! The session of one client on any wire: join, leave, send, authenticate, receive.
//!
//! A wire passes requests to the session ([`Session::request`]) and writes its outputs
//! ([`Session::next`]), except events that were written directly ([`Session::set_direct_writer`]).
//! The session processes requests one at a time, in their order, but stores consecutive messages
//! together. Meanwhile it goes on delivering events. A request that misses its deadline is answered
//! with an error. Each request first asks the database, and then takes effect in one step with its
//! answer, so the ack of a join precedes the first event of the room. This module knows no frames
//! and no packets.

pub mod recovery;
pub mod registry;
mod requests;
mod signals;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_web::web::Data;
use bytestring::ByteString;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::auth::Claims;
use crate::auth::credentials::TokenRefused;
use crate::error::ApiError;
use crate::feed::event::{Delivery, Wire};
use crate::feed::position::Position;
use crate::feed::ring::Seq;
use crate::hub::inbox::{DirectWriter, Ended};
use crate::hub::member::{Member, NotJoined, Start};
use crate::limits::SessionWindow;
use crate::models::{RoomId, UserId};
use crate::protocols::wake_flag::WakeFlag;

use recovery::RecoveryRecord;
use registry::{ConnectionPermit, Worker};
use requests::{Doubt, InFlight, Outcome};

pub use requests::{Request, RequestKind};

/// See the [module](self). `T` tells the wire which request an answer belongs to.
pub struct Session<T> {
    worker: Data<Worker>,
    user: Option<UserId>,
    member: Member,
    record: Option<Rc<RecoveryRecord>>,
    in_flight: Option<InFlight<T>>,
    /// The last attempt to take a room out of the record has failed, and nothing else has succeeded
    /// since.
    keeps_leftovers: bool,
    /// What is in doubt if the request in flight fails.
    doubt: Option<Doubt>,
    /// Requests that the database has answered.
    done: VecDeque<(T, RequestKind, Result<Outcome, ApiError>)>,
    waiting: VecDeque<(Request, T)>,
    window: SessionWindow,
    /// Set when `cancelled` or `end_timer` must be polled.
    end_flag: WakeFlag,
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    end_timer: Option<(Pin<Box<Sleep>>, EndReason)>,
    // Dropped last.
    _permit: ConnectionPermit,
}

/// What a wire has to do.
pub enum Output<T> {
    /// An answer to a request.
    Answer(Answer<T>),
    /// An event of a room.
    Event(Rc<Delivery>),
    /// The session is over.
    End(EndReason),
}

/// An answer to a request.
pub struct Answer<T> {
    /// The value that came with the request.
    pub to: T,
    /// The kind of the request.
    pub kind: RequestKind,
    /// The answer as JSON, or why the request was refused.
    pub result: Result<String, ApiError>,
}

/// Why the server ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// Its token expired.
    #[error("the token expired")]
    Expired,
    /// Its client does not read.
    #[error("too slow")]
    TooSlow,
    /// Its client resumed it on another connection.
    #[error("taken over by another connection")]
    TakenOver,
    /// The server is stopping.
    #[error("the server stops")]
    Draining,
    /// Its token was revoked.
    #[error("token_revoked")]
    Revoked,
}

impl From<Ended> for EndReason {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::TooSlow => Self::TooSlow,
            Ended::Revoked => Self::Revoked,
        }
    }
}

impl EndReason {
    /// The value of the label `reason` in the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::TooSlow => "too_slow",
            Self::TakenOver => "taken_over",
            Self::Draining => "draining",
            Self::Revoked => "revoked",
        }
    }
}

impl<T> Session<T> {
    /// A session of the user of these claims. It ends when the token is revoked, and when it
    /// expires, except with `LEGACY_TRUST`. `None` is an anonymous session, which only
    /// `LEGACY_TRUST` admits.
    pub fn new(worker: Data<Worker>, permit: ConnectionPermit, claims: Option<Claims>) -> Self {
        let mut member = Member::new(&worker.hub);
        if let Some(claims) = claims {
            member.set_token(claims.identity());
            worker.presence.enter(claims.user);
        }
        let end_timer = worker.end_timer(claims);
        Self {
            worker,
            user: claims.map(|claims| claims.user),
            member,
            record: None,
            in_flight: None,
            keeps_leftovers: false,
            doubt: None,
            done: VecDeque::new(),
            waiting: VecDeque::new(),
            window: SessionWindow::default(),
            end_flag: WakeFlag::default(),
            cancelled: Some(Box::pin(permit.end.clone().cancelled_owned())),
            end_timer,
            _permit: permit,
        }
    }

    /// Makes the session resumable. The client may have offsets up to `known` from earlier
    /// connections, on which it made `joins` joins.
    pub fn set_recovery_record(
        &mut self,
        record: Rc<RecoveryRecord>,
        known: Option<Position>,
        joins: u32,
    ) {
        self.record = Some(record);
        self.member.remember(known, joins);
    }

    /// Sets the writer with which the hub writes events to the client while nothing else waits.
    pub fn set_direct_writer(&mut self, direct_writer: impl DirectWriter + 'static) {
        self.member.set_direct_writer(direct_writer);
    }

    /// Joins the rooms of an earlier connection of this client. Missed events are delivered first.
    /// Its user was a member of these rooms when [`Hub::cursor`](crate::hub::Hub::cursor) was
    /// `checked`. A room that the user was removed from since is left out.
    ///
    /// The client has had what its user was told up to `since`, whatever the room. The rest is
    /// delivered, too: above all such a removal.
    pub fn resume(&mut self, rooms: Vec<(RoomId, Start)>, checked: Seq, since: Option<Position>) {
        for (room, start) in rooms {
            match (self.member.join_checked(room, start, checked), start) {
                (Ok(_), _) => {}
                (Err(NotJoined::Removed), Start::After(had)) if since.is_some() => {
                    self.member.note_leftover(room, had);
                }
                (Err(_), _) => self.member.send_back(),
            }
        }
        if let Some(since) = since {
            self.member.resume_user(since);
        }
    }

    /// Whether its token was revoked.
    pub fn is_revoked(&self) -> bool {
        self.member.ended() == Some(Ended::Revoked)
    }

    /// Whether the client has no user.
    pub fn is_anonymous(&self) -> bool {
        self.user.is_none()
    }

    /// Waits until the wire is `ready`, then returns the next output. [`Output::End`] does not wait
    /// for `ready`. Cancel-safe.
    pub async fn next_when(&mut self, ready: impl Future<Output = ()>) -> Output<T> {
        tokio::select! {
            biased;
            () = ready => {}
            end = poll_fn(|context| self.poll_over(context)) => return Output::End(end),
        }
        self.next().await
    }

    /// The next output. Cancel-safe.
    pub async fn next(&mut self) -> Output<T> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// One more event to write together with the output of [`next`](Self::next), if there is one
    /// already. Does not check whether the session must end.
    pub fn next_event(&mut self) -> Option<Rc<Delivery>> {
        if !self.member.has_more() {
            return None;
        }
        match self.member.poll_next(&Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(delivery)) => Some(delivery),
            // Its end: `next` will return that.
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// The frame of an event that was just returned.
    pub fn frame(&self, delivery: &Delivery, wire: Wire) -> ByteString {
        self.member.frame(delivery, wire)
    }

    /// The frame of the offset after all returned events, of which `last` is the last; `None` if
    /// there is no offset.
    pub fn offset_frame(&self, last: &Delivery) -> Option<ByteString> {
        self.member.offset_frame(last)
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Output<T>> {
        if let Some(end) = self.poll_end(context) {
            return Poll::Ready(Output::End(end));
        }
        if let Some(ended) = self.member.ended() {
            return Poll::Ready(Output::End(ended.into()));
        }
        if let Some(answer) = self.poll_answer(context) {
            return Poll::Ready(Output::Answer(answer));
        }
        match self.member.poll_next(context) {
            Poll::Ready(Ok(delivery)) => Poll::Ready(Output::Event(delivery)),
            Poll::Ready(Err(ended)) => Poll::Ready(Output::End(ended.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Ready when the session must end, even if it has other outputs.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<EndReason> {
        if let Some(end) = self.poll_end(context) {
            return Poll::Ready(end);
        }
        self.member.poll_ended(context).map(EndReason::from)
    }

    fn poll_end(&mut self, context: &Context<'_>) -> Option<EndReason> {
        let mut context = self.end_flag.take(context)?;
        if let Some(cancelled) = &mut self.cancelled
            && cancelled.as_mut().poll(&mut context).is_ready()
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
    /// These claims, unless their token was revoked. With `LEGACY_TRUST`, a revoked token counts as
    /// none.
    ///
    /// # Errors
    /// [`ApiError::TokenRevoked`], or the database had to be asked and failed.
    pub async fn unrevoked(&self, claims: Option<Claims>) -> Result<Option<Claims>, ApiError> {
        let Some(identity) = claims.map(Claims::identity) else { return Ok(None) };
        match self.guard.check(identity).await {
            Ok(()) => Ok(claims),
            Err(ApiError::TokenRevoked) if self.config.legacy_trust => {
                self.refusals.note_ignored_token(&TokenRefused::Revoked);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// When a session with this token ends. The Node server never checked the tokens of sockets, so
    /// with `LEGACY_TRUST` no session ends by time.
    fn end_timer(&self, claims: Option<Claims>) -> Option<(Pin<Box<Sleep>>, EndReason)> {
        let claims = claims.filter(|_| !self.config.legacy_trust)?;
        let expiry = Instant::now() + self.tokens.remaining(claims);
        Some((Box::pin(sleep_until(expiry)), EndReason::Expired))
    }
}
