//! A client as a good front end is one: it sends with an idempotency key until it has the ack, and
//! comes back with what it last had, at any instance.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::random::Random;
use crate::wire::{Connection, Kind, Lost, Memory, Said};

/// What the last message of each room says.
pub const END: &str = "the end";

/// How long a client waits for an ack before it takes the connection for dead. The server itself
/// answers within 5 s.
const PATIENCE: Duration = Duration::from_secs(8);
/// How many sends may wait for their acks.
const IN_FLIGHT: usize = 4;
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// What a client is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Send and receive.
    Talk,
    /// Send nothing new, and receive until the end.
    Finish,
}

/// What all clients have in common.
pub struct World {
    pub instances: Vec<SocketAddr>,
    pub phase: watch::Receiver<Phase>,
    /// Passed when all clients are in all their rooms: nothing is sent before.
    pub joined: Barrier,
    pub until: Instant,
}

/// What a client has at the end.
#[derive(Debug, Default)]
pub struct Transcript {
    pub name: String,
    /// What it heard in each room, in segments: the server says that each is without a gap.
    pub rooms: HashMap<String, Vec<Vec<String>>>,
    /// Content and id of what was acknowledged.
    pub acked: HashMap<String, String>,
    /// How many messages it wanted to send.
    pub sent: usize,
    /// When the send of an acknowledged message began, and when it was acknowledged.
    pub acks: Vec<(Instant, Instant)>,
    /// How long it took to be back in all rooms, each time.
    pub recoveries: Vec<Duration>,
    /// How often a Socket.IO connection was recovered by its private id.
    pub returns: usize,
    /// How many messages came again that it had heard before a cut, without an offset behind them.
    pub repeated: usize,
    /// How often the server said that something may have been missed.
    pub resyncs: usize,
    /// What the server must not say.
    pub broken: Vec<String>,
}

/// A client of either wire, in some of the rooms.
pub struct Client {
    kind: Kind,
    token: String,
    rooms: Vec<Room>,
    random: Random,
    memory: Memory,
    outbox: VecDeque<Outgoing>,
    next_send: Instant,
    transcript: Transcript,
    /// What it has heard since its last offset.
    uncovered: Vec<Uncovered>,
    /// What it had heard so before a cut, which must come again.
    forgotten: HashSet<String>,
    /// Since when it is not in all of its rooms.
    away: Option<Instant>,
    first: bool,
}

struct Room {
    id: String,
    /// Where the client is in it.
    since: Option<String>,
    /// Whether this connection is in it.
    joined: bool,
    ended: bool,
}

/// A message that is the last of a segment, and that no offset covers yet.
struct Uncovered {
    room: String,
    segment: usize,
}

/// A message that is not acknowledged yet.
struct Outgoing {
    content: String,
    room: String,
    begun: Instant,
    /// The id of the request on this connection, and when it was sent.
    asked: Option<(u64, Instant)>,
    /// Not before this, since the last answer was a refusal.
    not_before: Instant,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(kind: Kind, name: String, token: String, rooms: &[String], random: Random) -> Self {
        let room = |id: &String| Room { id: id.clone(), since: None, joined: false, ended: false };
        Self {
            kind,
            token,
            rooms: rooms.iter().map(room).collect(),
            random,
            memory: Memory::default(),
            outbox: VecDeque::new(),
            next_send: Instant::now(),
            transcript: Transcript { name, ..Transcript::default() },
            uncovered: Vec::new(),
            forgotten: HashSet::new(),
            away: None,
            first: true,
        }
    }

    /// Talks until everything it wanted to send is acknowledged and every room has ended.
    pub async fn run(mut self, world: Arc<World>) -> Transcript {
        while !self.is_done(&world) && Instant::now() < world.until {
            let addr = *self.random.of(&world.instances);
            let opened = Connection::open(self.kind, addr, &self.token, self.memory.clone()).await;
            match opened {
                Ok(mut connection) => {
                    let lost = self.converse(&mut connection, &world).await;
                    self.memory = connection.memory;
                    if lost.is_err() {
                        self.forget_what_is_uncovered();
                    }
                    if let Err(Lost(why)) = lost {
                        log::debug!("{} lost its connection: {why}", self.transcript.name);
                        self.away.get_or_insert_with(Instant::now);
                    }
                }
                Err(Lost(why)) => {
                    log::debug!("{} did not get in: {why}", self.transcript.name);
                    self.away.get_or_insert_with(Instant::now);
                    sleep(self.random.millis(50..400)).await;
                }
            }
        }
        if !self.is_done(&world) {
            let waiting = self.outbox.len();
            let rooms = self.rooms.iter().filter(|room| !room.ended).count();
            let problem = format!("gave up: {waiting} not acknowledged, {rooms} rooms not ended");
            self.transcript.broken.push(problem);
        }
        self.transcript
    }

