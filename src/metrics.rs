//! The metrics of the process, for Prometheus.
//!
//! Labels have few values: routes, wires, reasons; never a user, a room or an address. Other parts
//! keep counters of their own, which [`Metrics::render`] gets as [`Readings`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// The buckets of the durations of requests, in seconds.
const DURATIONS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// The limits that refuse sockets.
const OF_SOCKETS: [&str; 3] = ["connect", "sockets", "sockets_of_address"];

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics. One for each server, shared by its workers.
pub struct Metrics {
    registry: Registry,
    /// Held while counters are updated, so that two readers do not add the same difference twice.
    reading: Mutex<()>,
    requests: HistogramVec,
    sockets: IntGaugeVec,
    deliveries: IntCounterVec,
    recoveries: IntCounterVec,
    message_changes: IntCounterVec,
    refreshes: IntCounterVec,
    revocations: IntCounterVec,
    revocation_queries: IntCounter,
    revocations_known: IntGauge,
    read_marks: IntCounterVec,
    disconnects: IntCounterVec,
    limits: IntCounterVec,
    refusals: IntCounterVec,
    feed: FeedMetrics,
    bundles: IntCounterVec,
    signals: IntCounter,
    signal_restarts: IntCounter,
    online: IntGauge,
    instances: IntGauge,
    sessions: IntGauge,
    connections: IntGauge,
    open: IntGauge,
    password_queue: IntGauge,
    panics: IntCounter,
    unprocessed: IntCounter,
    /// The part of `unprocessed` that sessions have counted. It lacks the messages that no session
    /// has read.
    unprocessed_of_sessions: AtomicU64,
}

/// The metrics of the feed and the ring.
struct FeedMetrics {
    live: IntGauge,
    lag: IntGauge,
    events: IntCounter,
    poison: IntCounter,
    oversized: IntCounter,
    restarts: IntCounter,
    losses: IntCounter,
    panics: IntCounter,
    ring_events: IntGauge,
    ring_bytes: IntGauge,
}

/// Which wire a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireName {
    /// `/ws`.
    Plain,
    /// `/socket.io/`.
    SocketIo,
}

/// A change of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageChange {
    /// The message gets another content.
    Edit,
    /// The message is deleted.
    Deletion,
}

/// What became of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// It was exchanged for its successor.
    Refreshed,
    /// It got the same successor once more.
    Repeated,
    /// It was used before, so its family has ended.
    Reused,
    /// It is not valid.
    Refused,
}

/// The outcome of a request to change a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The change was stored.
    Stored,
    /// An earlier request had stored the change.
    Repeated,
    /// The client made a mistake or has no permission.
    Refused,
    /// The server or its database failed.
    Failed,
}

/// An open socket. It is counted until this is dropped.
pub struct OpenSocket {
    gauge: IntGauge,
    deliveries: Deliveries,
    disconnects: IntCounterVec,
    wire: WireName,
    reason: &'static str,
}

/// Counts the events that were written to sockets of one wire.
#[derive(Clone)]
pub struct Deliveries(IntCounter);

impl Deliveries {
    /// Counts one event.
    pub fn count(&self) {
        self.0.inc();
    }
}

