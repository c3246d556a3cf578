//! The one file that knows every part: what is started in which order, and stopped in which.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::App;
use actix_web::dev::{Server, ServerHandle};
use actix_web::web::Data;
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::auth::{Passwords, Tokens};
use crate::chat::Chat;
use crate::config::database::{Connector, POOL_SIZE};
use crate::config::{Config, ConfigError, Embedded, Mongo, PasswordHash};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::models::{Shared, Store, StoreError};
use crate::mongod::{self, InstallError, Installer, Mongod, MongodError, Options};
use crate::realtime::engine_io::{self, Registry};
use crate::realtime::feed::Feed;
use crate::realtime::hub::Hub;
use crate::realtime::io::ChatIo;
use crate::realtime::ring;
use crate::realtime::socket_io::client::Bundles;
use crate::realtime::socket_io::{self, SocketIo};
use crate::realtime::worker::{INBOX, Process, Worker};
use crate::refusals::Refusals;
use crate::routes;
use crate::server;
use crate::server::capacity::{Capacity, raise_open_files};

/// Secrets shorter than this, in bytes, are weaker than the HMAC that they key.
pub const STRONG_SECRET: usize = 32;

/// Where the original's database listens.
const ORIGINAL_MONGODB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 27017);
/// How long that address may take to accept a connection.
const KNOCK: Duration = Duration::from_millis(300);
/// How long the start waits for the feed.
const FEED_START: Duration = Duration::from_secs(2);
/// How long an idle connection is kept: a second longer than Node keeps it, whose clients know it.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The database's name in an embedded MongoDB.
const EMBEDDED_DATABASE: &str = "realTimeChatDatabase";

/// A server that listens, and everything behind it.
pub struct Application {
    addr: SocketAddr,
    server: Server,
    process: Arc<Process>,
    shutdown_timeout: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Last, since everything above still uses it while it stops.
    mongod: Option<Keeper>,
}

/// The task that keeps the embedded MongoDB running, which ends it when this is dropped.
struct Keeper {
    task: JoinHandle<()>,
    stop: DropGuard,
}

/// Why the server did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error(
        "cannot listen on {addr}: {source}. Is another server running? Set PORT to use another port"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Something listens where the original's database is, but there is no secret.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no `mongod` for the embedded MongoDB.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The embedded MongoDB did not start.
    #[error("the embedded MongoDB did not start: {0}")]
    Mongod(#[from] MongodError),
    /// The secret in the data folder cannot be read or made.
    #[error("the secret in the data folder cannot be used: {0}")]
    Secret(io::Error),
    /// `MONGO_URI` is malformed, or its name cannot be resolved.
    #[error("MONGO_URI cannot be used: {0}")]
    Uri(mongodb::error::Error),
    /// The folder of the client bundle is of no use.
    #[error("SOCKET_IO_CLIENT_DIR cannot be used: {0}")]
    Bundles(io::Error),
    /// The server stopped with an error.
    #[error("the server failed: {0}")]
    Server(io::Error),
}

