//! A Socket.IO server, protocol revision 5: namespaces, events and acks over Engine.IO.
//!
//! One connection carries several namespaces. An application is asked for each that a client
//! wants to enter ([`Application::connect`]) and serves it by one future; all futures of a
//! connection run in its one task, and each has a small queue of events, so that a client that
//! sends faster than it is served is read more slowly. Nothing here knows what events mean. The
//! protocol: <https://github.com/socketio/socket.io-protocol>.

pub mod client;
pub mod packet;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::protocols::engine_io::{
    self, CloseReason, ConnectError, Connection, Handshake, Message, Rejection,
    packet::Packet as EnginePacket,
};
use packet::{Arguments, AttachmentLimits, Body, Decoder, InvalidPacket, Packet};

/// How many events of one namespace may wait for its application.
const EVENTS: usize = 16;

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
    fn admit(&self, handshake: &Handshake) -> Result<(), ConnectError>;

    /// Called for each client that the server itself rejects.
    fn on_rejection(&self, _: &Rejection<'_>) {}

    /// Whether there is a namespace of this name.
    fn has(&self, namespace: &str) -> bool;

    /// Serves a client in a namespace, from its wish to enter it until it is gone.
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = ()> + 'static;
}

/// A client's request to enter a namespace.
pub struct ConnectRequest {
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
    events: Rc<EventQueue>,
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

/// An event of the main namespace as an Engine.IO message with its `4`, so that many can share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoded {
    /// An event of which each is sent.
    Event(ByteString),
    /// An event that replaces those of its kind which are not sent yet, as far as the transport
    /// can leave them out.
    Latest(ByteString),
}

impl From<Encoded> for EnginePacket {
    fn from(event: Encoded) -> Self {
        match event {
            Encoded::Event(frame) => Self::Text(frame),
            Encoded::Latest(frame) => Self::Latest(frame),
        }
    }
}

/// What the connection and the application know of a namespace that a client is in.
#[derive(Debug)]
struct State {
    /// Whether the client was let in anywhere, which all namespaces of a connection share.
    admitted: Rc<Cell<bool>>,
    left: Cell<bool>,
}

