//! `/ws`: the plain wire, JSON text frames on a WebSocket.
//!
//! A client sends `{"event","data","id"?}`. It gets answers, `{"ack":<id>,"data":…}`, and events,
//! `{"event","data","position"?}`. This file turns frames into requests, turns outputs into frames,
//! and keeps the connection alive. The [session](crate::sessions) knows what the requests mean.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use bytestring::ByteString;
use futures::future::join;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until, timeout};

use crate::auth::Claims;
use crate::auth::credentials::{Absence, Credentials, TokenRefused, verify_event};
use crate::error::ApiError;
use crate::feed::event::{Delivery, Wire};
use crate::hub::inbox::DirectWriter;
use crate::metrics::{Deliveries, OpenSocket, WireName};
use crate::protocols::cors;
use crate::protocols::panics::catch_panic;
use crate::protocols::websocket::{
    CloseCode, Closed, Frame, Message, NotAccepted, Progress, Socket, WRITE_AT_ONCE, WriteHandle,
};
use crate::sessions::registry::{ConnectionPermit, Worker};
use crate::sessions::{Answer, EndReason, Output, Request, RequestKind, Session};

/// The maximum length of a frame, in bytes.
const MAX_FRAME: usize = 128 * 1024;
/// How long a client without a token may take to authenticate.
const AUTHENTICATE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(25);
/// A client that sends nothing for so long is disconnected.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

/// With so many unwritten bytes, no more frames of the client are read until it reads its answers.
const MAX_UNWRITTEN: usize = 512 * 1024;
/// How long the closing handshake may take after the token has expired or was revoked, so that a
/// client that does not read cannot keep the connection.
const EXPIRED_CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The close code for a missing, invalid, expired or revoked token.
const TOKEN_REFUSED: CloseCode = CloseCode::Other(4401);

/// A session whose requests carry the `id` for their answer.
type PlainSession = Session<Option<Box<RawValue>>>;

/// Serves one WebSocket.
pub async fn connect(req: HttpRequest, payload: Payload, worker: Data<Worker>) -> HttpResponse {
    if let Some(origin) = cors::foreign(req.headers(), &worker.config.cors) {
        worker.refusals.note_origin(origin.as_bytes());
        return HttpResponse::Forbidden().finish();
    }
    let limits = &worker.limits;
    let address = limits.address_of(&req);
    if let Err(reached) = limits.connect.take(address) {
        return HttpResponse::TooManyRequests()
            .insert_header((header::RETRY_AFTER, reached.seconds()))
            .finish();
    }
    let token = token(&worker, req.headers(), req.query_string());
    let (answer, socket) = match Socket::accept(&req, payload, MAX_FRAME) {
        Ok(accepted) => accepted,
        Err(NotAccepted::Protocols) => return HttpResponse::BadRequest().finish(),
        Err(NotAccepted::NoUpgrade) => {
            return HttpResponse::build(StatusCode::UPGRADE_REQUIRED)
                .insert_header((header::UPGRADE, "websocket"))
                .finish();
        }
    };
    let Some(permit) = worker.registry.acquire(address) else {
        return HttpResponse::ServiceUnavailable()
            .insert_header((header::RETRY_AFTER, "1"))
            .finish();
    };
    let registry = Arc::clone(&worker.registry);
    let on_panic = move || registry.count_panic();
    actix_web::rt::spawn(catch_panic(serve(worker, permit, socket, token), on_panic));
    answer
}

/// The claims of the token in the header of the upgrade, else in its query.
fn token(worker: &Worker, headers: &HeaderMap, query: &str) -> Result<Claims, TokenRefused> {
    let authorization = headers.get(header::AUTHORIZATION);
    Credentials { auth: None, authorization, query }.claims(&worker.tokens, Absence::OfPlain)
}

