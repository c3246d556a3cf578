//! Load by sockets: subscribers in rooms, publishers, and counts of wrong deliveries.
//!
//! Every message contains its publisher, its number among the messages of that publisher, and the
//! time of sending. So each subscriber can count lost, duplicated and misordered messages.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::Result;
use crate::histogram::Histogram;
use crate::http::{self, Connection};
use crate::process::Process;
use crate::seed::{Bulk, User};
use crate::websocket::{Socket, Source, push_text};
use crate::wire::{Event, PONG, Wire, number};

/// The length of a message in characters, which makes a frame of about 270 bytes.
const CONTENT: usize = 60;
/// How many sockets connect at the same time.
const CONNECTING: usize = 64;
/// The receive buffer of a socket that does not read, in bytes.
const SLOW_BUFFER: u32 = 4096;
/// How long after the last delivery the missing ones count as lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How fast messages are sent.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Messages a second, of all publishers together.
    Rate(f64),
    /// As fast as they are delivered, with this many in flight.
    FlatOut(u64),
}

/// How messages are sent.
#[derive(Clone)]
pub enum Via {
    /// On the socket of each publisher, on the wire of the subscribers.
    Socket,
    /// By `POST /api/chat/message`.
    Rest,
    /// As edits of these messages, on the socket of each publisher. With a multiple of the number of
    /// publishers, no two of them edit the same message.
    Edits(Arc<[String]>),
    /// Directly into the database, in batches.
    Bulk(Arc<Bulk>),
}

/// What to send.
#[derive(Clone)]
pub struct Plan {
    /// The number of publishers, which share the rooms.
    pub publishers: usize,
    /// How they send the messages.
    pub via: Via,
    /// The instance that they send to, if it is not that of the subscribers.
    pub to: Option<SocketAddr>,
    /// How fast they send.
    pub pace: Pace,
    /// The duration before the measurement.
    pub warm_up: Duration,
    /// The duration of the measurement.
    pub measure: Duration,
}

/// The results of a load.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Deliveries a second.
    pub deliveries: f64,
    /// Messages a second.
    pub messages: f64,
    /// The server's CPU time for each delivery, in µs.
    pub cpu_per_delivery: f64,
    /// The server's CPU time for each message, in µs.
    pub cpu_per_message: f64,
    /// The median latency from send to receipt, in ms.
    pub p50: f64,
    /// Its 99th percentile.
    pub p99: f64,
    /// Its 99.9th percentile.
    pub p999: f64,
    /// Deliveries that did not come.
    pub lost: u64,
    /// Deliveries that came more than once.
    pub doubled: u64,
    /// Deliveries that came after a later message of the same publisher.
    pub misordered: u64,
    /// Sockets that the server closed.
    pub closed: u64,
    /// The CPU time of this program for each delivery, in µs.
    pub load: f64,
}

impl Outcome {
    /// The number of wrong deliveries and closed sockets.
    pub fn faults(&self) -> u64 {
        self.lost + self.doubled + self.misordered + self.closed
    }

    /// The same as text.
    pub fn faults_in_words(&self) -> String {
        let Self { lost, doubled, misordered, closed, .. } = self;
        format!("lost {lost}, doubled {doubled}, misordered {misordered}, closed {closed}")
    }
}

/// Connected subscribers, which read all messages.
pub struct Subscribers {
    addr: SocketAddr,
    wire: Wire,
    rooms: Arc<[String]>,
    members: u64,
    counters: Arc<Counters>,
    /// Ends the subscribers when dropped.
    _reading: JoinSet<()>,
}

struct Counters {
    origin: Instant,
    /// The number of publishers so far, so that each gets a new number.
    publishers: AtomicUsize,
    /// The expected deliveries of all messages so far.
    expected: AtomicU64,
    /// Messages sent so far.
    sent: AtomicU64,
    /// Deliveries so far, without duplicates.
    delivered: AtomicU64,
    doubled: AtomicU64,
    misordered: AtomicU64,
    closed: AtomicU64,
    latency: Histogram,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            publishers: AtomicUsize::new(0),
            expected: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            doubled: AtomicU64::new(0),
            misordered: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            latency: Histogram::default(),
        }
    }
}

