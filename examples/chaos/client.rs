//! A client as a good front end is one: it asks with an idempotency key until it has an answer, comes
//! back with what it last had, at any instance, and reads the history where it may have missed
//! something.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::random::Random;
use crate::wire::{Change, Connection, Disconnected, Incoming, Kind, ResumeState, Told};
use crate::wish::{Answer, Wish};

/// What the last message of each room says.
pub const END: &str = "the end";

/// How long a client waits for an ack before it takes the connection for dead. The server itself
/// answers within 5 s.
const PATIENCE: Duration = Duration::from_secs(8);
/// How many wishes may wait for their answers.
const IN_FLIGHT: usize = 6;
/// How many of its own messages a client edits and deletes, the newest.
const OWN: usize = 20;
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// What a client is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Ask and receive.
    Talk,
    /// Ask for nothing new, and receive until the end.
    Finish,
}

/// What all clients have in common.
pub struct World {
    pub instances: Vec<SocketAddr>,
    /// How often each instance was started.
    pub generations: Vec<Arc<AtomicUsize>>,
    pub http: reqwest::Client,
    pub phase: watch::Receiver<Phase>,
    /// Passed when all clients are in all their rooms: nothing is sent before.
    pub joined: Barrier,
    /// How many clients have all the answers that they wanted.
    pub content: AtomicUsize,
    /// When somebody first heard of the deletion of a message from a process.
    pub deletions: Mutex<HashMap<(Process, String), Instant>>,
    pub until: Instant,
}

/// An instance and how often it had been started.
pub type Process = (usize, usize);

/// What a client has at the end.
#[derive(Debug, Default)]
pub struct Transcript {
    pub name: String,
    /// What it heard in each room, in segments: the server says that each is without a gap.
    pub rooms: HashMap<String, Vec<Vec<Told>>>,
    /// What each message of each room says: the changes as they came, and the history where some
    /// may have been missed.
    pub texts: HashMap<String, HashMap<String, Text>>,
    /// Content and id of messages whose sending was acknowledged.
    pub acked: HashMap<String, String>,
    /// Acknowledged edits and deletions.
    pub changed: Vec<Told>,
    /// Which messages were not edited or deleted, and why.
    pub refused: Vec<(String, String)>,
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
    /// Texts that a process said which knew that they were deleted.
    pub revived: Vec<String>,
    /// What the server must not say.
    pub broken: Vec<String>,
}

/// A message as a client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    pub version: i64,
    /// `None` when it was deleted.
    pub content: Option<String>,
}

/// A client of either wire, in some of the rooms.
pub struct Client {
    kind: Kind,
    user: String,
    token: String,
    rooms: Vec<Room>,
    random: Random,
    memory: ResumeState,
    outbox: VecDeque<Outgoing>,
    next_wish: Instant,
    /// How many wishes it had.
    wishes: usize,
    /// Its own messages that may be there, the newest last.
    own: VecDeque<Own>,
    /// What is asked by REST.
    calls: JoinSet<(Call, Option<Value>)>,
    transcript: Transcript,
    /// What it has heard since its last offset.
    uncovered: Vec<Uncovered>,
    /// What it had heard so before a cut, which must come again.
    forgotten: HashSet<(Change, String, i64)>,
    /// The process that it is connected to, and since when.
    process: Option<(Process, Instant)>,
    /// Since when it is not in all of its rooms.
    away: Option<Instant>,
    first: bool,
    is_content: bool,
}

struct Room {
    id: String,
    /// Where the client is in it.
    since: Option<String>,
    /// Whether this connection is in it.
    joined: bool,
    ended: bool,
    /// Something may have been missed, and the history is still to be read.
    stale: bool,
    /// Of which messages something was heard since the history was asked for; `None` when it is
    /// not.
    heard: Option<HashSet<String>>,
}

impl Room {
    fn is_done(&self) -> bool {
        self.ended && !self.stale && self.heard.is_none()
    }
}

