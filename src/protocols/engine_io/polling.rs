//! The long-polling transport: a GET waits for packets of the server, a POST brings packets of the
//! client.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{self, ContentEncoding, HeaderMap};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures::StreamExt;
use tokio::time::{sleep, timeout};

use super::end::CloseReason;
use super::packet::{Packet, join_payload, parse_payload};
use super::session::{Message, Session, Side, Transport};
use super::{RequestError, compression};

/// How long a poll waits during an upgrade: the client waits for the end of the poll.
const POLL_WHILE_PROBING: Duration = Duration::from_millis(100);
/// How long the body of a post may take to arrive, and how long its messages may have to wait for
/// room.
const POST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long after an aborted poll a post that was sent before is still accepted.
const LATE_POST: Duration = Duration::from_millis(250);
/// How long the body of a post may still take to arrive after the session has ended.
const LATE_BODY: Duration = Duration::from_secs(1);

/// Handles a request of a session that polls.
pub(super) async fn handle(
    session: Arc<Session>,
    req: &HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, RequestError> {
    if session.state().transport != Transport::Polling {
        return Err(RequestError::BadRequest);
    }
    match *req.method() {
        Method::GET => poll(&session, req).await,
        Method::POST => post(&session, req.headers(), payload).await,
        // Another method does not end the session.
        _ => Err(RequestError::BadRequest),
    }
}

/// The response to a poll.
pub(super) async fn answer(payload: String, req: &HttpRequest) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    answer
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=UTF-8"))
        .insert_header((header::CACHE_CONTROL, "no-store"));
    if !compression::is_wanted(&payload, req) {
        return answer.body(payload);
    }
    answer.insert_header((header::CONTENT_ENCODING, ContentEncoding::Gzip));
    answer.body(compression::gzip(payload.as_bytes()).await)
}

/// Waits for packets and answers with all of them.
async fn poll(session: &Arc<Session>, req: &HttpRequest) -> Result<HttpResponse, RequestError> {
    let (already, in_upgrade) = {
        let mut state = session.state();
        (std::mem::replace(&mut state.polling, true), state.probing)
    };
    if already {
        session.end(CloseReason::Overlap, Some(Packet::Close));
        return Err(RequestError::BadRequest);
    }
    let mut guard = Request { session, of: |state| &mut state.polling, done: false };
    let waiting = session.wait_for(Side::Transport, |state| {
        if let Some(end) = &mut state.end {
            let final_packet = end.final_packet.take().map(|final_packet| vec![final_packet]);
            return Some(final_packet.ok_or(RequestError::UnknownSession));
        }
        match state.transport {
            Transport::Polling => state.take_queue(&session.config).map(Ok),
            // The poll began during the upgrade, and the client completed the upgrade without
            // waiting for it. Queued packets belong to the WebSocket now.
            Transport::WebSocket if in_upgrade => Some(Err(RequestError::BadRequest)),
            Transport::WebSocket => Some(Ok(vec![Packet::Noop])),
        }
    });
    let probing = async {
        session.wait_for(Side::Transport, |state| state.probing.then_some(())).await;
        sleep(POLL_WHILE_PROBING).await;
    };
    let packets = tokio::select! {
        biased;
        packets = waiting => packets,
        () = probing => Ok(vec![Packet::Noop]),
    };
    let answer = match packets {
        Ok(packets) => Ok(answer(join_payload(&packets), req).await),
        Err(refused) => Err(refused),
    };
    guard.done = true;
    answer
}

/// Accepts packets of the client. The response waits until the application has room for more
/// messages, which slows the client down.
async fn post(
    session: &Arc<Session>,
    headers: &HeaderMap,
    payload: Payload,
) -> Result<HttpResponse, RequestError> {
    let already = std::mem::replace(&mut session.state().posting, true);
    if already {
        session.end(CloseReason::Overlap, Some(Packet::Close));
        return Err(RequestError::BadRequest);
    }
    let mut guard = Request { session, of: |state| &mut state.posting, done: false };
    let is_binary = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/octet-stream"));
    let receiving = session.receiving();
    let collecting = async {
        if is_binary {
            return Err(Rejected::EndsSession(CloseReason::Parse));
        }
        collect(payload, session.config.max_payload).await
    };
    let ended = async {
        session.wait_for_end(Side::Transport).await;
        // The client may have sent the body before it could know of the end.
        sleep(LATE_BODY).await;
    };
    let body = tokio::select! {
        biased;
        body = collecting => body,
        () = sleep(POST_TIMEOUT) => Err(Rejected::EndsSession(CloseReason::Transport)),
        () = ended => Err(Rejected::EndsSession(CloseReason::Server)),
    };
    let taken = body.and_then(|body| take(session, body).map_err(Rejected::EndsSession));
    drop(receiving);
    let taken = match taken {
        Ok(()) => timeout(POST_TIMEOUT, session.wait_for_room())
            .await
            .map_err(|_| Rejected::EndsSession(CloseReason::Transport)),
        rejected => rejected,
    };
    guard.done = true;
    drop(guard);
    match taken {
        Ok(()) => Ok(accepted()),
        // A close of the client is answered like any packet; its pending poll gets a noop.
        Err(Rejected::EndsSession(CloseReason::Client)) => {
            session.end(CloseReason::Client, Some(Packet::Noop));
            Ok(accepted())
        }
        Err(Rejected::EndsSession(reason)) => {
            session.end(reason, Some(Packet::Close));
            Err(RequestError::BadRequest)
        }
        Err(Rejected::TooLarge) => {
            Ok(HttpResponse::build(StatusCode::PAYLOAD_TOO_LARGE).force_close().finish())
        }
    }
}

/// The response to an accepted post.
fn accepted() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/html"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body("ok")
}

/// Why a post is not accepted.
enum Rejected {
    TooLarge,
    EndsSession(CloseReason),
}

async fn collect(mut payload: Payload, max: usize) -> Result<Bytes, Rejected> {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Rejected::EndsSession(CloseReason::Transport))?;
        if body.len() + chunk.len() > max {
            return Err(Rejected::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Hands the messages of a body to the application, up to the first invalid packet.
fn take(session: &Session, body: Bytes) -> Result<(), CloseReason> {
    let payload = ByteString::try_from(body).map_err(|_| CloseReason::Parse)?;
    for packet in parse_payload(&payload) {
        let packet = packet.map_err(|_| CloseReason::Parse)?;
        session.control(&packet)?;
        session.deliver(Message::of(packet));
    }
    Ok(())
}

/// A poll or post in progress. If its client aborts it, the session ends, since packets may be
/// lost.
struct Request<'a> {
    session: &'a Arc<Session>,
    of: fn(&mut super::session::State) -> &mut bool,
    done: bool,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        *(self.of)(&mut self.session.state()) = false;
        if self.done {
            return;
        }
        // When a page is closed, its poll and its post are aborted in any order.
        let receiving = self.session.receiving();
        self.session.end(CloseReason::Transport, None);
        actix_web::rt::spawn(async move {
            sleep(LATE_POST).await;
            drop(receiving);
        });
    }
}
