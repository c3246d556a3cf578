//! An Engine.IO server, protocol revision 4: sessions over HTTP long-polling and WebSocket.
//!
//! [`Server::handle`] handles every method below the server's path. A session begins with a
//! handshake on either transport, and can be upgraded from polling to WebSocket. The application
//! sees it as a [`Connection`], which one task serves on the worker of the handshake. Nothing here
//! interprets messages. The protocol: <https://github.com/socketio/engine.io-protocol>.

mod compression;
mod config;
mod end;
mod heartbeat;
pub mod packet;
mod polling;
mod registry;
mod session;
mod websocket;

use std::borrow::Cow;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytestring::ByteString;
use futures::FutureExt;
use futures::future::{OptionFuture, join};
use tokio::time::{Sleep, sleep};
use url::form_urlencoded;

pub use config::Config;
pub use end::CloseReason;
pub use registry::Registry;
pub use session::{Ended, Message};

use crate::protocols::cors;
use crate::protocols::panics::catch_panic;
use crate::protocols::wake_flag::WakeFlag;
use crate::protocols::websocket::Socket;
use packet::Packet;
use session::{Session, Side, Transport};

/// The allowed methods, for preflight responses.
const METHODS: &str = "GET,POST";

/// The application on top of this server.
pub trait Application: 'static {
    /// Whether a session may begin. Called before any state of the session is kept.
    ///
    /// # Errors
    /// The client is refused; the error sets the response.
    fn admit(&self, handshake: &Handshake) -> Result<(), ConnectError>;

    /// Called for each client that the server itself rejects.
    fn on_rejection(&self, _: &Rejection<'_>) {}

    /// Serves a connection on the worker of the handshake. The session ends when the [`Connection`]
    /// is dropped. If the session ends first, this future is dropped unless it completes within
    /// [`Config::grace`].
    fn serve(&self, connection: Connection) -> impl Future<Output = ()> + 'static;
}

/// Why the application does not admit a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// 403 and the protocol's "Forbidden".
    Forbidden,
    /// 503: too many connections, or the server is stopping. Clients try again.
    Unavailable,
    /// 429: this address makes too many handshakes.
    TooMany {
        /// The client may try again after this many seconds.
        seconds: u64,
    },
}

/// Why the server itself rejects a client.
#[derive(Debug, Clone, Copy)]
pub enum Rejection<'a> {
    /// The client uses another revision of the protocol.
    Revision,
    /// The page has this foreign origin. Its browser hides the response from it, or, for a
    /// WebSocket, the server refuses the handshake.
    Origin(&'a HeaderValue),
}

/// The parts of the handshake request that applications need.
#[derive(Debug, Clone)]
pub struct Handshake {
    /// The query string. It may contain a token, so it must not be logged.
    pub query: Box<str>,
    /// The header `Authorization`.
    pub authorization: Option<HeaderValue>,
    /// The lines of the header `X-Forwarded-For`.
    pub forwarded_for: Box<[HeaderValue]>,
    /// The remote address of the TCP connection.
    pub peer: Option<SocketAddr>,
}

/// An application's side of a session.
#[derive(Debug)]
pub struct Connection {
    session: Arc<Session>,
    /// The handshake request.
    pub handshake: Rc<Handshake>,
}

/// Sends to one session, from any thread.
#[derive(Debug, Clone)]
pub struct Sender(Arc<Session>);

impl Connection {
    /// The next message. `None` when the session has ended and all messages that were read before
    /// its end were returned. Cancel-safe.
    pub fn recv(&mut self) -> impl Future<Output = Option<Message>> {
        self.session.receive()
    }

    /// A handle for sending.
    pub fn sender(&self) -> Sender {
        Sender(Arc::clone(&self.session))
    }
}

/// Ends the session.
impl Drop for Connection {
    fn drop(&mut self) {
        self.session.end(CloseReason::Server, Some(Packet::Close));
    }
}

impl Sender {
    /// Queues packets together, without waiting: no other packet comes between them.
    ///
    /// # Errors
    /// The session has ended. It also ends here if its client is too slow.
    pub fn send(&self, packets: impl IntoIterator<Item = Packet>) -> Result<(), Ended> {
        self.0.send(packets)
    }