/// A message of its own.
struct Own {
    id: String,
    version: i64,
}

/// What was heard last in a segment, and is covered by no offset yet.
struct Uncovered {
    room: String,
    segment: usize,
}

/// A wish that is not fulfilled yet.
struct Outgoing {
    number: usize,
    wish: Wish,
    begun: Instant,
    asked: Option<Asked>,
    /// Not before this, since the last answer was a refusal.
    not_before: Instant,
}

/// By which way, for the answer.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// The id of the request on this connection, and when it was sent.
    Socket(u64, Instant),
    Rest,
}

/// What is asked by REST.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// The wish of this number.
    Wish(usize),
    /// The history of the room of this number.
    History(usize),
}

impl Client {
    /// A client that has not connected yet; `token` is that of `user`.
    pub fn new(
        kind: Kind,
        name: String,
        (user, token): (String, String),
        rooms: &[String],
        random: Random,
    ) -> Self {
        let room = |id: &String| Room {
            id: id.clone(),
            since: None,
            joined: false,
            ended: false,
            stale: false,
            heard: None,
        };
        Self {
            kind,
            user,
            token,
            rooms: rooms.iter().map(room).collect(),
            random,
            memory: ResumeState::default(),
            outbox: VecDeque::new(),
            next_wish: Instant::now(),
            wishes: 0,
            own: VecDeque::new(),
            calls: JoinSet::new(),
            transcript: Transcript { name, ..Transcript::default() },
            uncovered: Vec::new(),
            forgotten: HashSet::new(),
            process: None,
            away: None,
            first: true,
            is_content: false,
        }
    }

    /// Talks until everything it wanted is answered and every room has ended.
    pub async fn run(mut self, world: Arc<World>) -> Transcript {
        while !self.is_done(&world) && Instant::now() < world.until {
            let number = self.random.below(world.instances.len());
            let (addr, generation) = (world.instances[number], &world.generations[number]);
            let (began, started) = (Instant::now(), generation.load(Ordering::SeqCst));
            let opened = Connection::open(self.kind, addr, &self.token, self.memory.clone()).await;
            // Otherwise it is not known which process has answered.
            let is_known = generation.load(Ordering::SeqCst) == started;
            self.process = is_known.then_some(((number, started), began));
            match opened {
                Ok(mut connection) => {
                    let lost = self.converse(&mut connection, &world).await;
                    self.memory = connection.memory;
                    if lost.is_err() {
                        self.forget_what_is_uncovered();
                    }
                    if let Err(Disconnected(why)) = lost {
                        log::debug!("{} lost its connection: {why}", self.transcript.name);
                        self.away.get_or_insert_with(Instant::now);
                    }
                }
                Err(Disconnected(why)) => {
                    log::debug!("{} did not get in: {why}", self.transcript.name);
                    self.away.get_or_insert_with(Instant::now);
                    sleep(self.random.millis(50..400)).await;
                }
            }
        }
        if !self.is_done(&world) {
            let waiting = self.outbox.len();
            let rooms = self.rooms.iter().filter(|room| !room.is_done()).count();
            let problem = format!("gave up: {waiting} not acknowledged, {rooms} rooms not ended");
            self.transcript.broken.push(problem);
        }
        self.transcript
    }

    fn is_done(&self, world: &World) -> bool {
        *world.phase.borrow() == Phase::Finish
            && self.outbox.is_empty()
            && self.rooms.iter().all(Room::is_done)
    }

