//! Builds and connects all parts, and starts and stops them in the right order.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::App;
use actix_web::dev::{Server, ServerHandle};
use actix_web::web::Data;
use bson::Document;
use mongodb::Database;
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::auth::{Passwords, Tokens};
use crate::chat::{Accounts, Chat, purge_for_ever};
use crate::config::database::{Connector, POOL_SIZE, certificate_hint, is_unresolved};
use crate::config::original::{self, Found};
use crate::config::uri::{MongoUri, UriError};
use crate::config::{Config, ConfigError, DEFAULT_MAX_CONNECTIONS, Embedded, Mongo, PasswordHash};
use crate::exchange::Exchange;
use crate::feed::{Feed, ring};
use crate::hub::Hub;
use crate::hub::inbox::Bounds;
use crate::hub::signals::Signals;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::middleware::auth::{Answers, Guard};
use crate::models::{Clock, Shared, Store, StoreError, Upkeep, failure};
use crate::mongod::{self, InstallError, Installer, Mongod, MongodError, Options};
use crate::presence::Presence;
use crate::protocols::engine_io::{self, Registry};
use crate::protocols::socket_io::client::Bundles;
use crate::protocols::socket_io::{self, SocketIo};
use crate::refusals::Refusals;
use crate::routes;
use crate::server::capacity::{Capacity, raise_open_files};
use crate::server::{self, Connections};
use crate::sessions::registry::{SessionRegistry, Worker};
use crate::wires::socket_io::ChatIo;

/// A secret with fewer bytes than this is weaker than the HMAC that uses it.
pub const STRONG_SECRET: usize = 32;

/// How long the start waits for the feed.
const FEED_START_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the start waits for the name of MongoDB to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of each later attempt to resolve it, and the longest pause between two attempts.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

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

/// The task that keeps the embedded MongoDB running. Dropping this stops MongoDB.
struct MongodTask {
    task: JoinHandle<()>,
    stop: DropGuard,
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
        let (uri, secret, mongod) = database(&config).await?;
        warn_if_weak(&secret);
        let uri = MongoUri::parse(uri.expose_secret())?;
        log_uri(&uri);
        let capacity = capacity(&config, uri.pool_size.unwrap_or(POOL_SIZE));
        let listener = listen(config.host, config.port)?;
        let addr = listener.local_addr().map_err(StartError::Server)?;
        let demo = config.demo;
        let found = match &uri.srv_name {
            None => Some(Connector::new(&uri).await.map_err(StartError::Connector)?),
            Some(name) => resolve(&uri, name, RESOLVE_TIMEOUT).await?,
        };
        let (connector, listens_already) = match found {
            Some(connector) => (connector, false),
            None => (wait_for_name(&uri, &config, &listener, capacity).await?, true),
        };