    fn is_done(&self, world: &World) -> bool {
        *world.phase.borrow() == Phase::Finish
            && self.outbox.is_empty()
            && self.rooms.iter().all(|room| room.ended)
    }

    async fn converse(&mut self, server: &mut Connection, world: &World) -> Result<(), Lost> {
        self.transcript.returns += usize::from(server.recovered);
        let mut joins = HashMap::new();
        self.outbox.iter_mut().for_each(|outgoing| outgoing.asked = None);
        for index in 0..self.rooms.len() {
            self.rooms[index].joined &= server.recovered;
            if !self.rooms[index].joined {
                self.join(server, index, &mut joins).await?;
            }
        }
        let opened = Instant::now();
        let mut due = opened + TICK;
        // Every now and then a client is off without a word, as trains enter tunnels.
        let leaves = Instant::now() + self.random.millis(5_000..40_000);
        loop {
            tokio::select! {
                said = server.next() => match said? {
                    Said::Ack { id, data } => match joins.remove(&id) {
                        Some(index) => self.joined(server, index, &data, &mut joins).await?,
                        None => self.acked(id, &data),
                    },
                    Said::Message { room, id, content, position } => {
                        let may_be_in = server.recovered;
                        self.heard(&room, id, &content, position, may_be_in);
                        // Also exactly between a message and its offset.
                        if !self.uncovered.is_empty() && self.may_leave(leaves) {
                            return Err(Lost("left by itself without an offset".to_owned()));
                        }
                    }
                    Said::Offset(offset) => self.cover(&offset),
                    Said::Resync { room, position } => self.resync(&room, position),
                    Said::Error(error) => {
                        self.transcript.broken.push(format!("an error unasked for: {error}"));
                    }
                },
                () = sleep_until(due) => {
                    due = Instant::now() + TICK;
                    if self.is_in_all_rooms() {
                        self.is_back(world).await;
                        self.send_what_is_due(server, world).await?;
                    }
                    if self.is_done(world) {
                        return Ok(());
                    }
                    let oldest = self.outbox.iter().filter_map(|outgoing| outgoing.asked).min();
                    if oldest.is_some_and(|(_, at)| at.elapsed() > PATIENCE) {
                        return Err(Lost("no ack in time".to_owned()));
                    }
                    if !self.is_in_all_rooms() && opened.elapsed() > PATIENCE {
                        return Err(Lost("not joined in time".to_owned()));
                    }
                    if self.may_leave(leaves) {
                        return Err(Lost("left by itself".to_owned()));
                    }
                }
            }
        }
    }

    /// Whether it is time to go. Nobody goes before all are in their rooms.
    fn may_leave(&self, leaves: Instant) -> bool {
        Instant::now() > leaves && !self.first
    }

    fn is_in_all_rooms(&self) -> bool {
        self.rooms.iter().all(|room| room.joined)
    }

    async fn join(
        &self,
        server: &mut Connection,
        index: usize,
        joins: &mut HashMap<u64, usize>,
    ) -> Result<(), Lost> {
        let room = &self.rooms[index];
        let data = match &room.since {
            Some(since) => json!({ "room": room.id, "since": since }),
            None => json!(room.id),
        };
        joins.insert(server.request("joinRoom", &data).await?, index);
        Ok(())
    }

    async fn joined(
        &mut self,
        server: &mut Connection,
        index: usize,
        ack: &Value,
        joins: &mut HashMap<u64, usize>,
    ) -> Result<(), Lost> {
        if ack["error"].is_string() {
            sleep(self.random.millis(100..300)).await;
            return self.join(server, index, joins).await;
        }
        let room = &mut self.rooms[index];
        room.joined = true;
        let segments = self.transcript.rooms.entry(room.id.clone()).or_default();
        if room.since.is_none() {
            segments.push(Vec::new());
            room.since = ack["position"].as_str().map(str::to_owned);
        } else if ack["recovered"] != json!(true) {
            self.transcript.resyncs += 1;
            segments.push(Vec::new());
            room.since = ack["position"].as_str().map(str::to_owned);
        }
        Ok(())
    }

    /// In all rooms, perhaps again.
    async fn is_back(&mut self, world: &World) {
        if let Some(away) = self.away.take()
            && !self.first
        {
            self.transcript.recoveries.push(away.elapsed());
        }
        if std::mem::take(&mut self.first) {
            world.joined.wait().await;
        }
    }

