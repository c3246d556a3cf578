//! A WebSocket served by actix-ws, within actix-web's own connection handling.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use actix_http::ws::{CloseCode, ProtocolError};
use actix_web::web::Payload;
use actix_web::{Error, HttpRequest, HttpResponse};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, Session};
use tokio::time::{Instant, sleep_until};

use super::{Closed, Frame, Message, Progress, WRITE_DEADLINE};

pub(super) struct ManagedSocket {
    session: Session,
    messages: AggregatedMessageStream,
    /// Frames that the connection has not accepted yet; its own queue is short.
    unsent: VecDeque<Frame>,
    /// The bytes in `unsent`.
    bytes: usize,
    /// When the connection last accepted a frame, or `unsent` was last empty.
    progress: Instant,
    /// The connection accepts no more frames.
    broken: bool,
    /// The client has sent a close frame: what follows is discarded (RFC 6455, section 1.4).
    closed: bool,
}

impl ManagedSocket {
    pub(super) fn accept(
        req: &HttpRequest,
        payload: Payload,
        max_message: usize,
    ) -> Result<(HttpResponse, Self), Error> {
        let (response, session, messages) = actix_ws::handle(req, payload)?;
        let messages = messages
            .max_frame_size(max_message)
            .aggregate_continuations()
            .max_continuation_size(max_message);
        let (unsent, progress) = (VecDeque::new(), Instant::now());
        Ok((
            response,
            Self { session, messages, unsent, bytes: 0, progress, broken: false, closed: false },
        ))
    }

    pub(super) fn feed(&mut self, frame: Frame) {
        if self.broken {
            return;
        }
        if self.unsent.is_empty() {
            self.progress = Instant::now();
        }
        self.bytes += frame.len();
        self.unsent.push_back(frame);
    }

    pub(super) fn buffered(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    fn discard_output(&mut self) {
        self.broken = true;
        self.unsent = VecDeque::new();
        self.bytes = 0;
    }

    pub(super) async fn advance(&mut self, receive: bool) -> Result<Progress, Closed> {
        if receive && self.closed {
            return Err(Closed::ByClient);
        }
        loop {
            let deadline = self.progress + WRITE_DEADLINE;
            tokio::select! {
                biased;
                // Cancel-safe: the poll that accepts a frame also returns ready.
                sent = send(&mut self.session, self.unsent.front()), if !self.unsent.is_empty() => {
                    if sent.is_err() {
                        // Messages that the client sent before can still be received.
                        self.discard_output();
                        return Ok(Progress::Written);
                    }
                    self.progress = Instant::now();
                    self.bytes -= self.unsent.pop_front().map_or(0, |frame| frame.len());
                    if self.unsent.is_empty() {
                        return Ok(Progress::Written);
                    }
                }
                message = self.messages.recv(), if receive => {
                    return self.take(message).await.map(Progress::Received);
                }
                () = sleep_until(deadline), if !self.unsent.is_empty() => {
                    self.discard_output();
                    return Err(Closed::NotRead);
                }
                else => {
                    if self.broken {
                        return Ok(Progress::Written);
                    }
                    return std::future::pending().await;
                }
            }
        }
    }

    async fn take(
        &mut self,
        message: Option<Result<AggregatedMessage, ProtocolError>>,
    ) -> Result<Message, Closed> {
        match message {
            Some(Ok(AggregatedMessage::Text(text))) => Ok(Message::Text(text)),
            Some(Ok(AggregatedMessage::Binary(bytes))) => Ok(Message::Binary(bytes)),
            Some(Ok(AggregatedMessage::Ping(data))) => {
                // A full queue of frames must not block reading. A client that pings but does not
                // read gets no pong.
                let pong = tokio::time::timeout(Duration::ZERO, self.session.pong(&data));
                let _ = pong.await;
                Ok(Message::Alive)
            }
            Some(Ok(AggregatedMessage::Pong(_))) => Ok(Message::Alive),
            Some(Ok(AggregatedMessage::Close(reason))) => {
                self.closed = true;
                let answer = self.session.clone().close(reason);
                let _ = tokio::time::timeout(Duration::ZERO, answer).await;
                Err(Closed::ByClient)
            }
            None => Err(Closed::ByClient),
            Some(Err(error)) => Err(reason(&error)),
        }
    }

    pub(super) async fn close(mut self, code: CloseCode, reason: &str) {
        let reason = (code, reason.to_owned()).into();
        let closing = async {
            if self.unsent.is_empty() || self.advance(false).await.is_ok() {
                let _ = self.session.close(Some(reason)).await;
            }
        };
        // If the client does not read, the connection is dropped without a close frame.
        let _ = tokio::time::timeout(WRITE_DEADLINE, closing).await;
    }
}

async fn send(session: &mut Session, frame: Option<&Frame>) -> Result<(), Closed> {
    let sent = match frame.cloned() {
        Some(Frame::Text(text)) => session.text(text).await,
        Some(Frame::Binary(bytes)) => session.binary(bytes).await,
        Some(Frame::Ping) => session.ping(b"").await,
        None => Ok(()),
    };
    sent.map_err(|_| Closed::ByClient)
}

fn reason(error: &ProtocolError) -> Closed {
    match error {
        ProtocolError::Io(error) => match error.kind() {
            // actix-ws reports its own errors as I/O errors of these kinds.
            io::ErrorKind::InvalidData => Closed::NotUtf8,
            io::ErrorKind::Other if error.to_string().contains("maximum") => Closed::TooLong,
            _ => Closed::ByClient,
        },
        error => Closed::from_protocol_error(error),
    }
}