    /// As [`send`](Self::send), but the packets are usually written together with those that are
    /// sent before the caller waits.
    ///
    /// # Errors
    /// Those of [`send`](Self::send).
    pub fn send_soon(&self, packets: impl IntoIterator<Item = Packet>) -> Result<(), Ended> {
        self.0.send_soon(packets)
    }

    /// Sends texts, each with its `4`, in one direct write if nothing else waits to be written;
    /// otherwise sends none of them and returns `false`. Does not wake the session's task.
    pub fn send_now(&self, texts: impl IntoIterator<Item = ByteString>) -> bool {
        self.0.send_now(texts)
    }

    /// Waits until the client has received most of what was sent before.
    pub fn ready(&self) -> impl Future<Output = ()> {
        self.0.ready()
    }

    /// Ends the session by closing its transport: clients reconnect by themselves.
    pub fn close(&self, reason: CloseReason) {
        // After a poll with a close packet, some clients (python-engineio) do not reconnect. After
        // a failed poll, they do.
        let goodbye = (reason == CloseReason::Parse).then_some(Packet::Close);
        self.0.end(reason, goodbye);
    }

    /// Resolves when the session has ended. Messages that were read before may still be received.
    pub fn ended(&self) -> impl Future<Output = ()> {
        self.0.wait_for_end(Side::Application)
    }

    /// Why the session ended; `None` before its end.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0.ended().map(|end| end.reason)
    }
}

/// The server. Each worker has one; all of them share a registry.
pub struct Server<A> {
    application: A,
    config: Arc<Config>,
    registry: Registry,
}

/// The query parameters of the protocol. If a name is repeated, its last value counts, as in Node.
#[derive(Debug, Default)]
struct Parameters<'a> {
    revision: Option<Cow<'a, str>>,
    transport: Option<Cow<'a, str>>,
    sid: Option<Cow<'a, str>>,
}

/// The errors of the protocol, with the messages of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestError {
    UnknownTransport,
    UnknownSession,
    BadMethod,
    BadRequest,
    Forbidden,
    UnsupportedRevision,
    Unavailable,
    TooMany(u64),
}

impl<A: Application> Server<A> {
    /// A server for this worker. Servers with the same registry find each other's sessions.
    pub fn new(application: A, config: Config, registry: Registry) -> Self {
        Self { application, config: Arc::new(config), registry }
    }

    /// Answers any request below the server's path.
    pub async fn handle(&self, req: HttpRequest, payload: Payload) -> HttpResponse {
        let origin = req.headers().get(header::ORIGIN);
        let mut response = if req.method() == Method::OPTIONS {
            self.note_foreign(&req);
            cors::preflight(req.headers(), METHODS)
        } else {
            self.route(&req, payload).await.unwrap_or_else(RequestError::respond)
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            cors::allow_origin(response.headers_mut(), &self.config.origins, origin);
        }
        response
    }

