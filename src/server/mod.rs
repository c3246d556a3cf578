//! The HTTP server: actix-web's, with three changes. A WebSocket gets its TCP connection, slow
//! connections are closed, and connections beyond the limit are refused.
//!
//! actix-web's own `HttpServer` keeps two buffers and a dispatcher for each upgraded connection.
//! Here, an upgrade request goes to the same [`App`](actix_web::App), and a handler that accepts it
//! ([`Handover::accept`]) gets the connection itself. This uses only actix-http's public extension
//! points for upgrades and streams.

pub mod capacity;
mod stream;

use std::cell::RefCell;
use std::fmt;
use std::future::ready;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_codec::Framed;
use actix_http::body::{MessageBody, to_bytes_limited};
use actix_http::error::DispatchError;
use actix_http::h1::{Codec, Message, SendResponse};
use actix_http::{ConnectionType, HttpService, Protocol, Request, Response};
use actix_server::Server;
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_factory, fn_service,
    map_config,
};
use actix_web::dev::AppConfig;
use actix_web::http::StatusCode;
use actix_web::{Error, HttpMessage};
use futures::future::LocalBoxFuture;
use nix::sys::socket::{Backlog, listen};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

pub use stream::Connections;

use crate::protocols::websocket::{Connection, Handover};
use stream::{Activity, Stream, TrackedBody};

/// The response to a connection beyond the limit, if it can be sent at once.
const OVERLOADED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";
/// The longest body of a response to an upgrade request, in bytes.
const MAX_UPGRADE_BODY: usize = 1 << 20;

/// The settings of the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that serve requests.
    pub workers: usize,
    /// Counts and limits the connections.
    pub connections: Connections,
    /// How many connections may wait for a worker, over all workers.
    pub waiting: usize,
    /// How long an idle connection is kept for its next request.
    pub keep_alive: Duration,
    /// How long the head of a request may take to arrive, and how long the client may take to
    /// accept a part of the response.
    pub head_timeout: Duration,
    /// How long running requests may take when the server stops.
    pub shutdown_timeout: Duration,
}

/// Serves the application that `factory` makes, once for each worker and on its thread.
///
/// # Errors
/// The listener cannot be used.
pub fn serve<F, I, S, B>(listener: TcpListener, options: Options, factory: F) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Error: Into<Error>,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    B: MessageBody + 'static,
{
    let addr = listener.local_addr()?;
    // The standard library's backlog of 128 is too short when all sockets of an instance reconnect
    // at once: a client that finds it full tries again only after a second.
    listen(&listener, Backlog::MAXCONN)?;
    let builder = Server::build();
    let stopping = builder.graceful_shutdown_signal();
    let server = builder
        .workers(options.workers)
        // Limits the connections that are accepted but not yet taken by a worker. Connections that
        // a worker has taken do not count (see `ConnectionService`), except its first one. Further
        // connections wait in the system's backlog, where they use none of our files.
        .max_concurrent_connections((options.waiting / options.workers).max(1) + 1)
        .shutdown_timeout(options.shutdown_timeout.as_secs())
        .disable_signals()
        .listen("http", listener, move || {
            let app = factory().into_factory().map_err(|error| error.into().error_response());
            let app = SharedFactory::new(map_config(app, |()| AppConfig::default()));
            let services = Rc::clone(&app.service);
            let upgrade = fn_service(move |(req, connection)| {
                let app = services.borrow().clone();
                async move {
                    if let Some(app) = app {
                        upgrade(&*app, req, connection).await;
                    }
                    Ok::<(), Error>(())
                }
            });
            let stopping = stopping.clone();
            let http = HttpService::build()
                .keep_alive(options.keep_alive)
                .client_request_timeout(options.head_timeout)
                // An aborted long poll must drop its handler, and everything that the handler
                // holds.
                .h1_allow_half_closed(false)
                // When the server stops, idle connections are closed.
                .graceful_shutdown_signal(move || {
                    let stopping = stopping.clone();
                    async move { stopping.notified().await }
                })
                .local_addr(addr)
                .on_connect_ext(|stream: &Stream, data| {
                    data.insert(stream.activity());
                })
                .upgrade(upgrade)
                .finish(app);
            let timeout = options.keep_alive + options.head_timeout;
            let connections = options.connections.clone();
            fn_factory(move || {
                let (http, connections) = (http.new_service(()), connections.clone());
                async move {
                    let running = TaskTracker::new();
                    running.close();
                    let http = Rc::new(http.await?);
                    Ok::<_, ()>(ConnectionService { http, connections, timeout, running })
                }
            })
        })?;
    Ok(server.run())
}

/// Takes and counts the connections of a worker.
///
/// actix-server counts a connection until the future of this service completes, and stops accepting
/// when there are too many. Here the future completes as soon as the connection is in our own
/// count, so actix-server counts only the connections that wait in a worker's queue. But a stopping
/// worker waits for its futures, so the future of the first connection completes only when no
/// connection is left.
struct ConnectionService<S> {
    http: Rc<S>,
    connections: Connections,
    timeout: Duration,
    /// Closed from the beginning, so that waiting for it ends whenever no task is left.
    running: TaskTracker,
}

