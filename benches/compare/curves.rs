//! Curves of the cost: by the number of subscribers, rooms and instances, the rooms of a socket, the
//! length of a list of rooms and of a history, the depth of a page in it, and the rate of the feed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::contender::Contender;
use crate::fanout::{Outcome, Pace, Plan, Subscribers, Via};
use crate::http::{Answer, Connection, request};
use crate::process::{self, Process};
use crate::report::Curve;
use crate::rest::Load;
use crate::rows::Group;
use crate::seed::{Bulk, Seed};
use crate::servers::Server;
use crate::websocket::Source;
use crate::wire::Wire;
use crate::{Bench, Result};

/// Deliveries a second, for any number of subscribers.
const DELIVERIES: f64 = 20_000.0;
/// Messages a second, for any number of rooms.
const MESSAGES: f64 = 200.0;
/// The length of the longest history.
const MAX_HISTORY: usize = 1_000_000;
/// The longest history for the others, which build a whole history in memory several times.
const OTHERS_MAX_HISTORY: usize = 100_000;
/// The sockets of the curve with more rooms for each of them.
const JOINED: usize = 500;
/// The number of messages of a page.
const PAGE: usize = 50;

/// A running server.
struct Running<'a> {
    bench: &'a mut Bench,
    contender: Contender,
    group: Group,
    server: Server,
    seed: Seed,
}

/// Measures the curves of a contender, each with a new process.
pub async fn measure(bench: &mut Bench, contender: Contender) -> Result<()> {
    for group in Group::ALL {
        if !group.is_curve() || !group.concerns(contender) || !bench.options.wants(group) {
            continue;
        }
        let Some((server, seed)) = bench.begin(contender, group).await else { continue };
        let mut at = Running { bench, contender, group, server, seed };
        let measuring = async {
            match group {
                Group::CurveSubscribers => at.subscribers().await,
                Group::CurveRooms => at.rooms().await,
                Group::CurveFeed => at.feed().await,
                Group::CurveInstances => at.instances().await,
                Group::CurveAcross => at.across().await,
                Group::CurveList => at.list().await,
                Group::CurveJoined => at.joined().await,
                _ => at.histories().await,
            }
        };
        let measured = timeout(group.timeout(), measuring).await;
        let measured = measured.unwrap_or_else(|_| Err("it took too long".into()));
        at.server.stop().await?;
        if let Err(error) = measured {
            bench.fail(contender, group, &error.to_string());
        }
    }
    Ok(())
}

