//! The rows of the table and their loads.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use crate::contender::Contender;
use crate::fanout::{Outcome, Pace, Plan, Subscribers, Via, connect_slow};
use crate::http::request;
use crate::reconnect;
use crate::report::Results;
use crate::rest::{self, Load};
use crate::seed::{self, Bulk, Seed};
use crate::servers::Server;
use crate::wire::Wire;
use crate::{Bench, Result};

/// The number of connections of the REST rows.
const CONNECTIONS: usize = 32;
/// The number of subscribers of the delivery rows.
const SUBSCRIBERS: usize = 500;
/// Messages a second of the rows with a fixed rate.
const RATE: f64 = 50.0;
/// Messages a second of the rows with a higher rate, and the smaller number of subscribers.
const FAST: f64 = 400.0;
const FEW: usize = 50;
/// Edits a second, who sends them, the number of messages that are edited, and who follows them.
const EDITS: f64 = 1_000.0;
const EDITORS: usize = 50;
const EDITED: usize = 200;
const READERS: usize = 10;
/// Messages a second to a public and to a private room, in so many rounds. As many to both, since a
/// busier server needs less for each.
const SENT: f64 = 2_000.0;
const ROUNDS: u8 = 5;
/// Messages a second of the mix, and the length of the histories that are read beside them.
const MIX: f64 = 200.0;
const MIX_HISTORY: usize = 10_000;
/// How many such histories are read a second, over how many connections. Not as many as possible,
/// so that every server has the same to do.
const MIX_PACE: (f64, usize) = (4.0, 4);
/// One in a hundred does not read.
const SLOW: usize = SUBSCRIBERS / 100;
/// Messages in flight of the flat-out rows.
const WINDOW: u64 = 64;
/// `GET /rooms` a second during the logins, and the number of connections for it.
const PACE: (f64, usize) = (200.0, 8);
/// Concurrent logins.
const LOGINS: usize = 20;
/// Node's deliveries a second in an earlier run, for runs without Node.
const NODE_FLAT_OUT: f64 = 65_000.0;

/// A group of rows that are measured together, or a curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// From the start to the first answer, and the memory of an idle process.
    Start,
    /// `GET /rooms`.
    Rooms,
    /// `GET /messages/:room`.
    Messages,
    /// `POST /message`.
    Message,
    /// `POST /message` to a private room, beside a public one.
    Private,
    /// A 401.
    Unauthorized,
    /// `GET /rooms` during logins.
    Logins,
    /// 50 messages a second to 500 sockets.
    Fanout,
    /// 400 messages a second to 500 sockets, and to 50.
    Fast,
    /// 50 messages a second, sent by `POST /message`, which Node does not deliver.
    Posted,
    /// 1,000 edits a second.
    Edits,
    /// Deliveries beside logins, long histories and sockets that do not read.
    Mix,
    /// As many messages as possible.
    Flat,
    /// Four times Node's maximum.
    Overload,
    /// The memory of idle sockets.
    Sockets,
    /// The memory after many sockets have left, several times.
    Memory,
    /// Many sockets that come back at the same time.
    Reconnect,
    /// A socket with many private rooms that comes back.
    PrivateRooms,
    /// A curve: more subscribers.
    CurveSubscribers,
    /// A curve: more rooms.
    CurveRooms,
    /// A curve: the rate of the feed.
    CurveFeed,
    /// A curve: more instances.
    CurveInstances,
    /// Curves: more instances, which deliver what was sent to another one.
    CurveAcross,
    /// A curve: longer lists of rooms.
    CurveList,
    /// A curve: more rooms for each socket.
    CurveJoined,
    /// Curves: longer histories, and pages deep in them. Last, because a starting server reads the
    /// events of the last two minutes.
    CurveHistories,
}