/// The counters of other parts at one moment.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// Those of the feed.
    pub feed: FeedReadings,
    /// Bundles of signals, by outcome.
    pub bundles: [(&'static str, u64); 2],
    /// Signals heard from other instances.
    pub signals: u64,
    /// Times that the signals of others had to be followed anew.
    pub signal_restarts: u64,
    /// Users who are online.
    pub online: usize,
    /// Instances that live.
    pub instances: usize,
    /// Sockets that were admitted.
    pub sessions: usize,
    /// Engine.IO connections, with or without a session.
    pub engine_io_connections: usize,
    /// TCP connections, sockets among them.
    pub connections: usize,
    /// Passwords that are being hashed or wait to be hashed.
    pub password_queue: usize,
    /// Sessions that ended by a panic.
    pub panics: u64,
    /// Messages of clients that no session has read.
    pub unread: u64,
    /// Revocations that are known.
    pub revocations: usize,
    /// Requests and sockets that were refused because of a limit, by limit.
    pub limits: Vec<(&'static str, u64)>,
    /// Sockets that were refused for another reason, by reason.
    pub refusals: Vec<(&'static str, u64)>,
}

/// The counters of the feed and its ring.
#[derive(Debug, Clone, Default)]
pub struct FeedReadings {
    /// Whether messages are delivered.
    pub is_live: bool,
    /// How far the feed lags behind MongoDB, in seconds.
    pub lag: u64,
    /// Messages, edits and deletions that were read.
    pub events: u64,
    /// Documents that are not valid messages.
    pub poison: u64,
    /// Messages that are too large to deliver.
    pub oversized: u64,
    /// Times that the change stream was opened again.
    pub restarts: u64,
    /// Times that events were lost.
    pub losses: u64,
    /// Panics of the feed.
    pub panics: u64,
    /// Events in the ring.
    pub ring_events: usize,
    /// The bytes of these events.
    pub ring_bytes: usize,
}

impl WireName {
    const fn label(self) -> &'static str {
        match self {
            Self::Plain => "ws",
            Self::SocketIo => "socket.io",
        }
    }
}

impl MessageChange {
    const fn label(self) -> &'static str {
        match self {
            Self::Edit => "edit",
            Self::Deletion => "deletion",
        }
    }
}

impl Refresh {
    const fn label(self) -> &'static str {
        match self {
            Self::Refreshed => "refreshed",
            Self::Repeated => "repeated",
            Self::Reused => "reused",
            Self::Refused => "refused",
        }
    }
}

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let new = Registering(&registry);
        let durations = HistogramOpts::new(
            "chat_http_request_duration_seconds",
            "How long requests took, by route, method and status.",
        );
        let durations = durations.buckets(DURATIONS.to_vec());
        let requests = HistogramVec::new(durations, &["route", "method", "status"]);
        Self {
            requests: new.register(requests),
            sockets: new.register(IntGaugeVec::new(
                Opts::new("chat_sockets", "Sockets that are open, by wire."),
                &["wire"],
            )),
            deliveries: new.counters(
                "chat_deliveries_total",
                "Events given to sockets, by wire.",
                &["wire"],
            ),
            recoveries: new.counters(
                "chat_recoveries_total",
                "Joins and resumed sessions that named a position, by outcome.",
                &["outcome"],
            ),
            message_changes: new.counters(
                "chat_message_changes_total",
                "Requests to edit or delete a message, by change and outcome.",
                &["change", "outcome"],
            ),
            refreshes: new.counters(
                "chat_refreshes_total",
                "Refresh tokens that were presented, by outcome.",
                &["outcome"],
            ),
            revocations: new.counters(
                "chat_revocations_total",
                "Revocations made here, by what they revoke.",
                &["scope"],
            ),
            revocation_queries: new.counter(
                "chat_revocation_queries_total",
                "Times that the database was asked whether a token is revoked.",
            ),
            revocations_known: new
                .gauge("chat_revocations_known", "Revocations that this instance knows."),
            read_marks: new.counters(
                "chat_read_marks_total",
                "Requests to mark a message as read, by outcome.",
                &["outcome"],
            ),
            disconnects: new.counters(
                "chat_disconnects_total",
                "Sockets that were closed, by wire and reason.",
                &["wire", "reason"],
            ),
            limits: new.counters(
                "chat_limits_reached_total",
                "Requests refused because of a limit, by limit.",
                &["limit"],
            ),
            refusals: new.counters(
                "chat_sockets_refused_total",
                "Sockets refused, by reason, including those beyond a limit.",
                &["reason"],
            ),
            feed: FeedMetrics {
                live: new.gauge("chat_feed_live", "1 while messages are delivered."),
                lag: new.gauge("chat_feed_lag_seconds", "Seconds that the feed is behind MongoDB."),
                events: new.counter(
                    "chat_feed_events_total",
                    "Messages, edits and deletions that the feed has read.",
                ),
                poison: new.counter(
                    "chat_feed_poison_total",
                    "Inserted documents without a readable room.",
                ),
                oversized: new.counter(
                    "chat_feed_oversized_total",
                    "Messages that are too large to deliver and became a resync.",
                ),
                restarts: new.counter(
                    "chat_feed_restarts_total",
                    "Times that the change stream was opened again.",
                ),
                losses: new.counter(
                    "chat_feed_losses_total",
                    "Times that recent messages were lost and a resync was sent to every room.",
                ),
                panics: new.counter("chat_feed_panics_total", "Panics of the feed."),
                ring_events: new.gauge("chat_ring_events", "Recent events kept for recovery."),
                ring_bytes: new.gauge("chat_ring_bytes", "Bytes of these events."),
            },
            bundles: new.counters(
                "chat_signal_bundles_total",
                "Bundles of signals for other instances, by outcome.",
                &["outcome"],
            ),
            signals: new
                .counter("chat_signals_received_total", "Signals heard from other instances."),
            signal_restarts: new.counter(
                "chat_signal_restarts_total",
                "Times that the signals of other instances had to be followed anew.",
            ),
            online: new.gauge("chat_online_users", "Users who are online, on all instances."),
            instances: new.gauge("chat_instances", "Instances that live, this one included."),
            sessions: new.gauge("chat_sessions", "Sockets that were admitted."),
            connections: new.gauge("chat_engine_io_connections", "Engine.IO connections."),
            open: new.gauge("chat_connections", "TCP connections, including sockets."),
            password_queue: new
                .gauge("chat_password_queue", "Passwords being hashed or waiting to be hashed."),
            panics: new.counter("chat_panics_total", "Sessions that ended by a panic."),
            unprocessed: new.counter(
                "chat_unprocessed_messages_total",
                "Messages not stored because the connection of their client had ended.",
            ),
            unprocessed_of_sessions: AtomicU64::new(0),
            registry,
            reading: Mutex::new(()),
        }
    }

    /// Counts an answered request.
    pub fn request(&self, route: &str, method: &str, status: u16, took: Duration) {
        let status = status.to_string();
        self.requests.with_label_values(&[route, method, &status]).observe(took.as_secs_f64());
    }

    /// Counts an admitted socket.
    pub fn open(&self, wire: WireName) -> OpenSocket {
        let gauge = self.sockets.with_label_values(&[wire.label()]);
        gauge.inc();
        OpenSocket {
            gauge,
            deliveries: Deliveries(self.deliveries.with_label_values(&[wire.label()])),
            disconnects: self.disconnects.clone(),
            wire,
            reason: "client",
        }
    }

    /// Counts a join or a resumed session with a position. `recovered`: nothing was lost.
    pub fn recovery(&self, recovered: bool) {
        let outcome = if recovered { "recovered" } else { "resync" };
        self.recoveries.with_label_values(&[outcome]).inc();
    }

    /// Counts an answered request to change a message.
    pub fn message_change(&self, change: MessageChange, outcome: Outcome) {
        self.message_changes.with_label_values(&[change.label(), outcome.label()]).inc();
    }

    /// Counts a refresh token that was presented.
    pub fn refresh(&self, refresh: Refresh) {
        self.refreshes.with_label_values(&[refresh.label()]).inc();
    }

    /// Counts a revocation: of a `token`, a `family` or a `user`.
    pub fn revocation(&self, scope: &'static str) {
        self.revocations.with_label_values(&[scope]).inc();
    }

    /// Counts a question to the database whether a token is revoked.
    pub fn revocation_query(&self) {
        self.revocation_queries.inc();
    }

    /// Counts an answered request to mark a message as read.
    pub fn read_mark(&self, outcome: Outcome) {
        self.read_marks.with_label_values(&[outcome.label()]).inc();
    }

    /// Counts messages that could not be stored after the connection of their client had ended.
    pub fn unprocessed(&self, count: usize) {
        self.unprocessed_of_sessions.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self, readings: &Readings) -> Vec<u8> {
        let reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.update(readings);
        drop(reading);
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            log::error!("The metrics cannot be written: {error}");
        }
        text
    }

    fn update(&self, readings: &Readings) {
        let (feed, read) = (&self.feed, &readings.feed);
        feed.live.set(i64::from(read.is_live));
        feed.lag.set(clamp(read.lag));
        set(&feed.events, read.events);
        set(&feed.poison, read.poison);
        set(&feed.oversized, read.oversized);
        set(&feed.restarts, read.restarts);
        set(&feed.losses, read.losses);
        set(&feed.panics, read.panics);
        feed.ring_events.set(clamp(read.ring_events as u64));
        feed.ring_bytes.set(clamp(read.ring_bytes as u64));
        for (outcome, count) in readings.bundles {
            set(&self.bundles.with_label_values(&[outcome]), count);
        }
        set(&self.signals, readings.signals);
        set(&self.signal_restarts, readings.signal_restarts);
        self.online.set(clamp(readings.online as u64));
        self.instances.set(clamp(readings.instances as u64));
        self.sessions.set(clamp(readings.sessions as u64));
        self.connections.set(clamp(readings.engine_io_connections as u64));
        self.password_queue.set(clamp(readings.password_queue as u64));
        self.revocations_known.set(clamp(readings.revocations as u64));
        set(&self.panics, readings.panics);
        let unprocessed = self.unprocessed_of_sessions.load(Ordering::Relaxed);
        set(&self.unprocessed, unprocessed + readings.unread);
        self.open.set(clamp(readings.connections as u64));
        for (limit, count) in &readings.limits {
            set(&self.limits.with_label_values(&[limit]), *count);
        }
        let of_sockets = readings.limits.iter().filter(|(limit, _)| OF_SOCKETS.contains(limit));
        for (reason, count) in readings.refusals.iter().chain(of_sockets) {
            set(&self.refusals.with_label_values(&[reason]), *count);
        }
    }
}

impl OpenSocket {
    /// The counter of the events that are written to it.
    pub fn deliveries(&self) -> Deliveries {
        self.deliveries.clone()
    }

    /// Sets why it is closed, if the client does not close it.
    pub fn closes_because(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.gauge.dec();
        self.disconnects.with_label_values(&[self.wire.label(), self.reason]).inc();
    }
}

/// Makes metrics and adds them to a registry. Names and labels are constants, so this can only fail
/// because of a mistake in this file, which every test with a server would find.
struct Registering<'a>(&'a Registry);

impl Registering<'_> {
    fn register<M>(&self, metric: prometheus::Result<M>) -> M
    where
        M: prometheus::core::Collector + Clone + 'static,
    {
        let metric = metric.expect("a metric's name and labels are valid");
        self.0.register(Box::new(metric.clone())).expect("each metric has a name of its own");
        metric
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }
}

/// Sets a counter to a count that never decreases.
fn set(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