impl Subscribers {
    /// Connects subscribers, the same number for each room.
    ///
    /// # Errors
    /// A socket was refused.
    pub async fn connect(
        addr: SocketAddr,
        wire: Wire,
        user: &User,
        rooms: &[String],
        subscribers: usize,
    ) -> Result<Self> {
        let counters = Arc::new(Counters::default());
        let reading = futures::stream::iter(0..subscribers)
            .map(async |number| {
                let source = Source::of(number);
                let (mut socket, _) = wire.connect(addr, source, &user.token).await?;
                let nth = number % rooms.len().max(1);
                wire.join(&mut socket, rooms.get(nth..=nth).ok_or("no rooms")?).await?;
                Result::<_>::Ok(socket)
            })
            .buffer_unordered(CONNECTING)
            .try_fold(JoinSet::new(), async |mut reading, socket| {
                reading.spawn(subscriber(socket, wire, Arc::clone(&counters)));
                Ok(reading)
            })
            .await?;
        let members = (subscribers / rooms.len().max(1)).max(1) as u64;
        Ok(Self { addr, wire, rooms: rooms.into(), members, counters, _reading: reading })
    }

    /// Sends messages to these subscribers and measures their delivery.
    ///
    /// # Errors
    /// A publisher was refused.
    pub async fn measure(&self, plan: &Plan, user: &User, process: Process) -> Result<Outcome> {
        let counters = &self.counters;
        let stop = Arc::new(AtomicBool::new(false));
        let mut publishing = JoinSet::new();
        let first = counters.publishers.fetch_add(plan.publishers, Ordering::Relaxed);
        for nth in 0..plan.publishers {
            let publisher = Publisher {
                number: first + nth,
                nth,
                addr: plan.to.unwrap_or(self.addr),
                wire: self.wire,
                rooms: Arc::clone(&self.rooms),
                members: self.members,
                user: user.clone(),
                plan: plan.clone(),
                counters: Arc::clone(counters),
                stop: Arc::clone(&stop),
            };
            publishing.spawn(publisher.run());
        }
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        sleep(plan.warm_up).await;
        counters.latency.clear();
        let load = Process(std::process::id());
        let (begin, cpu, own) = (Instant::now(), process.cpu()?, load.cpu()?);
        let (delivered, sent) = (read(&counters.delivered), read(&counters.sent));
        sleep(plan.measure).await;
        let seconds = begin.elapsed().as_secs_f64();
        let (cpu, own) = ((process.cpu()? - cpu) * 1e6, (load.cpu()? - own) * 1e6);
        let (delivered, sent) =
            (read(&counters.delivered) - delivered, read(&counters.sent) - sent);

        stop.store(true, Ordering::Relaxed);
        while let Some(ended) = publishing.join_next().await {
            ended??;
        }
        let lost = self.wait_for_missing().await;
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Ok(Outcome {
            deliveries: delivered / seconds,
            messages: sent / seconds,
            cpu_per_delivery: cpu / delivered.max(1.0),
            cpu_per_message: cpu / sent.max(1.0),
            p50: counters.latency.quantile(0.5),
            p99: counters.latency.quantile(0.99),
            p999: counters.latency.quantile(0.999),
            lost,
            doubled: take(&counters.doubled),
            misordered: take(&counters.misordered),
            closed: take(&counters.closed),
            load: own / delivered.max(1.0),
        })
    }