impl<S> Service<TcpStream> for ConnectionService<S>
where
    S: Service<Accepted, Error = DispatchError> + 'static,
{
    type Response = ();
    type Error = DispatchError;
    type Future = LocalBoxFuture<'static, Result<(), DispatchError>>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), DispatchError>> {
        self.http.poll_ready(context)
    }

    fn call(&self, io: TcpStream) -> Self::Future {
        let accepted = match accept(io, &self.connections, self.timeout) {
            Ok(accepted) => accepted,
            Err(error) => return Box::pin(ready(Err(DispatchError::Io(error)))),
        };
        let is_first = self.running.is_empty();
        self.running.spawn_local(self.http.call(accepted));
        if is_first {
            let running = self.running.clone();
            Box::pin(async move {
                running.wait().await;
                Ok(())
            })
        } else {
            Box::pin(ready(Ok(())))
        }
    }
}

/// A counted connection, in the form that actix-http's service takes.
type Accepted = (Stream, Protocol, Option<SocketAddr>);

/// Counts a connection, or refuses it if there are too many.
fn accept(io: TcpStream, connections: &Connections, timeout: Duration) -> io::Result<Accepted> {
    let Some(counted) = connections.open() else {
        // The empty send buffer of a new connection has room for this; tokio would first wait for
        // the event that it is writable.
        let _ = io.into_std().and_then(|mut io| io.write_all(OVERLOADED));
        return Err(io::ErrorKind::QuotaExceeded.into());
    };
    // Messages are small and must not wait for the acknowledgement of earlier ones. A connection
    // without this option still works.
    let _ = io.set_nodelay(true);
    let peer = io.peer_addr().ok();
    Ok((Stream::new(io, counted, timeout), Protocol::Http1, peer))
}

/// Answers an upgrade request, and hands the connection over if a handler has accepted it.
async fn upgrade<S, B>(app: &S, req: Request, mut connection: Framed<Stream, Codec>)
where
    S: Service<Request>,
    S::Error: Into<Response<actix_http::body::BoxBody>>,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    let handover = Handover::default();
    req.extensions_mut().insert(handover.clone());
    let response = match app.call(req).await {
        Ok(response) => response.into().map_body(|_, body| body.boxed()),
        Err(error) => error.into(),
    };
    let (response, body) = response.into_parts();
    // A response that refuses an upgrade is short.
    let Ok(Ok(body)) = to_bytes_limited(body, MAX_UPGRADE_BODY).await else { return };
    let mut response = response.set_body(body);
    let accepted =
        handover.taken().filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
    let Some(handler) = accepted else {
        response.head_mut().set_connection_type(ConnectionType::Close);
        // An error means that the client has disconnected.
        let _ = SendResponse::new(connection, response).await;
        return;
    };
    let (head, body) = response.into_parts();
    // Only encoded: the handler writes it together with its first frames.
    if Pin::new(&mut connection).write(Message::Item((head, body.size()))).is_err() {
        return;
    }
    let parts = connection.into_parts();
    let (io, counted) = parts.io.into_inner();
    let (read, unwritten) = (parts.read_buf, parts.write_buf);
    // The handler that accepted it may have given up meanwhile.
    let _ = handler.send(Connection { io, read, unwritten, guard: Box::new(counted) });
}

/// Creates the service of a worker, and shares it with upgrade requests.
struct SharedFactory<F: ServiceFactory<Request>, B> {
    factory: F,
    service: Rc<RefCell<Option<Rc<F::Service>>>>,
    body: PhantomData<B>,
}

/// The service of a worker for requests other than upgrades. It counts them as running.
struct TrackedService<S, B> {
    service: Rc<S>,
    body: PhantomData<B>,
}

impl<F: ServiceFactory<Request>, B> SharedFactory<F, B> {
    fn new(factory: F) -> Self {
        Self { factory, service: Rc::default(), body: PhantomData }
    }
}

impl<F, B> ServiceFactory<Request> for SharedFactory<F, B>
where
    F: ServiceFactory<Request>,
    F::Future: 'static,
    F::Service: 'static,
    F::Response: Into<Response<B>> + 'static,
    F::Error: 'static,
    <F::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    type Response = Response<TrackedBody>;
    type Error = F::Error;
    type Config = F::Config;
    type Service = TrackedService<F::Service, B>;
    type InitError = F::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, F::InitError>>;

    fn new_service(&self, config: F::Config) -> Self::Future {
        let service = self.factory.new_service(config);
        let shared = Rc::clone(&self.service);
        Box::pin(async move {
            let service = Rc::new(service.await?);
            shared.borrow_mut().replace(Rc::clone(&service));
            Ok(TrackedService { service, body: PhantomData })
        })
    }
}

impl<S, B> Service<Request> for TrackedService<S, B>
where
    S: Service<Request>,
    S::Future: 'static,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    type Response = Response<TrackedBody>;
    type Error = S::Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&self, req: Request) -> Self::Future {
        let running = req.conn_data::<Rc<Activity>>().map(Activity::begin);
        let answer = self.service.call(req);
        Box::pin(async move {
            let answer: Response<B> = answer.await?.into();
            Ok(answer.map_body(|_, body| TrackedBody::new(body.boxed(), running)))
        })
    }
}