impl Group {
    /// All groups, in the order of measurement.
    pub const ALL: [Self; 26] = [
        Self::Start,
        Self::Rooms,
        Self::Messages,
        Self::Message,
        Self::Private,
        Self::Unauthorized,
        Self::Logins,
        Self::Fanout,
        Self::Fast,
        Self::Posted,
        Self::Edits,
        Self::Mix,
        Self::Flat,
        Self::Overload,
        Self::Sockets,
        Self::Memory,
        Self::Reconnect,
        Self::PrivateRooms,
        Self::CurveSubscribers,
        Self::CurveRooms,
        Self::CurveFeed,
        Self::CurveInstances,
        Self::CurveAcross,
        Self::CurveList,
        Self::CurveJoined,
        Self::CurveHistories,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Rooms => "rooms",
            Self::Messages => "messages",
            Self::Message => "message",
            Self::Private => "private",
            Self::Unauthorized => "unauthorized",
            Self::Logins => "logins",
            Self::Fanout => "fanout",
            Self::Fast => "fast",
            Self::Posted => "posted",
            Self::Edits => "edits",
            Self::Mix => "mix",
            Self::Flat => "flat",
            Self::Overload => "overload",
            Self::Sockets => "sockets",
            Self::Memory => "memory",
            Self::Reconnect => "reconnect",
            Self::PrivateRooms => "private-rooms",
            Self::CurveSubscribers => "curve-subscribers",
            Self::CurveRooms => "curve-rooms",
            Self::CurveFeed => "curve-feed",
            Self::CurveInstances => "curve-instances",
            Self::CurveAcross => "curve-across",
            Self::CurveList => "curve-list",
            Self::CurveJoined => "curve-joined",
            Self::CurveHistories => "curve-histories",
        }
    }

    /// The groups that a name of the command line means: one, or all curves.
    pub fn named(name: &str) -> Option<Vec<Self>> {
        let is_meant = |group: &Self| match name {
            "curves" => group.is_curve(),
            name => group.name() == name,
        };
        let meant: Vec<Self> = Self::ALL.into_iter().filter(is_meant).collect();
        (!meant.is_empty()).then_some(meant)
    }

    /// Whether it is a curve.
    pub fn is_curve(self) -> bool {
        self.name().starts_with("curve-")
    }

    /// Whether a contender supports what this group measures.
    pub fn concerns(self, contender: Contender) -> bool {
        match self {
            Self::Private | Self::Edits | Self::PrivateRooms => contender == Contender::Ours,
            Self::CurveFeed | Self::CurveInstances => contender == Contender::Ours,
            // The one with axum would be written around its adapter, also for a single process.
            Self::CurveAcross => {
                matches!(contender, Contender::Ours | Contender::Bun | Contender::Uws)
            }
            Self::Posted => !matches!(contender, Contender::Node | Contender::Floor),
            Self::Fanout | Self::Flat | Self::CurveSubscribers => true,
            // Fast is more than the floor can write.
            _ => contender != Contender::Floor,
        }
    }

    /// How long it may take.
    pub fn timeout(self) -> Duration {
        match self {
            Self::Memory | Self::CurveJoined => Duration::from_secs(900),
            Self::Reconnect | Self::Mix => Duration::from_secs(300),
            group if group.is_curve() => Duration::from_secs(300),
            _ => Duration::from_secs(180),
        }
    }
}

/// Measures the chosen groups of a contender, each with a new process.
pub async fn measure(
    bench: &mut Bench,
    contender: Contender,
    is_chosen: impl Fn(Group) -> bool,
) -> Result<()> {
    for group in Group::ALL.into_iter().filter(|group| is_chosen(*group)) {
        if group.is_curve() || !group.concerns(contender) || !bench.options.wants(group) {
            continue;
        }
        let Some((server, seed)) = bench.begin(contender, group).await else { continue };
        server.process.settle().await?;
        let mut at = Running { bench, contender, server, seed };
        let measured = timeout(group.timeout(), at.measure(group)).await;
        let measured = measured.unwrap_or_else(|_| Err("it took too long".into()));
        at.server.stop().await?;
        if let Err(error) = measured {
            // Go on with the other groups.
            bench.fail(contender, group, &error.to_string());
        }
    }
    Ok(())
}

