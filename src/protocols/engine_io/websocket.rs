//! The WebSocket transport: packets as frames, from the handshake or after an upgrade.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse};
use bytestring::ByteString;
use futures::FutureExt;
use tokio::time::timeout;

use super::RequestError;
use super::end::CloseReason;
use super::packet::Packet;
use super::registry::Registry;
use super::session::{Message, Session, Side, Transport};
use crate::protocols::panics::catch_panic;
use crate::protocols::websocket::{self, CloseCode, Frame, Progress, Socket, WRITE_AT_ONCE};

/// How long the close handshake may take after a normal end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Tries a WebSocket for a session that polls. At a wrong time, the WebSocket is accepted and
/// closed, so that the session is not affected.
pub(super) fn upgrade(
    session: Arc<Session>,
    registry: &Registry,
    req: &HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, RequestError> {
    let (response, socket) = Socket::accept(req, payload, session.config.max_payload)
        .map_err(|_| RequestError::BadRequest)?;
    let mut state = session.state();
    let begins = state.end.is_none() && state.transport == Transport::Polling && !state.probing;
    state.probing |= begins;
    state.wake(Side::Transport);
    drop(state);
    if begins {
        let probing = probe(Arc::clone(&session), socket);
        actix_web::rt::spawn(with_panic_caught(&session, registry, probing));
    } else {
        actix_web::rt::spawn(socket.close(CloseCode::Normal, ""));
    }
    Ok(response)
}

/// Runs a session's transport, and ends the session if that panics.
pub(super) fn with_panic_caught(
    session: &Arc<Session>,
    registry: &Registry,
    carrying: impl Future<Output = ()> + 'static,
) -> impl Future<Output = ()> + 'static {
    let (session, registry) = (Arc::clone(session), registry.clone());
    let note = move || {
        registry.count_panic();
        session.end(CloseReason::Panic, None);
    };
    catch_panic(carrying, note).map(drop)
}

/// Answers the probe and waits for the upgrade; meanwhile polling stays the transport.
async fn probe(session: Arc<Session>, mut socket: Socket) {
    let receiving = session.receiving();
    let probing = tokio::time::timeout(session.config.upgrade_timeout, probed(&mut socket));
    let upgraded = tokio::select! {
        biased;
        result = probing => result == Ok(true),
        () = session.wait_for_end(Side::Transport) => false,
    };
    let serves = {
        let mut state = session.state();
        state.probing = false;
        if upgraded && state.end.is_none() {
            state.transport = Transport::WebSocket;
        }
        // Releases the poll that is still pending.
        state.wake(Side::Transport);
        state.transport == Transport::WebSocket && state.end.is_none()
    };
    if serves {
        drop(receiving);
        serve(session, socket, None).await;
    } else {
        if upgraded {
            // The session has just ended; the client sent its last messages on this WebSocket.
            drain_received(&session, &mut socket);
        }
        drop(receiving);
        socket.close(CloseCode::Normal, "").await;
    }
}

/// Whether the client tested this WebSocket and then upgraded to it.
async fn probed(socket: &mut Socket) -> bool {
    loop {
        let text = match socket.recv().await {
            Ok(websocket::Message::Text(text)) => text,
            Ok(websocket::Message::Alive) => continue,
            Ok(websocket::Message::Binary(_)) | Err(_) => return false,
        };
        match Packet::parse(&text) {
            Ok(Packet::Ping(data)) if data == "probe" => {
                let pong = Packet::Pong("probe".into()).to_string();
                if socket.send(Frame::Text(pong.into())).await.is_err() {
                    return false;
                }
            }
            Ok(Packet::Upgrade) => return true,
            _ => return false,
        }
    }
}