impl Running<'_> {
    fn point(&mut self, curve: &Curve, line: &str, x: usize, y: f64) {
        let name = self.contender.name();
        let line = if line.is_empty() { name.to_owned() } else { format!("{name}, {line}") };
        self.bench.say(&format!("{line:<20}{x:>8} {:<32}{y:.2}  {}", curve.x, curve.y));
        let curves = &mut self.bench.results.curves;
        let index = match curves.iter().position(|known| known.title == curve.title) {
            Some(index) => index,
            None => {
                curves.push(curve.clone());
                curves.len() - 1
            }
        };
        let Some(curve) = curves.get_mut(index) else { return };
        match curve.lines.iter_mut().find(|(name, _)| *name == line) {
            Some((_, points)) => points.push((x as f64, y)),
            None => curve.lines.push((line, vec![(x as f64, y)])),
        }
    }

    /// Starts a new process, so that the last point has no effect.
    async fn restart(&mut self) -> Result<()> {
        let fresh = self.bench.start(self.contender, None).await?;
        fresh.process.settle().await?;
        std::mem::replace(&mut self.server, fresh).stop().await
    }

    fn plan(&self, rate: f64) -> Plan {
        Plan {
            publishers: 1,
            via: Via::Socket,
            to: None,
            pace: Pace::Rate(rate),
            // Shorter, because there are many points.
            warm_up: self.bench.options.warm_up() / 2,
            measure: self.bench.options.measure() * 2 / 3,
        }
    }

    async fn subscribers(&mut self) -> Result<()> {
        let curve = Curve::new("More subscribers", "subscribers", "µs of CPU per delivery");
        let user = self.seed.user()?.clone();
        let room = self.seed.rooms.get(2).ok_or("no rooms")?.clone();
        // Each socket is an open file of both processes, which have some more.
        let files = process::raise_file_limit()? as usize;
        let numbers = [100, 500, 2_000, 6_000, 17_000, 50_000];
        let numbers = numbers.into_iter().filter(|number| number + 500 < files);
        for &wire in self.contender.wires() {
            let line = if self.contender.wires().len() > 1 { wire.name() } else { "" };
            for number in numbers.clone().take(self.bench.options.pick(6, 3)) {
                self.restart().await?;
                let rooms = std::slice::from_ref(&room);
                let subscribers =
                    Subscribers::connect(self.server.addr, wire, &user, rooms, number).await?;
                let plan = self.plan(DELIVERIES / number as f64);
                let outcome = subscribers.measure(&plan, &user, self.server.process).await?;
                self.check_faults(&outcome);
                self.point(&curve, line, number, outcome.cpu_per_delivery);
            }
        }
        Ok(())
    }

    async fn rooms(&mut self) -> Result<()> {
        let curve =
            Curve::new("More rooms, a subscriber in each", "rooms", "µs of CPU per message");
        let user = self.seed.user()?.clone();
        let bulk = Bulk::connect(&self.bench.uri(self.contender)?).await?;
        let wire = self.contender.wires().first().copied().unwrap_or(Wire::SocketIo);
        for number in [1, 10, 100, 1_000, 10_000].into_iter().take(self.bench.options.pick(5, 3)) {
            self.restart().await?;
            let rooms = bulk.add_rooms(number).await?;
            let subscribers =
                Subscribers::connect(self.server.addr, wire, &user, &rooms, number).await?;
            let outcome =
                subscribers.measure(&self.plan(MESSAGES), &user, self.server.process).await?;
            bulk.remove_rooms(&rooms).await?;
            self.check_faults(&outcome);
            self.point(&curve, "", number, outcome.cpu_per_message);
        }
        Ok(())
    }

    /// The CPU time of `GET /rooms` for longer lists, one request after the other.
    async fn list(&mut self) -> Result<()> {
        let curve = Curve::new("A longer list of rooms", "rooms", "µs of CPU per `GET /rooms`");
        let token = self.seed.user()?.token.clone();
        let request = request("GET", "/api/chat/rooms", Some(&token), None);
        let bulk = Bulk::connect(&self.bench.uri(self.contender)?).await?;
        for number in [10, 1_000, 100_000].into_iter().take(self.bench.options.pick(3, 2)) {
            // Those of the seed are in the list, too.
            let rooms = bulk.add_rooms(number - self.seed.rooms.len()).await?;
            self.restart().await?;
            let process = self.server.process;
            let mut connection = Connection::open(self.server.addr).await?;
            let begin = Instant::now();
            while begin.elapsed() < self.bench.options.warm_up() / 2 {
                connection.exchange(&request).await?;
            }
            let (begin, cpu, mut answers) = (Instant::now(), process.cpu()?, 0);
            while answers < 2 || begin.elapsed() < self.bench.options.measure() * 2 / 3 {
                let answer = connection.exchange(&request).await?;
                if answer.status != 200 || answer.length < number * 100 {
                    let Answer { status, length, .. } = answer;
                    return Err(format!("a list was answered {status} with {length} bytes").into());
                }
                answers += 1;
            }
            let cpu = (process.cpu()? - cpu) * 1e6 / f64::from(answers);
            bulk.remove_rooms(&rooms).await?;
            self.point(&curve, "", number, cpu);
        }
        Ok(())
    }

    /// The memory of a socket in more rooms. In a database of its own: a server that starts after
    /// other rows has their messages in memory for two minutes.
    async fn joined(&mut self) -> Result<()> {
        let curve =
            Curve::new("More rooms for each socket", "rooms that a socket has joined", "KiB each");
        let uri = self.bench.uri_of(self.contender, "_joined")?;
        let server = self.bench.launcher.start(self.contender, &uri, None).await?;
        let user = Seed::create(server.addr).await?.user()?.clone();
        server.stop().await?;
        let bulk = Bulk::connect(&uri).await?;
        for &wire in self.contender.wires() {
            let line = if self.contender.wires().len() > 1 { wire.name() } else { "" };
            for number in [1, 10, 100, 1_000].into_iter().take(self.bench.options.pick(4, 3)) {
                let server = self.bench.launcher.start(self.contender, &uri, None).await?;
                let (addr, process) = (server.addr, server.process);
                process.settle().await?;
                let rooms = bulk.add_rooms(number).await?;
                // Where each socket has many rooms, a few sockets are enough.
                let joined = JOINED / (number / 100).max(1);
                let connect = async |sockets: std::ops::Range<usize>| {
                    let mut connected = JoinSet::new();
                    for nth in sockets {
                        let source = Source::of(nth);
                        let (mut socket, _) = wire.connect(addr, source, &user.token).await?;
                        wire.join(&mut socket, &rooms).await?;
                        connected.spawn(wire.keep(socket));
                    }
                    Result::<_>::Ok(connected)
                };
                // The first socket makes the rooms.
                let first = connect(0..1).await?;
                let before = process.settled_memory().await?;
                let others = connect(1..joined + 1).await?;
                let after = process.settled_memory().await?;
                drop((first, others));
                bulk.remove_rooms(&rooms).await?;
                server.stop().await?;
                let kib = (after - before).max(0.0) / 1024.0 / joined as f64;
                self.point(&curve, line, number, kib);
            }
        }
        Ok(())
    }

    async fn histories(&mut self) -> Result<()> {
        let curve =
            Curve::new("A whole history at once", "messages", "MB of memory while it is sent");
        let bulk = Bulk::connect(&self.bench.uri(self.contender)?).await?;
        let user = self.seed.user()?.clone();
        let longest =
            if self.contender == Contender::Ours { MAX_HISTORY } else { OTHERS_MAX_HISTORY };
        let longest = self.bench.options.pick(longest, 10_000);
        let lengths = [1_000, 10_000, 100_000, 1_000_000];
        for length in lengths.into_iter().filter(|length| *length <= longest) {
            let room = bulk.add_rooms(1).await?.concat();
            let ids = bulk
                .add_messages(&room, &user.id, length, |n| format!("message {n} of a long history"))
                .await?;
            let path = format!("/api/chat/messages/{room}");
            let request = request("GET", &path, Some(&user.token), None);
            self.restart().await?;
            let before = self.server.process.settled_memory().await?;
            // Connect only now, or the connection would time out.
            let mut connection = Connection::open(self.server.addr).await?;
            let mut peak = before;
            let answer = connection.exchange(&request);
            tokio::pin!(answer);
            let answer = loop {
                tokio::select! {
                    answer = &mut answer => break answer?,
                    () = tokio::time::sleep(Duration::from_millis(5)) => {
                        peak = peak.max(self.server.process.memory()?);
                    }
                }
            };
            if answer.status != 200 || answer.length < length * 100 {
                let Answer { status, length, .. } = answer;
                return Err(format!("a history was answered {status} with {length} bytes").into());
            }
            self.point(&curve, "", length, (peak - before) / 1e6);
            if length == longest && self.contender == Contender::Ours {
                self.pages(&room, &ids).await?;
            }
        }
        Ok(())
    }

    /// Pages of a history, at increasing distances from its end.
    async fn pages(&mut self, room: &str, ids: &[bson::oid::ObjectId]) -> Result<()> {
        let curve =
            Curve::new("A page deep in a history", "messages deep", "µs of CPU per page of 50");
        let token = self.seed.user()?.token.clone();
        let mongod = self.mongod()?;
        for depth in [PAGE, 1_000, 10_000, 100_000, 1_000_000] {
            // The page that begins `depth` messages before the end of the history.
            let Some(index) = (ids.len() + PAGE).checked_sub(depth) else { break };
            let before = match ids.get(index) {
                Some(id) => format!("&before={id}"),
                None => String::new(),
            };
            let path = format!("/api/chat/messages/{room}?limit={PAGE}{before}");
            let mut load = Load {
                addr: self.server.addr,
                process: self.server.process,
                request: request("GET", &path, Some(&token), None).into(),
                status: 200,
                connections: 8,
                pace: None,
                warm_up: self.bench.options.warm_up() / 3,
                measure: self.bench.options.measure() / 2,
            };
            let cpu = load.run().await?.cpu;
            self.point(&curve, "server", depth, cpu);
            load.process = mongod;
            let cpu = load.run().await?.cpu;
            self.point(&curve, "MongoDB", depth, cpu);
        }
        Ok(())
    }

    async fn feed(&mut self) -> Result<()> {
        let curve = Curve::new(
            "The feed behind insertMany",
            "messages a second",
            "ms from insert to subscriber",
        );
        let cost = Curve::new(
            "What following the feed costs an instance",
            "messages a second",
            "µs of CPU per message, to 10 subscribers",
        );
        for rate in [300, 1_000, 3_000] {
            let outcome = self.inserts(rate, self.server.process).await?;
            self.check_faults(&outcome);
            self.point(&curve, "p50", rate, outcome.p50);
            self.point(&curve, "p99", rate, outcome.p99);
            self.point(&cost, "", rate, outcome.cpu_per_message);
        }
        Ok(())
    }

    /// Inserts messages into the database directly, ten batches a second. Measures the CPU time of
    /// `process`.
    async fn inserts(&self, rate: usize, process: Process) -> Result<Outcome> {
        let user = self.seed.user()?.clone();
        let room = self.seed.rooms.get(3).ok_or("no rooms")?.clone();
        let bulk = Arc::new(Bulk::connect(&self.bench.uri(self.contender)?).await?);
        let rooms = std::slice::from_ref(&room);
        let subscribers =
            Subscribers::connect(self.server.addr, Wire::Plain, &user, rooms, 10).await?;
        let plan = Plan { via: Via::Bulk(bulk), ..self.plan(rate as f64) };
        subscribers.measure(&plan, &user, process).await
    }

    async fn instances(&mut self) -> Result<()> {
        let curve = Curve::new(
            "What each instance costs MongoDB",
            "instances",
            "µs of MongoDB's CPU per message, at 1,000 a second",
        );
        let mongod = self.mongod()?;
        let mut others = Vec::new();
        for number in [1, 2, 4, 8] {
            while others.len() + 1 < number {
                others.push(self.bench.start(self.contender, None).await?);
            }
            let outcome = self.inserts(1_000, mongod).await?;
            self.point(&curve, "", number, outcome.cpu_per_message);
        }
        for server in others {
            server.stop().await?;
        }
        Ok(())
    }

    /// Messages that are sent to one instance, for subscribers of another one.
    async fn across(&mut self) -> Result<()> {
        let cost = Curve::new(
            "Messages between instances, 200 a second",
            "instances",
            "µs of MongoDB's CPU per message",
        );
        let latency = Curve::new(
            "From an instance to the subscribers of another one",
            "instances",
            "ms from message to subscriber, p99",
        );
        let (user, uri) = (self.seed.user()?.clone(), self.bench.uri(self.contender)?);
        let room = self.seed.rooms.get(4).ok_or("no rooms")?.clone();
        let wire = self.contender.wires().last().copied().ok_or("no wires")?;
        let mongod = self.mongod()?;
        let mut instances = Vec::new();
        for number in [2, 4, 8] {
            while instances.len() < number {
                let launcher = &self.bench.launcher;
                instances.push(launcher.start_instance(self.contender, &uri).await?);
            }
            let [first, .., last] = instances.as_slice() else { return Err("no instances".into()) };
            last.process.settle().await?;
            let rooms = std::slice::from_ref(&room);
            let subscribers = Subscribers::connect(last.addr, wire, &user, rooms, 10).await?;
            let plan = Plan { to: Some(first.addr), ..self.plan(MESSAGES) };
            let outcome = subscribers.measure(&plan, &user, mongod).await?;
            self.check_faults(&outcome);
            self.point(&cost, "", number, outcome.cpu_per_message);
            self.point(&latency, "", number, outcome.p99);
        }
        for server in instances {
            server.stop().await?;
        }
        Ok(())
    }

    fn mongod(&self) -> Result<Process> {
        let mongod = self.bench.mongod.as_ref().ok_or("there is no MongoDB of this run")?;
        Ok(Process(mongod.pid()))
    }

    /// Wrong deliveries are a failure here. For the others they are a row of the table.
    fn check_faults(&mut self, outcome: &Outcome) {
        if self.contender == Contender::Ours && outcome.faults() > 0 {
            self.bench.fail(self.contender, self.group, &outcome.faults_in_words());
        }
    }
}

impl Curve {
    fn new(title: &str, x: &'static str, y: &'static str) -> Self {
        Self { title: title.to_owned(), x, y, lines: Vec::new() }
    }
}