    /// The checks, in the order of the original.
    async fn route(
        &self,
        req: &HttpRequest,
        payload: Payload,
    ) -> Result<HttpResponse, RequestError> {
        let parameters = Parameters::of(req.query_string());
        let transport = match parameters.transport.as_deref() {
            Some("polling") => Transport::Polling,
            Some("websocket") => Transport::WebSocket,
            _ => return Err(RequestError::UnknownTransport),
        };
        let upgrade = is_upgrade(req.headers());
        if let Some(sid) = parameters.sid.filter(|sid| !sid.is_empty()) {
            return match (transport, upgrade) {
                (Transport::WebSocket, true) => {
                    let session = self.registry.find(&sid).ok_or(RequestError::UnknownSession)?;
                    self.check_origin(req)?;
                    websocket::upgrade(session, &self.registry, req, payload)
                }
                (Transport::Polling, false) => {
                    let session = self.registry.find_for_poll(&sid, req.method());
                    let session = session.ok_or(RequestError::UnknownSession)?;
                    polling::handle(session, req, payload).await
                }
                _ => {
                    self.registry.find(&sid).ok_or(RequestError::UnknownSession)?;
                    Err(RequestError::BadRequest)
                }
            };
        }
        if req.method() != Method::GET {
            return Err(RequestError::BadMethod);
        }
        if (transport == Transport::WebSocket) != upgrade {
            return Err(RequestError::BadRequest);
        }
        self.check_origin(req)?;
        self.note_foreign(req);
        let handshake = Handshake::of(req);
        match self.application.admit(&handshake) {
            Ok(()) => {}
            Err(ConnectError::Forbidden) => return Err(RequestError::Forbidden),
            Err(ConnectError::Unavailable) => return Err(RequestError::Unavailable),
            Err(ConnectError::TooMany { seconds }) => return Err(RequestError::TooMany(seconds)),
        }
        if parameters.revision.as_deref() != Some("4") {
            self.application.on_rejection(&Rejection::Revision);
            return Err(RequestError::UnsupportedRevision);
        }
        match transport {
            Transport::Polling => {
                let session = self.begin(transport);
                let open = session.open_packet(&["websocket"]);
                actix_web::rt::spawn(self.serve(session, handshake));
                Ok(polling::answer(open.to_string(), req).await)
            }
            Transport::WebSocket => {
                let max = self.config.max_payload;
                let (response, socket) =
                    Socket::accept(req, payload, max).map_err(|_| RequestError::BadRequest)?;
                let session = self.begin(transport);
                let open = session.open_packet(&[]);
                let carried = websocket::serve(Arc::clone(&session), socket, Some(open));
                let carried = websocket::with_panic_caught(&session, &self.registry, carried);
                let served = self.serve(Arc::clone(&session), handshake);
                actix_web::rt::spawn(join(served, carried));
                Ok(response)
            }
        }
    }

    /// Begins a session and registers it.
    fn begin(&self, transport: Transport) -> Arc<Session> {
        let session = Session::new(random_id(), Arc::clone(&self.config), transport);
        self.registry.insert(&session);
        session
    }

    /// Serves a session until the application is done with it and no late poll asks for it.
    fn serve(
        &self,
        session: Arc<Session>,
        handshake: Handshake,
    ) -> impl Future<Output = ()> + 'static {
        let handshake = Rc::new(handshake);
        let connection = Connection { session: Arc::clone(&session), handshake };
        let serving = self.application.serve(connection);
        let registry = self.registry.clone();
        let (ended, counted) = (Arc::clone(&session), registry.clone());
        let mut serving = Box::pin(catch_panic(serving, move || {
            counted.count_panic();
            ended.end(CloseReason::Panic, Some(Packet::Close));
        }));
        async move {
            let mut heartbeat = pin!(session.run_heartbeat());
            let mut flag = WakeFlag::default();
            // Allocated only when needed, so that an open connection has no memory for it.
            let mut grace: Option<Pin<Box<Sleep>>> = None;
            loop {
                // The heartbeat ends with the session. The application may run longer, to process
                // messages that were read before and to clean up.
                let ended = poll_fn(|context| match flag.take(context) {
                    Some(mut context) => heartbeat.as_mut().poll(&mut context),
                    None => Poll::Pending,
                });
                tokio::select! {
                    biased;
                    _ = &mut serving => break,
                    () = ended, if grace.is_none() => {
                        registry.mark_ended(&session);
                        grace = Some(Box::pin(sleep(session.config.grace)));
                    }
                    () = OptionFuture::from(grace.as_mut()).map(|_| ()), if grace.is_some() =>
                    {
                        log::warn!("An application did not end in time after its connection");
                        break;
                    }
                }
            }
            drop(serving);
            session.end(CloseReason::Server, Some(Packet::Close));
            let left = session.abandon();
            // After a parse error the remaining messages are not counted: they are discarded.
            if session.ended().is_none_or(|end| end.reason != CloseReason::Parse) {
                registry.count_unread(left);
            }
            registry.mark_ended(&session);
            // Boxed, so that an open connection has no room for it.
            Box::pin(registry.remove_ended(&session)).await;
        }
    }

    /// CORS does not apply to WebSockets, so their origin is checked here.
    fn check_origin(&self, req: &HttpRequest) -> Result<(), RequestError> {
        match cors::foreign(req.headers(), &self.config.origins) {
            Some(origin) if is_upgrade(req.headers()) => {
                self.application.on_rejection(&Rejection::Origin(origin));
                Err(RequestError::Forbidden)
            }
            _ => Ok(()),
        }
    }

    /// Reports a handshake of a foreign page. It fails, since the browser hides the response from
    /// the page.
    fn note_foreign(&self, req: &HttpRequest) {
        if let Some(origin) = cors::foreign(req.headers(), &self.config.origins) {
            self.application.on_rejection(&Rejection::Origin(origin));
        }
    }
}

