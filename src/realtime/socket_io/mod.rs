//! A Socket.IO server, protocol revision 5: namespaces, events and acks over Engine.IO.
//!
//! One connection carries several namespaces. An application is asked for each that a client
//! wants to enter ([`Application::connect`]) and serves it by one future; all futures of a
//! connection run in its one task, and each has a small queue of events, so that a client that
//! sends faster than it is served is read more slowly. Nothing here knows what events mean. The
//! protocol: <https://github.com/socketio/socket.io-protocol>.

pub mod client;
pub mod packet;

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::engine_io::{
    self, CloseReason, Connection, Handshake, Message, Refusal, packet::Packet as Carrier,
};
use packet::{Arguments, AttachmentLimits, Body, Decoder, NotAPacket, Packet};

/// How many events of one namespace may wait for its application.
const EVENTS: usize = 16;
/// How long applications may take to put their things in order after a connection has ended.
const FAREWELL: Duration = Duration::from_secs(10);

/// What can be set. [`Config::default`] is what the Node server uses.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How long a client may take to enter its first namespace.
    pub connect_timeout: Duration,
    /// How much binary may come with one packet.
    pub attachments: AttachmentLimits,
    /// How long the attachments of a packet may take.
    pub attachments_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(45),
            attachments: AttachmentLimits { count: 10, bytes: 1_000_000 },
            attachments_timeout: Duration::from_secs(20),
        }
    }
}

/// What runs on top.
pub trait Application: 'static {
    /// Whether a connection may begin.
    ///
    /// # Errors
    /// The client is told so.
    fn admit(&self, handshake: &Handshake) -> Result<(), Refusal>;

    /// Whether there is a namespace of this name.
    fn has(&self, namespace: &str) -> bool;

    /// Serves a client in a namespace, from its wish to enter it until it is gone.
    fn connect(&self, visit: Visit) -> impl Future<Output = ()> + 'static;
}

/// A client that wants to enter a namespace.
pub struct Visit {
    socket: Socket,
    /// What it sent along: a JSON object, or empty.
    pub auth: ByteString,
    /// The handshake of its connection.
    pub handshake: Rc<Handshake>,
}

/// A client in a namespace.
pub struct Socket {
    namespace: ByteString,
    sender: engine_io::Sender,
    events: mpsc::Receiver<Event>,
    state: Rc<State>,
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name, and the values behind it.
    pub arguments: Arguments,
    /// What placeholders stand for.
    pub attachments: Vec<Bytes>,
    /// With this id it asks for an ack.
    pub ack: Option<u64>,
}

/// What the connection and the application know of a namespace that a client is in.
#[derive(Debug)]
struct State {
    /// Whether the client was let in anywhere, which all namespaces of a connection share.
    entered: Rc<Cell<bool>>,
    left: Cell<bool>,
}

