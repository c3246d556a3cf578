//! The requests of a client: their queue, and what each of them does.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bson::DateTime;
use bytestring::ByteString;
use futures::future::{FutureExt, LocalBoxFuture};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Answer, Session};
use crate::auth::Claims;
use crate::auth::credentials::{TokenRefused, verify_event};
use crate::casts::required_id;
use crate::chat::{Draft, Edit, MarkAsRead};
use crate::config::ErrorMode;
use crate::error::ApiError;
use crate::feed::position::Position;
use crate::feed::ring::Seq;
use crate::hub::member::{NotJoined, Start};
use crate::hub::offset::{Entry, Offset};
use crate::js::{Fields, Js};
use crate::middleware::body::MAX_BODY;
use crate::middleware::deadline::DEADLINE;
use crate::models::{IdempotencyKey, RoomId, UserId};

/// The maximum number of queued requests. With more, the wire stops reading.
const MAX_WAITING: usize = 64;

/// How long a request may take after its connection has ended. A little less than what Engine.IO
/// allows its application then.
const AFTER_END_TIMEOUT: Duration = Duration::from_secs(14);

/// With so many bytes, no further message is stored together with the others.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// How much later than the first one a message may have come to be stored together with it.
const MAX_BATCH_DELAY: Duration = Duration::from_millis(500);

/// How long the session's own attempt to take a room out of its record may take. The requests of
/// its client wait meanwhile.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(1);

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Get the events of a room.
    JoinRoom,
    /// Get no more events of a room.
    LeaveRoom,
    /// Store a message.
    SendMessage,
    /// Change the content of a message.
    EditMessage,
    /// Delete a message.
    DeleteMessage,
    /// Mark a room as read.
    MarkAsRead,
    /// Say that the user types in a room.
    Typing,
    /// Say that the user does not type any more.
    StopTyping,
    /// Be told when users come and go.
    WatchUsers,
    /// Be told no more of users.
    UnwatchUsers,
    /// Use a newer token.
    Authenticate,
}

/// A request with its unparsed data.
#[derive(Debug)]
pub struct Request {
    kind: RequestKind,
    /// JSON.
    data: ByteString,
    deadline: Instant,
}

/// Requests that the database is processing together.
pub(super) struct InFlight<T> {
    /// Empty if the session itself takes a room out of its record.
    recipients: Vec<T>,
    kind: RequestKind,
    /// The results, in the order of `recipients`.
    future: RequestFuture,
}

/// What may be wrong in the record of the session if the request in flight fails: it may have this
/// room, which the session is not in.
pub(super) struct Doubt {
    room: RoomId,
    /// The client has got everything of the room up to here, or asked for what comes after it.
    through: Position,
    /// Whether the record was to be written.
    begun: Rc<Cell<bool>>,
}

/// A request that the database has answered. It has not taken effect yet.
pub(super) enum Outcome {
    Join { room: RoomId, start: Start, since: Option<Position>, checked: Seq },
    Leave(RoomId),
    Sent(Vec<u8>),
    Typing(RoomId, Option<Arc<str>>),
    StopTyping(RoomId),
    Watching(Vec<UserId>, HashMap<UserId, DateTime>),
    Unwatching(Option<Vec<UserId>>),
    Extended(Claims),
}

