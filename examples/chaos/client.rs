//! A client that behaves like a good front end: it repeats each send with an idempotency key until
//! it gets the ack, and reconnects to any instance with its last position or offset.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::random::Random;
use crate::wire::{Connection, Disconnected, Incoming, Kind, ResumeState};

/// The content of the last message of each room.
pub const END: &str = "the end";

/// How long a client waits for an ack before it closes the connection. The server answers within 5
/// s.
const ACK_TIMEOUT: Duration = Duration::from_secs(8);
/// The maximum number of sends without an ack.
const MAX_IN_FLIGHT: usize = 4;
/// The interval of the timer.
const TICK: Duration = Duration::from_millis(50);

/// What the clients do at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Send and receive.
    Send,
    /// Send nothing new, and receive until the end.
    Finish,
}

/// The state that all clients share.
pub struct Shared {
    pub instances: Vec<SocketAddr>,
    pub phase: watch::Receiver<Phase>,
    /// Passed when all clients have joined their rooms. Nothing is sent before.
    pub joined: Barrier,
    pub until: Instant,
}

/// What a client received and measured.
#[derive(Debug, Default)]
pub struct Transcript {
    pub name: String,
    /// The ids of the messages of each room, in segments. According to the server, a segment has no
    /// gap.
    pub rooms: HashMap<String, Vec<Vec<String>>>,
    /// Content and id of the acknowledged messages.
    pub acked: HashMap<String, String>,
    /// The number of messages that it has sent or tried to send.
    pub sent: usize,
    /// The times of the first send and of the ack of each acknowledged message.
    pub acks: Vec<(Instant, Instant)>,
    /// The time from each disconnection until it was in all rooms again.
    pub recoveries: Vec<Duration>,
    /// How often a Socket.IO session was resumed.
    pub resumed: usize,
    /// How many messages came again because a cut came before their offset.
    pub repeated: usize,
    /// How often the server sent that messages may have been missed.
    pub resyncs: usize,
    /// Frames that the server must not send.
    pub problems: Vec<String>,
}

/// A client on one of the wires, in some of the rooms.
pub struct Client {
    kind: Kind,
    token: String,
    rooms: Vec<Room>,
    random: Random,
    resume_state: ResumeState,
    outbox: VecDeque<Outgoing>,
    next_send: Instant,
    transcript: Transcript,
    /// The messages since its last offset.
    without_offset: Vec<WithoutOffset>,
    /// The messages without an offset before a cut, which must come again.
    must_repeat: HashSet<String>,
    /// Since when it is not in all of its rooms, if it is not.
    away_since: Option<Instant>,
    first: bool,
}

struct Room {
    id: String,
    /// The last position or offset for this room.
    since: Option<String>,
    /// Whether this connection has joined the room.
    joined: bool,
    ended: bool,
}

/// The last message of a segment, if no offset covers it yet.
struct WithoutOffset {
    room: String,
    segment: usize,
}