impl Visit {
    /// Lets the client in. `sid` is its public id; with `pid` it will come back with that and the
    /// last string of the last event that it got.
    pub fn accept(self, sid: &str, pid: Option<&str>) -> Socket {
        let json = match pid {
            Some(pid) => format!(r#"{{"sid":"{sid}","pid":"{pid}"}}"#),
            None => format!(r#"{{"sid":"{sid}"}}"#),
        };
        self.socket.state.entered.set(true);
        self.socket.send(Body::Connect(json.into()), Vec::new());
        self.socket
    }

    /// Refuses it; the connection stays open for other namespaces. A client that is refused does
    /// not try again by itself.
    pub fn refuse(self, message: &str, data: Option<&str>) {
        let message = serde_json::Value::from(message);
        let json = match data {
            Some(data) => format!(r#"{{"message":{message},"data":{data}}}"#),
            None => format!(r#"{{"message":{message}}}"#),
        };
        self.socket.send(Body::ConnectError(json.into()), Vec::new());
    }

    /// Ends the whole connection by closing its transport: the client tries again by itself.
    pub fn close(self) {
        self.socket.close(CloseReason::Server);
    }
}

impl Socket {
    /// The next event; `None` when the client has left or the connection has ended. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Why the connection has ended, once it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.sender.close_reason()
    }

    /// Whether the client left the namespace of its own accord.
    pub fn has_left(&self) -> bool {
        self.state.left.get()
    }

    /// Sends an event: its name as text, the other arguments as JSON. Does not wait; a client that
    /// is too slow is disconnected, which [`recv`](Self::recv) tells.
    pub fn emit(&self, name: &str, arguments: &[ByteString], attachments: Vec<Bytes>) {
        let name = ByteString::from(serde_json::Value::from(name).to_string());
        let values = std::iter::once(name).chain(arguments.iter().cloned()).collect();
        let arguments = Arguments { values, attachments: attachments.len() };
        self.send(Body::Event(arguments, None), attachments);
    }

    /// Answers an event that asked for it.
    pub fn ack(&self, id: u64, values: Vec<ByteString>, attachments: Vec<Bytes>) {
        let arguments = Arguments { values, attachments: attachments.len() };
        self.send(Body::Ack(arguments, id), attachments);
    }

    /// Sends an event of the main namespace that is encoded already, as an Engine.IO message with
    /// its `4`, so that many can share it.
    pub fn emit_encoded(&self, frame: ByteString) {
        // Whoever is too slow finds out by `recv`.
        let _ = self.sender.send([Carrier::Text(frame)]);
    }

    /// What sends, for [`engine_io::Sender::ready`].
    pub fn sender(&self) -> engine_io::Sender {
        self.sender.clone()
    }

    /// Puts the client out of the namespace: it does not come back by itself.
    pub fn disconnect(self) {
        self.send(Body::Disconnect, Vec::new());
    }

    /// Ends the whole connection by closing its transport: the client comes back by itself.
    pub fn close(&self, reason: CloseReason) {
        self.sender.close(reason);
    }

    fn send(&self, body: Body, attachments: Vec<Bytes>) {
        let packet = Packet { namespace: self.namespace.clone(), body };
        let header = Carrier::Text(format!("4{packet}").into());
        let attachments = attachments.into_iter().map(Carrier::Binary);
        let _ = self.sender.send(std::iter::once(header).chain(attachments));
    }
}

/// A Socket.IO application as an Engine.IO one.
pub struct SocketIo<A> {
    application: Rc<A>,
    config: Config,
}

impl<A: Application> SocketIo<A> {
    /// Speaks Socket.IO for `application`.
    pub fn new(application: A, config: Config) -> Self {
        Self { application: Rc::new(application), config }
    }
}

impl<A: Application> engine_io::Application for SocketIo<A> {
    fn admit(&self, handshake: &Handshake) -> Result<(), Refusal> {
        self.application.admit(handshake)
    }

    fn serve(&self, connection: Connection) -> impl Future<Output = ()> + 'static {
        serve(connection, Rc::clone(&self.application), self.config)
    }
}

/// The namespaces that a client is in, or about to be.
struct Namespaces<A> {
    application: Rc<A>,
    sender: engine_io::Sender,
    handshake: Rc<Handshake>,
    open: HashMap<ByteString, Open>,
    /// Whether the client was let into one, even if it has left since.
    entered: Rc<Cell<bool>>,
    futures: FuturesUnordered<LocalBoxFuture<'static, (ByteString, Rc<State>)>>,
}

struct Open {
    events: mpsc::Sender<Event>,
    state: Rc<State>,
}

/// An event for whose namespace there is no room yet.
type Blocked = Option<(mpsc::Sender<Event>, Event)>;

/// Serves a connection until it ends, or breaks the protocol.
async fn serve<A: Application>(mut connection: Connection, application: Rc<A>, config: Config) {
    let sender = connection.sender();
    let mut namespaces = Namespaces {
        application,
        sender: sender.clone(),
        handshake: Rc::new(connection.handshake.clone()),
        open: HashMap::new(),
        entered: Rc::default(),
        futures: FuturesUnordered::new(),
    };
    let is_late = |namespaces: &Namespaces<A>, decoder: &Decoder| {
        !namespaces.entered.get() || decoder.is_waiting()
    };
    let mut decoder = Decoder::new(config.attachments);
    let mut blocked: Blocked = None;
    let mut deadline = Instant::now() + config.connect_timeout;
    loop {
        let room = async {
            if let Some((events, _)) = &blocked {
                // The permit is given back; nobody else sends into this queue.
                let _ = events.reserve().await;
            }
        };
        tokio::select! {
            Some((namespace, state)) = namespaces.futures.next() => {
                namespaces.forget(&namespace, &state);
            }
            () = room, if blocked.is_some() => {
                if let Some((events, event)) = blocked.take() {
                    // A namespace that is gone has no use for it.
                    let _ = events.try_send(event);
                }
            }
            message = connection.recv(), if blocked.is_none() => {
                let Some(message) = message else { break };
                let was_waiting = decoder.is_waiting();
                let taken = namespaces.take(&mut decoder, message);
                let Ok(waits) = taken else {
                    sender.close(CloseReason::Parse);
                    break;
                };
                blocked = waits;
                if decoder.is_waiting() && !was_waiting {
                    deadline = Instant::now() + config.attachments_timeout;
                }
            }
            () = sleep_until(deadline), if is_late(&namespaces, &decoder) => {
                // It may have been let in since.
                if is_late(&namespaces, &decoder) {
                    sender.close(CloseReason::Parse);
                    break;
                }
            }
        }
    }
    // The queues end, and with them the applications.
    namespaces.open.clear();
    drop(blocked);
    let farewell = async { while namespaces.futures.next().await.is_some() {} };
    if timeout(FAREWELL, farewell).await.is_err() {
        log::warn!("An application did not end within {FAREWELL:?} after its connection");
    }
}

impl<A: Application> Namespaces<A> {
    /// Takes a message; an event that has to wait is handed back.
    fn take(&mut self, decoder: &mut Decoder, message: Message) -> Result<Blocked, NotAPacket> {
        let complete = match message {
            Message::Text(text) => decoder.text(&text)?,
            Message::Binary(bytes) => decoder.binary(bytes)?,
        };
        let Some((Packet { namespace, body }, attachments)) = complete else { return Ok(None) };
        match body {
            Body::Connect(auth) => self.connect(namespace, auth),
            Body::Disconnect => {
                let open = self.open.remove(&namespace).ok_or(NotAPacket)?;
                open.state.left.set(true);
            }
            Body::Event(arguments, ack) => {
                let open = self.open.get(&namespace).ok_or(NotAPacket)?;
                let event = Event { arguments, attachments, ack };
                if let Err(mpsc::error::TrySendError::Full(event)) = open.events.try_send(event) {
                    return Ok(Some((open.events.clone(), event)));
                }
            }
            // Nothing here asks for acks, and what a client cannot enter is its own business.
            Body::Ack(..) | Body::ConnectError(_) => {}
        }
        Ok(None)
    }

    fn connect(&mut self, namespace: ByteString, auth: ByteString) {
        if self.open.contains_key(&namespace) {
            // A client that calls `connect()` twice does this.
            return;
        }
        let known = self.application.has(&namespace);
        let (events, received) = mpsc::channel(EVENTS);
        let state = Rc::new(State { entered: Rc::clone(&self.entered), left: Cell::default() });
        let socket = Socket {
            namespace: namespace.clone(),
            sender: self.sender.clone(),
            events: received,
            state: Rc::clone(&state),
        };
        let visit = Visit { socket, auth, handshake: Rc::clone(&self.handshake) };
        if !known {
            return visit.refuse("Invalid namespace", None);
        }
        let serving = self.application.connect(visit);
        self.open.insert(namespace.clone(), Open { events, state: Rc::clone(&state) });
        self.futures.push(Box::pin(async move {
            serving.await;
            (namespace, state)
        }));
    }

    /// Closes a namespace that the application is done with, unless it was entered anew.
    fn forget(&mut self, namespace: &ByteString, state: &Rc<State>) {
        if self.open.get(namespace).is_some_and(|open| Rc::ptr_eq(&open.state, state)) {
            self.open.remove(namespace);
        }
    }
}