/// Serves an accepted socket until its end.
fn serve(
    worker: Data<Worker>,
    permit: ConnectionPermit,
    socket: Socket,
    token: Result<Claims, TokenRefused>,
) -> impl Future<Output = ()> + 'static {
    // Boxed like the last step, so that the future of the whole connection has no room for them.
    let admitted = Box::pin(admit(worker.clone(), permit, socket, token));
    async move {
        let Some((mut session, mut socket)) = admitted.await else { return };
        let mut open = worker.metrics.open(WireName::Plain);
        let closing = run(&worker, &mut session, &mut socket, &mut open).await;
        Box::pin(finish(session, socket, open, closing)).await;
    }
}

/// Begins the session of a client, or rejects the client and closes its socket.
async fn admit(
    worker: Data<Worker>,
    permit: ConnectionPermit,
    mut socket: Socket,
    token: Result<Claims, TokenRefused>,
) -> Option<(PlainSession, Socket)> {
    // At once: the client must not wait for its 101 while the database is asked about its token.
    socket.opened().await.and_then(|_| socket.write_now()).ok()?;
    let claims = match token {
        Ok(claims) => Some(claims),
        Err(refused) if worker.config.legacy_trust => {
            worker.refusals.note_ignored_token(&refused);
            None
        }
        Err(absent @ TokenRefused::Missing(_)) => {
            let first = tokio::select! {
                first = timeout(AUTHENTICATE_TIMEOUT, authenticate(&worker, &mut socket)) => Some(first),
                () = permit.end.cancelled() => None,
            };
            match first.map(|first| first.unwrap_or(Err(absent))) {
                Some(Ok(claims)) => Some(claims),
                None => {
                    drop(permit);
                    socket.close(CloseCode::Away, &EndReason::Draining.to_string()).await;
                    return None;
                }
                Some(Err(refused)) => {
                    reject(&worker, socket, &refused).await;
                    return None;
                }
            }
        }
        // Browsers cannot see an HTTP status, so accept the upgrade and close the WebSocket.
        Err(refused) => {
            reject(&worker, socket, &refused).await;
            return None;
        }
    };
    match worker.unrevoked(claims).await {
        Ok(claims) => Some((Session::new(worker, permit, claims), socket)),
        Err(ApiError::TokenRevoked) => {
            reject(&worker, socket, &TokenRefused::Revoked).await;
            None
        }
        // The client comes back.
        Err(_) => {
            socket.close(CloseCode::Again, "unavailable").await;
            None
        }
    }
}

/// Closes the connection, and at the same time processes all requests that were read from it.
async fn finish(mut session: PlainSession, mut socket: Socket, open: OpenSocket, closing: Closing) {
    drop(open);
    let is_protocol_error = matches!(
        closing,
        Closing::With(
            CloseCode::Protocol | CloseCode::Invalid | CloseCode::Size | CloseCode::Unsupported,
            _
        )
    );
    if session.is_revoked() {
        session.drop_queued();
    } else if !is_protocol_error {
        // Frames after a protocol error of the client are ignored.
        for message in socket.drain_received() {
            if let Message::Text(text) = message {
                // The connection has ended, so errors are not sent.
                let _ = request(&mut session, &text);
            }
        }
    }
    session.mute();
    let (code, reason) = match closing {
        Closing::Gone => return session.process_all().await,
        Closing::With(code, reason) => (code, reason),
    };
    let closed = async {
        let closing = socket.close(code, &reason);
        if code == TOKEN_REFUSED {
            let _ = timeout(EXPIRED_CLOSE_TIMEOUT, closing).await;
        } else {
            closing.await;
        }
    };
    let finished = async move { session.process_all().await };
    join(closed, finished).await;
}

