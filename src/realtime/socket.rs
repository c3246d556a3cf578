//! A WebSocket, as sessions of either wire use it: messages in, frames out, every write in time.
//!
//! The one place that knows which library speaks the protocol (RFC 6455). A client that does not
//! read cannot hold a writer for longer than [`WRITE_DEADLINE`].

use std::io;
use std::time::Duration;

use actix_http::ws::ProtocolError;
use actix_web::web::Payload;
use actix_web::{Error, HttpRequest, HttpResponse};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, Session};
use bytes::Bytes;
use bytestring::ByteString;

pub use actix_http::ws::CloseCode;

/// How long the client may take to make room for one more frame.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// A server's end of a WebSocket. Dropping it ends the connection without a closing handshake.
pub struct Socket {
    session: Session,
    messages: AggregatedMessageStream,
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
    /// A text message; its bytes are shared, not copied.
    Text(ByteString),
    /// A binary message.
    Binary(Bytes),
    /// A ping.
    Ping,
}

/// Why nothing more can be received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The client closed it, with a closing handshake or without.
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
}

/// Nothing more can be sent: the connection is gone, or the client did not read in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone or does not read")]
pub struct Gone;

impl Socket {
    /// Accepts an upgrade. The response must be returned by the handler; until then nothing is
    /// sent. Messages of more than `max_message` bytes, in one frame or several, are refused.
    ///
    /// # Errors
    /// The request is no upgrade to a WebSocket.
    pub fn accept(
        req: &HttpRequest,
        payload: Payload,
        max_message: usize,
    ) -> Result<(HttpResponse, Self), Error> {
        let (response, session, messages) = actix_ws::handle(req, payload)?;
        let messages = messages
            .max_frame_size(max_message)
            .aggregate_continuations()
            .max_continuation_size(max_message);
        Ok((response, Self { session, messages }))
    }

    /// The next message. Cancel-safe: a future that is dropped has taken nothing.
    ///
    /// # Errors
    /// Nothing more will come; the error says what to close with.
    pub async fn recv(&mut self) -> Result<Message, Closed> {
        match self.messages.recv().await {
            Some(Ok(AggregatedMessage::Text(text))) => Ok(Message::Text(text)),
            Some(Ok(AggregatedMessage::Binary(bytes))) => Ok(Message::Binary(bytes)),
            Some(Ok(AggregatedMessage::Ping(data))) => {
                // A full queue of frames must not stop the reading; a client that pings and does
                // not read misses its pong.
                let pong = tokio::time::timeout(Duration::ZERO, self.session.pong(&data));
                let _ = pong.await;
                Ok(Message::Alive)
            }
            Some(Ok(AggregatedMessage::Pong(_))) => Ok(Message::Alive),
            Some(Ok(AggregatedMessage::Close(_))) | None => Err(Closed::ByClient),
            Some(Err(error)) => Err(reason(error)),
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The client is gone or did not read in time; the socket is of no more use.
    pub async fn send(&mut self, frame: Frame) -> Result<(), Gone> {
        let sent = async {
            match frame {
                Frame::Text(text) => self.session.text(text).await,
                Frame::Binary(bytes) => self.session.binary(bytes).await,
                Frame::Ping => self.session.ping(b"").await,
            }
        };
        match tokio::time::timeout(WRITE_DEADLINE, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Closes with a code and a reason of at most 123 bytes.
    pub async fn close(self, code: CloseCode, reason: &str) {
        let reason = (code, reason.to_owned()).into();
        let closing = self.session.close(Some(reason));
        // A client that does not read is closed by the end of the connection.
        let _ = tokio::time::timeout(WRITE_DEADLINE, closing).await;
    }
}

fn reason(error: ProtocolError) -> Closed {
    match error {
        ProtocolError::Overflow => Closed::TooLong,
        ProtocolError::Io(error) => match error.kind() {
            // How actix-ws reports what it found itself, rather than the system.
            io::ErrorKind::InvalidData => Closed::NotUtf8,
            io::ErrorKind::Other if error.to_string().contains("maximum") => Closed::TooLong,
            _ => Closed::ByClient,
        },
        error => Closed::Protocol(error.to_string()),
    }
}
