//! A client that does what a good front end does. It repeats a request with the same idempotency
//! key until it is answered, reconnects to any instance and goes on after the last position or
//! offset, and reads the history when events may have been missed.
//!
//! Some log their user out on all devices now and then, as from another device: their socket goes
//! on until the server ends it, and they log in again when it refuses the old token.
//!
//! A client also tries to join private rooms of which it is not a member, with its old position.

mod logins;
mod received;
mod requests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::account::Account;
use crate::random::Random;
use crate::transcript::{Segment, Transcript};
use crate::wire::{Change, Connection, Disconnected, Incoming, Kind, ResumeState};
use crate::wish::Wish;
use logins::Logins;

/// The last message of each room.
pub const END: &str = "the end";

/// How long a client waits for an ack before it closes the connection. The server answers within
/// 5 s.
const PATIENCE: Duration = Duration::from_secs(8);
/// How many wishes may be unanswered.
const IN_FLIGHT: usize = 6;
/// How many of the last messages of a room a client may mark as read.
const RECENT: usize = 10;
/// How many of its own messages a client may edit or delete: the newest.
const OWN: usize = 20;
/// The interval at which a client checks what to do next.
const TICK: Duration = Duration::from_millis(50);

/// What clients do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Send, edit, delete and receive.
    Talk,
    /// Get the remaining answers, and receive the last message of each room. The final members of
    /// the private rooms: room and user.
    Finish(Arc<HashSet<(String, String)>>),
}

/// What all clients share.
pub struct World {
    pub instances: Vec<SocketAddr>,
    /// How often each instance was started.
    pub generations: Vec<Arc<AtomicUsize>>,
    pub http: reqwest::Client,
    pub phase: watch::Receiver<Phase>,
    /// Passed when all clients have joined their rooms. Nothing is sent before.
    pub joined: Barrier,
    /// How many clients have all their answers.
    pub content: AtomicUsize,
    /// When a client first received the deletion of a message from a process.
    pub deletions: Mutex<HashMap<(Process, String), Instant>>,
    pub until: Instant,
}

/// An instance, and how often it had been started.
pub type Process = (usize, usize);

/// A client of either wire, in some of the rooms.
pub struct Client {
    kind: Kind,
    account: Account,
    logins: Logins,
    rooms: Vec<Room>,
    random: Random,
    memory: ResumeState,
    outbox: VecDeque<Outgoing>,
    next_wish: Instant,
    /// How many wishes it had so far.
    wishes: usize,
    /// Its newest messages, the newest last.
    own: VecDeque<Own>,
    /// The REST requests in progress.
    calls: JoinSet<(Call, Option<Value>)>,
    transcript: Transcript,
    /// The events since the last offset.
    uncovered: Vec<Uncovered>,
    /// The events after the last offset of the last connection. They must be delivered again.
    forgotten: HashSet<(Change, String, i64)>,
    /// The process that it is connected to, and since when.
    process: Option<(Process, Instant)>,
    /// Since when it is not in all of its rooms.
    away: Option<Instant>,
    first: bool,
    is_content: bool,
    /// It has marked its rooms for the last time.
    has_marked: bool,
    /// The last mark of its user in each room that came on this connection.
    own_marks: HashMap<String, String>,
}

struct Room {
    id: String,
    is_private: bool,
    /// The position or offset of the last event.
    since: Option<String>,
    /// Whether this connection is in the room.
    joined: bool,
    /// The server said that the user is not a member. The client tries again at this time.
    outside: Option<Instant>,
    /// The session was told that it is out of the room. An event that comes all the same is of a
    /// join whose ack did not come.
    was_left: bool,
    ended: bool,
    /// Events may have been missed, and the history was not read since.
    stale: bool,
    /// The last messages that were heard of, the newest last, and the one with the highest id.
    recent: VecDeque<String>,
    newest: Option<String>,
    /// While the history is read: the messages of which an event came since the request.
    heard: Option<HashSet<String>>,
}

impl Room {
    /// Whether everything of this room was received. `is_member` is the final state of its user.
    fn is_done(&self, is_member: bool) -> bool {
        if is_member { self.ended && !self.stale && self.heard.is_none() } else { !self.joined }
    }

    /// The user is not a member any more.
    fn leave(&mut self, try_again: Instant) {
        self.joined = false;
        self.outside = Some(try_again);
        // Events are missing unless the user is added again and the replay has all of them.
        self.stale = true;
    }
}

/// A message of this client.
struct Own {
    id: String,
    version: i64,
}

/// The last event of a segment. No offset includes it yet.
struct Uncovered {
    room: String,
    segment: usize,
}

/// A wish without a final answer.
struct Outgoing {
    number: usize,
    wish: Wish,
    begun: Instant,
    asked: Option<Asked>,
    /// The earliest time of the next attempt.
    not_before: Instant,
}

