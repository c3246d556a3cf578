//! A peer of `benches/compare`: the routes of axum, and Socket.IO by socketioxide.
//!
//! `PORT`, `MONGO_URI` and `JWT_SECRET` come from the environment.

mod auth;
mod refusal;
mod routes;
mod sockets;
mod store;
mod views;

use std::env;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::serve::ListenerExt;
use socketioxide::SocketIo;
use tokio::net::TcpSocket;
use tower_http::cors::{Any, CorsLayer};

use auth::Tokens;
use store::Store;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many connections may wait to be accepted. With tokio's 128, the load that connects at once
/// would lose some, and wait a second for each.
const BACKLOG: u32 = 1024;
/// How many packets may wait for a socket. What does not fit is dropped, by default above 128.
const MAX_WAITING: usize = 4096;

/// What requests and sockets share.
#[derive(Clone)]
struct Shared {
    store: Arc<Store>,
    tokens: Arc<Tokens>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = env::var("PORT")?.parse()?;
    let shared = Shared {
        store: Arc::new(Store::open(&env::var("MONGO_URI")?).await?),
        tokens: Arc::new(Tokens::new(env::var("JWT_SECRET")?.as_bytes())?),
    };
    let (layer, io) =
        SocketIo::builder().with_state(shared.clone()).max_buffer_size(MAX_WAITING).build_layer();
    sockets::serve(&io);
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE]);
    let app = routes::table(shared, io).layer(layer).layer(cors);

    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    let listener = socket.listen(BACKLOG)?.tap_io(|connection| {
        // A connection that does not take this is slower, and nothing else.
        let _ = connection.set_nodelay(true);
    });
    println!("listening on http://{addr}");
    axum::serve(listener, app).await?;
    Ok(())
}
