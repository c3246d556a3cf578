//! A WebSocket, as sessions of either wire use it: messages in, frames out, every write in time.
//!
//! The one place that knows how the protocol (RFC 6455) is spoken. Behind a
//! server that hands connections over ([`Handover`]) a socket owns its TCP connection (`owned`), which
//! costs an idle one a fifth of the memory and a delivery half of the processor time; behind any
//! other actix server actix-ws serves it (`managed`). Reading and writing go on side by side ([`Socket::advance`]), so a
//! client that does not read holds nothing up but itself, and is gone after ten seconds in which
//! nothing could be written; one that reads slowly is not.

mod handover;
mod managed;
mod owned;
mod subprotocol;
mod write_handle;

use std::time::Duration;

use actix_http::ws::ProtocolError;
use actix_web::http::header::SEC_WEBSOCKET_PROTOCOL;
use actix_web::web::Payload;
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use bytes::Bytes;
use bytestring::ByteString;
use futures::FutureExt;

pub use actix_http::ws::CloseCode;
pub use handover::{Connection, Guard, Handover};
pub use write_handle::WriteHandle;

use managed::ManagedSocket;
use owned::OwnedSocket;

/// How many bytes are written at once, when so much waits.
pub const WRITE_AT_ONCE: usize = 32 * 1024;

/// How many messages that have arrived are still taken when a connection ends.
const MAX_DRAINED: usize = 1_024;
/// The same in bytes; the last message may exceed it.
const MAX_DRAINED_BYTES: usize = 1 << 20;

/// How long the client may take to make room for more of what is sent.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// A server's end of a WebSocket. Dropping it, and the [`WriteHandle`]s to it, ends the connection without a
/// closing handshake.
pub struct Socket(Implementation);

enum Implementation {
    Owned(Box<OwnedSocket>),
    Managed(Box<ManagedSocket>),
}

/// What a client sent. Pings are answered already, and pongs are not worth telling apart from
/// them: both show that the client is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text message, whole.
    Text(ByteString),
    /// A binary message, whole.
    Binary(Bytes),
    /// A ping or a pong.
    Alive,
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(ByteString),
    /// A binary message.
    Binary(Bytes),
    /// A ping.
    Ping,
}

/// What [`Socket::advance`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A message came.
    Received(Message),
    /// All that was fed is written.
    Written,
}

/// Why an upgrade is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// The request is no upgrade to a WebSocket.
    #[error("no upgrade to a WebSocket")]
    NoUpgrade,
    /// Its subprotocols are not a list of tokens.
    #[error("malformed subprotocols")]
    Protocols,
}

/// Why nothing more can be received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The client closed it, with a closing handshake, which is answered, or without.
    #[error("closed by the client")]
    ByClient,
    /// The client did not read in time what was sent.
    #[error("the client does not read")]
    NotRead,
    /// A message was longer than allowed: close code 1009.
    #[error("a message is too long")]
    TooLong,
    /// Text that is no UTF-8: close code 1007.
    #[error("a text is not UTF-8")]
    NotUtf8,
    /// Against the protocol: close code 1002.
    #[error("against the protocol: {0}")]
    Protocol(String),
}

impl Closed {
    /// What to tell the client, if it still listens.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::ByClient | Self::NotRead => None,
            Self::TooLong => Some(CloseCode::Size),
            Self::NotUtf8 => Some(CloseCode::Invalid),
            Self::Protocol(_) => Some(CloseCode::Protocol),
        }
    }

    fn from_protocol_error(error: &ProtocolError) -> Self {
        match error {
            ProtocolError::Overflow => Self::TooLong,
            error => Self::Protocol(error.to_string()),
        }
    }
}

impl Message {
    /// The bytes of its payload.
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Alive => 0,
        }
    }
}

impl Frame {
    /// The bytes of its payload.
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Ping => 0,
        }
    }
}

