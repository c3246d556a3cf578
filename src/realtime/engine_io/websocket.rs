//! The WebSocket transport: packets as frames, from the handshake or after an upgrade.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse};
use bytestring::ByteString;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Refused;
use super::packet::Packet;
use super::registry::Registry;
use super::session::{CloseReason, Message, Session, Transport};
use crate::realtime::panics::survive;
use crate::realtime::socket::{self, CloseCode, Frame, Socket, Turn};

/// How many bytes are written at once, when so much waits.
const WRITE_AT_ONCE: usize = 32 * 1024;
/// How long a client may take to hear a goodbye that has no code.
const FAREWELL: Duration = Duration::from_millis(500);

/// Tries a WebSocket for a session that polls. One that comes at the wrong time is accepted and
/// closed, as the session must not suffer.
pub(super) fn upgrade(
    session: Arc<Session>,
    registry: Registry,
    req: &HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Refused> {
    let (response, socket) = Socket::accept(req, payload, session.config.max_payload)
        .map_err(|_| Refused::BadRequest)?;
    let mut state = session.state();
    let begins = state.end.is_none() && state.transport == Transport::Polling && !state.probing;
    state.probing |= begins;
    drop(state);
    session.changed.notify_waiters();
    if begins {
        let probing = probe(Arc::clone(&session), socket);
        spawn(session, registry, probing);
    } else {
        actix_web::rt::spawn(socket.close(CloseCode::Normal, ""));
    }
    Ok(response)
}

/// Spawns what carries a session, which ends with it when that panics.
pub(super) fn spawn(
    session: Arc<Session>,
    registry: Registry,
    carrying: impl Future<Output = ()> + 'static,
) {
    let note = move || {
        registry.note_panic();
        session.end(CloseReason::Panic, None);
    };
    actix_web::rt::spawn(survive(carrying, note));
}

/// Answers the probe and waits for the upgrade; meanwhile polling stays the transport.
async fn probe(session: Arc<Session>, mut socket: Socket) {
    let probing = tokio::time::timeout(session.config.upgrade_timeout, probed(&mut socket));
    let upgraded = tokio::select! {
        result = probing => result == Ok(true),
        () = session.ended.cancelled() => false,
    };
    let serves = {
        let mut state = session.state();
        state.probing = false;
        if upgraded && state.end.is_none() {
            state.transport = Transport::WebSocket;
        }
        state.transport == Transport::WebSocket && state.end.is_none()
    };
    // Releases the poll that is still pending.
    session.changed.notify_waiters();
    if serves {
        serve(session, socket, None).await;
    } else {
        socket.close(CloseCode::Normal, "").await;
    }
}

/// Whether the client tried this WebSocket and then chose it.
async fn probed(socket: &mut Socket) -> bool {
    loop {
        let text = match socket.recv().await {
            Ok(socket::Message::Text(text)) => text,
            Ok(socket::Message::Alive) => continue,
            Ok(socket::Message::Binary(_)) | Err(_) => return false,
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

/// Carries a session until it ends.
pub(super) async fn serve(session: Arc<Session>, mut socket: Socket, open: Option<Packet>) {
    let lost = tokio::select! {
        Err(lost) = carry(&session, &mut socket, open) => lost,
        () = session.ended.cancelled() => CloseReason::Server,
    };
    session.end(lost, None);
    let reason = session.ended().map_or(lost, |end| end.reason);
    let (code, text) = match reason {
        CloseReason::Client | CloseReason::Server => {
            // Its token may have expired: it does not keep the connection by not reading.
            let _ = timeout(FAREWELL, socket.close(CloseCode::Normal, "")).await;
            return;
        }
        CloseReason::GoingAway => (CloseCode::Away, "the server stops"),
        CloseReason::TooLong => (CloseCode::Size, ""),
        CloseReason::TooSlow => (CloseCode::Again, "too slow"),
        CloseReason::Panic => (CloseCode::Error, ""),
        // Nobody is there to read it.
        CloseReason::Transport | CloseReason::PingTimeout => return,
        CloseReason::Parse | CloseReason::Overlap => (CloseCode::Protocol, "parse error"),
    };
    socket.close(code, text).await;
}

async fn carry(
    session: &Session,
    socket: &mut Socket,
    open: Option<Packet>,
) -> Result<Infallible, CloseReason> {
    if let Some(open) = open {
        socket.feed(frame(open)).await.map_err(|closed| lost(&closed))?;
    }
    // A message that the application has no room for yet; until it has, nothing more is read.
    let mut waiting: Option<Message> = None;
    loop {
        let has_room = socket.buffered() < WRITE_AT_ONCE;
        tokio::select! {
            packets = session.wait_for(|state| state.take_some(WRITE_AT_ONCE)), if has_room => {
                // There is room for more in the queue.
                session.changed.notify_waiters();
                for packet in packets {
                    socket.feed(frame(packet)).await.map_err(|closed| lost(&closed))?;
                }
                socket.write_now().map_err(|closed| lost(&closed))?;
            }
            room = session.incoming.reserve(), if waiting.is_some() => {
                give(room, waiting.take())?;
            }
            turn = socket.turn(waiting.is_none()) => {
                waiting = match turn {
                    Ok(Turn::Written) => continue,
                    Ok(Turn::Received(socket::Message::Text(text))) => {
                        let packet = Packet::parse(&text).map_err(|_| CloseReason::Parse)?;
                        session.control(&packet)?;
                        match (packet.text(), packet) {
                            (Some(text), _) => Some(Message::Text(text)),
                            (None, Packet::Binary(bytes)) => Some(Message::Binary(bytes)),
                            _ => None,
                        }
                    }
                    Ok(Turn::Received(socket::Message::Binary(bytes))) => {
                        Some(Message::Binary(bytes))
                    }
                    Ok(Turn::Received(socket::Message::Alive)) => None,
                    Err(closed) => return Err(lost(&closed)),
                };
                // Mostly there is room at once.
                if let Some(message) = waiting.take() {
                    match session.incoming.try_send(message) {
                        Ok(()) => {}
                        Err(mpsc::error::TrySendError::Full(message)) => waiting = Some(message),
                        Err(mpsc::error::TrySendError::Closed(_)) => {
                            return Err(CloseReason::Server);
                        }
                    }
                }
            }
        }
    }
}

fn give(
    room: Result<mpsc::Permit<'_, Message>, mpsc::error::SendError<()>>,
    message: Option<Message>,
) -> Result<(), CloseReason> {
    let room = room.map_err(|_| CloseReason::Server)?;
    if let Some(message) = message {
        room.send(message);
    }
    Ok(())
}

fn frame(packet: Packet) -> Frame {
    match packet {
        Packet::Text(text) => Frame::Text(text),
        Packet::Binary(bytes) => Frame::Binary(bytes),
        packet => Frame::Text(ByteString::from(packet.to_string())),
    }
}

fn lost(closed: &socket::Closed) -> CloseReason {
    match closed {
        socket::Closed::ByClient | socket::Closed::NotRead => CloseReason::Transport,
        socket::Closed::TooLong => CloseReason::TooLong,
        _ => CloseReason::Parse,
    }
}