impl ConnectRequest {
    /// Admits the client. `sid` is its public id. With `pid`, its private id, it can resume: it then
    /// sends `pid` and the last string of the last event that it got.
    pub fn accept(self, sid: &str, pid: Option<&str>) -> Socket {
        let json = match pid {
            Some(pid) => format!(r#"{{"sid":"{sid}","pid":"{pid}"}}"#),
            None => format!(r#"{{"sid":"{sid}"}}"#),
        };
        self.socket.state.admitted.set(true);
        self.socket.send(Body::Connect(json.into()), Vec::new());
        self.socket
    }

    /// Rejects it; the connection stays open for other namespaces. A client that is rejected does
    /// not try again by itself.
    pub fn reject(self, message: &str, data: Option<&str>) {
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
    /// The next event; `None` when the client has left or the connection has ended, and every
    /// event of before was given. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        poll_fn(|context| self.events.poll_take(context)).await
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

    /// Sends events of the main namespace that are encoded already, together.
    pub fn emit_encoded(&self, events: impl IntoIterator<Item = Encoded>) {
        // Whoever is too slow finds out by `recv`.
        let _ = self.sender.send(events.into_iter().map(EnginePacket::from));
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
        let header = EnginePacket::Text(format!("4{packet}").into());
        let attachments = attachments.into_iter().map(EnginePacket::Binary);
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
    fn admit(&self, handshake: &Handshake) -> Result<(), ConnectError> {
        self.application.admit(handshake)
    }

    fn on_rejection(&self, rejection: &Rejection<'_>) {
        self.application.on_rejection(rejection);
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
    /// Mostly one, as in `serving`.
    open: Vec<OpenNamespace>,
    /// Whether the client was let into one, even if it has left since.
    admitted: Rc<Cell<bool>>,
    /// The applications, until each is done.
    serving: Vec<(Rc<State>, LocalBoxFuture<'static, ()>)>,
    /// An event of a namespace that has no room for it yet. Until it has, nothing is read.
    blocked: Option<(ByteString, Event)>,
}

struct OpenNamespace {
    namespace: ByteString,
    events: Rc<EventQueue>,
    state: Rc<State>,
}

/// Serves a connection until it ends, or breaks the protocol.
async fn serve<A: Application>(mut connection: Connection, application: Rc<A>, config: Config) {
    let sender = connection.sender();
    let mut namespaces = Namespaces {
        application,
        sender: sender.clone(),
        handshake: Rc::clone(&connection.handshake),
        open: Vec::new(),
        admitted: Rc::default(),
        serving: Vec::new(),
        blocked: None,
    };
    let is_late = |namespaces: &Namespaces<A>, decoder: &Decoder| {
        !namespaces.admitted.get() || decoder.is_waiting()
    };
    let mut decoder = Decoder::new(config.attachments);
    let mut deadline = Instant::now() + config.connect_timeout;
    loop {
        let late = is_late(&namespaces, &decoder);
        let reads = namespaces.blocked.is_none();
        tokio::select! {
            biased;
            () = poll_fn(|context| namespaces.poll(context)) => {}
            message = connection.recv(), if reads => {
                let Some(message) = message else { break };
                let was_waiting = decoder.is_waiting();
                if namespaces.take(&mut decoder, message).is_err() {
                    sender.close(CloseReason::Parse);
                    break;
                }
                if decoder.is_waiting() && !was_waiting {
                    deadline = Instant::now() + config.attachments_timeout;
                }
            }
            // Made only when it is waited for.
            () = async { sleep_until(deadline).await }, if late => {
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
    namespaces.blocked = None;
    // Engine.IO limits how long they may take for what they were given before.
    poll_fn(|context| {
        let _ = namespaces.poll(context);
        if namespaces.serving.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl<A: Application> Namespaces<A> {
    /// Lets the applications go on; ready when one has made room for the event that waited.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self { open, serving, .. } = self;
        serving.retain_mut(|(state, future)| {
            let goes_on = future.as_mut().poll(context).is_pending();
            if !goes_on {
                // Unless it was entered anew.
                open.retain(|open| !Rc::ptr_eq(&open.state, state));
            }
            goes_on
        });
        let Some((namespace, event)) = self.blocked.take() else { return Poll::Pending };
        self.blocked = self.put(namespace, event);
        if self.blocked.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Puts an event into the queue of its namespace; gives it back when that is full. One that
    /// is gone has no use for it.
    fn put(&mut self, namespace: ByteString, event: Event) -> Option<(ByteString, Event)> {
        let open = self.find(&namespace)?;
        let event = open.events.put(event).err()?;
        Some((namespace, event))
    }

    fn find(&self, namespace: &str) -> Option<&OpenNamespace> {
        self.open.iter().find(|open| open.namespace == namespace)
    }

    /// Takes a message, which may block the reading.
    fn take(&mut self, decoder: &mut Decoder, message: Message) -> Result<(), InvalidPacket> {
        let complete = match message {
            Message::Text(text) => decoder.text(&text)?,
            Message::Binary(bytes) => decoder.binary(bytes)?,
        };
        let Some((Packet { namespace, body }, attachments)) = complete else { return Ok(()) };
        match body {
            Body::Connect(auth) => self.connect(namespace, auth),
            Body::Disconnect => {
                self.find(&namespace).ok_or(InvalidPacket)?.state.left.set(true);
                self.open.retain(|open| open.namespace != namespace);
            }
            Body::Event(arguments, ack) => {
                self.find(&namespace).ok_or(InvalidPacket)?;
                let event = Event { arguments, attachments, ack };
                self.blocked = self.put(namespace, event);
            }
            // Nothing here asks for acks, and what a client cannot enter is its own business.
            Body::Ack(..) | Body::ConnectError(_) => {}
        }
        Ok(())
    }

    fn connect(&mut self, namespace: ByteString, auth: ByteString) {
        if self.find(&namespace).is_some() {
            // A client that calls `connect()` twice does this.
            return;
        }
        let known = self.application.has(&namespace);
        let events = Rc::<EventQueue>::default();
        let state = Rc::new(State { admitted: Rc::clone(&self.admitted), left: Cell::default() });
        let socket = Socket {
            namespace: namespace.clone(),
            sender: self.sender.clone(),
            events: Rc::clone(&events),
            state: Rc::clone(&state),
        };
        let request = ConnectRequest { socket, auth, handshake: Rc::clone(&self.handshake) };
        if !known {
            return request.reject("Invalid namespace", None);
        }
        let serving = self.application.connect(request).boxed_local();
        self.open.reserve_exact(1);
        self.open.push(OpenNamespace { namespace, events, state: Rc::clone(&state) });
        self.serving.reserve_exact(1);
        self.serving.push((state, serving));
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.events.close();
    }
}

impl Drop for OpenNamespace {
    fn drop(&mut self) {
        self.events.close();
    }
}

/// The events that wait for an application, whose future runs in the task that puts them in.
#[derive(Default)]
struct EventQueue(RefCell<QueueState>);

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Event>,
    closed: bool,
    reader: Option<Waker>,
}

impl EventQueue {
    /// Gives the event back when there is no room for it. After the application has dropped its
    /// end, nobody wants it.
    fn put(&self, event: Event) -> Result<(), Event> {
        let mut queue = self.0.borrow_mut();
        if queue.closed {
            return Ok(());
        }
        if queue.waiting.len() >= EVENTS {
            return Err(event);
        }
        queue.waiting.push_back(event);
        queue.reader.take().into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Nothing more will be put in, or taken out.
    fn close(&self) {
        let mut queue = self.0.borrow_mut();
        queue.closed = true;
        queue.reader.take().into_iter().for_each(Waker::wake);
    }

    /// The oldest event; `None` when it was the last.
    fn poll_take(&self, context: &Context<'_>) -> Poll<Option<Event>> {
        let mut queue = self.0.borrow_mut();
        if let Some(event) = queue.waiting.pop_front() {
            if queue.waiting.is_empty() {
                // Most clients send little.
                queue.waiting = VecDeque::new();
            }
            return Poll::Ready(Some(event));
        }
        if queue.closed {
            return Poll::Ready(None);
        }
        match &mut queue.reader {
            Some(reader) => reader.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}