/// A message without an ack.
struct Outgoing {
    content: String,
    room: String,
    begun: Instant,
    /// The id of the request on this connection, and when it was sent.
    sent_as: Option<(u64, Instant)>,
    /// The time of the next attempt after an error.
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
            resume_state: ResumeState::default(),
            outbox: VecDeque::new(),
            next_send: Instant::now(),
            transcript: Transcript { name, ..Transcript::default() },
            without_offset: Vec::new(),
            must_repeat: HashSet::new(),
            away_since: None,
            first: true,
        }
    }

    /// Runs until all of its messages are acknowledged and every room has ended.
    pub async fn run(mut self, shared: Arc<Shared>) -> Transcript {
        while !self.is_done(&shared) && Instant::now() < shared.until {
            let addr = *self.random.of(&shared.instances);
            let opened =
                Connection::open(self.kind, addr, &self.token, self.resume_state.clone()).await;
            match opened {
                Ok(mut connection) => {
                    let lost = self.run_connection(&mut connection, &shared).await;
                    self.resume_state = connection.resume_state;
                    if lost.is_err() {
                        self.discard_without_offset();
                    }
                    if let Err(Disconnected(why)) = lost {
                        log::debug!("{} lost its connection: {why}", self.transcript.name);
                        self.away_since.get_or_insert_with(Instant::now);
                    }
                }
                Err(Disconnected(why)) => {
                    log::debug!("{} could not connect: {why}", self.transcript.name);
                    self.away_since.get_or_insert_with(Instant::now);
                    sleep(self.random.millis(50..400)).await;
                }
            }
        }
        if !self.is_done(&shared) {
            let waiting = self.outbox.len();
            let rooms = self.rooms.iter().filter(|room| !room.ended).count();
            let problem =
                format!("timed out: {waiting} messages not acknowledged, {rooms} rooms not ended");
            self.transcript.problems.push(problem);
        }
        self.transcript
    }

    fn is_done(&self, shared: &Shared) -> bool {
        *shared.phase.borrow() == Phase::Finish
            && self.outbox.is_empty()
            && self.rooms.iter().all(|room| room.ended)
    }

    async fn run_connection(
        &mut self,
        server: &mut Connection,
        shared: &Shared,
    ) -> Result<(), Disconnected> {
        self.transcript.resumed += usize::from(server.recovered);
        let mut pending_joins = HashMap::new();
        self.outbox.iter_mut().for_each(|outgoing| outgoing.sent_as = None);
        for index in 0..self.rooms.len() {
            self.rooms[index].joined &= server.recovered;
            if !self.rooms[index].joined {
                self.join(server, index, &mut pending_joins).await?;
            }
        }
        let opened = Instant::now();
        let mut due = opened + TICK;
        // Now and then a client drops its connection without closing it, like a phone that loses
        // its network.
        let leave_at = Instant::now() + self.random.millis(5_000..40_000);
        loop {
            tokio::select! {
                incoming = server.next() => match incoming? {
                    Incoming::Ack { id, data } => match pending_joins.remove(&id) {
                        Some(index) => self.joined(server, index, &data, &mut pending_joins).await?,
                        None => self.acked(id, &data),
                    },
                    Incoming::Message { room, id, content, position } => {
                        let may_be_in = server.recovered;
                        self.received(&room, id, &content, position, may_be_in);
                        // This can happen exactly between a message and its offset.
                        if !self.without_offset.is_empty() && self.may_leave(leave_at) {
                            return Err(Disconnected("disconnected by itself without an offset".to_owned()));
                        }
                    }
                    Incoming::Offset(offset) => self.cover(&offset),
                    Incoming::Resync { room, position } => self.resync(&room, position),
                    Incoming::Error(error) => {
                        self.transcript.problems.push(format!("an error that is not an ack: {error}"));
                    }
                },
                () = sleep_until(due) => {
                    due = Instant::now() + TICK;
                    if self.is_in_all_rooms() {
                        self.note_joined(shared).await;
                        self.send_due(server, shared).await?;
                    }
                    if self.is_done(shared) {
                        return Ok(());
                    }
                    let oldest = self.outbox.iter().filter_map(|outgoing| outgoing.sent_as).min();
                    if oldest.is_some_and(|(_, at)| at.elapsed() > ACK_TIMEOUT) {
                        return Err(Disconnected("no ack in time".to_owned()));
                    }
                    if !self.is_in_all_rooms() && opened.elapsed() > ACK_TIMEOUT {
                        return Err(Disconnected("not joined in time".to_owned()));
                    }
                    if self.may_leave(leave_at) {
                        return Err(Disconnected("disconnected by itself".to_owned()));
                    }
                }
            }
        }
    }

    /// Whether it is time to disconnect. No client does so before all clients have joined their
    /// rooms.
    fn may_leave(&self, leave_at: Instant) -> bool {
        Instant::now() > leave_at && !self.first
    }

    fn is_in_all_rooms(&self) -> bool {
        self.rooms.iter().all(|room| room.joined)
    }

    async fn join(
        &self,
        server: &mut Connection,
        index: usize,
        pending_joins: &mut HashMap<u64, usize>,
    ) -> Result<(), Disconnected> {
        let room = &self.rooms[index];
        let data = match &room.since {
            Some(since) => json!({ "room": room.id, "since": since }),
            None => json!(room.id),
        };
        pending_joins.insert(server.request("joinRoom", &data).await?, index);
        Ok(())
    }

    async fn joined(
        &mut self,
        server: &mut Connection,
        index: usize,
        ack: &Value,
        pending_joins: &mut HashMap<u64, usize>,
    ) -> Result<(), Disconnected> {
        if ack["error"].is_string() {
            sleep(self.random.millis(100..300)).await;
            return self.join(server, index, pending_joins).await;
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

    /// Called when it is in all of its rooms.
    async fn note_joined(&mut self, shared: &Shared) {
        if let Some(away_since) = self.away_since.take()
            && !self.first
        {
            self.transcript.recoveries.push(away_since.elapsed());
        }
        if std::mem::take(&mut self.first) {
            shared.joined.wait().await;
        }
    }

    async fn send_due(
        &mut self,
        server: &mut Connection,
        shared: &Shared,
    ) -> Result<(), Disconnected> {
        let now = Instant::now();
        let sends = *shared.phase.borrow() == Phase::Send;
        if sends && now >= self.next_send && self.outbox.len() < MAX_IN_FLIGHT {
            self.next_send = now + self.random.millis(100..400);
            self.transcript.sent += 1;
            let content = format!("{} {}", self.transcript.name, self.transcript.sent);
            let room = self.random.below(self.rooms.len());
            let room = self.rooms[room].id.clone();
            let outgoing = Outgoing { content, room, begun: now, sent_as: None, not_before: now };
            self.outbox.push_back(outgoing);
        }
        for outgoing in &mut self.outbox {
            if outgoing.sent_as.is_none() && now >= outgoing.not_before {
                let Outgoing { room, content, .. } = &*outgoing;
                let data = json!({ "room": room, "content": content, "clientId": content });
                let id = server.request("sendMessage", &data).await?;
                outgoing.sent_as = Some((id, now));
            }
        }
        Ok(())
    }

    fn acked(&mut self, id: u64, data: &Value) {
        let named =
            |outgoing: &Outgoing| outgoing.sent_as.is_some_and(|(sent_as, _)| sent_as == id);
        let Some(at) = self.outbox.iter().position(named) else {
            return self.transcript.problems.push(format!("an ack without a request: {id} {data}"));
        };
        let now = Instant::now();
        if data["error"].is_string() {
            self.outbox[at].sent_as = None;
            self.outbox[at].not_before = now + self.random.millis(100..400);
            return;
        }
        let Some(outgoing) = self.outbox.remove(at) else { return };
        let message = &data["message"];
        if message["content"] != json!(outgoing.content) {
            let problem = format!("the ack of {:?} says {data}", outgoing.content);
            self.transcript.problems.push(problem);
        }
        let id = message["_id"].as_str().unwrap_or_default().to_owned();
        self.transcript.acked.insert(outgoing.content, id);
        self.transcript.acks.push((outgoing.begun, now));
    }

    /// `may_be_in`: the last connection may have joined the room, but its ack was lost.
    fn received(
        &mut self,
        room: &str,
        id: String,
        content: &str,
        position: Option<String>,
        may_be_in: bool,
    ) {
        if position.is_some() != (self.kind != Kind::SocketIo) {
            let problem = format!("a message of {:?} with {position:?}", self.kind);
            self.transcript.problems.push(problem);
        }
        let Some(known) = self.rooms.iter_mut().find(|known| known.id == room) else {
            return self
                .transcript
                .problems
                .push(format!("a message of a room that it did not join: {room}"));
        };
        if !known.joined && !may_be_in {
            let problem = format!("a message before the ack of the join: {content}");
            self.transcript.problems.push(problem);
        }
        known.ended |= content == END;
        self.transcript.repeated += usize::from(self.must_repeat.remove(&id));
        let segments = self.transcript.rooms.entry(room.to_owned()).or_default();
        match segments.last_mut() {
            Some(segment) => segment.push(id),
            None => segments.push(vec![id]),
        }
        match position {
            Some(position) => known.since = Some(position),
            None => {
                let (room, segment) = (room.to_owned(), segments.len() - 1);
                self.without_offset.push(WithoutOffset { room, segment });
            }
        }
    }

    /// An offset covers everything before it, which need not come again.
    fn cover(&mut self, offset: &str) {
        for room in &mut self.rooms {
            // The last connection may have joined the room, but its ack was lost.
            let is_in =
                room.joined || self.without_offset.iter().any(|received| received.room == room.id);
            if is_in {
                room.since = Some(offset.to_owned());
            }
        }
        self.without_offset.clear();
    }

    /// After a cut, the messages after the last offset must come again, so they are removed from
    /// the transcript. A message that comes again and was not removed is a duplicate.
    fn discard_without_offset(&mut self) {
        for WithoutOffset { room, segment } in self.without_offset.drain(..).rev() {
            let segments = self.transcript.rooms.get_mut(&room);
            let id = segments.and_then(|segments| segments.get_mut(segment)?.pop());
            self.must_repeat.extend(id);
            // The removed message may have been the last one.
            let known = self.rooms.iter_mut().filter(|known| known.id == room);
            known.for_each(|known| known.ended = false);
        }
    }

    fn resync(&mut self, room: &str, position: Option<String>) {
        self.transcript.resyncs += 1;
        let segments = self.transcript.rooms.entry(room.to_owned()).or_default();
        // An empty segment of a join is reused.
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