    async fn converse(
        &mut self,
        server: &mut Connection,
        world: &World,
    ) -> Result<(), Disconnected> {
        self.transcript.returns += usize::from(server.recovered);
        let mut joins = HashMap::new();
        for outgoing in &mut self.outbox {
            outgoing.asked = outgoing.asked.filter(|asked| matches!(asked, Asked::Rest));
        }
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
                    Incoming::Ack { id, data } => match joins.remove(&id) {
                        Some(index) => self.joined(server, index, &data, &mut joins).await?,
                        None => self.acked(id, &data),
                    },
                    Incoming::Message { told, position } => {
                        let may_be_in = server.recovered;
                        self.heard(told, position, may_be_in, world);
                        // Also exactly between a message and its offset.
                        if !self.uncovered.is_empty() && self.may_leave(leaves) {
                            return Err(Disconnected("left by itself without an offset".to_owned()));
                        }
                    }
                    Incoming::Offset(offset) => self.cover(&offset),
                    Incoming::Resync { room, position } => self.resync(&room, position),
                    Incoming::Error(error) => {
                        self.transcript.broken.push(format!("an error unasked for: {error}"));
                    }
                },
                Some(called) = self.calls.join_next() => {
                    let (call, answer) = called.expect("a call does not panic");
                    self.called(call, answer);
                }
                () = sleep_until(due) => {
                    due = Instant::now() + TICK;
                    if self.is_in_all_rooms() {
                        self.is_back(world).await;
                        self.ask_for_what_is_due(server, world).await?;
                    }
                    self.read_what_is_stale(world);
                    self.note_content(world);
                    if self.is_done(world) {
                        return Ok(());
                    }
                    let on_socket = |outgoing: &Outgoing| match outgoing.asked {
                        Some(Asked::Socket(_, at)) => Some(at),
                        _ => None,
                    };
                    let oldest = self.outbox.iter().filter_map(on_socket).min();
                    if oldest.is_some_and(|at| at.elapsed() > PATIENCE) {
                        return Err(Disconnected("no ack in time".to_owned()));
                    }
                    if !self.is_in_all_rooms() && opened.elapsed() > PATIENCE {
                        return Err(Disconnected("not joined in time".to_owned()));
                    }
                    if self.may_leave(leaves) {
                        return Err(Disconnected("left by itself".to_owned()));
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
    ) -> Result<(), Disconnected> {
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
    ) -> Result<(), Disconnected> {
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
            room.stale = true;
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

    async fn ask_for_what_is_due(
        &mut self,
        server: &mut Connection,
        world: &World,
    ) -> Result<(), Disconnected> {
        let now = Instant::now();
        let talks = *world.phase.borrow() == Phase::Talk;
        if talks && now >= self.next_wish && self.outbox.len() < IN_FLIGHT {
            self.next_wish = now + self.random.millis(60..240);
            self.wishes += 1;
            let (number, wish) = (self.wishes, self.wish());
            self.outbox.push_back(Outgoing {
                number,
                wish,
                begun: now,
                asked: None,
                not_before: now,
            });
        }
        for outgoing in &mut self.outbox {
            if outgoing.asked.is_some() || now < outgoing.not_before {
                continue;
            }
            outgoing.asked = Some(if self.random.once_in(3) {
                let addr = *self.random.of(&world.instances);
                let request = outgoing.wish.request(&world.http, addr, &self.token, &self.user);
                let call = Call::Wish(outgoing.number);
                self.calls.spawn(async move { (call, ask(request).await) });
                Asked::Rest
            } else {
                let (event, data) = outgoing.wish.event();
                Asked::Socket(server.request(event, &data).await?, now)
            });
        }
        Ok(())
    }

    /// What it wants next.
    fn wish(&mut self) -> Wish {
        let (name, number) = (self.transcript.name.clone(), self.wishes);
        let roll = self.random.below(20);
        if roll < 10 || self.own.is_empty() {
            self.transcript.sent += 1;
            let room = self.random.below(self.rooms.len());
            return Wish::Send {
                room: self.rooms[room].id.clone(),
                content: format!("{name} {number}"),
            };
        }
        // The last ones more often, so that changes of one message meet.
        let few = if self.random.once_in(2) { self.own.len() } else { self.own.len().min(2) };
        let Own { id, version } = &self.own[self.own.len() - 1 - self.random.below(few)];
        let message = id.clone();
        if roll < 17 {
            let version = self.random.once_in(4).then_some(*version);
            Wish::Edit { message, content: format!("{name} edit {number}"), version }
        } else {
            Wish::Delete { message }
        }
    }

    fn acked(&mut self, id: u64, data: &Value) {
        let named = |outgoing: &Outgoing| matches!(outgoing.asked, Some(Asked::Socket(asked, _)) if asked == id);
        match self.outbox.iter().position(named) {
            Some(at) => self.answered(at, data),
            None => self.transcript.broken.push(format!("an ack of nothing: {id} {data}")),
        }
    }

    /// What REST has answered, if it has.
    fn called(&mut self, call: Call, answer: Option<Value>) {
        match call {
            Call::Wish(number) => {
                let at = self.outbox.iter().position(|outgoing| outgoing.number == number);
                self.answered(at.expect("one asks once"), &answer.unwrap_or_default());
            }
            Call::History(index) => self.read(index, answer.as_ref().and_then(Value::as_array)),
        }
    }

    fn answered(&mut self, at: usize, data: &Value) {
        let now = Instant::now();
        let answer = Answer::read(data);
        if let Answer::Again = answer {
            self.outbox[at].asked = None;
            self.outbox[at].not_before = now + self.random.millis(100..400);
            return;
        }
        let Some(Outgoing { wish, begun, .. }) = self.outbox.remove(at) else { return };
        let message = match answer {
            Answer::Done(message) => message,
            Answer::Never(code) => {
                match wish {
                    Wish::Edit { message, .. } | Wish::Delete { message } => {
                        self.transcript.refused.push((message, code));
                    }
                    Wish::Send { content, .. } => {
                        self.transcript.broken.push(format!("{content:?} was refused: {code}"));
                    }
                }
                return;
            }
            Answer::Again => return,
        };
        if !wish.is_done_by(&message) {
            self.transcript.broken.push(format!("the answer to {wish:?} is {data}"));
        }
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let (id, room) = (text("_id"), text("room"));
        let version = message["__v"].as_i64().unwrap_or(0);
        match wish {
            Wish::Send { content, .. } => {
                self.transcript.acked.insert(content, id.clone());
                self.transcript.acks.push((begun, now));
                self.own.push_back(Own { id, version });
                self.own.drain(..self.own.len().saturating_sub(OWN));
            }
            Wish::Edit { content, .. } => {
                let own = self.own.iter_mut().find(|own| own.id == id);
                own.into_iter().for_each(|own| own.version = own.version.max(version));
                let change = Change::Edited;
                self.transcript.changed.push(Told { change, room, id, content, version });
            }
            Wish::Delete { .. } => {
                self.own.retain(|own| own.id != id);
                let (change, content) = (Change::Deleted, String::new());
                self.transcript.changed.push(Told { change, room, id, content, version: 0 });
            }
        }
    }

    /// Asks for the history of rooms of which something may have been missed.
    fn read_what_is_stale(&mut self, world: &World) {
        for (index, room) in self.rooms.iter_mut().enumerate() {
            if room.stale && room.heard.is_none() {
                (room.stale, room.heard) = (false, Some(HashSet::new()));
                let addr = self.random.of(&world.instances);
                let url = format!("http://{addr}/api/chat/messages/{}?deleted=true", room.id);
                let request = world.http.get(url).bearer_auth(&self.token);
                self.calls.spawn(async move { (Call::History(index), ask(request).await) });
            }
        }
    }

    /// Takes a history over, but for messages of which something newer was heard meanwhile.
    fn read(&mut self, index: usize, history: Option<&Vec<Value>>) {
        let room = &mut self.rooms[index];
        let heard = room.heard.take().unwrap_or_default();
        let Some(history) = history else {
            room.stale = true;
            return;
        };
        let texts = self.transcript.texts.entry(room.id.clone()).or_default();
        for message in history {
            let id = message["_id"].as_str().unwrap_or_default();
            let is_deleted = message["deletedAt"].is_string();
            let content = message["content"].as_str().unwrap_or_default();
            let text = Text {
                version: message["__v"].as_i64().unwrap_or(0),
                content: (!is_deleted).then(|| content.to_owned()),
            };
            let is_newer = |known: &Text| {
                !is_deleted && (known.content.is_none() || known.version > text.version)
            };
            if !(heard.contains(id) && texts.get(id).is_some_and(is_newer)) {
                texts.insert(id.to_owned(), text);
            }
            room.ended |= content == END;
        }
    }

    /// Says when it has all the answers that it wanted.
    fn note_content(&mut self, world: &World) {
        if !self.is_content && *world.phase.borrow() == Phase::Finish && self.outbox.is_empty() {
            self.is_content = true;
            world.content.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// `may_be_in`: the last connection may have joined the room without the client's knowledge.
    fn heard(&mut self, told: Told, position: Option<String>, may_be_in: bool, world: &World) {
        if position.is_some() != (self.kind != Kind::SocketIo) {
            let problem = format!("a message of {:?} with {position:?}", self.kind);
            self.transcript.broken.push(problem);
        }
        self.look_for_deleted_text(&told, world);
        let Some(known) = self.rooms.iter_mut().find(|known| known.id == told.room) else {
            return self.transcript.broken.push(format!("a message of a strange room: {told:?}"));
        };
        if !known.joined && !may_be_in {
            let problem = format!("a message before the ack of the join: {told:?}");
            self.transcript.broken.push(problem);
        }
        known.ended |= told.content == END;
        if let Some(heard) = &mut known.heard {
            heard.insert(told.id.clone());
        }
        let own = self.own.iter_mut().find(|own| own.id == told.id);
        own.into_iter().for_each(|own| own.version = own.version.max(told.version));
        let content = (told.change != Change::Deleted).then(|| told.content.clone());
        let text = Text { version: told.version, content };
        self.transcript.texts.entry(told.room.clone()).or_default().insert(told.id.clone(), text);
        let key = (told.change, told.id.clone(), told.version);
        self.transcript.repeated += usize::from(self.forgotten.remove(&key));
        let room = told.room.clone();
        let segments = self.transcript.rooms.entry(room.clone()).or_default();
        match segments.last_mut() {
            Some(segment) => segment.push(told),
            None => segments.push(vec![told]),
        }
        match position {
            Some(position) => known.since = Some(position),
            None => self.uncovered.push(Uncovered { room, segment: segments.len() - 1 }),
        }
    }

    /// A process from which somebody has heard of a deletion must not say the text to whoever has
    /// come since.
    fn look_for_deleted_text(&mut self, told: &Told, world: &World) {
        let Some((process, since)) = self.process else { return };
        let mut deletions = world.deletions.lock().unwrap();
        let deletion = deletions.entry((process, told.id.clone()));
        if told.change == Change::Deleted {
            deletion.or_insert_with(Instant::now);
        } else if let Entry::Occupied(known) = deletion
            && *known.get() < since
        {
            let problem = format!("{} heard {told:?} behind its deletion", self.transcript.name);
            self.transcript.revived.push(problem);
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
            let told = segments.and_then(|segments| segments.get_mut(segment)?.pop());
            self.forgotten.extend(told.map(|told| (told.change, told.id, told.version)));
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
        if let Some(known) = self.rooms.iter_mut().find(|known| known.id == room) {
            known.stale = true;
            known.since = position.or(known.since.take());
        }
    }
}

/// The JSON of an answer by REST, if there is one in time.
async fn ask(request: reqwest::RequestBuilder) -> Option<Value> {
    request.send().await.ok()?.json().await.ok()
}