/// How a wish was requested.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// By the request of this id on this connection, at this time.
    Socket(u64, Instant),
    Rest,
}

/// A REST request.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// The wish of this number.
    Wish(usize),
    /// The history of the room with this index.
    History(usize),
    /// The end of all tokens. It had so many tokens then.
    LogOut(usize),
}

impl Client {
    /// A client that has not connected yet. `logs_out`: now and then, it logs its user out on all
    /// devices.
    pub fn new(
        kind: Kind,
        name: String,
        account: Account,
        public: &[String],
        private: &[String],
        logs_out: bool,
        mut random: Random,
    ) -> Self {
        let room = |id: &String, is_private| Room {
            id: id.clone(),
            is_private,
            since: None,
            joined: false,
            outside: None,
            was_left: false,
            ended: false,
            stale: false,
            recent: VecDeque::new(),
            newest: None,
            heard: None,
        };
        let public = public.iter().map(|id| room(id, false));
        let rooms = public.chain(private.iter().map(|id| room(id, true))).collect();
        let (user, tokens) = (account.user.clone(), vec![account.issued()]);
        Self {
            kind,
            account,
            logins: Logins::new(logs_out, &mut random),
            rooms,
            random,
            memory: ResumeState::default(),
            outbox: VecDeque::new(),
            next_wish: Instant::now(),
            wishes: 0,
            own: VecDeque::new(),
            calls: JoinSet::new(),
            transcript: Transcript { name, user, tokens, ..Transcript::default() },
            uncovered: Vec::new(),
            forgotten: HashSet::new(),
            process: None,
            away: None,
            first: true,
            is_content: false,
            has_marked: false,
            own_marks: HashMap::new(),
        }
    }

    /// Runs until every wish is answered and the last message of every room was received.
    pub async fn run(mut self, world: Arc<World>) -> Transcript {
        while !self.is_done(&world) && Instant::now() < world.until {
            let number = self.random.below(world.instances.len());
            let (addr, generation) = (world.instances[number], &world.generations[number]);
            let (began, started) = (Instant::now(), generation.load(Ordering::SeqCst));
            let opened =
                Connection::open(self.kind, addr, &self.account.token(), self.memory.clone()).await;
            // If the instance was started again meanwhile, it is unknown which process answered.
            let is_known = generation.load(Ordering::SeqCst) == started;
            self.process = is_known.then_some(((number, started), began));
            let why = match opened {
                Ok(mut connection) => {
                    let lost = self.converse(&mut connection, &world).await;
                    self.memory = connection.memory;
                    if lost.is_err() {
                        self.forget_what_is_uncovered();
                    }
                    let Err(Disconnected(why)) = lost else { continue };
                    log::debug!("{} lost its connection: {why}", self.transcript.name);
                    why
                }
                Err(Disconnected(why)) => {
                    log::debug!("{} could not connect: {why}", self.transcript.name);
                    sleep(self.random.millis(50..400)).await;
                    why
                }
            };
            self.away.get_or_insert_with(Instant::now);
            self.log_in_if_revoked(&why, &world).await;
        }
        if !self.is_done(&world) {
            let waiting = self.outbox.len();
            let is_open = |room: &&Room| !room.is_done(self.is_final_member(room, &world));
            let open: Vec<_> = self.rooms.iter().filter(is_open).map(|room| &room.id).collect();
            let problem = format!("gave up: {waiting} not acknowledged, rooms not done: {open:?}");
            self.transcript.broken.push(problem);
        }
        self.transcript
    }

    fn is_done(&self, world: &World) -> bool {
        *world.phase.borrow() != Phase::Talk
            && self.outbox.is_empty()
            && self.has_marked
            && !self.logins.is_logged_out
            && self.rooms.iter().all(|room| room.is_done(self.is_final_member(room, world)))
    }

    /// Whether the user is in the room in the end.
    fn is_final_member(&self, room: &Room, world: &World) -> bool {
        match &*world.phase.borrow() {
            Phase::Finish(members) if room.is_private => {
                members.contains(&(room.id.clone(), self.account.user.clone()))
            }
            _ => true,
        }
    }