impl Application {
    /// Connects the parts and listens. MongoDB may be down: that is said in the log, requests get
    /// 503, and everything works when it comes.
    ///
    /// # Errors
    /// The address cannot be used or the configuration not be followed.
    pub async fn build(config: Config) -> Result<Self, StartError> {
        let capacity = capacity(&config);
        let (uri, secret, mongod) = database(&config).await?;
        warn_if_weak(&secret);

        let connector = Connector::new(&uri).await.map_err(StartError::Uri)?;
        let shared = Shared::default();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let store = Store::new(connector.connect().map_err(StartError::Uri)?, &shared);
        let prepare = prepare_database(store.clone(), config.password_hash);
        tasks.spawn(stop.clone().run_until_cancelled_owned(prepare));

        let kept = ring::Limits { window: config.recovery_window, bytes: config.recovery_bytes };
        let feed = Feed::new(connector.connect().map_err(StartError::Uri)?, kept);
        let feed = Arc::new(feed);
        let process = Arc::new(Process::new(capacity, config.max_connections_per_address));
        let following = Arc::clone(&feed);
        let following = async move { following.run().await };
        tasks.spawn(stop.clone().run_until_cancelled_owned(following));
        let sweep = Arc::clone(&process).sweep(store);
        tasks.spawn(stop.clone().run_until_cancelled_owned(sweep));
        // Whoever connects at once should find the feed where it will be; a database that is not
        // there must not hold the start up.
        let _ = tokio::time::timeout(FEED_START, feed.started()).await;

        let listener = listen(config.host, config.port)?;
        let addr = listener.local_addr().map_err(StartError::Server)?;
        let shutdown_timeout = config.shutdown_timeout;
        let options = server::Options {
            workers: config.workers,
            connections: process.connections().clone(),
            waiting: capacity.waiting,
            keep_alive: KEEP_ALIVE,
            head_timeout: HEAD_TIMEOUT,
            shutdown_timeout,
        };
        let folder = config.socket_io_client_dir.as_deref();
        let bundles = Bundles::load(folder, config.cors.clone()).map_err(StartError::Bundles)?;
        let bundles = Data::new(bundles);
        let config = Data::new(config);
        let tokens = Data::new(Tokens::new(&secret));
        let limits = Data::new(Limits::new(&config));
        let metrics = Data::new(Metrics::new());
        let refusals = Data::new(Refusals::default());
        let passwords = Data::new(Passwords::new(config.password_hash));
        let draining = Arc::clone(&process);
        let connections = Registry::default();
        let server = server::serve(listener, options, move || {
            let database = connector.connect().expect("the same options have connected before");
            let store = Store::new(database, &shared);
            let chat =
                Chat::new(store.clone(), Arc::clone(&feed), limits.clone(), config.legacy_trust);
            let hub = Hub::new(Arc::clone(feed.ring()), INBOX);
            // This closure runs on the worker's thread, and so will the hub.
            actix_web::rt::spawn(hub.clone().run());
            let worker = Worker {
                store: store.clone(),
                chat: chat.clone(),
                hub,
                feed: Arc::clone(&feed),
                tokens: tokens.clone(),
                config: config.clone(),
                limits: limits.clone(),
                refusals: refusals.clone(),
                metrics: metrics.clone(),
                process: Arc::clone(&process),
            };
            let worker = Data::new(worker);
            let chat_io = ChatIo::new(worker.clone(), connections.clone());
            let socket_io = SocketIo::new(chat_io, socket_io::Config::default());
            let engine = engine_io::Config { origins: config.cors.clone(), ..Default::default() };
            let socket_io = engine_io::Server::new(socket_io, engine, connections.clone());
            App::new()
                .app_data(config.clone())
                .app_data(tokens.clone())
                .app_data(passwords.clone())
                .app_data(limits.clone())
                .app_data(refusals.clone())
                .app_data(metrics.clone())
                .app_data(Data::new(connections.clone()))
                .app_data(Data::new(store))
                .app_data(Data::new(chat))
                .app_data(worker)
                .app_data(Data::new(socket_io))
                .app_data(bundles.clone())
                .configure(routes::configure)
        })
        .map_err(StartError::Server)?;
        Ok(Self { addr, server, process: draining, shutdown_timeout, tasks, stop, mongod })
    }

    /// Where it listens: the real port when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether the database is one of its own.
    pub fn is_embedded(&self) -> bool {
        self.mongod.is_some()
    }

    /// Serves until `signal`, then stops: what runs is finished within `SHUTDOWN_TIMEOUT`.
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
                // Sockets first, since they would keep the server from stopping; until they are
                // gone it answers, so that a load balancer sees it unready.
                self.process.drain(self.shutdown_timeout / 4 * 3).await;
                if tokio::time::timeout_at(deadline, handle.stop(true)).await.is_err() {
                    handle.stop(false).await;
                }
                serving.await
            }
        };
        self.stop.cancel();
        self.tasks.close();
        // The tasks only wait for the database; what it does not answer is not worth waiting for.
        let _ = tokio::time::timeout(self.shutdown_timeout, self.tasks.wait()).await;
        if let Some(Keeper { task, stop }) = self.mongod {
            drop(stop);
            // It ends by itself, and bounds its waits.
            let _ = task.await;
        }
        result.map_err(io::Error::other).and_then(|served| served).map_err(StartError::Server)
    }
}