/// Measures an attached server.
pub async fn attached(bench: &mut Bench, server: Server) -> Result<()> {
    let seed = Seed::create(server.addr).await?;
    let mut at = Running { bench, contender: Contender::Ours, server, seed };
    for group in Group::ALL {
        // What needs processes or a database of its own.
        let needs_more = matches!(
            group,
            Group::Start | Group::Sockets | Group::Memory | Group::Mix | Group::PrivateRooms
        );
        if needs_more || group.is_curve() || !at.bench.options.wants(group) {
            continue;
        }
        if let Err(error) = at.measure(group).await {
            at.bench.fail(Contender::Ours, group, &error.to_string());
        }
    }
    Ok(())
}

impl Bench {
    /// Starts a contender with its own database.
    pub async fn start(&self, contender: Contender, token: Option<&str>) -> Result<Server> {
        self.launcher.start(contender, &self.uri(contender)?, token).await
    }

    /// Starts a contender for a group, with its data. Records a failure, and the others go on.
    pub async fn begin(&mut self, contender: Contender, group: Group) -> Option<(Server, Seed)> {
        let begun = async {
            let server = self.start(contender, None).await?;
            let seed = self.seed(contender, server.addr).await?;
            Result::<_>::Ok((server, seed))
        };
        match begun.await {
            Ok(begun) => Some(begun),
            Err(error) => {
                self.fail(contender, group, &error.to_string());
                None
            }
        }
    }

    /// The data of a contender, created at the first call. The floor has no database and accepts
    /// any ids.
    pub async fn seed(&mut self, contender: Contender, addr: SocketAddr) -> Result<Seed> {
        let seed = match self.seeds.remove(&contender) {
            Some(seed) => seed.refresh(addr).await?,
            None if contender == Contender::Floor => Seed::placeholder(),
            None => Seed::create(addr).await?,
        };
        self.seeds.insert(contender, seed.clone());
        Ok(seed)
    }

    /// Records a failed measurement.
    pub fn fail(&mut self, contender: Contender, group: Group, error: &str) {
        let failure = format!("{}: {}: {error}", contender.name(), group.name());
        self.say(&format!("FAILED  {failure}"));
        self.results.failures.push(failure);
    }
}

/// A running contender with its data.
struct Running<'a> {
    bench: &'a mut Bench,
    contender: Contender,
    server: Server,
    seed: Seed,
}