    async fn converse(
        &mut self,
        server: &mut Connection,
        world: &World,
    ) -> Result<(), Disconnected> {
        self.transcript.returns += usize::from(server.recovered);
        log::debug!(
            "{} is connected, recovered: {}, to {:?}, with {:?}",
            self.transcript.name,
            server.recovered,
            self.process.map(|(process, _)| process),
            server.memory.offset,
        );
        self.own_marks.clear();
        let mut joins = HashMap::new();
        for outgoing in &mut self.outbox {
            outgoing.asked = outgoing.asked.filter(|asked| matches!(asked, Asked::Rest));
        }
        for index in 0..self.rooms.len() {
            self.rooms[index].joined &= server.recovered;
            if !self.rooms[index].joined {
                self.rooms[index].outside = None;
                self.join(server, index, &mut joins).await?;
            }
        }
        let opened = Instant::now();
        let mut due = opened + TICK;
        // Clients also end connections by themselves, without a close frame.
        let leaves = Instant::now() + self.random.millis(5_000..40_000);
        loop {
            tokio::select! {
                said = server.next() => match said? {
                    Incoming::Ack { id, data } => match joins.remove(&id) {
                        Some(index) => self.joined(server, index, &data, &mut joins).await?,
                        None => self.acked(id, &data),
                    },
                    Incoming::Event { told, position } => {
                        let may_be_in = server.recovered;
                        self.heard(told, position, may_be_in, world);
                        // Some connections end between an event and its offset.
                        if !self.uncovered.is_empty() && self.may_leave(leaves) {
                            return Err(Disconnected("left by itself without an offset".to_owned()));
                        }
                    }
                    Incoming::Offset(offset) => self.cover(&offset),
                    Incoming::Resync { room, position } => self.resync(&room, position),
                    Incoming::Membership { room, added } => self.told_of_membership(&room, added),
                    Incoming::Signal { event, data } => {
                        let problem = format!("{event} {data}, and nobody types or is watched");
                        self.transcript.broken.push(problem);
                    }
                    Incoming::Error(error) => {
                        self.transcript.broken.push(format!("an error without a request: {error}"));
                    }
                },
                Some(called) = self.calls.join_next() => {
                    let (call, answer) = called.expect("a call does not panic");
                    self.called(call, answer);
                }
                () = sleep_until(due) => {
                    due = Instant::now() + TICK;
                    self.try_to_join_again(server, &mut joins).await?;
                    if self.is_in_all_rooms() {
                        self.is_back(world).await;
                        self.ask_for_what_is_due(server, world).await?;
                    }
                    self.read_what_is_stale(world);
                    self.log_out_when_due(world);
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

    /// Whether to end this connection now. No client does so before all have joined their rooms.
    fn may_leave(&self, leaves: Instant) -> bool {
        Instant::now() > leaves && !self.first
    }

    /// Whether it is in every room that it may be in.
    fn is_in_all_rooms(&self) -> bool {
        self.rooms.iter().all(|room| room.joined || room.outside.is_some())
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

    /// Tries to join the private rooms that it was not let into.
    async fn try_to_join_again(
        &mut self,
        server: &mut Connection,
        joins: &mut HashMap<u64, usize>,
    ) -> Result<(), Disconnected> {
        let now = Instant::now();
        for index in 0..self.rooms.len() {
            if self.rooms[index].outside.is_some_and(|at| at <= now) {
                self.rooms[index].outside = Some(now + self.random.millis(300..1_500));
                self.join(server, index, joins).await?;
            }
        }
        Ok(())
    }

    async fn joined(
        &mut self,
        server: &mut Connection,
        index: usize,
        ack: &Value,
        joins: &mut HashMap<u64, usize>,
    ) -> Result<(), Disconnected> {
        let try_again = Instant::now() + self.random.millis(300..1_500);
        let room = &mut self.rooms[index];
        log::debug!("{} joins with {:?}: {ack}", self.transcript.name, room.since);
        if room.is_private && ack["code"] == "room_not_found" {
            room.leave(try_again);
            return Ok(());
        }
        if ack["error"].is_string() {
            if room.outside.is_some() {
                return Ok(());
            }
            sleep(self.random.millis(100..300)).await;
            return self.join(server, index, joins).await;
        }
        (room.joined, room.outside, room.was_left) = (true, None, false);
        let position = ack["position"].as_str();
        let segments = self.transcript.rooms.entry(room.id.clone()).or_default();
        let is_first = room.since.is_none();
        if is_first || ack["recovered"] != json!(true) {
            let from = position.and_then(|position| position.parse().ok());
            segments.push(Segment { from, ..Segment::default() });
            room.since = position.map(str::to_owned);
        }
        if !is_first && ack["recovered"] != json!(true) {
            self.transcript.resyncs += 1;
            room.stale = true;
        }
        Ok(())
    }

    /// It is in all rooms, for the first time or again.
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

    /// Counts this client when all its wishes are answered.
    fn note_content(&mut self, world: &World) {
        let is_over = *world.phase.borrow() != Phase::Talk;
        if !self.is_content && is_over && self.has_marked && self.outbox.is_empty() {
            self.is_content = true;
            world.content.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The JSON of the answer to a REST request, if there is one in time.
async fn ask(request: reqwest::RequestBuilder) -> Option<Value> {
    request.send().await.ok()?.json().await.ok()
}
