//! The HTTP server: actix-web's, but that a WebSocket is handed its connection.
//!
//! actix-web's own `HttpServer` keeps two buffers and a dispatcher for each connection that was
//! upgraded. Here, an upgrade request goes to the same [`App`](actix_web::App), and when a handler
//! accepts it ([`Socket::accept`](crate::realtime::socket::Socket::accept)), the connection itself
//! is handed to it. This uses actix-http's public seam for upgrades and nothing else differs.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use actix_codec::Framed;
use actix_http::body::{MessageBody, to_bytes_limited};
use actix_http::h1::{Codec, SendResponse};
use actix_http::{ConnectionType, HttpService, Request, Response};
use actix_server::Server;
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config,
};
use actix_web::dev::AppConfig;
use actix_web::http::StatusCode;
use actix_web::{Error, HttpMessage};
use futures::future::LocalBoxFuture;
use tokio::net::TcpStream;

use crate::realtime::socket::{Connection, Handover};

/// The longest body of an answer to an upgrade request, in bytes.
const MAX_REFUSAL: usize = 1 << 20;

/// What can be set.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Threads that serve requests.
    pub workers: usize,
    /// Connections that are no WebSocket, for each worker.
    pub max_connections: usize,
    /// How long an idle connection is kept for a next request.
    pub keep_alive: Duration,
    /// How long the head of a request may take to arrive.
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
    let server = Server::build()
        .workers(options.workers)
        .max_concurrent_connections(options.max_connections)
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
            HttpService::build()
                .keep_alive(options.keep_alive)
                .client_request_timeout(options.head_timeout)
                // An aborted long poll must end its handler, and with it what it holds.
                .h1_allow_half_closed(false)
                .local_addr(addr)
                .upgrade(upgrade)
                .finish(app)
                .tcp()
        })?;
    Ok(server.run())
}

/// Answers an upgrade request, and hands the connection over if a handler accepted it.
async fn upgrade<S, B>(app: &S, req: Request, connection: Framed<TcpStream, Codec>)
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
    // What refuses an upgrade is short.
    let Ok(Ok(body)) = to_bytes_limited(body, MAX_REFUSAL).await else { return };
    let mut response = response.set_body(body);
    let accepted =
        handover.taken().filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
    if accepted.is_none() {
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    // An error means that the client is gone.
    let Ok(connection) = SendResponse::new(connection, response).await else { return };
    if let Some(socket) = accepted {
        let parts = connection.into_parts();
        // Whoever accepted it may have given up in the meantime.
        let _ = socket.send(Connection { io: parts.io, read: parts.read_buf });
    }
}

/// Makes one service of a worker and lets upgrades call it, too.
struct SharedFactory<F: ServiceFactory<Request>> {
    factory: F,
    service: Rc<RefCell<Option<Rc<F::Service>>>>,
}

impl<F: ServiceFactory<Request>> SharedFactory<F> {
    fn new(factory: F) -> Self {
        Self { factory, service: Rc::default() }
    }
}

impl<F> ServiceFactory<Request> for SharedFactory<F>
where
    F: ServiceFactory<Request>,
    F::Future: 'static,
    F::Service: 'static,
{
    type Response = F::Response;
    type Error = F::Error;
    type Config = F::Config;
    type Service = Rc<F::Service>;
    type InitError = F::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, F::InitError>>;

    fn new_service(&self, config: F::Config) -> Self::Future {
        let service = self.factory.new_service(config);
        let shared = Rc::clone(&self.service);
        Box::pin(async move {
            let service = Rc::new(service.await?);
            shared.borrow_mut().replace(Rc::clone(&service));
            Ok(service)
        })
    }
}