impl RequestKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::JoinRoom,
        Self::LeaveRoom,
        Self::SendMessage,
        Self::EditMessage,
        Self::DeleteMessage,
        Self::MarkAsRead,
        Self::Typing,
        Self::StopTyping,
        Self::WatchUsers,
        Self::UnwatchUsers,
        Self::Authenticate,
    ];

    /// The event's name on every wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JoinRoom => "joinRoom",
            Self::LeaveRoom => "leaveRoom",
            Self::SendMessage => "sendMessage",
            Self::EditMessage => "editMessage",
            Self::DeleteMessage => "deleteMessage",
            Self::MarkAsRead => "markAsRead",
            Self::Typing => "typing",
            Self::StopTyping => "stopTyping",
            Self::WatchUsers => "watchUsers",
            Self::UnwatchUsers => "unwatchUsers",
            Self::Authenticate => "authenticate",
        }
    }

    /// The kind of request with this event name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The mode of its errors. Events that the Node server did not have are always precise,
    /// whatever `ERRORS` is.
    pub const fn errors(self, configured: ErrorMode) -> ErrorMode {
        match self {
            Self::JoinRoom | Self::LeaveRoom | Self::SendMessage | Self::Authenticate => configured,
            _ => ErrorMode::Precise,
        }
    }

    /// Whether it stores something, which must not be lost when its connection ends.
    const fn stores(self) -> bool {
        matches!(
            self,
            Self::SendMessage | Self::EditMessage | Self::DeleteMessage | Self::MarkAsRead
        )
    }
}

impl Request {
    /// A request that was just received. `data` is JSON, or empty if there was none.
    pub fn new(kind: RequestKind, data: ByteString) -> Self {
        Self { kind, data, deadline: Instant::now() + DEADLINE }
    }

    /// A request of a connection that has ended since. Nobody waits for its answer.
    pub fn after_end(kind: RequestKind, data: ByteString) -> Self {
        Self { kind, data, deadline: Instant::now() + AFTER_END_TIMEOUT }
    }
}

impl<T> Session<T> {
    /// Whether the queue has room for one more request.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    /// Queues a request. Call it only if there is [room](Self::has_room).
    pub fn request(&mut self, request: Request, to: T) {
        self.waiting.push_back((request, to));
    }

    /// Delivers no more events, because the connection has ended. Gives the queued requests more
    /// time.
    pub fn mute(&mut self) {
        self.member.mute();
        self.done.clear();
        let deadline = Instant::now() + AFTER_END_TIMEOUT;
        self.waiting.iter_mut().for_each(|(request, _)| request.deadline = deadline);
    }

    /// Drops the queued requests, because the client no longer has the right to make them. One that
    /// is being processed goes on.
    pub fn drop_queued(&mut self) {
        self.waiting.clear();
    }

    /// Processes all requests that were queued before the connection ended, without answers.
    /// Messages are stored, and the record gets the joined and left rooms, for a client that may
    /// resume the session. Ends within the deadline of the last request.
    pub async fn process_all(&mut self) {
        while self.in_flight.is_some() || !self.waiting.is_empty() {
            self.process_next().await;
        }
    }

    /// Processes the request in flight, if there is one. Returns whether it may have written the
    /// record of the session.
    pub async fn finish_in_flight(&mut self) -> bool {
        let kind = self.in_flight.as_ref().map(|in_flight| in_flight.kind);
        if kind.is_some() {
            self.process_next().await;
        }
        kind.is_some_and(|kind| !kind.stores())
    }

    /// Processes the next request, and the messages that are stored together with it. Waits for
    /// ever if there is none. Cancel-safe.
    pub async fn process_next(&mut self) {
        if self.in_flight.is_none() {
            match self.waiting.pop_front() {
                Some((request, to)) => self.begin(request, to),
                None => pending().await,
            }
        }
        let Some(in_flight) = &mut self.in_flight else { return };
        let results = (&mut in_flight.future).await;
        let Some(InFlight { kind, recipients, .. }) = self.in_flight.take() else { return };
        for result in results {
            if recipients.is_empty() {
                self.note_leftover(result);
                continue;
            }
            match result {
                // The connection has ended, so nobody waits for the answer.
                Ok(done) => drop(self.apply(done)),
                Err(error) => {
                    error.log(&kind.name());
                    self.worker.limits.note(&error);
                    let is_ours = matches!(error, ApiError::Unavailable(_) | ApiError::Internal(_));
                    if kind.stores() && is_ours {
                        self.worker.metrics.unprocessed(1);
                    }
                }
            }
        }
    }

