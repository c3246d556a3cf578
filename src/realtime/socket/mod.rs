//! A WebSocket, as sessions of either wire use it: messages in, frames out, every write in time.
//!
//! The one place that knows how the protocol (RFC 6455) is spoken. Behind our own
//! [server](crate::server) a socket owns its TCP connection (`bare`), which costs an idle one a
//! fifth of the memory and a delivery half of the processor time; behind any other actix server
//! actix-ws serves it (`managed`). A client that does not read cannot hold a writer for longer
//! than ten seconds.

mod bare;
mod managed;

use std::time::Duration;

use actix_http::ws::{HandshakeError, ProtocolError};
use actix_web::web::Payload;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse};
use bytes::Bytes;
use bytestring::ByteString;

pub use actix_http::ws::CloseCode;
pub use bare::{Connection, Handover};

use bare::BareSocket;
use managed::ManagedSocket;

/// How long the client may take to make room for what is sent.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// A server's end of a WebSocket. Dropping it ends the connection without a closing handshake.
pub struct Socket(Carrier);

enum Carrier {
    Bare(Box<BareSocket>),
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

/// Why nothing more can be received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The client closed it, with a closing handshake, which is answered, or without.
    #[error("closed by the client")]
    ByClient,
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
            Self::ByClient => None,
            Self::TooLong => Some(CloseCode::Size),
            Self::NotUtf8 => Some(CloseCode::Invalid),
            Self::Protocol(_) => Some(CloseCode::Protocol),
        }
    }

    fn against(error: &ProtocolError) -> Self {
        match error {
            ProtocolError::Overflow => Self::TooLong,
            error => Self::Protocol(error.to_string()),
        }
    }
}

/// Nothing more can be sent: the connection is gone, or the client did not read in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone or does not read")]
pub struct Gone;

impl Socket {
    /// Accepts an upgrade. The response must be returned by the handler; until then nothing is
    /// sent or received. Messages of more than `max_message` bytes, in one frame or several, are
    /// refused.
    ///
    /// # Errors
    /// The request is no upgrade to a WebSocket.
    pub fn accept(
        req: &HttpRequest,
        payload: Payload,
        max_message: usize,
    ) -> Result<(HttpResponse, Self), Error> {
        let handover = req.extensions().get::<Handover>().cloned();
        if let Some(handover) = handover {
            let handshake = |error: HandshakeError| Error::from(error);
            let mut response = actix_http::ws::handshake(req.head()).map_err(handshake)?;
            let socket = BareSocket::new(handover.accept(), max_message);
            let response = response.finish().map_into_boxed_body();
            return Ok((response.into(), Self(Carrier::Bare(Box::new(socket)))));
        }
        let (response, socket) = ManagedSocket::accept(req, payload, max_message)?;
        Ok((response, Self(Carrier::Managed(Box::new(socket)))))
    }

    /// The next message. Cancel-safe: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// Nothing more will come; the error says what to close with.
    pub async fn recv(&mut self) -> Result<Message, Closed> {
        match &mut self.0 {
            Carrier::Bare(socket) => socket.recv().await,
            Carrier::Managed(socket) => socket.recv().await,
        }
    }

    /// Sends a frame, and what was [fed](Self::feed) before.
    ///
    /// # Errors
    /// The client is gone or did not read in time; the socket is of no more use.
    pub async fn send(&mut self, frame: Frame) -> Result<(), Gone> {
        self.feed(frame).await?;
        self.flush().await
    }

    /// Adds a frame to what the next [`flush`](Self::flush) writes, so that several frames cost
    /// one write.
    ///
    /// # Errors
    /// Those of [`send`](Self::send).
    pub async fn feed(&mut self, frame: Frame) -> Result<(), Gone> {
        match &mut self.0 {
            Carrier::Bare(socket) => socket.feed(frame).await,
            Carrier::Managed(socket) => socket.send(frame).await,
        }
    }

    /// Writes what was fed.
    ///
    /// # Errors
    /// Those of [`send`](Self::send).
    pub async fn flush(&mut self) -> Result<(), Gone> {
        match &mut self.0 {
            Carrier::Bare(socket) => socket.flush().await,
            // It writes by itself.
            Carrier::Managed(_) => Ok(()),
        }
    }

    /// How many bytes wait for a flush.
    pub fn buffered(&self) -> usize {
        match &self.0 {
            Carrier::Bare(socket) => socket.buffered(),
            Carrier::Managed(_) => 0,
        }
    }

    /// Closes with a code and a reason of at most 123 bytes.
    pub async fn close(self, code: CloseCode, reason: &str) {
        match self.0 {
            Carrier::Bare(socket) => socket.close(code, reason).await,
            Carrier::Managed(socket) => socket.close(code, reason).await,
        }
    }
}