    async fn send_what_is_due(
        &mut self,
        server: &mut Connection,
        world: &World,
    ) -> Result<(), Lost> {
        let now = Instant::now();
        let talks = *world.phase.borrow() == Phase::Talk;
        if talks && now >= self.next_send && self.outbox.len() < IN_FLIGHT {
            self.next_send = now + self.random.millis(100..400);
            self.transcript.sent += 1;
            let content = format!("{} {}", self.transcript.name, self.transcript.sent);
            let room = self.random.below(self.rooms.len());
            let room = self.rooms[room].id.clone();
            let outgoing = Outgoing { content, room, begun: now, asked: None, not_before: now };
            self.outbox.push_back(outgoing);
        }
        for outgoing in &mut self.outbox {
            if outgoing.asked.is_none() && now >= outgoing.not_before {
                let Outgoing { room, content, .. } = &*outgoing;
                let data = json!({ "room": room, "content": content, "clientId": content });
                let id = server.request("sendMessage", &data).await?;
                outgoing.asked = Some((id, now));
            }
        }
        Ok(())
    }

    fn acked(&mut self, id: u64, data: &Value) {
        let named = |outgoing: &Outgoing| outgoing.asked.is_some_and(|(asked, _)| asked == id);
        let Some(at) = self.outbox.iter().position(named) else {
            return self.transcript.broken.push(format!("an ack of nothing: {id} {data}"));
        };
        let now = Instant::now();
        if data["error"].is_string() {
            self.outbox[at].asked = None;
            self.outbox[at].not_before = now + self.random.millis(100..400);
            return;
        }
        let Some(outgoing) = self.outbox.remove(at) else { return };
        let message = &data["message"];
        if message["content"] != json!(outgoing.content) {
            let problem = format!("the ack of {:?} says {data}", outgoing.content);
            self.transcript.broken.push(problem);
        }
        let id = message["_id"].as_str().unwrap_or_default().to_owned();
        self.transcript.acked.insert(outgoing.content, id);
        self.transcript.acks.push((outgoing.begun, now));
    }

    /// `may_be_in`: the last connection may have joined the room without the client's knowledge.
    fn heard(
        &mut self,
        room: &str,
        id: String,
        content: &str,
        position: Option<String>,
        may_be_in: bool,
    ) {
        if position.is_some() != (self.kind != Kind::SocketIo) {
            let problem = format!("a message of {:?} with {position:?}", self.kind);
            self.transcript.broken.push(problem);
        }
        let Some(known) = self.rooms.iter_mut().find(|known| known.id == room) else {
            return self.transcript.broken.push(format!("a message of a strange room: {room}"));
        };
        if !known.joined && !may_be_in {
            let problem = format!("a message before the ack of the join: {content}");
            self.transcript.broken.push(problem);
        }
        known.ended |= content == END;
        self.transcript.repeated += usize::from(self.forgotten.remove(&id));
        let segments = self.transcript.rooms.entry(room.to_owned()).or_default();
        match segments.last_mut() {
            Some(segment) => segment.push(id),
            None => segments.push(vec![id]),
        }
        match position {
            Some(position) => known.since = Some(position),
            None => {
                let (room, segment) = (room.to_owned(), segments.len() - 1);
                self.uncovered.push(Uncovered { room, segment });
            }
        }
    }

    /// An offset says that everything so far need not come again.
    fn cover(&mut self, offset: &str) {
        for room in &mut self.rooms {
            // The last connection may have joined it without the client's knowledge.
            let is_in = room.joined || self.uncovered.iter().any(|heard| heard.room == room.id);
            if is_in {
                room.since = Some(offset.to_owned());
            }
        }
        self.uncovered.clear();
    }

    /// After a cut, what was heard behind the last offset has to be heard again: it is as if it had
    /// not come. So a message is doubled if it comes again and was not forgotten.
    fn forget_what_is_uncovered(&mut self) {
        for Uncovered { room, segment } in self.uncovered.drain(..).rev() {
            let segments = self.transcript.rooms.get_mut(&room);
            let id = segments.and_then(|segments| segments.get_mut(segment)?.pop());
            self.forgotten.extend(id);
            // It may have been the end.
            let known = self.rooms.iter_mut().filter(|known| known.id == room);
            known.for_each(|known| known.ended = false);
        }
    }

    fn resync(&mut self, room: &str, position: Option<String>) {
        self.transcript.resyncs += 1;
        let segments = self.transcript.rooms.entry(room.to_owned()).or_default();
        // The one that a join began is as good.
        if segments.last().is_none_or(|segment| !segment.is_empty()) {
            segments.push(Vec::new());
        }
        if let Some(known) = self.rooms.iter_mut().find(|known| known.id == room)
            && position.is_some()
        {
            known.since = position;
        }
    }
}
