//! An echo server for the conformance suites of Engine.IO and Socket.IO.
//!
//! `cargo run --release --example protocol_echo -- PORT`
//!
//! With `actix-ws` as another argument, it uses actix-ws and actix-web's own server instead of this
//! crate's.
//!
//! On `/engine.io/`, each message is sent back. On `/socket.io/`, in the namespaces `/` and
//! `/custom`, the event `auth` echoes the client's `auth`, `message` comes back as `message-back`,
//! and the arguments of `message-with-ack` come back in its ack.

use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use actix_web::web::{Data, Payload, resource};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use bytestring::ByteString;
use realtime_chat_backend::protocols::engine_io::packet::Packet;
use realtime_chat_backend::protocols::engine_io::{
    self, Application, ConnectError, Connection, Handshake, Message, Registry, Server, random_id,
};
use realtime_chat_backend::protocols::socket_io::{self, ConnectRequest, SocketIo};
use realtime_chat_backend::server;

/// Sends every message of an Engine.IO session back.
struct EngineEcho;

impl Application for EngineEcho {
    fn admit(&self, _: &Handshake) -> Result<(), ConnectError> {
        Ok(())
    }

    fn serve(&self, connection: Connection) -> impl Future<Output = ()> + 'static {
        echo_messages(connection)
    }
}

async fn echo_messages(mut connection: Connection) {
    let sender = connection.sender();
    while let Some(message) = connection.recv().await {
        let packet = match message {
            Message::Text(text) => Packet::message(&text),
            Message::Binary(bytes) => Packet::Binary(bytes),
        };
        if sender.send([packet]).is_err() {
            return;
        }
    }
}

/// Sends every event of a Socket.IO client back.
struct SocketEcho;

impl socket_io::Application for SocketEcho {
    fn admit(&self, _: &Handshake) -> Result<(), ConnectError> {
        Ok(())
    }

    fn has(&self, namespace: &str) -> bool {
        ["/", "/custom"].contains(&namespace)
    }

    fn connect(&self, request: ConnectRequest) -> impl Future<Output = ()> + 'static {
        echo_events(request)
    }
}

async fn echo_events(request: ConnectRequest) {
    let auth = if request.auth.is_empty() { "{}".into() } else { request.auth.clone() };
    let mut socket = request.accept(&random_id(), None);
    socket.emit("auth", &[auth], Vec::new());
    while let Some(event) = socket.recv().await {
        let name = event.arguments.name();
        let values: Vec<ByteString> = event.arguments.values.into_iter().skip(1).collect();
        match (name.as_str(), event.ack) {
            ("message", _) => socket.emit("message-back", &values, event.attachments),
            ("message-with-ack", Some(id)) => socket.ack(id, values, event.attachments),
            _ => {}
        }
    }
}

async fn handle<A: Application>(
    req: HttpRequest,
    payload: Payload,
    server: Data<Server<A>>,
) -> HttpResponse {
    server.handle(req, payload).await
}

#[actix_web::main]
async fn main() -> ExitCode {
    env_logger::init();
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok());
    let Some(port) = port else {
        eprintln!("usage: protocol_echo PORT [actix-ws]");
        return ExitCode::FAILURE;
    };
    let by_actix_ws = std::env::args().nth(2).is_some_and(|carrier| carrier == "actix-ws");
    match serve(port, by_actix_ws).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("protocol_echo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(port: u16, by_actix_ws: bool) -> std::io::Result<()> {
    let engine = engine_io::Config {
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(200),
        max_payload: 1_000_000,
        ..Default::default()
    };
    let socket =
        socket_io::Config { connect_timeout: Duration::from_millis(1_000), ..Default::default() };
    let registries = (Registry::default(), Registry::default());
    let app = move || {
        let (engine_sessions, socket_sessions) = registries.clone();
        let socket_echo = SocketIo::new(SocketEcho, socket);
        App::new()
            .app_data(Data::new(Server::new(EngineEcho, engine.clone(), engine_sessions)))
            .app_data(Data::new(Server::new(socket_echo, engine.clone(), socket_sessions)))
            .service(resource("/engine.io/{tail}*").to(handle::<EngineEcho>))
            .service(resource("/socket.io/{tail}*").to(handle::<SocketIo<SocketEcho>>))
    };
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    if by_actix_ws {
        let server = HttpServer::new(app).workers(2).h1_allow_half_closed(false);
        return server.listen(listener)?.run().await;
    }
    let options = server::Options {
        workers: 2,
        connections: server::Connections::new(1_000),
        waiting: 64,
        keep_alive: Duration::from_secs(5),
        head_timeout: Duration::from_secs(5),
        shutdown_timeout: Duration::from_secs(1),
    };
    server::serve(listener, options, app)?.await
}