/// How many connections fit into the files that may be open; says so when that is fewer than the
/// configuration asks for.
fn capacity(config: &Config) -> Capacity {
    let files = raise_open_files();
    // Of each worker, of the feed, and of what prepares the database.
    let pools = (config.workers + 2).saturating_mul(POOL_SIZE as usize);
    let capacity = Capacity::within(files, pools, config.max_connections);
    if capacity.sockets < config.max_connections {
        log::warn!(
            "MAX_CONNECTIONS is {}, but only {files} files may be open, so {} sockets are let in. \
             Raise the hard limit (ulimit -Hn, LimitNOFILE) or lower MAX_CONNECTIONS",
            config.max_connections,
            capacity.sockets
        );
    }
    capacity
}

/// The database to use and the secret that goes with it; starts the embedded one if that is it.
async fn database(
    config: &Config,
) -> Result<(SecretString, SecretString, Option<Keeper>), StartError> {
    let uri = match &config.mongo {
        Mongo::Uri { uri } => Some(uri.clone()),
        Mongo::Embedded => None,
        Mongo::Unset if original_is_there().await => return Err(ConfigError::NoSecret.into()),
        Mongo::Unset => None,
    };
    if let Some(uri) = uri {
        let secret = config.jwt_secret.clone().ok_or(ConfigError::NoSecret)?;
        return Ok((uri, secret, None));
    }
    let Embedded { data_dir, mongod } = config.embedded.clone();
    let installer = Installer::from_env(mongod);
    let binary = tokio::task::spawn_blocking(move || installer.binary());
    let binary = binary.await.map_err(|error| StartError::Secret(io::Error::other(error)))??;
    let options = Options::new(binary, data_dir.clone());
    let mongod = Mongod::start(options.clone()).await?;
    log::info!(
        "Embedded MongoDB on port {}, its data in {}: for trying and developing, set MONGO_URI in \
         production",
        mongod.port(),
        data_dir.display()
    );
    let secret = match &config.jwt_secret {
        Some(secret) => secret.clone(),
        None => mongod::secret(&data_dir).map_err(StartError::Secret)?,
    };
    let uri = mongod.uri(EMBEDDED_DATABASE).into();
    let stop = CancellationToken::new();
    let task = tokio::spawn(mongod::keep_running(mongod, options, stop.clone()));
    Ok((uri, secret, Some(Keeper { task, stop: stop.drop_guard() })))
}

/// Whether something listens where the original's database is.
async fn original_is_there() -> bool {
    let knock = tokio::net::TcpStream::connect(ORIGINAL_MONGODB);
    matches!(tokio::time::timeout(KNOCK, knock).await, Ok(Ok(_)))
}

/// Builds the indexes and looks at what a move from Node would change, once MongoDB answers.
async fn prepare_database(store: Store, scheme: PasswordHash) {
    let mut wait = Duration::from_millis(250);
    while let Err(error) = build_and_look(&store, scheme).await {
        match &error {
            StoreError::Unavailable(_) => log::warn!("MongoDB cannot be reached yet: {error}"),
            error => log::error!("The indexes cannot be built: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(15));
    }
}

async fn build_and_look(store: &Store, scheme: PasswordHash) -> Result<(), StoreError> {
    store.build_indexes().await?;
    if scheme == PasswordHash::Argon2id && store.users.any_with_bcrypt().await? {
        log::warn!(
            "Users of the Node server were found. Their bcrypt hashes are replaced by argon2id at \
             their next login, which bcryptjs cannot read: set PASSWORD_HASH=bcrypt if you may go \
             back to Node or run both side by side"
        );
    }
    Ok(())
}

fn warn_if_weak(secret: &SecretString) {
    let length = secret.expose_secret().len();
    if length < STRONG_SECRET {
        log::warn!(
            "JWT_SECRET has {length} bytes; one of at least {STRONG_SECRET} cannot be guessed: \
             openssl rand -hex 32. Changing it ends all sessions"
        );
    }
}

/// Listens on one address, or on all: IPv6 with IPv4 where the system has it, as Node does.
fn listen(host: Option<IpAddr>, port: u16) -> Result<TcpListener, StartError> {
    if let Some(host) = host {
        let addr = SocketAddr::new(host, port);
        return TcpListener::bind(addr).map_err(|source| StartError::Listen { addr, source });
    }
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    TcpListener::bind(any).or_else(|_| {
        let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        TcpListener::bind(addr).map_err(|source| StartError::Listen { addr, source })
    })
}
