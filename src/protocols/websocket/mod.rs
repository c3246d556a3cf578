//! A WebSocket for sessions of both wires: it receives messages and sends frames, with a write
//! timeout.
//!
//! Only this module implements the protocol (RFC 6455). Behind a server that hands connections over
//! ([`Handover`]), a socket owns its TCP connection (`owned`). An idle socket then needs a fifth of
//! the memory, and a delivery half of the processor time. Behind any other actix server, actix-ws
//! serves the socket (`managed`). A socket reads and writes concurrently ([`Socket::advance`]), so
//! a client that does not read delays only itself. It is disconnected when nothing could be written
//! for ten seconds; a slow reader stays connected.

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

/// How many bytes are written at once at most.
pub const WRITE_AT_ONCE: usize = 32 * 1024;

/// How many messages that have arrived are still received when a connection ends.
const MAX_DRAINED: usize = 1_024;
/// The same in bytes; the last message may exceed it.
const MAX_DRAINED_BYTES: usize = 1 << 20;

/// How long the client may accept no bytes before it is disconnected.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// The server's side of a WebSocket. Dropping it and its [`WriteHandle`]s ends the connection
/// without a closing handshake.
pub struct Socket(Implementation);

enum Implementation {
    Owned(Box<OwnedSocket>),
    Managed(Box<ManagedSocket>),
}

/// A message from the client. Pings are already answered. Pings and pongs are one variant, since
/// both only show that the client is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A complete text message.
    Text(ByteString),
    /// A complete binary message.
    Binary(Bytes),
    /// A ping or a pong.
    Alive,
}

/// A frame that the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(ByteString),
    /// A binary message.
    Binary(Bytes),
    /// A ping.
    Ping,
}

/// The result of [`Socket::advance`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A message was received.
    Received(Message),
    /// All frames that were fed are written.
    Written,
}

/// Why an upgrade is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// The request is not a WebSocket upgrade.
    #[error("not a WebSocket upgrade")]
    NoUpgrade,
    /// `Sec-WebSocket-Protocol` is not a list of distinct tokens.
    #[error("malformed subprotocols")]
    Protocols,
}

/// Why nothing more can be received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The client closed the connection, with a closing handshake (which is answered) or without.
    #[error("closed by the client")]
    ByClient,
    /// The client did not read the sent data in time.
    #[error("the client does not read")]
    NotRead,
    /// A message was longer than allowed: close code 1009.
    #[error("a message is too long")]
    TooLong,
    /// A text message was not UTF-8: close code 1007.
    #[error("a text is not UTF-8")]
    NotUtf8,
    /// The client violated the protocol: close code 1002.
    #[error("protocol violation: {0}")]
    Protocol(String),
}

impl Closed {
    /// The close code to send, if the client can still read it.
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
    /// Accepts an upgrade. The handler must return the response; until then nothing is sent or
    /// received. Messages of more than `max_message` bytes, in one frame or several, are refused.
    /// The first subprotocol that the client offers is accepted.
    ///
    /// # Errors
    /// The request is not a WebSocket upgrade, or an offered subprotocol is malformed.
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

    /// The next message. Cancel-safe: dropping the future loses no message.
    ///
    /// # Errors
    /// Nothing more can be received; [`Closed::code`] is the close code to send.
    pub async fn recv(&mut self) -> Result<Message, Closed> {
        loop {
            if let Progress::Received(message) = self.advance(true).await? {
                return Ok(message);
            }
        }
    }

    /// Writes the frames that were [fed](Self::feed) and, with `receive`, receives concurrently.
    /// Returns the first result; with nothing to do, it waits forever. Cancel-safe; the write
    /// timeout continues in the next call. After a failed write ([`is_broken`](Self::is_broken)),
    /// receiving still works.
    ///
    /// # Errors
    /// The socket can no longer be used; [`Closed::code`] is the close code to send.
    pub async fn advance(&mut self, receive: bool) -> Result<Progress, Closed> {
        match &mut self.0 {
            Implementation::Owned(socket) => socket.advance(receive).await,
            // Boxed, so that the future of an owned socket has no room for this one.
            Implementation::Managed(socket) => Box::pin(socket.advance(receive)).await,
        }
    }

    /// Sends a frame after those that were [fed](Self::feed) before, and waits until all are
    /// written.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance), or the connection is broken.
    pub async fn send(&mut self, frame: Frame) -> Result<(), Closed> {
        self.opened().await?;
        self.feed(frame)?;
        self.advance(false).await?;
        if self.is_broken() { Err(Closed::ByClient) } else { Ok(()) }
    }

    /// Receives the messages that have arrived, without waiting for more. Bounded in messages and
    /// bytes.
    pub fn drain_received(&mut self) -> Vec<Message> {
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while messages.len() < MAX_DRAINED && bytes < MAX_DRAINED_BYTES {
            // Unconstrained: tokio's budget for the task may be used up although more has arrived.
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

    /// Whether writing has failed. Messages that the client sent before can still be received;
    /// frames that are fed are dropped.
    pub fn is_broken(&self) -> bool {
        match &self.0 {
            Implementation::Owned(socket) => socket.writer().is_some_and(WriteHandle::is_broken),
            Implementation::Managed(socket) => socket.is_broken(),
        }
    }

    /// Queues a frame for the next [`advance`](Self::advance), so that several frames need one
    /// write. Call it after [`opened`](Self::opened), or after something was received.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance), or the upgrade is not complete yet.
    pub fn feed(&mut self, frame: Frame) -> Result<(), Closed> {
        match &mut self.0 {
            Implementation::Owned(socket) => {
                socket.writer().map_or(Err(Closed::ByClient), |writer| writer.feed(frame))
            }
            Implementation::Managed(socket) => {
                socket.feed(frame);
                Ok(())
            }
        }
    }

    /// Writes as many queued frames as the system accepts now.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance), unless the next call returns them.
    pub fn write_now(&mut self) -> Result<(), Closed> {
        match &mut self.0 {
            Implementation::Owned(socket) => {
                // The next `advance` reports a broken connection.
                socket.writer().into_iter().for_each(WriteHandle::write_now);
                Ok(())
            }
            Implementation::Managed(socket) if socket.buffered() == 0 => Ok(()),
            Implementation::Managed(socket) => {
                socket.advance(false).now_or_never().transpose().map(drop)
            }
        }
    }

    /// How many bytes are queued and not written yet.
    pub fn buffered(&self) -> usize {
        match &self.0 {
            Implementation::Owned(socket) => socket.writer().map_or(0, WriteHandle::buffered),
            Implementation::Managed(socket) => socket.buffered(),
        }
    }

    /// Waits for the upgrade. Returns a handle for sending from other tasks, or `None` if the
    /// server does not hand the connection over.
    ///
    /// # Errors
    /// The client disconnected before.
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
        // Boxed, so that the future of an open connection reserves no memory for this.
        match self.0 {
            Implementation::Owned(socket) => Box::pin(socket.close(code, reason)).await,
            Implementation::Managed(socket) => Box::pin(socket.close(code, reason)).await,
        }
    }
}
