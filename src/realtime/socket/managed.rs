//! A WebSocket by actix-ws, inside actix-web's own connection handling.

use std::io;
use std::time::Duration;

use actix_http::ws::{CloseCode, ProtocolError};
use actix_web::web::Payload;
use actix_web::{Error, HttpRequest, HttpResponse};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, Session};

use super::{Closed, Frame, Gone, Message, WRITE_DEADLINE};

pub(super) struct ManagedSocket {
    session: Session,
    messages: AggregatedMessageStream,
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
        Ok((response, Self { session, messages }))
    }

    pub(super) async fn recv(&mut self) -> Result<Message, Closed> {
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
            Some(Ok(AggregatedMessage::Close(reason))) => {
                let answer = self.session.clone().close(reason);
                let _ = tokio::time::timeout(Duration::ZERO, answer).await;
                Err(Closed::ByClient)
            }
            None => Err(Closed::ByClient),
            Some(Err(error)) => Err(reason(&error)),
        }
    }

    pub(super) async fn send(&mut self, frame: Frame) -> Result<(), Gone> {
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

    pub(super) async fn close(self, code: CloseCode, reason: &str) {
        let reason = (code, reason.to_owned()).into();
        let closing = self.session.close(Some(reason));
        // A client that does not read is closed by the end of the connection.
        let _ = tokio::time::timeout(WRITE_DEADLINE, closing).await;
    }
}

fn reason(error: &ProtocolError) -> Closed {
    match error {
        ProtocolError::Io(error) => match error.kind() {
            // How actix-ws reports what it found itself, rather than the system.
            io::ErrorKind::InvalidData => Closed::NotUtf8,
            io::ErrorKind::Other if error.to_string().contains("maximum") => Closed::TooLong,
            _ => Closed::ByClient,
        },
        error => Closed::against(error),
    }
}
