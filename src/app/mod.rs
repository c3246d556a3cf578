//! Builds and connects all parts, and starts and stops them in the right order.

mod address;
mod database;
mod name;
mod parts;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::App;
use actix_web::dev::{Server, ServerHandle};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chat::Chat;
use crate::config::database::POOL_SIZE;
use crate::config::original::Found;
use crate::config::uri::{MongoUri, UriError};
use crate::config::{Config, ConfigError, DEFAULT_MAX_CONNECTIONS};
use crate::models::failure;
use crate::mongod::{InstallError, MongodError};
use crate::routes;
use crate::server;
use crate::server::capacity::{Capacity, Pools, raise_open_files};
use crate::sessions::registry::SessionRegistry;

use database::MongodTask;
use parts::Parts;

/// A secret with fewer bytes than this is weaker than the HMAC that uses it.
pub const STRONG_SECRET: usize = 32;

/// How long the start waits for the feed.
const FEED_START_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A listening server with all its parts.
pub struct Application {
    addr: SocketAddr,
    server: Server,
    registry: Arc<SessionRegistry>,
    /// For what is still to be written when nothing is served any more.
    chat: Chat,
    shutdown_timeout: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// The last field, because the parts above use MongoDB until they have stopped.
    mongod: Option<MongodTask>,
}