/// Transports the packets of a session until it ends.
pub(super) async fn serve(session: Arc<Session>, mut socket: Socket, open: Option<Packet>) {
    let receiving = session.receiving();
    let Err(lost) = run_transport(&session, &mut socket, open).await;
    // Messages that have arrived were sent before the end, unless the client itself has ended the
    // session.
    if !matches!(lost, CloseReason::Client | CloseReason::Parse | CloseReason::TooLong) {
        drain_received(&session, &mut socket);
    }
    session.end(lost, None);
    drop(receiving);
    let reason = session.ended().map_or(lost, |end| end.reason);
    let (code, text) = match reason {
        CloseReason::Client | CloseReason::Server => {
            // The client's token may have expired, so a client that does not read must not keep the
            // connection.
            let _ = timeout(CLOSE_TIMEOUT, socket.close(CloseCode::Normal, "")).await;
            return;
        }
        CloseReason::GoingAway => (CloseCode::Away, "the server stops"),
        CloseReason::TooLong => (CloseCode::Size, ""),
        CloseReason::TooSlow => (CloseCode::Again, "too slow"),
        CloseReason::Panic => (CloseCode::Error, ""),
        // The client is not connected any more.
        CloseReason::Transport | CloseReason::PingTimeout => return,
        CloseReason::Parse | CloseReason::Overlap => (CloseCode::Protocol, "parse error"),
    };
    socket.close(code, text).await;
}

async fn run_transport(
    session: &Session,
    socket: &mut Socket,
    open: Option<Packet>,
) -> Result<Infallible, CloseReason> {
    let writer = socket.opened().await.map_err(|closed| reason_of(&closed))?;
    if let Some(open) = open {
        socket.feed(open.into()).map_err(|closed| reason_of(&closed))?;
    }
    loop {
        let unwritten = socket.buffered();
        let has_room = unwritten < WRITE_AT_ONCE;
        if unwritten == 0 {
            session.share_writer(&writer);
        }
        let receives = session.has_room();
        let packet = session.wait_for(Side::Transport, |state| match state.end {
            Some(_) => Some(None),
            None if has_room => state.take_packet(&session.config).map(Some),
            None => None,
        });
        tokio::select! {
            packet = packet => {
                // Write the other queued packets together with this one.
                let mut next = Some(packet.ok_or(CloseReason::Server)?);
                while let Some(packet) = next {
                    socket.feed(packet.into()).map_err(|closed| reason_of(&closed))?;
                    let more = socket.buffered() < WRITE_AT_ONCE;
                    next = more.then(|| session.state().take_packet(&session.config)).flatten();
                }
                socket.write_now().map_err(|closed| reason_of(&closed))?;
            }
            () = session.wait_for_room(), if !receives => {}
            progress = socket.advance(receives), if receives || !socket.is_broken() => {
                match progress.map_err(|closed| reason_of(&closed))? {
                    Progress::Written => {}
                    Progress::Received(message) => session.deliver(take(session, message)?),
                }
            }
        }
    }
}

/// Hands the application the messages that have arrived but were not read yet.
fn drain_received(session: &Session, socket: &mut Socket) {
    for message in socket.drain_received() {
        let Ok(message) = take(session, message) else { return };
        session.deliver(message);
    }
}

/// Handles a frame. Returns its message for the application, if it has one.
fn take(session: &Session, message: websocket::Message) -> Result<Option<Message>, CloseReason> {
    match message {
        websocket::Message::Text(text) => {
            let packet = Packet::parse(&text).map_err(|_| CloseReason::Parse)?;
            session.control(&packet)?;
            Ok(Message::of(packet))
        }
        websocket::Message::Binary(bytes) => Ok(Some(Message::Binary(bytes))),
        websocket::Message::Alive => Ok(None),
    }
}

impl From<Packet> for Frame {
    fn from(packet: Packet) -> Self {
        match packet {
            Packet::Text(text) | Packet::Latest(text) => Self::Text(text),
            Packet::Binary(bytes) => Self::Binary(bytes),
            packet => Self::Text(ByteString::from(packet.to_string())),
        }
    }
}

fn reason_of(closed: &websocket::Closed) -> CloseReason {
    match closed {
        websocket::Closed::ByClient | websocket::Closed::NotRead => CloseReason::Transport,
        websocket::Closed::TooLong => CloseReason::TooLong,
        _ => CloseReason::Parse,
    }
}