/// Reads the token that a client sends in its first frame, and writes the answer.
async fn authenticate(worker: &Worker, socket: &mut Socket) -> Result<Claims, TokenRefused> {
    #[derive(Deserialize)]
    struct Token {
        token: String,
    }

    let other = TokenRefused::Missing(Absence::FirstFrame);
    loop {
        let text = match socket.recv().await {
            Ok(Message::Text(text)) => text,
            Ok(Message::Alive) => continue,
            Ok(Message::Binary(_)) | Err(_) => return Err(other),
        };
        let Ok(frame) = serde_json::from_str::<ClientFrame<'_>>(&text) else { return Err(other) };
        if frame.event != RequestKind::Authenticate.name() {
            return Err(other);
        }
        let token = frame.data.map(|data| serde_json::from_str::<Token>(data.get()));
        let Some(Ok(Token { token })) = token else { return Err(other) };
        let claims = verify_event(&worker.tokens, &token)?;
        if let Err(ApiError::TokenRevoked) = worker.guard.check(claims.identity()).await {
            return Err(TokenRefused::Revoked);
        }
        if let Some(id) = frame.id {
            let answer = format!(r#"{{"ack":{id},"data":{{"expires":{}}}}}"#, claims.expires);
            let _ = socket.send(Frame::Text(answer.into())).await;
        }
        return Ok(claims);
    }
}

async fn reject(worker: &Worker, socket: Socket, refused: &TokenRefused) {
    worker.refusals.note_token(refused);
    let reason = match refused {
        TokenRefused::Revoked => EndReason::Revoked.to_string(),
        refused => {
            let (text, _) = refused.error().sentence(worker.config.errors);
            format!("{text} ({refused})")
        }
    };
    socket.close(TOKEN_REFUSED, &reason).await;
}

/// How to end a connection.
enum Closing {
    With(CloseCode, String),
    /// The connection has ended already.
    Gone,
}

impl From<Closed> for Closing {
    fn from(closed: Closed) -> Self {
        closed.code().map_or(Self::Gone, |code| Self::With(code, closed.to_string()))
    }
}

async fn run(
    worker: &Worker,
    session: &mut PlainSession,
    socket: &mut Socket,
    open: &mut OpenSocket,
) -> Closing {
    match try_run(worker, session, socket, open).await {
        Ok(never) => match never {},
        Err(closing) => closing,
    }
}

async fn try_run(
    worker: &Worker,
    session: &mut PlainSession,
    socket: &mut Socket,
    open: &mut OpenSocket,
) -> Result<std::convert::Infallible, Closing> {
    let deliveries = open.deliveries();
    if let Some(writer) = socket.opened().await? {
        session.set_direct_writer(EventWriter { writer, deliveries: deliveries.clone() });
    }
    let mut last_received = Instant::now();
    let mut ping_due = last_received + PING_INTERVAL;
    let mut timer = pin!(sleep_until(ping_due));
    loop {
        let unwritten = socket.buffered();
        let reads = session.has_room() && unwritten < MAX_UNWRITTEN;
        let ready = async {
            if unwritten >= WRITE_AT_ONCE {
                // Events wait in the inbox, which is bounded, or in the ring, until the client has
                // read more.
                pending().await
            }
        };
        tokio::select! {
            output = session.next_when(ready) => {
                let mut next = Some(output);
                while let Some(output) = next {
                    let frame = match output {
                        Output::Event(delivery) => {
                            deliveries.count();
                            Some(session.frame(&delivery, Wire::Plain))
                        }
                        Output::Answer(answer) => answer_frame(worker, answer),
                        Output::End(end) => {
                            open.closes_because(end.label());
                            return Err(closing(end));
                        }
                    };
                    if let Some(frame) = frame {
                        socket.feed(Frame::Text(frame))?;
                    }
                    // Write other events that are there already together with it.
                    let more = socket.buffered() < WRITE_AT_ONCE;
                    next = if more { session.next_event().map(Output::Event) } else { None };
                }
                socket.write_now()?;
            }
            progress = socket.advance(reads), if reads || !socket.is_broken() => {
                let Progress::Received(message) = progress? else { continue };
                last_received = Instant::now();
                match message {
                    Message::Text(text) => {
                        if let Err((error, id)) = request(session, &text) {
                            let frame = match id {
                                Some(id) => ack_frame(&id, &error.to_json(worker.config.errors, None)),
                                None => error_frame(worker, &error, "null"),
                            };
                            socket.feed(Frame::Text(frame))?;
                        }
                    }
                    Message::Alive => {}
                    Message::Binary(_) => {
                        let reason = "only text is understood".to_owned();
                        return Err(Closing::With(CloseCode::Unsupported, reason));
                    }
                }
            }
            () = timer.as_mut() => {
                let now = Instant::now();
                if now >= last_received + IDLE_TIMEOUT {
                    open.closes_because("idle");
                    let reason = "nothing heard from the client".to_owned();
                    return Err(Closing::With(CloseCode::Policy, reason));
                }
                if now >= ping_due {
                    socket.feed(Frame::Ping)?;
                    ping_due = now + PING_INTERVAL;
                }
                timer.as_mut().reset(ping_due.min(last_received + IDLE_TIMEOUT));
            }
        }
    }
}

/// Writes events while the session's task sleeps.
struct EventWriter {
    writer: WriteHandle,
    deliveries: Deliveries,
}

impl DirectWriter for EventWriter {
    fn write(&self, delivery: &Delivery) -> bool {
        let written = self.writer.send_now([delivery.frame(Wire::Plain)]);
        if written {
            self.deliveries.count();
        }
        written
    }
}

/// A frame of a client.
#[derive(Deserialize)]
struct ClientFrame<'a> {
    event: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    id: Option<Box<RawValue>>,
}