    /// The next answer to a request, if there is one. Starts the next queued request.
    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Option<Answer<T>> {
        while self.done.is_empty() {
            if self.in_flight.is_none() && !self.begin_next() {
                return None;
            }
            let Poll::Ready(results) = self.in_flight.as_mut()?.future.as_mut().poll(context)
            else {
                return None;
            };
            let InFlight { recipients, kind, .. } = self.in_flight.take()?;
            if recipients.is_empty() {
                results.into_iter().for_each(|result| self.note_leftover(result));
                continue;
            }
            self.done =
                recipients.into_iter().zip(results).map(|(to, done)| (to, kind, done)).collect();
        }
        let (to, kind, result) = self.done.pop_front()?;
        if self.done.is_empty() {
            self.done = VecDeque::new();
        }
        let doubt = self.doubt.take();
        let result = result.and_then(|done| self.apply(done));
        match (&result, doubt) {
            (Err(error), doubt) => {
                self.worker.limits.note(error);
                if let Some(doubt) = doubt.filter(|doubt| doubt.begun.get()) {
                    self.member.note_leftover(doubt.room, doubt.through);
                }
            }
            (Ok(_), _) => self.keeps_leftovers &= !kind.stores() && kind != RequestKind::JoinRoom,
        }
        self.member.cancel_join();
        Some(Answer { to, kind, result })
    }

    /// Starts the next queued request, or takes a room out of the record that the session is not
    /// in. Returns whether there is one.
    fn begin_next(&mut self) -> bool {
        if !self.keeps_leftovers
            && let (Some(record), Some(room)) = (self.record.clone(), self.member.leftover())
        {
            let work = async move {
                let late = |_| Err(ApiError::Unavailable("the record was not written".to_owned()));
                let left = timeout(LEFTOVER_TIMEOUT, record.leave(room)).await;
                left.unwrap_or_else(late).map(|()| Outcome::Leave(room))
            };
            let kind = RequestKind::LeaveRoom;
            self.in_flight = Some(InFlight { recipients: Vec::new(), kind, future: single(work) });
            return true;
        }
        let Some((request, to)) = self.waiting.pop_front() else { return false };
        self.begin(request, to);
        if self.waiting.is_empty() {
            // Free the memory: most sessions make few requests.
            self.waiting = VecDeque::new();
        }
        true
    }

    /// Takes the result of the session's own attempt to take a room out of its record. If that has
    /// failed, it tries again when something else has succeeded.
    fn note_leftover(&mut self, result: Result<Outcome, ApiError>) {
        if let Err(error) = result.and_then(|done| self.apply(done)) {
            log::debug!("A room that a session is not in stays in its record: {error}");
            self.keeps_leftovers = true;
        }
    }

    /// Starts a request, and together with a message the messages that follow it. A request that
    /// needs no database also takes effect at the next poll, so that the order is kept.
    fn begin(&mut self, Request { kind, data, deadline }: Request, to: T) {
        let mut recipients = vec![to];
        let work = match (self.check_rate_limit(), kind) {
            (Err(error), _) => failed(error),
            (Ok(()), RequestKind::JoinRoom) => self.join(&data),
            (Ok(()), RequestKind::LeaveRoom) => self.leave(&data),
            (Ok(()), RequestKind::SendMessage) => self.send(&data, deadline, &mut recipients),
            (Ok(()), RequestKind::EditMessage) => self.edit(&data),
            (Ok(()), RequestKind::DeleteMessage) => self.delete(&data),
            (Ok(()), RequestKind::MarkAsRead) => self.mark_as_read(&data),
            (Ok(()), RequestKind::Typing) => self.typing(&data),
            (Ok(()), RequestKind::StopTyping) => self.stop_typing(&data),
            (Ok(()), RequestKind::WatchUsers) => self.watch_users(&data),
            (Ok(()), RequestKind::UnwatchUsers) => self.unwatch_users(&data),
            (Ok(()), RequestKind::Authenticate) => self.authenticate(&data),
        };
        let count = recipients.len();
        let work = async move {
            let late = |_| Err(ApiError::Unavailable("no answer within the deadline".to_owned()));
            let results = timeout_at(deadline, work).await;
            results.unwrap_or_else(|_| (0..count).map(late).collect())
        };
        self.in_flight = Some(InFlight { recipients, kind, future: work.boxed_local() });
    }

