//! The parts of a running server, and which of them have which.

use std::rc::Rc;
use std::sync::Arc;

use actix_web::web::{Data, ServiceConfig};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{StartError, database};
use crate::auth::{Passwords, Tokens};
use crate::chat::{Accounts, Chat, RecentMarks};
use crate::config::Config;
use crate::config::database::Connector;
use crate::exchange::Exchange;
use crate::feed::{Feed, ring};
use crate::hub::Hub;
use crate::hub::inbox::Bounds;
use crate::hub::signals::Signals;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::middleware::auth::{Answers, Guard};
use crate::models::{Clock, Shared, Store};
use crate::presence::Presence;
use crate::protocols::engine_io::{self, Registry};
use crate::protocols::socket_io::client::Bundles;
use crate::protocols::socket_io::{self, SocketIo};
use crate::refusals::Refusals;
use crate::server::capacity::Capacity;
use crate::sessions::registry::{SessionRegistry, Worker};
use crate::wires::socket_io::ChatIo;

/// What there is once in a process. Each worker has a clone, which shares everything.
#[derive(Clone)]
pub(super) struct Parts {
    pub config: Data<Config>,
    pub feed: Arc<Feed>,
    pub registry: Arc<SessionRegistry>,
    connector: Connector,
    shared: Shared,
    /// For what runs beside the workers. Each worker has a store of its own.
    background: Store,
    signals: Signals,
    presence: Arc<Presence>,
    exchange: Arc<Exchange>,
    tokens: Data<Tokens>,
    passwords: Data<Passwords>,
    limits: Data<Limits>,
    refusals: Data<Refusals>,
    metrics: Data<Metrics>,
    bundles: Data<Bundles>,
    recent_marks: Arc<RecentMarks>,
    answers: Answers,
    connections: Registry,
}

impl Parts {
    /// Makes all of them. Nothing runs yet.
    ///
    /// # Errors
    /// The options of MongoDB or the folder of the client bundles cannot be used.
    pub fn new(
        config: Config,
        connector: Connector,
        secret: &SecretString,
        capacity: Capacity,
    ) -> Result<Self, StartError> {
        let shared = Shared::default();
        let background = store(&connector, &shared)?;
        let kept = ring::Limits { window: config.recovery_window, bytes: config.recovery_bytes };
        let clock = Clock::default();
        let feed = Arc::new(Feed::new(&store(&connector, &shared)?, kept, clock.clone()));
        let registry = Arc::new(SessionRegistry::new(capacity, config.max_connections_per_address));
        let signals = Signals::default();
        let presence = Arc::new(Presence::new(
            config.presence,
            registry.instance,
            background.presence.clone(),
            Arc::clone(&feed),
            signals.clone(),
        ));
        let exchange = Arc::new(Exchange::new(
            background.signals.clone(),
            registry.instance,
            signals.clone(),
            presence.others(),
        ));
        let folder = config.socket_io_client_dir.as_deref();
        let bundles = Bundles::load(folder, config.cors.clone()).map_err(StartError::Bundles)?;
        Ok(Self {
            tokens: Data::new(Tokens::with_clock(secret, clock)),
            passwords: Data::new(Passwords::new(config.password_hash)),
            limits: Data::new(Limits::new(&config)),
            refusals: Data::new(Refusals::default()),
            metrics: Data::new(Metrics::new()),
            bundles: Data::new(bundles),
            recent_marks: Arc::default(),
            answers: Answers::default(),
            connections: Registry::default(),
            config: Data::new(config),
            feed,
            registry,
            connector,
            shared,
            background,
            signals,
            presence,
            exchange,
        })
    }

    /// Spawns what runs beside the workers, until `stop`.
    pub fn run(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        let Self { config, feed, background, presence, exchange, .. } = self;
        let run = Runner { tasks, stop };
        run.spawn(database::prepare(background.clone(), Arc::clone(feed), config.password_hash));
        run.spawn(Arc::clone(presence).run(feed.presence_changes()));
        run.spawn(Arc::clone(exchange).run());
        let following = Arc::clone(feed);
        run.spawn(async move { following.run().await });
        run.spawn(Arc::clone(&self.registry).sweep(background.clone()));
        run.spawn(self.background_chat().write_marks_for_ever());
    }

    /// The operations of the chat for what runs beside the workers.
    pub fn background_chat(&self) -> Chat {
        self.chat(self.background.clone())
    }

    fn chat(&self, store: Store) -> Chat {
        Chat::new(
            store,
            Arc::clone(&self.feed),
            self.limits.clone(),
            self.metrics.clone(),
            Arc::clone(&self.recent_marks),
            self.config.legacy_trust,
        )
    }

    /// Makes what each worker has for itself, and hands all parts to the handlers. Call it on the
    /// worker's thread: the hub runs there, too.
    pub fn configure_worker(&self, app: &mut ServiceConfig) {
        let parts = self.clone();
        let store = store(&self.connector, &self.shared).expect("the same options have connected");
        let chat = self.chat(store.clone());
        let revoked = Arc::clone(self.feed.revoked());
        let guard = Guard::new(
            Arc::clone(&revoked),
            store.revocations.clone(),
            parts.answers,
            parts.metrics.clone(),
        );
        let guard = Data::new(guard);
        let accounts = Accounts::new(
            store.clone(),
            Arc::clone(&self.feed),
            parts.tokens.clone(),
            parts.passwords.clone(),
            parts.limits.clone(),
            parts.metrics.clone(),
        );
        let ring = Arc::clone(self.feed.ring());
        let hub = Hub::new(ring, revoked, Bounds::SESSION, parts.signals);
        actix_web::rt::spawn(Rc::clone(&hub).run());
        actix_web::rt::spawn(Rc::clone(&hub).run_signals());
        let worker = Data::new(Worker {
            store: store.clone(),
            chat: chat.clone(),
            hub,
            presence: parts.presence,
            exchange: parts.exchange,
            feed: parts.feed,
            tokens: parts.tokens.clone(),
            guard: guard.clone(),
            config: parts.config.clone(),
            limits: parts.limits.clone(),
            refusals: parts.refusals.clone(),
            metrics: parts.metrics.clone(),
            registry: parts.registry,
        });
        let chat_io = ChatIo::new(worker.clone(), parts.connections.clone());
        let socket_io = SocketIo::new(chat_io, socket_io::Config::default());
        let origins = self.config.cors.clone();
        let engine = engine_io::Config { origins, ..Default::default() };
        let socket_io = engine_io::Server::new(socket_io, engine, parts.connections.clone());
        app.app_data(parts.config)
            .app_data(parts.tokens)
            .app_data(parts.passwords)
            .app_data(parts.limits)
            .app_data(parts.refusals)
            .app_data(parts.metrics)
            .app_data(parts.bundles)
            .app_data(Data::new(parts.connections))
            .app_data(Data::new(store))
            .app_data(Data::new(chat))
            .app_data(guard)
            .app_data(Data::new(accounts))
            .app_data(worker)
            .app_data(Data::new(socket_io));
    }
}

fn store(connector: &Connector, shared: &Shared) -> Result<Store, StartError> {
    Ok(Store::new(connector.connect().map_err(StartError::Connector)?, shared))
}

/// Spawns tasks that end with `stop`.
struct Runner<'a> {
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Runner<'_> {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }
}