impl Running<'_> {
    async fn measure(&mut self, group: Group) -> Result<()> {
        let token = self.seed.user()?.token.clone();
        let get = |path: &str, token| request("GET", path, token, None);
        match group {
            Group::Start => self.start().await,
            Group::Rooms => self.rest("rooms", get("/api/chat/rooms", Some(&token)), 200).await,
            Group::Messages => {
                let room = self.seed.rooms.first().ok_or("no rooms")?;
                let path = format!("/api/chat/messages/{room}");
                self.rest("messages", get(&path, Some(&token)), 200).await
            }
            Group::Message => {
                let send =
                    self.seed.send(1, 0, "a message of an ordinary length, as people write")?;
                self.rest("message", send, 201).await
            }
            Group::Private => self.private().await,
            Group::Unauthorized => {
                self.rest("unauthorized", get("/api/chat/rooms", None), 401).await
            }
            Group::Logins => self.logins().await,
            Group::Fanout => self.deliveries("fanout", SUBSCRIBERS, Pace::Rate(RATE), 2, 0.0).await,
            Group::Fast => {
                self.deliveries("fast", SUBSCRIBERS, Pace::Rate(FAST), 4, 0.0).await?;
                self.deliveries("few", FEW, Pace::Rate(FAST), 4, 0.0).await
            }
            Group::Posted => self.posted().await,
            Group::Edits => self.edits().await,
            Group::Mix => self.mix().await,
            Group::Flat => {
                self.deliveries("flat", SUBSCRIBERS, Pace::FlatOut(WINDOW), 4, 0.0).await
            }
            Group::Overload => {
                let node =
                    self.bench.results.get("flat deliveries", Wire::SocketIo, Contender::Node);
                let deliveries = 4.0 * node.unwrap_or(NODE_FLAT_OUT);
                let pace = Pace::Rate(deliveries / SUBSCRIBERS as f64);
                self.deliveries("overload", SUBSCRIBERS, pace, 4, deliveries).await
            }
            Group::Sockets => self.sockets().await,
            Group::Memory => self.memory().await,
            Group::Reconnect => self.reconnect().await,
            Group::PrivateRooms => self.private_rooms().await,
            curve => Err(format!("{} is a curve", curve.name()).into()),
        }
    }

    fn record(&mut self, key: &str, value: f64, text: &str) {
        self.bench.say(&format!("{:<6}{key:<32}{text}", self.contender.name()));
        self.bench.results.set(key, self.contender, value);
    }

    async fn start(&mut self) -> Result<()> {
        let token = self.seed.user()?.token.clone();
        let mut seconds = Vec::new();
        for _ in 0..self.bench.options.pick(9, 3) {
            let server = self.bench.start(self.contender, Some(&token)).await?;
            seconds.push(server.started_in.as_secs_f64());
            server.stop().await?;
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
        self.record("start seconds", median, &format!("{median:.3} s"));
        let server = self.bench.start(self.contender, Some(&token)).await?;
        let memory = server.process.settled_memory().await? / 1e6;
        server.stop().await?;
        self.record("start memory", memory, &format!("{memory:.1} MB"));
        Ok(())
    }

    fn load(&self, request: Vec<u8>, status: u16) -> Load {
        Load {
            addr: self.server.addr,
            process: self.server.process,
            request: request.into(),
            status,
            connections: CONNECTIONS,
            pace: None,
            warm_up: self.bench.options.warm_up(),
            measure: self.bench.options.measure(),
        }
    }

    async fn rest(&mut self, name: &str, request: Vec<u8>, status: u16) -> Result<()> {
        let rest::Outcome { rate, cpu, p50, p99 } = self.load(request, status).run().await?;
        let text = format!("{cpu:.0} µs, {rate:.0}/s, p50 {p50:.1} ms, p99 {p99:.1} ms");
        self.record(&format!("{name} cpu"), cpu, &text);
        self.bench.results.set(&format!("{name} rate"), self.contender, rate);
        Ok(())
    }

    async fn logins(&mut self) -> Result<()> {
        let token = self.seed.user()?.token.clone();
        let rooms = request("GET", "/api/chat/rooms", Some(&token), None);
        let (pace, connections) = PACE;
        let rooms = Load { connections, pace: Some(pace), ..self.load(rooms, 200) };
        let before = rooms.run().await?;
        let logins = self.load(Seed::login(self.server.addr).await?, 200);
        let logins = Load { connections: LOGINS, ..logins };
        let (during, logins) = tokio::try_join!(rooms.run(), logins.run())?;
        self.record(
            "logins rate",
            during.rate / before.rate * 100.0,
            &format!(
                "{:.0}/s, p99 {:.1} ms; with {:.0} logins a second {:.0}/s, p99 {:.1} ms",
                before.rate, before.p99, logins.rate, during.rate, during.p99
            ),
        );
        for (key, value) in
            [("before", before.p99), ("during", during.p99), ("a second", logins.rate)]
        {
            self.bench.results.set(&format!("logins {key}"), self.contender, value);
        }
        Ok(())
    }

    async fn posted(&mut self) -> Result<()> {
        let (addr, user) = (self.server.addr, self.seed.user()?.clone());
        let rooms = self.seed.rooms.get(2..3).ok_or("no rooms")?;
        let wire = self.contender.wires().first().copied().ok_or("no wires")?;
        let subscribers = Subscribers::connect(addr, wire, &user, rooms, SUBSCRIBERS).await?;
        let plan = Plan { via: Via::Rest, ..self.plan(Pace::Rate(RATE), 2) };
        let outcome = subscribers.measure(&plan, &user, self.server.process).await?;
        self.note("posted", wire, &outcome);
        Ok(())
    }

    async fn private(&mut self) -> Result<()> {
        let user = self.seed.user()?.clone();
        let private = seed::private_rooms(self.server.addr, &user, 1).await?.concat();
        let public = self.seed.rooms.get(1).ok_or("no rooms")?;
        let content = "a message of an ordinary length, as people write";
        let loads = [public, &private].map(|room| Load {
            pace: Some(SENT),
            warm_up: Duration::from_millis(500),
            measure: Duration::from_secs(3),
            ..self.load(seed::message(room, &user, content), 201)
        });
        // In turn, so that a change of the machine is in both figures.
        let mut cpu = [0.0; 2];
        for _ in 0..ROUNDS {
            for (cpu, load) in cpu.iter_mut().zip(&loads) {
                *cpu += load.run().await?.cpu / f64::from(ROUNDS);
            }
        }
        let [public, private] = cpu;
        let text = format!("{private:.0} µs; to a public room {public:.0} µs");
        self.record("private cpu", private, &text);
        self.bench.results.set("private share", self.contender, private / public * 100.0);
        Ok(())
    }

    async fn edits(&mut self) -> Result<()> {
        let (addr, user) = (self.server.addr, self.seed.user()?.clone());
        let rooms = self.seed.rooms.get(2..3).ok_or("no rooms")?.to_vec();
        let messages = seed::messages(addr, &user, &rooms.concat(), EDITED).await?;
        for &wire in self.contender.wires() {
            let subscribers = Subscribers::connect(addr, wire, &user, &rooms, READERS).await?;
            let via = Via::Edits(messages.as_slice().into());
            let plan = Plan { via, ..self.plan(Pace::Rate(EDITS), EDITORS) };
            let outcome = subscribers.measure(&plan, &user, self.server.process).await?;
            self.note("edits", wire, &outcome);
            let wanted = EDITS * READERS as f64;
            let (cpu, reached) = (outcome.cpu_per_message, outcome.deliveries / wanted * 100.0);
            self.bench.results.set_on("edits", "message cpu", wire, self.contender, cpu);
            self.bench.results.set_on("edits", "reached", wire, self.contender, reached);
        }
        Ok(())
    }

    async fn mix(&mut self) -> Result<()> {
        let (addr, user) = (self.server.addr, self.seed.user()?.clone());
        let rooms = self.seed.rooms.get(2..3).ok_or("no rooms")?.to_vec();
        let bulk = Bulk::connect(&self.bench.uri(self.contender)?).await?;
        let long = bulk.add_rooms(1).await?;
        let content = |number| format!("message {number} of a long history");
        bulk.add_messages(&long.concat(), &user.id, MIX_HISTORY, content).await?;
        self.server.process.settle().await?;
        let path = format!("/api/chat/messages/{}", long.concat());
        let histories = self.load(request("GET", &path, Some(&user.token), None), 200);
        let (pace, connections) = MIX_PACE;
        let histories = Load { connections, pace: Some(pace), ..histories };
        let logins = self.load(Seed::login(addr).await?, 200);
        let logins = Load { connections: LOGINS, ..logins };
        for &wire in self.contender.wires() {
            let subscribers = Subscribers::connect(addr, wire, &user, &rooms, SUBSCRIBERS).await?;
            let slow = connect_slow(addr, wire, &user, &rooms, SLOW).await?;
            let plan = self.plan(Pace::Rate(MIX), 4);
            let (outcome, histories, logins) = tokio::try_join!(
                subscribers.measure(&plan, &user, self.server.process),
                histories.run(),
                logins.run()
            )?;
            drop(slow);
            self.note("mix", wire, &outcome);
            let text = format!(
                "{:<9} p99.9 {:.1} ms; beside {:.1} histories and {:.0} logins a second",
                wire.name(),
                outcome.p999,
                histories.rate,
                logins.rate
            );
            self.bench.say(&format!("{:<6}{:<32}{text}", self.contender.name(), ""));
            self.bench.results.set_on("mix", "p999", wire, self.contender, outcome.p999);
        }
        bulk.remove_rooms(&long).await
    }

    fn plan(&self, pace: Pace, publishers: usize) -> Plan {
        Plan {
            publishers,
            via: Via::Socket,
            to: None,
            pace,
            warm_up: self.bench.options.warm_up(),
            measure: self.bench.options.measure(),
        }
    }

    /// Measures deliveries on each wire. `wanted` is the rate to reach in deliveries a second, or
    /// 0.
    async fn deliveries(
        &mut self,
        name: &str,
        subscribers: usize,
        pace: Pace,
        publishers: usize,
        wanted: f64,
    ) -> Result<()> {
        let user = self.seed.user()?.clone();
        let rooms = self.seed.rooms.get(2..3).ok_or("no rooms")?.to_vec();
        for &wire in self.contender.wires() {
            let addr = self.server.addr;
            let subscribers = Subscribers::connect(addr, wire, &user, &rooms, subscribers).await?;
            let plan = self.plan(pace, publishers);
            let outcome = subscribers.measure(&plan, &user, self.server.process).await?;
            self.note(name, wire, &outcome);
            if wanted > 0.0 {
                let reached = outcome.deliveries / wanted * 100.0;
                self.bench.results.set_on(name, "reached", wire, self.contender, reached);
            }
        }
        Ok(())
    }

    fn note(&mut self, name: &str, wire: Wire, outcome: &Outcome) {
        let &Outcome { deliveries, messages, cpu_per_delivery: cpu, p50, p99, load, .. } = outcome;
        let mut text = format!(
            "{:<9} {cpu:.2} µs (load {load:.2} µs), {deliveries:.0}/s, {messages:.0} messages/s, \
             p50 {p50:.1} ms, p99 {p99:.1} ms",
            wire.name()
        );
        if outcome.faults() > 0 {
            text.push_str(&format!("; {}", outcome.faults_in_words()));
        }
        self.bench.say(&format!("{:<6}{name:<32}{text}", self.contender.name()));
        let results: &mut Results = &mut self.bench.results;
        for (what, value) in [
            ("cpu", cpu),
            ("deliveries", deliveries),
            ("p50", p50),
            ("p99", p99),
            ("faults", outcome.faults() as f64),
        ] {
            results.set_on(name, what, wire, self.contender, value);
        }
    }

    async fn sockets(&mut self) -> Result<()> {
        let user = self.seed.user()?.clone();
        let number = self.bench.options.pick(10_000, 2_000);
        for &wire in self.contender.wires() {
            // A new process, so that the other wire has no effect.
            let server = self.bench.start(self.contender, Some(&user.token)).await?;
            // The first sockets also allocate shared memory.
            let few = Subscribers::connect(server.addr, wire, &user, &self.seed.rooms, 50).await?;
            let before = server.process.settled_memory().await?;
            let many =
                Subscribers::connect(server.addr, wire, &user, &self.seed.rooms, number).await?;
            let after = server.process.settled_memory().await?;
            drop((few, many));
            server.stop().await?;
            let kib = (after - before) / 1024.0 / number as f64;
            let text = format!("{:<9} {kib:.1} KiB each, {number} of them", wire.name());
            self.bench.say(&format!("{:<6}{:<32}{text}", self.contender.name(), "sockets"));
            self.bench.results.set_on("sockets", "kib", wire, self.contender, kib);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// In a database of its own: a server that starts after other rows reads their messages for
    /// clients that come back, and would look large before the first of these sockets.
    async fn memory(&mut self) -> Result<()> {
        let uri = self.bench.uri_of(self.contender, "_memory")?;
        let server = self.bench.launcher.start(self.contender, &uri, None).await?;
        let seed = Seed::create(server.addr).await?;
        server.stop().await?;
        let user = seed.user()?.clone();
        let options = &self.bench.options;
        let (sockets, rounds) = (options.pick(6_000, 1_000), options.pick(6, 2));
        let wait = Duration::from_secs(options.pick(60, 10));
        let server = self.bench.launcher.start(self.contender, &uri, Some(&user.token)).await?;
        let process = server.process;
        let fresh = process.settled_memory().await? / 1e6;
        let (mut with, mut first, mut last) = (0.0_f64, 0.0, 0.0);
        for round in 1..=rounds {
            let rooms = &seed.rooms;
            let connected =
                Subscribers::connect(server.addr, Wire::SocketIo, &user, rooms, sockets).await?;
            with = with.max(process.settled_memory().await? / 1e6);
            drop(connected);
            let is_between = round > 1 && round < rounds;
            tokio::time::sleep(if is_between { wait / 12 } else { wait }).await;
            last = process.memory()? / 1e6;
            if round == 1 {
                first = last;
            }
            let text = format!("{fresh:.1} MB fresh, {with:.1} with {sockets}, {last:.1} after");
            self.bench.say(&format!("{:<6}memory, round {round}: {text}", self.contender.name()));
        }
        server.stop().await?;
        let (ratio, growth) = (last / fresh, (last - first).max(0.0));
        let figures = [("fresh", fresh), ("with", with), ("first", first), ("last", last)];
        for (what, value) in figures.into_iter().chain([("ratio", ratio), ("growth", growth)]) {
            self.bench.results.set(&format!("memory {what}"), self.contender, value);
        }
        Ok(())
    }

    async fn reconnect(&mut self) -> Result<()> {
        let user = self.seed.user()?.clone();
        let rooms = self.seed.rooms.get(2..3).ok_or("no rooms")?.to_vec();
        let sockets = self.bench.options.pick(10_000, 1_000);
        for &wire in self.contender.wires() {
            let plan = reconnect::Plan {
                addr: self.server.addr,
                process: self.server.process,
                wire,
                user: &user,
                rooms: &rooms,
                sockets,
                is_recovered: self.contender == Contender::Ours,
            };
            let reconnect::Outcome { seconds, cpu } = plan.measure().await?;
            let text = format!("{:<9} {seconds:.2} s, {cpu:.0} µs for each socket", wire.name());
            self.bench.say(&format!("{:<6}{:<32}{text}", self.contender.name(), "reconnect"));
            for (what, value) in [("seconds", seconds), ("cpu", cpu)] {
                self.bench.results.set_on("reconnect", what, wire, self.contender, value);
            }
        }
        Ok(())
    }

    /// In a database of its own, since so many rooms would change other rows.
    async fn private_rooms(&mut self) -> Result<()> {
        let uri = self.bench.uri_of(self.contender, "_private")?;
        let server = self.bench.launcher.start(self.contender, &uri, None).await?;
        let user = Seed::create(server.addr).await?.user()?.clone();
        let number = self.bench.options.pick(1_000, 100);
        let rooms = seed::private_rooms(server.addr, &user, number).await?;
        for &wire in self.contender.wires() {
            let plan = reconnect::Plan {
                addr: server.addr,
                process: server.process,
                wire,
                user: &user,
                rooms: &rooms,
                sockets: 1,
                is_recovered: true,
            };
            let mut seconds = Vec::new();
            for _ in 0..self.bench.options.pick(9, 3) {
                seconds.push(plan.measure().await?.seconds);
            }
            seconds.sort_by(f64::total_cmp);
            let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
            let text = format!("{:<9} {:.1} ms", wire.name(), median * 1e3);
            self.bench.say(&format!("{:<6}{:<32}{text}", self.contender.name(), "private-rooms"));
            self.bench.results.set_on("private-rooms", "ms", wire, self.contender, median * 1e3);
        }
        server.stop().await
    }
}