/// The maximum length of an `id`, which is sent back unchanged.
const MAX_ID: usize = 256;

/// Queues a request.
///
/// # Errors
/// The frame is not a request. The error comes with the `id` for the answer, if there is one.
fn request(
    session: &mut PlainSession,
    text: &ByteString,
) -> Result<(), (ApiError, Option<Box<RawValue>>)> {
    let frame: ClientFrame<'_> = serde_json::from_str(text)
        .map_err(|_| (ApiError::MalformedBody("not {\"event\":…,\"data\":…,\"id\":…}"), None))?;
    if frame.id.as_ref().is_some_and(|id| id.get().len() > MAX_ID) {
        let problem = "must have at most 256 bytes";
        return Err((ApiError::InvalidField { field: "id", problem }, None));
    }
    let Some(kind) = RequestKind::of(&frame.event) else {
        return Err((ApiError::UnknownEvent, frame.id));
    };
    let data = frame.data.map(|data| text.slice_ref(data.get())).unwrap_or_default();
    session.request(Request::new(kind, data), frame.id);
    Ok(())
}

/// The frame of an answer. Without an `id`, only errors are sent.
fn answer_frame(worker: &Worker, answer: Answer<Option<Box<RawValue>>>) -> Option<ByteString> {
    let Answer { to, kind, result } = answer;
    let mode = kind.errors(worker.config.errors);
    let json = match (&to, result) {
        (_, Ok(json)) => json,
        (None, Err(error)) => {
            error.log(&kind.name());
            let data = error.to_json(mode, Some(&format!("\"{}\"", kind.name())));
            return Some(pushed_error(&data));
        }
        (Some(_), Err(error)) => {
            error.log(&kind.name());
            error.to_json(mode, None)
        }
    };
    to.map(|id| ack_frame(&id, &json))
}

/// The answer to a request that has an `id`.
fn ack_frame(id: &RawValue, json: &str) -> ByteString {
    format!(r#"{{"ack":{id},"data":{json}}}"#).into()
}

/// The event `error` for a request that could not be read.
fn error_frame(worker: &Worker, error: &ApiError, event: &str) -> ByteString {
    pushed_error(&error.to_json(worker.config.errors, Some(event)))
}

/// The event `error` for a request without an `id`.
fn pushed_error(data: &str) -> ByteString {
    format!(r#"{{"event":"error","data":{data}}}"#).into()
}

fn closing(end: EndReason) -> Closing {
    let code = match end {
        EndReason::Expired | EndReason::Revoked => TOKEN_REFUSED,
        EndReason::TooSlow => CloseCode::Again,
        EndReason::Draining => CloseCode::Away,
        EndReason::TakenOver => CloseCode::Policy,
    };
    Closing::With(code, end.to_string())
}