impl Socket {
    /// Accepts an upgrade. The response must be returned by the handler; until then nothing is
    /// sent or received. Messages of more than `max_message` bytes, in one frame or several, are
    /// refused. Of the subprotocols that the client offers, the first is agreed to.
    ///
    /// # Errors
    /// The request is no upgrade to a WebSocket, or offers what is no subprotocol.
    pub fn accept(
        req: &HttpRequest,
        payload: Payload,
        max_message: usize,
    ) -> Result<(HttpResponse, Self), NotAccepted> {
        let protocol = subprotocol::first(req.headers()).map_err(|_| NotAccepted::Protocols)?;
        let handover = req.extensions().get::<Handover>().cloned();
        let (mut response, socket) = match handover {
            Some(handover) => {
                let mut response =
                    actix_http::ws::handshake(req.head()).map_err(|_| NotAccepted::NoUpgrade)?;
                let socket = OwnedSocket::new(handover.accept(), max_message);
                let response = response.finish().map_into_boxed_body();
                (HttpResponse::from(response), Self(Implementation::Owned(Box::new(socket))))
            }
            None => {
                let (response, socket) = ManagedSocket::accept(req, payload, max_message)
                    .map_err(|_| NotAccepted::NoUpgrade)?;
                (response, Self(Implementation::Managed(Box::new(socket))))
            }
        };
        if let Some(protocol) = protocol {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        Ok((response, socket))
    }

    /// The next message. Cancel-safe: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// Nothing more will come; the error says what to close with.
    pub async fn recv(&mut self) -> Result<Message, Closed> {
        loop {
            if let Progress::Received(message) = self.advance(true).await? {
                return Ok(message);
            }
        }
    }

    /// Writes what was [fed](Self::feed), and receives meanwhile if it is to `receive`; answers
    /// what is done first. With nothing to do it waits for ever. Cancel-safe, and the time that
    /// the client has to read goes on counting in the next advance. After a failed write
    /// ([`is_broken`](Self::is_broken)) reading still works.
    ///
    /// # Errors
    /// The socket is of no more use; the error says what to close with.
    pub async fn advance(&mut self, receive: bool) -> Result<Progress, Closed> {
        match &mut self.0 {
            Implementation::Owned(socket) => socket.advance(receive).await,
            Implementation::Managed(socket) => socket.advance(receive).await,
        }
    }

    /// Sends a frame, and what was [fed](Self::feed) before, and waits until it is written.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance), or the connection has broken.
    pub async fn send(&mut self, frame: Frame) -> Result<(), Closed> {
        self.feed(frame).await?;
        self.advance(false).await?;
        if self.is_broken() { Err(Closed::ByClient) } else { Ok(()) }
    }

    /// What the client has sent and nobody has received yet, without waiting for more, up to a
    /// bound of messages and bytes.
    pub fn drain_received(&mut self) -> Vec<Message> {
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while messages.len() < MAX_DRAINED && bytes < MAX_DRAINED_BYTES {
            // Without the budget of the task, which may be used up although more has arrived.
            let progress = tokio::task::unconstrained(self.advance(true)).now_or_never();
            match progress {
                Some(Ok(Progress::Received(message))) => {
                    bytes += message.len();
                    messages.push(message);
                }
                Some(Ok(Progress::Written)) => {}
                Some(Err(_)) | None => break,
            }
        }
        messages
    }

    /// Whether writing has failed. Reading still works, and returns what the client had sent
    /// before; what is fed is dropped.
    pub fn is_broken(&self) -> bool {
        match &self.0 {
            Implementation::Owned(socket) => socket.writer().is_some_and(WriteHandle::is_broken),
            Implementation::Managed(socket) => socket.is_broken(),
        }
    }

    /// Adds a frame to what the next [`advance`](Self::advance) writes, so that several frames cost one
    /// write. Waits for nothing but the upgrade itself.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance).
    pub async fn feed(&mut self, frame: Frame) -> Result<(), Closed> {
        match &mut self.0 {
            Implementation::Owned(socket) => socket.feed(frame).await,
            Implementation::Managed(socket) => {
                socket.feed(frame);
                Ok(())
            }
        }
    }

    /// Writes of what was fed what can be written now.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance), unless the next advance will say so.
    pub fn write_now(&mut self) -> Result<(), Closed> {
        match &mut self.0 {
            Implementation::Owned(socket) => {
                // That the connection has broken is told by the next advance.
                socket.writer().into_iter().for_each(WriteHandle::write_now);
                Ok(())
            }
            Implementation::Managed(socket) if socket.buffered() == 0 => Ok(()),
            Implementation::Managed(socket) => {
                socket.advance(false).now_or_never().transpose().map(drop)
            }
        }
    }

    /// How many bytes were fed and are not written.
    pub fn buffered(&self) -> usize {
        match &self.0 {
            Implementation::Owned(socket) => socket.writer().map_or(0, WriteHandle::buffered),
            Implementation::Managed(socket) => socket.buffered(),
        }
    }

    /// Waits for the upgrade; then there is a handle for others to send by, except behind a server
    /// that keeps the connection.
    ///
    /// # Errors
    /// The client has gone meanwhile.
    pub async fn opened(&mut self) -> Result<Option<WriteHandle>, Closed> {
        match &mut self.0 {
            Implementation::Owned(socket) => {
                socket.opened().await.map(|writer| Some(writer.clone()))
            }
            Implementation::Managed(_) => Ok(None),
        }
    }

    /// Closes with a code and a reason of at most 123 bytes.
    pub async fn close(self, code: CloseCode, reason: &str) {
        // Boxed, so that a connection has no room for this while it lasts.
        match self.0 {
            Implementation::Owned(socket) => Box::pin(socket.close(code, reason)).await,
            Implementation::Managed(socket) => Box::pin(socket.close(code, reason)).await,
        }
    }
}