/// Why the server did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is in use or does not belong to this machine.
    #[error(
        "cannot listen on {addr}: {source}. Is another server running? Set PORT to use another port"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// `JWT_SECRET` is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nothing is configured, but something listens at the address of the Node server's database.
    #[error(
        "nothing is configured, but {0}. To try this server with a database of its own: \
         MONGO_URI=embedded cargo run. To take the place of the Node server: put its JWT_SECRET \
         into .env or the environment (a new one, made with openssl rand -hex 32, ends its \
         sessions), and MONGO_URI if its database is another"
    )]
    Found(Found),
    /// No `mongod` was found or installed for the embedded MongoDB.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The embedded MongoDB did not start.
    #[error("the embedded MongoDB did not start: {0}")]
    Mongod(#[from] MongodError),
    /// The secret in the data folder cannot be read or made.
    #[error("the secret in the data folder cannot be read or made: {0}")]
    Secret(io::Error),
    /// `MONGO_URI` is malformed or has an option that is not supported.
    #[error("MONGO_URI cannot be used: {0}")]
    Uri(#[from] UriError),
    /// The options of `MONGO_URI` contradict each other, or its name cannot be resolved.
    #[error("MONGO_URI cannot be used: {}", failure::describe(.0))]
    Connector(mongodb::error::Error),
    /// The folder of the client bundles cannot be read.
    #[error("SOCKET_IO_CLIENT_DIR cannot be used: {0}")]
    Bundles(io::Error),
    /// The server stopped with an error.
    #[error("the server failed: {0}")]
    Server(io::Error),
}

impl Application {
    /// Connects the parts and listens. If MongoDB is down, this is logged and requests are answered
    /// 503 until it is up.
    ///
    /// # Errors
    /// The address or the configuration cannot be used.
    pub async fn build(config: Config) -> Result<Self, StartError> {
        let (uri, secret, mongod) = database::find(&config).await?;
        warn_if_weak(&secret);
        let uri = MongoUri::parse(uri.expose_secret())?;
        database::log_uri(&uri);
        let capacity = capacity(&config, uri.pool_size);
        let listener = address::listen(config.host, config.port)?;
        let addr = listener.local_addr().map_err(StartError::Server)?;
        let (connector, listens_already) = match name::connector(&uri).await? {
            Some(connector) => (connector, false),
            None => (name::wait_for(&uri, &config, &listener, capacity).await?, true),
        };
        let connector = connector.with_pools_of(capacity.pool);

        let (demo, shutdown_timeout) = (config.demo, config.shutdown_timeout);
        let parts = Parts::new(config, connector, &secret, capacity)?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        parts.run(&tasks, &stop);
        // Wait for the feed, so that the first clients get positions, and cost no query each when
        // all come back at once; but not long, because MongoDB may be down.
        let _ = tokio::time::timeout(FEED_START_TIMEOUT, parts.feed.ready()).await;

        let options = server::Options {
            workers: parts.config.workers,
            connections: parts.registry.connections().clone(),
            waiting: capacity.waiting,
            keep_alive: parts.config.keep_alive,
            head_timeout: HEAD_TIMEOUT,
            shutdown_timeout,
        };
        let (registry, chat) = (Arc::clone(&parts.registry), parts.background_chat());
        let server = server::serve(listener, options, move || {
            App::new().configure(|app| parts.configure_worker(app)).configure(routes::configure)
        })
        .map_err(StartError::Server)?;
        if !listens_already {
            address::log(addr);
        }
        address::log_pages(addr, demo);
        Ok(Self { addr, server, registry, chat, shutdown_timeout, tasks, stop, mongod })
    }

    /// The address where it listens, with the real port if `PORT` is 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address to open in a browser on this machine.
    pub fn url(&self) -> String {
        format!("http://{}", address::reachable(self.addr))
    }

    /// Whether it uses the embedded MongoDB.
    pub fn is_embedded(&self) -> bool {
        self.mongod.is_some()
    }

    /// Serves until `signal`, then stops. Running requests are finished within `SHUTDOWN_TIMEOUT`.
    ///
    /// # Errors
    /// The server ended by itself.
    pub async fn run_until(self, signal: impl Future<Output = ()>) -> Result<(), StartError> {
        let handle: ServerHandle = self.server.handle();
        let mut serving = tokio::spawn(self.server);
        let ended = tokio::select! {
            ended = &mut serving => Some(ended),
            () = signal => None,
        };
        let result = match ended {
            Some(ended) => ended,
            None => {
                log::info!("Stopping");
                let deadline = tokio::time::Instant::now() + self.shutdown_timeout;
                // Sockets first, because the server cannot stop while they are open. Meanwhile it
                // answers requests, so that a load balancer sees that `/readyz` is 503.
                self.registry.drain(self.shutdown_timeout / 4 * 3).await;
                if tokio::time::timeout_at(deadline, handle.stop(true)).await.is_err() {
                    handle.stop(false).await;
                }
                serving.await
            }
        };
        self.stop.cancel();
        self.tasks.close();
        // The tasks only wait for MongoDB, so a timeout loses nothing.
        let _ = tokio::time::timeout(self.shutdown_timeout, self.tasks.wait()).await;
        let writing = self.chat.write_last_marks();
        if tokio::time::timeout(self.shutdown_timeout, writing).await.is_err() {
            log::warn!("The read marks of the last second were not stored, since MongoDB is away");
        }
        if let Some(MongodTask { task, stop }) = self.mongod {
            drop(stop);
            // The task ends by itself in bounded time.
            let _ = task.await;
        }
        result.map_err(io::Error::other).and_then(|served| served).map_err(StartError::Server)
    }
}

/// How many connections, to clients and to the database, the limit of open files allows. Logs it if
/// the configuration asks for more.
fn capacity(config: &Config, pool_size: Option<u32>) -> Capacity {
    let files = raise_open_files();
    // One pool for each worker, one for the feed and one for the preparation of the database.
    let size = pool_size.unwrap_or(POOL_SIZE) as usize;
    let pools = Pools { number: config.workers + 2, size };
    let wanted = config.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
    let capacity = Capacity::within(files, pools, wanted);
    let Capacity { sockets, pool, .. } = capacity;
    if pool_size.is_some() && pool < size {
        log::warn!(
            "Each pool has at most {pool} connections to MongoDB instead of {size}, because only \
             {files} files may be open. Raise the hard limit (ulimit -Hn, LimitNOFILE) for more"
        );
    }
    match config.max_connections {
        Some(wanted) if sockets < wanted => log::warn!(
            "MAX_CONNECTIONS is {wanted}, but only {files} files may be open, so {sockets} sockets \
             are admitted. Raise the hard limit (ulimit -Hn, LimitNOFILE) or lower MAX_CONNECTIONS"
        ),
        None if sockets < wanted => log::info!(
            "At most {sockets} sockets are admitted, because only {files} files may be open. Raise \
             the hard limit (ulimit -Hn, LimitNOFILE) for more"
        ),
        _ => {}
    }
    capacity
}

fn warn_if_weak(secret: &SecretString) {
    let length = secret.expose_secret().len();
    if length < STRONG_SECRET {
        log::warn!(
            "JWT_SECRET has {length} bytes and can be guessed. Use at least {STRONG_SECRET}, made with \
             openssl rand -hex 32. A new secret ends all sessions"
        );
    }
}