    fn check_rate_limit(&mut self) -> Result<(), ApiError> {
        Ok(self.worker.limits.events.take(&mut self.window)?)
    }

    fn apply(&mut self, done: Outcome) -> Result<String, ApiError> {
        Ok(match done {
            Outcome::Join { room, start, since, checked } => {
                let joined = self.member.join_checked(room, start, checked);
                let joined = joined.map_err(|error| match error {
                    NotJoined::Removed => ApiError::RoomNotFound,
                    NotJoined::Unknown => ApiError::Unavailable(error.to_string()),
                })?;
                if let Start::After(_) | Start::Resync = start {
                    self.worker.metrics.recovery(joined.recovered);
                }
                let position = since.filter(|_| joined.recovered).or(joined.position);
                let position = position.map_or("null".into(), |at| format!("\"{at}\""));
                let recovered = joined.recovered;
                format!(r#"{{"room":"{room}","position":{position},"recovered":{recovered}}}"#)
            }
            Outcome::Leave(room) => {
                self.member.forget_leftover(room);
                format!(r#"{{"room":"{room}"}}"#)
            }
            Outcome::Sent(json) => String::from_utf8(json).expect("views write UTF-8"),
            Outcome::Typing(room, name) => {
                self.member.typing(room, name);
                format!(r#"{{"room":"{room}"}}"#)
            }
            Outcome::StopTyping(room) => {
                self.member.stop_typing(room);
                format!(r#"{{"room":"{room}"}}"#)
            }
            Outcome::Watching(users, seen) => self.watching(&users, &seen),
            Outcome::Unwatching(users) => self.unwatching(users.as_deref()),
            Outcome::Extended(claims) => {
                if self.user.is_none() {
                    self.worker.presence.enter(claims.user);
                }
                self.user = Some(claims.user);
                self.member.set_token(claims.identity());
                self.end_timer = self.worker.end_timer(Some(claims));
                self.end_flag.set();
                format!(r#"{{"expires":{}}}"#, claims.expires)
            }
        })
    }

    fn join(&mut self, data: &str) -> RequestFuture {
        let (room, since) = match data.strip_prefix('{').map(|_| Fields::from_json(data)) {
            Some(Ok(mut fields)) => (fields.take("room"), fields.take("since")),
            _ => (value(data), Js::Undefined),
        };
        let room = match required_id("room", &room) {
            Ok(room) => room,
            Err(error) => return failed(error),
        };
        if self.member.is_in(room) {
            let checked = self.worker.hub.cursor();
            let done = Outcome::Join { room, start: Start::Live, since: None, checked };
            return immediate(Ok(done));
        }
        if self.member.rooms().count() >= self.worker.config.max_rooms_per_session {
            return failed(ApiError::TooManyRooms);
        }
        let (worker, record) = (self.worker.clone(), self.record.clone());
        // Announce the join now, because an event of another room may be delivered while the record
        // is written. The position is set later.
        let announced = record.is_some().then(|| self.member.announce_join(Position::ZERO));
        let user = self.user;
        let since = match since {
            Js::Undefined | Js::Null => None,
            Js::String(text) => Some(text.parse().ok().map(|offset: Offset| offset.of(room))),
            _ => Some(None),
        };
        let through = match since {
            None => worker.hub.through().unwrap_or(Position::ZERO),
            // A client with such a position gets a `resync`, also when it comes back.
            Some(since) => since.unwrap_or(Position::ZERO),
        };
        let begun = Rc::new(Cell::new(false));
        self.doubt = Some(Doubt { room, through, begun: Rc::clone(&begun) });
        let work = async move {
            worker.feed.started().await;
            let checked = worker.hub.cursor();
            worker.chat.check_readable(room, user, since.flatten()).await?;
            let mut start = match since {
                None => Start::Live,
                Some(None) => Start::Resync,
                Some(Some(since)) => worker.start_after(room, since).await?,
            };
            let live = worker.hub.through();
            if let (Some(record), Some(entry), Some(live)) = (record, announced, live) {
                let from = match start {
                    Start::After(since) => since,
                    // If the client does not get this `resync`, it must get one when it resumes.
                    Start::Resync => Position::ZERO,
                    Start::Live | Start::From(_) => live,
                };
                begun.set(true);
                record.join(room, Entry { from, ..entry }).await?;
                if start == Start::Live {
                    // The record has this position, and messages may have come since.
                    start = Start::From(live);
                }
            }
            Ok(Outcome::Join { room, start, since: since.flatten(), checked })
        };
        single(work)
    }

    fn leave(&mut self, data: &str) -> RequestFuture {
        let room = match required_id("room", &field_or_value(data, "room")) {
            Ok(room) => room,
            Err(error) => return failed(error),
        };
        let may_be_recorded = self.member.is_in(room) || self.member.is_leftover(room);
        let record = self.record.clone().filter(|_| may_be_recorded);
        if let Some(through) = self.member.leave(room) {
            let begun = Rc::new(Cell::new(true));
            self.doubt = Some(Doubt { room, through, begun });
        }
        let work = async move {
            if let Some(record) = record {
                record.leave(room).await?;
            }
            Ok(Outcome::Leave(room))
        };
        single(work)
    }

    /// Sends a message together with the queued messages after it. They share the deadline of the
    /// first one, so a message that came much later is not included. A message with an idempotency
    /// key is not included either, because it needs several queries.
    fn send(&mut self, data: &str, deadline: Instant, recipients: &mut Vec<T>) -> RequestFuture {
        let (worker, user) = (self.worker.clone(), self.user);
        let first = match self.draft(data) {
            Ok((draft, None)) => draft,
            Ok((draft, Some(key))) => {
                return single(async move {
                    let sent = worker.chat.send(draft, user, Some(&key)).await?;
                    Ok(Outcome::Sent(sent.to_json()))
                });
            }
            Err(error) => return failed(error),
        };
        let (mut drafts, mut bytes, mut refusal) = (vec![first], data.len(), None);
        while bytes < MAX_BATCH_BYTES
            && refusal.is_none()
            && let Some((request, _)) = self.waiting.front()
            && request.kind == RequestKind::SendMessage
            && request.deadline <= deadline + MAX_BATCH_DELAY
        {
            let draft = self.draft(&request.data);
            if matches!(draft, Ok((_, Some(_)))) {
                break;
            }
            bytes += request.data.len();
            let allowed = self.check_rate_limit();
            recipients.extend(self.waiting.pop_front().map(|(_, to)| to));
            match allowed.and(draft) {
                Ok((draft, _)) => drafts.push(draft),
                Err(error) => refusal = Some(error),
            }
        }
        async move {
            let sent = worker.chat.send_all(drafts, user).await;
            let results = sent.into_iter().chain(refusal.map(Err));
            results.map(|sent| Ok(Outcome::Sent(sent?.to_json()))).collect()
        }
        .boxed_local()
    }

    fn edit(&self, data: &str) -> RequestFuture {
        let (worker, user) = (self.worker.clone(), self.user);
        let mut fields = Fields::from_json(data).unwrap_or_default();
        let key = match client_id(&mut fields) {
            Ok(key) => key,
            Err(error) => return failed(error),
        };
        let edit = Edit::take(&mut fields);
        if edit.body_length() > MAX_BODY {
            return failed(ApiError::BodyTooLarge);
        }
        single(async move {
            let edited = worker.chat.edit(edit, user, key.as_ref()).await?;
            Ok(Outcome::Sent(edited.to_json()))
        })
    }

    fn delete(&self, data: &str) -> RequestFuture {
        let (worker, user) = (self.worker.clone(), self.user);
        let message = field_or_value(data, "message");
        single(async move {
            let deleted = worker.chat.delete(&message, user).await?;
            Ok(Outcome::Sent(deleted.to_json()))
        })
    }

    fn mark_as_read(&self, data: &str) -> RequestFuture {
        let (worker, user) = (self.worker.clone(), self.user);
        let request = MarkAsRead::take(&mut Fields::from_json(data).unwrap_or_default());
        single(async move {
            let marked = worker.chat.mark_as_read(request, user).await?;
            Ok(Outcome::Sent(marked.to_json()))
        })
    }

    fn draft(&self, data: &str) -> Result<(Draft, Option<IdempotencyKey>), ApiError> {
        // A value that is not an object has no fields, so the room is missing.
        let mut fields = Fields::from_json(data).unwrap_or_default();
        let key = client_id(&mut fields)?;
        let draft = Draft::take(&mut fields).or_from(self.user);
        if draft.body_length() > MAX_BODY {
            return Err(ApiError::BodyTooLarge);
        }
        Ok((draft, key))
    }

    fn authenticate(&mut self, data: &str) -> RequestFuture {
        let token = Fields::from_json(data).unwrap_or_default().take("token");
        let Js::String(token) = token else { return failed(ApiError::TokenMissing) };
        let claims = match verify_event(&self.worker.tokens, &token) {
            Ok(claims) if self.user.is_none_or(|user| user == claims.user) => claims,
            Ok(_) => return failed(ApiError::TokenInvalid("of another user")),
            Err(error) => {
                if let TokenRefused::Invalid(..) = error {
                    self.worker.refusals.note_token(&error);
                }
                return failed(error.error());
            }
        };
        let (worker, record) = (self.worker.clone(), self.record.clone());
        let work = async move {
            worker.guard.check(claims.identity()).await?;
            if let Some(record) = record {
                record.extend(claims).await?;
            }
            Ok(Outcome::Extended(claims))
        };
        single(work)
    }
}

/// Counts the requests that were not processed because of a panic or a timeout, and says that the
/// user has a session less.
impl<T> Drop for Session<T> {
    fn drop(&mut self) {
        let waiting = self.waiting.iter().filter(|(request, _)| request.kind.stores()).count();
        let in_flight = self.in_flight.as_ref().filter(|in_flight| in_flight.kind.stores());
        let lost = waiting + in_flight.map_or(0, |in_flight| in_flight.recipients.len());
        if lost > 0 {
            self.worker.metrics.unprocessed(lost);
        }
        if let Some(user) = self.user {
            self.worker.presence.leave(user);
        }
    }
}

/// The results of the requests that are processed together.
pub(super) type RequestFuture = LocalBoxFuture<'static, Vec<Result<Outcome, ApiError>>>;

pub(super) fn single(
    work: impl Future<Output = Result<Outcome, ApiError>> + 'static,
) -> RequestFuture {
    work.map(|result| vec![result]).boxed_local()
}

pub(super) fn immediate(result: Result<Outcome, ApiError>) -> RequestFuture {
    single(futures::future::ready(result))
}

pub(super) fn failed(error: ApiError) -> RequestFuture {
    immediate(Err(error))
}

/// The idempotency key of a request, if it has one.
fn client_id(fields: &mut Fields) -> Result<Option<IdempotencyKey>, ApiError> {
    let id = fields.take("clientId");
    if id.is_nullish() {
        return Ok(None);
    }
    let problem = "must be a string of 1 to 255 bytes";
    let invalid = ApiError::InvalidField { field: "clientId", problem };
    let key = id.to_text().ok().and_then(|id| IdempotencyKey::new(&id));
    key.map(Some).ok_or(invalid)
}

/// The field of an object, or the whole value that is none.
pub(super) fn field_or_value(json: &str, field: &str) -> Js {
    match json.strip_prefix('{').map(|_| Fields::from_json(json)) {
        Some(Ok(mut fields)) => fields.take(field),
        _ => value(json),
    }
}

/// Reads a JSON value. Invalid JSON counts as missing.
fn value(json: &str) -> Js {
    serde_json::from_str(json).unwrap_or_default()
}