impl Session {
    fn open_packet(&self, upgrades: &[&str]) -> Packet {
        /// Exactly these five keys, in this order.
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Open<'a> {
            sid: &'a str,
            upgrades: &'a [&'a str],
            ping_interval: u128,
            ping_timeout: u128,
            max_payload: usize,
        }

        let open = Open {
            sid: &self.sid,
            upgrades,
            ping_interval: self.config.ping_interval.as_millis(),
            ping_timeout: self.config.ping_timeout.as_millis(),
            max_payload: self.config.max_payload,
        };
        Packet::Open(serde_json::to_string(&open).expect("five plain fields serialise").into())
    }
}

impl<'a> Parameters<'a> {
    fn of(query: &'a str) -> Self {
        let mut parameters = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "EIO" => parameters.revision = Some(value),
                "transport" => parameters.transport = Some(value),
                "sid" => parameters.sid = Some(value),
                _ => {}
            }
        }
        parameters
    }
}

impl Handshake {
    fn of(req: &HttpRequest) -> Self {
        // A clone would keep the buffer that the whole request was read into, for as long as the
        // session lives.
        let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
        Self {
            query: req.query_string().into(),
            authorization: req.headers().get(header::AUTHORIZATION).and_then(copy),
            forwarded_for: req.headers().get_all("X-Forwarded-For").filter_map(copy).collect(),
            peer: req.peer_addr(),
        }
    }
}

impl RequestError {
    fn respond(self) -> HttpResponse {
        let (code, message) = match self {
            Self::UnknownTransport => (0, "Transport unknown"),
            Self::UnknownSession => (1, "Session ID unknown"),
            Self::BadMethod => (2, "Bad handshake method"),
            Self::BadRequest => (3, "Bad request"),
            Self::Forbidden => (4, "Forbidden"),
            Self::UnsupportedRevision => (5, "Unsupported protocol version"),
            Self::TooMany(seconds) => {
                return HttpResponse::TooManyRequests()
                    .insert_header((header::RETRY_AFTER, seconds))
                    .finish();
            }
            Self::Unavailable => {
                return HttpResponse::ServiceUnavailable()
                    .insert_header((header::RETRY_AFTER, "1"))
                    .finish();
            }
        };
        let status = match self {
            Self::Forbidden => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        };
        HttpResponse::build(status)
            .content_type("application/json")
            .body(format!("{{\"code\":{code},\"message\":\"{message}\"}}"))
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// 120 random bits in 20 characters of `[A-Za-z0-9_-]`. A session's id must stay secret, since it
/// alone gives access to the session.
///
/// # Panics
/// If the system provides no random bytes.
pub fn random_id() -> String {
    let mut random = [0; 15];
    getrandom::fill(&mut random).expect("the system provides random bytes");
    URL_SAFE_NO_PAD.encode(random)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn a_handshake_keeps_no_part_of_the_request() {
        let value = HeaderValue::from_static("Bearer token");
        let req = TestRequest::default()
            .insert_header((header::AUTHORIZATION, value.clone()))
            .insert_header(("X-Forwarded-For", value.clone()))
            .to_http_request();
        let handshake = Handshake::of(&req);
        let kept: Vec<_> = handshake.authorization.iter().chain(&handshake.forwarded_for).collect();
        assert_eq!(kept, [&value, &value]);
        for kept in kept {
            assert_ne!(kept.as_bytes().as_ptr(), value.as_bytes().as_ptr());
        }
    }
}