    /// Waits until all messages have come, or no more come. Returns the number of missing
    /// deliveries.
    async fn wait_for_missing(&self) -> u64 {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let delivered = self.counters.delivered.load(Ordering::Relaxed);
            let expected = self.counters.expected.load(Ordering::Relaxed);
            if delivered >= expected {
                return 0;
            }
            if delivered != last {
                (last, since) = (delivered, Instant::now());
            } else if since.elapsed() > IDLE_TIMEOUT {
                // Count the missing deliveries only once.
                self.counters.expected.store(delivered, Ordering::Relaxed);
                return expected - delivered;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Connects sockets that join a room and never read, with little room for what waits for them.
pub async fn connect_slow(
    addr: SocketAddr,
    wire: Wire,
    user: &User,
    rooms: &[String],
    number: usize,
) -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for number in 0..number {
        let source = Source { buffer: Some(SLOW_BUFFER), ..Source::of(number) };
        let (mut socket, _) = wire.connect(addr, source, &user.token).await?;
        wire.join(&mut socket, rooms).await?;
        sockets.push(socket);
    }
    Ok(sockets)
}

async fn subscriber(mut socket: Socket, wire: Wire, counters: Arc<Counters>) {
    let mut seen = Seen::default();
    let mut ping = false;
    loop {
        let mut now = None;
        let read = socket.read(|text| match wire.read(text) {
            Event::Message => {
                // Read the clock once for all messages of one read.
                let now = now.get_or_insert_with(|| counters.origin.elapsed());
                counters.count(text, *now, &mut seen);
            }
            Event::Ping => ping = true,
            Event::Ack(_) | Event::Refusal(_) | Event::Other => {}
        });
        if read.await.is_err() || (ping && socket.send_text(PONG).await.is_err()) {
            counters.closed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        ping = false;
    }
}

impl Counters {
    /// Counts a message that a subscriber received.
    fn count(&self, text: &[u8], now: Duration, seen: &mut Seen) {
        let Some(content) = seen.content(text) else { return };
        let mut parts = content.split(|byte| *byte == b'.').map(number);
        let mut part = || parts.next().unwrap_or_default();
        let (publisher, message, sent) = (part(), part(), Duration::from_nanos(part()));
        match seen.take(publisher, message) {
            Arrival::InOrder => drop(self.delivered.fetch_add(1, Ordering::Relaxed)),
            Arrival::Late => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                self.misordered.fetch_add(1, Ordering::Relaxed);
            }
            Arrival::Duplicate => drop(self.doubled.fetch_add(1, Ordering::Relaxed)),
        }
        self.latency.record(now.saturating_sub(sent));
    }
}

/// The messages that one subscriber has received from each publisher.
#[derive(Default)]
struct Seen {
    publishers: Vec<(u64, Messages)>,
    /// The offset of the content in the last text; it rarely changes.
    content_at: usize,
}

#[derive(Default)]
struct Messages {
    /// One bit for each message, by its number.
    bits: Vec<u64>,
    /// The highest number so far plus one.
    next: u64,
}

enum Arrival {
    InOrder,
    Late,
    Duplicate,
}

impl Seen {
    fn content<'a>(&mut self, text: &'a [u8]) -> Option<&'a [u8]> {
        const KEY: &[u8] = b"\"content\":\"";
        let is_here = |at: usize| text.get(at..).is_some_and(|rest| rest.starts_with(KEY));
        if !is_here(self.content_at) {
            self.content_at = text.windows(KEY.len()).position(|window| window == KEY)?;
        }
        text.get(self.content_at + KEY.len()..)
    }

    fn take(&mut self, publisher: u64, message: u64) -> Arrival {
        let index = match self.publishers.iter().position(|(known, _)| *known == publisher) {
            Some(index) => index,
            None => {
                self.publishers.push((publisher, Messages::default()));
                self.publishers.len() - 1
            }
        };
        let Some((_, messages)) = self.publishers.get_mut(index) else { return Arrival::Duplicate };
        let (word, bit) = ((message / 64) as usize, 1 << (message % 64));
        if messages.bits.len() <= word {
            messages.bits.resize(word + 1, 0);
        }
        let Some(word) = messages.bits.get_mut(word) else { return Arrival::Duplicate };
        let (duplicate, late) = (*word & bit != 0, message < messages.next);
        *word |= bit;
        messages.next = messages.next.max(message + 1);
        match (duplicate, late) {
            (true, _) => Arrival::Duplicate,
            (false, true) => Arrival::Late,
            (false, false) => Arrival::InOrder,
        }
    }
}

/// A sender of messages.
struct Publisher {
    /// Its number among all publishers for these subscribers.
    number: usize,
    /// Its number among the publishers of this plan.
    nth: usize,
    addr: SocketAddr,
    wire: Wire,
    rooms: Arc<[String]>,
    members: u64,
    user: User,
    plan: Plan,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
}

impl Publisher {
    async fn run(self) -> Result<()> {
        match &self.plan.via {
            Via::Socket | Via::Edits(_) => self.run_on_socket().await,
            Via::Rest => self.run_by_rest().await,
            Via::Bulk(bulk) => self.run_in_bulk(bulk).await,
        }
    }