        let shared = Shared::default();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let store = Store::new(connector.connect().map_err(StartError::Connector)?, &shared);
        let kept = ring::Limits { window: config.recovery_window, bytes: config.recovery_bytes };
        let clock = Clock::default();
        let followed = Store::new(connector.connect().map_err(StartError::Connector)?, &shared);
        let feed = Arc::new(Feed::new(&followed, kept, clock.clone()));
        let prepare = prepare_database(store.clone(), Arc::clone(&feed), config.password_hash);
        tasks.spawn(stop.clone().run_until_cancelled_owned(prepare));
        let registry = Arc::new(SessionRegistry::new(capacity, config.max_connections_per_address));
        let signals = Signals::default();
        let presence = Arc::new(Presence::new(
            config.presence,
            registry.instance,
            store.presence.clone(),
            Arc::clone(&feed),
            signals.clone(),
        ));
        let exchange = Arc::new(Exchange::new(
            store.signals.clone(),
            registry.instance,
            signals.clone(),
            presence.others(),
        ));
        let keeping = Arc::clone(&presence).run(feed.presence_changes());
        tasks.spawn(stop.clone().run_until_cancelled_owned(keeping));
        tasks.spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&exchange).run()));
        let following = Arc::clone(&feed);
        let following = async move { following.run().await };
        tasks.spawn(stop.clone().run_until_cancelled_owned(following));
        let background_store = store.clone();
        let sweep = Arc::clone(&registry).sweep(store);
        tasks.spawn(stop.clone().run_until_cancelled_owned(sweep));
        // Wait for the feed, so that the first clients get positions; but not long, because MongoDB
        // may be down.
        let _ = tokio::time::timeout(FEED_START_TIMEOUT, feed.started()).await;

        let shutdown_timeout = config.shutdown_timeout;
        let options = server::Options {
            workers: config.workers,
            connections: registry.connections().clone(),
            waiting: capacity.waiting,
            keep_alive: config.keep_alive,
            head_timeout: HEAD_TIMEOUT,
            shutdown_timeout,
        };
        let folder = config.socket_io_client_dir.as_deref();
        let bundles = Bundles::load(folder, config.cors.clone()).map_err(StartError::Bundles)?;
        let bundles = Data::new(bundles);
        let config = Data::new(config);
        let tokens = Data::new(Tokens::with_clock(&secret, clock));
        let limits = Data::new(Limits::new(&config));
        let metrics = Data::new(Metrics::new());
        let refusals = Data::new(Refusals::default());
        let recent_marks = Arc::default();
        let background = Chat::new(
            background_store,
            Arc::clone(&feed),
            limits.clone(),
            metrics.clone(),
            Arc::clone(&recent_marks),
            config.legacy_trust,
        );
        let writing = background.clone().write_marks_for_ever();
        tasks.spawn(stop.clone().run_until_cancelled_owned(writing));
        let passwords = Data::new(Passwords::new(config.password_hash));
        let answers = Answers::default();
        let draining = Arc::clone(&registry);
        let connections = Registry::default();
        let server = server::serve(listener, options, move || {
            let database = connector.connect().expect("the same options have connected before");
            let store = Store::new(database, &shared);
            let chat = Chat::new(
                store.clone(),
                Arc::clone(&feed),
                limits.clone(),
                metrics.clone(),
                Arc::clone(&recent_marks),
                config.legacy_trust,
            );
            let revoked = Arc::clone(feed.revoked());
            let hub = Hub::new(
                Arc::clone(feed.ring()),
                Arc::clone(&revoked),
                Bounds::SESSION,
                signals.clone(),
            );
            let guard =
                Guard::new(revoked, store.revocations.clone(), answers.clone(), metrics.clone());
            let guard = Data::new(guard);
            let accounts = Accounts::new(
                store.clone(),
                Arc::clone(&feed),
                tokens.clone(),
                passwords.clone(),
                limits.clone(),
                metrics.clone(),
            );
            // This closure runs on the worker's thread, so the hub runs there, too.
            actix_web::rt::spawn(hub.clone().run());
            actix_web::rt::spawn(hub.clone().run_signals());
            let worker = Worker {
                store: store.clone(),
                chat: chat.clone(),
                hub,
                presence: Arc::clone(&presence),
                exchange: Arc::clone(&exchange),
                feed: Arc::clone(&feed),
                tokens: tokens.clone(),
                guard: guard.clone(),
                config: config.clone(),
                limits: limits.clone(),
                refusals: refusals.clone(),
                metrics: metrics.clone(),
                registry: Arc::clone(&registry),
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
                .app_data(guard)
                .app_data(Data::new(accounts))
                .app_data(worker)
                .app_data(Data::new(socket_io))
                .app_data(bundles.clone())
                .configure(routes::configure)
        })
        .map_err(StartError::Server)?;
        if !listens_already {
            log_address(addr);
        }
        log_pages(addr, demo);
        Ok(Self {
            addr,
            server,
            registry: draining,
            chat: background,
            shutdown_timeout,
            tasks,
            stop,
            mongod,
        })
    }

    /// The address where it listens, with the real port if `PORT` is 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address to open in a browser on this machine.
    pub fn url(&self) -> String {
        format!("http://{}", reachable(self.addr))
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

/// The number of connections that the limit of open files allows. Logs it if the configuration asks
/// for more.
fn capacity(config: &Config, pool_size: u32) -> Capacity {
    let files = raise_open_files();
    // One pool for each worker, one for the feed and one for the preparation of the database.
    let pools = (config.workers + 2).saturating_mul(pool_size as usize);
    let wanted = config.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
    let capacity = Capacity::within(files, pools, wanted);
    let Capacity { sockets, .. } = capacity;
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

/// Logs effects of the connection string that may be unexpected.
fn log_uri(uri: &MongoUri) {
    if !uri.names_database {
        log::info!("MONGO_URI names no database, so it is {:?}, as for Mongoose", uri.database);
    }
    if !uri.passed_over.is_empty() {
        log::info!(
            "These options of MONGO_URI have no effect here: {}",
            uri.passed_over.join(", ")
        );
    }
}

/// Tries once to resolve the name of MongoDB; `None` if it cannot be resolved within `most`.
async fn resolve(
    uri: &MongoUri,
    name: &str,
    most: Duration,
) -> Result<Option<Connector>, StartError> {
    match tokio::time::timeout(most, Connector::new(uri)).await {
        Ok(Ok(connector)) => return Ok(Some(connector)),
        Ok(Err(error)) if !is_unresolved(&error) => return Err(StartError::Connector(error)),
        Ok(Err(error)) => {
            log::warn!("The SRV record of {name:?}, the name in MONGO_URI, cannot be read yet");
            log::debug!("It cannot be read: {error}");
        }
        Err(_) => log::warn!("No name server has answered for {name:?}, the name in MONGO_URI"),
    }
    Ok(None)
}

/// Answers all requests with 503 until the name of MongoDB is resolved.
async fn wait_for_name(
    uri: &MongoUri,
    config: &Config,
    listener: &TcpListener,
    capacity: Capacity,
) -> Result<Connector, StartError> {
    let name = uri.srv_name.as_deref().unwrap_or_default();
    let options = server::Options {
        workers: 1,
        connections: Connections::new(capacity.connections),
        waiting: capacity.waiting,
        keep_alive: Duration::ZERO,
        head_timeout: HEAD_TIMEOUT,
        shutdown_timeout: FEED_START_TIMEOUT,
    };
    let app_config = Data::new(config.clone());
    let limits = Data::new(Limits::new(config));
    let refusals = Data::new(Refusals::default());
    let waiting = listener.try_clone().map_err(StartError::Server)?;
    let waiting = server::serve(waiting, options, move || {
        App::new()
            .app_data(app_config.clone())
            .app_data(limits.clone())
            .app_data(refusals.clone())
            .configure(routes::configure_waiting)
    })
    .map_err(StartError::Server)?;
    let handle = waiting.handle();
    let serving = tokio::spawn(waiting);
    log_address(listener.local_addr().map_err(StartError::Server)?);
    log::info!("Requests for MongoDB are answered 503 until the SRV record of {name:?} is known");
    let mut wait = Duration::from_secs(1);
    let connector = loop {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_TIMEOUT);
        if let Some(connector) = resolve(uri, name, RETRY_TIMEOUT).await? {
            break connector;
        }
    };
    log::info!("The SRV record of {name:?} is known now");
    handle.stop(true).await;
    // Its result does not matter: the real server replaces it.
    let _ = serving.await;
    Ok(connector)
}

/// The connection string and the secret. Starts the embedded MongoDB if it is used.
async fn database(
    config: &Config,
) -> Result<(SecretString, SecretString, Option<MongodTask>), StartError> {
    let uri = match &config.mongo {
        Mongo::Uri { uri } => Some(uri.clone()),
        Mongo::Embedded => None,
        Mongo::Unset => match original::look(original::ADDRESS).await {
            Some(found) => return Err(StartError::Found(found)),
            None => None,
        },
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
        "Embedded MongoDB on port {}, its data in {}: for tests and development, set MONGO_URI in \
         production",
        mongod.port(),
        data_dir.display()
    );
    let secret = match &config.jwt_secret {
        Some(secret) => secret.clone(),
        None => mongod::secret(&data_dir).map_err(StartError::Secret)?,
    };
    let uri = mongod.uri(original::DATABASE).into();
    let stop = CancellationToken::new();
    let task = tokio::spawn(mongod::keep_running(mongod, options, stop.clone()));
    Ok((uri, secret, Some(MongodTask { task, stop: stop.drop_guard() })))
}

/// Builds the indexes and checks the password hashes when MongoDB answers, then maintains the
/// indexes for ever.
async fn prepare_database(store: Store, feed: Arc<Feed>, scheme: PasswordHash) {
    let mut upkeep = Upkeep::new(store.clone());
    let mut wait = Duration::from_millis(250);
    while let Err(error) = prepare_once(&mut upkeep, &store, scheme).await {
        match &error {
            StoreError::Unavailable(cause) => match certificate_hint(&cause.to_string()) {
                Some(hint) => log::warn!("MongoDB is not ready yet: {hint}"),
                None => log::warn!("MongoDB is not ready yet: {error}"),
            },
            error => log::error!("The indexes cannot be built: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(15));
    }
    futures::future::join(upkeep.run(), purge_for_ever(store, feed)).await;
}

async fn prepare_once(
    upkeep: &mut Upkeep,
    store: &Store,
    scheme: PasswordHash,
) -> Result<(), StoreError> {
    log_contents(store.database()).await?;
    upkeep.round().await?;
    if scheme == PasswordHash::Argon2id && store.users.any_with_bcrypt().await? {
        log::warn!(
            "Users of the Node server were found. Their bcrypt hashes are replaced by argon2id at \
             their next login, which bcryptjs cannot read: set PASSWORD_HASH=bcrypt if you may go \
             back to Node or run both side by side"
        );
    }
    Ok(())
}

/// Logs which database it is and what it contains, so that a wrong one is noticed.
async fn log_contents(database: &Database) -> Result<(), StoreError> {
    let mut counts = Vec::new();
    for name in original::COLLECTIONS {
        let documents = database.collection::<Document>(name).estimated_document_count().await?;
        counts.push((name, documents));
    }
    log::info!("The database {:?} has about {}", database.name(), original::counts(&counts));
    Ok(())
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

/// Logs where the server listens.
fn log_address(addr: SocketAddr) {
    let here = reachable(addr);
    if addr.ip().is_unspecified() {
        log::info!("Listening on http://{here} and all other addresses of this machine");
    } else {
        log::info!("Listening on http://{here}");
    }
}

/// Logs the pages to open in a browser.
fn log_pages(addr: SocketAddr, demo: bool) {
    let here = reachable(addr);
    let demo = if demo { format!("try it on http://{here}/demo, ") } else { String::new() };
    log::info!(
        "To begin with: {demo}read about its API on http://{here}/docs, import http://{here}/chat.js \
         into a front end"
    );
}

/// An address for a URL: `localhost` instead of the unspecified address.
fn reachable(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() { format!("localhost:{}", addr.port()) } else { addr.to_string() }
}

/// Listens on one address, or on all as Node does: on IPv6 together with IPv4 if the system has
/// IPv6.
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