    async fn run_on_socket(&self) -> Result<()> {
        let source = Source { address: Ipv4Addr::LOCALHOST, buffer: None };
        let (mut socket, _) = self.wire.connect(self.addr, source, &self.user.token).await?;
        let mut turns = interval(Duration::from_millis(1));
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (start, mut sent, mut answered) = (Instant::now(), 0_u64, 0_u64);
        let mut frames = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            frames.clear();
            for _ in 0..self.due(start, sent) {
                let content = self.content(sent);
                let text = match &self.plan.via {
                    Via::Edits(messages) => {
                        self.wire.edit(sent, self.turn(messages, sent), &content)
                    }
                    _ => self.wire.message(sent, self.room(sent), &self.user.id, &content),
                };
                push_text(&mut frames, text.as_bytes(), true);
                self.expect();
                sent += 1;
            }
            if !frames.is_empty() {
                socket.send(&frames).await?;
            }
            tokio::select! {
                _ = turns.tick() => {}
                read = self.read_answers(&mut socket, &mut answered) => read?,
            }
        }
        let rest = async {
            while answered < sent {
                self.read_answers(&mut socket, &mut answered).await?;
            }
            Result::<()>::Ok(())
        };
        // Messages without an answer by then count as lost if they were not delivered.
        timeout(IDLE_TIMEOUT * 4, rest).await.unwrap_or(Ok(()))
    }

    async fn read_answers(&self, socket: &mut Socket, answered: &mut u64) -> Result<()> {
        let mut ping = false;
        let read = socket.read(|text| match self.wire.read(text) {
            Event::Ack(_) => *answered += 1,
            Event::Refusal(_) => {
                *answered += 1;
                self.expect_no_more();
            }
            Event::Ping => ping = true,
            Event::Message | Event::Other => {}
        });
        read.await?;
        if ping {
            socket.send_text(PONG).await?;
        }
        Ok(())
    }

    async fn run_by_rest(&self) -> Result<()> {
        let mut connection = Connection::open(self.addr).await?;
        let (start, mut sent) = (Instant::now(), 0);
        while !self.stop.load(Ordering::Relaxed) {
            if self.due(start, sent) == 0 {
                sleep(Duration::from_millis(1)).await;
                continue;
            }
            let (room, sender, content) = (self.room(sent), &self.user.id, self.content(sent));
            let body = format!(r#"{{"room":"{room}","sender":"{sender}","content":"{content}"}}"#);
            let token = Some(self.user.token.as_str());
            let request = http::request("POST", "/api/chat/message", token, Some(&body));
            self.expect();
            sent += 1;
            if connection.exchange(&request).await?.status != 201 {
                self.expect_no_more();
            }
        }
        Ok(())
    }

    async fn run_in_bulk(&self, bulk: &Bulk) -> Result<()> {
        let (start, mut sent) = (Instant::now(), 0);
        while !self.stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(100)).await;
            let due = self.due(start, sent);
            let content = |number| self.content(sent + number as u64);
            bulk.add_messages(self.room(0), &self.user.id, due as usize, content).await?;
            (0..due).for_each(|_| self.expect());
            sent += due;
        }
        Ok(())
    }

    /// The number of messages to send now.
    fn due(&self, start: Instant, sent: u64) -> u64 {
        match self.plan.pace {
            Pace::Rate(rate) => {
                let publishers = self.plan.publishers as f64;
                // Different phases, so that publishers take turns.
                let phase = (self.nth + 1) as f64 / publishers;
                let due = start.elapsed().as_secs_f64() * rate / publishers + phase;
                (due as u64).saturating_sub(sent)
            }
            Pace::FlatOut(window) => {
                let expected = self.counters.expected.load(Ordering::Relaxed);
                let delivered = self.counters.delivered.load(Ordering::Relaxed);
                let under_way = expected.saturating_sub(delivered).div_ceil(self.members);
                window.saturating_sub(under_way).div_ceil(self.plan.publishers as u64)
            }
        }
    }

    fn room(&self, sent: u64) -> &str {
        self.turn(&self.rooms, sent)
    }

    fn turn<'a>(&self, ids: &'a [String], sent: u64) -> &'a str {
        let turn = sent as usize * self.plan.publishers + self.nth;
        ids.get(turn % ids.len().max(1)).map_or("", String::as_str)
    }

    fn content(&self, sent: u64) -> String {
        let nanos = self.counters.origin.elapsed().as_nanos();
        format!("{:x<CONTENT$}", format!("{}.{sent}.{nanos}.", self.number))
    }

    fn expect(&self) {
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.counters.expected.fetch_add(self.members, Ordering::Relaxed);
    }

    fn expect_no_more(&self) {
        self.counters.expected.fetch_sub(self.members, Ordering::Relaxed);
    }
}
