//! A Socket.IO server, protocol revision 5: namespaces, events and acks over Engine.IO.
//!
//! One connection has several namespaces. For each namespace that a client wants to enter,
//! [`Application::connect`] returns one future that serves it. All futures of a connection run in
//! one task. Each has a small queue of events: while it is full, the client is not read. Nothing
//! here interprets events. The protocol: <https://github.com/socketio/socket.io-protocol>.

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
const MAX_EVENTS: usize = 16;

/// The settings. [`Config::default`] has the values of the Node server.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How long a client may take to enter its first namespace.
    pub connect_timeout: Duration,
    /// The limits of a packet's binary attachments.
    pub attachments: AttachmentLimits,
    /// How long the attachments of a packet may take to arrive.
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

/// The application on top of this server.
pub trait Application: 'static {
    /// Whether a connection may begin.
    ///
    /// # Errors
    /// The client is refused; the error sets the response.
    fn admit(&self, handshake: &Handshake) -> Result<(), ConnectError>;

    /// Called for each client that the server itself rejects.
    fn on_rejection(&self, _: &Rejection<'_>) {}

    /// Whether there is a namespace of this name.
    fn has(&self, namespace: &str) -> bool;

    /// Serves a client in a namespace, from its request to enter it until it has left.
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = ()> + 'static;
}

/// A client's request to enter a namespace.
pub struct ConnectRequest {
    socket: Socket,
    /// The data that the client sent along: a JSON object, or empty.
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

/// An event from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The name of the event, and its other arguments.
    pub arguments: Arguments,
    /// The binary data that placeholders refer to.
    pub attachments: Vec<Bytes>,
    /// The id of the ack that the client asks for, if it does.
    pub ack: Option<u64>,
}

/// An event of the main namespace as an Engine.IO message with its `4`, so that many recipients can
/// share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoded {
    /// An event that is always sent.
    Event(ByteString),
    /// An event that supersedes earlier events of this variant. A transport may leave those out
    /// while they are not sent yet.
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

/// The state of a client in a namespace, shared by the connection and the application.
#[derive(Debug)]
struct State {
    /// Whether the client was admitted to any namespace. All namespaces of a connection share this.
    admitted: Rc<Cell<bool>>,
    left: Cell<bool>,
}

impl ConnectRequest {
    /// Admits the client. `sid` is its public id. With `pid`, its private id, the client can
    /// resume: it then sends `pid` and the last string of the last event that it received.
    pub fn accept(self, sid: &str, pid: Option<&str>) -> Socket {
        let json = match pid {
            Some(pid) => format!(r#"{{"sid":"{sid}","pid":"{pid}"}}"#),
            None => format!(r#"{{"sid":"{sid}"}}"#),
        };
        self.socket.state.admitted.set(true);
        let admission = self.socket.packet(Body::Connect(json.into()));
        // What a client has missed follows at once. If it is too slow, `recv` returns `None`.
        let _ = self.socket.sender.send_soon([admission]);
        self.socket
    }

    /// Rejects the client; the connection stays open for other namespaces. A rejected client does
    /// not try again by itself.
    pub fn reject(self, message: &str, data: Option<&str>) {
        let message = serde_json::Value::from(message);
        let json = match data {
            Some(data) => format!(r#"{{"message":{message},"data":{data}}}"#),
            None => format!(r#"{{"message":{message}}}"#),
        };
        self.socket.send(Body::ConnectError(json.into()), Vec::new());
    }

    /// Ends the whole connection by closing its transport: the client reconnects by itself.
    pub fn close(self) {
        self.socket.close(CloseReason::Server);
    }
}

impl Socket {
    /// The next event. `None` when the client has left or the connection has ended, and all earlier
    /// events were returned. Cancel-safe.
    pub fn recv(&mut self) -> impl Future<Output = Option<Event>> {
        poll_fn(|context| self.events.poll_take(context))
    }

    /// Why the connection ended; `None` before its end.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.sender.close_reason()
    }

    /// Whether the client itself has left the namespace.
    pub fn has_left(&self) -> bool {
        self.state.left.get()
    }

    /// Sends an event: its name as plain text, the other arguments as JSON. Does not wait. If the
    /// client is too slow, it is disconnected, and [`recv`](Self::recv) returns `None`.
    pub fn emit(&self, name: &str, arguments: &[ByteString], attachments: Vec<Bytes>) {
        let name = ByteString::from(serde_json::Value::from(name).to_string());
        let values = std::iter::once(name).chain(arguments.iter().cloned()).collect();
        let arguments = Arguments { values, attachments: attachments.len() };
        self.send(Body::Event(arguments, None), attachments);
    }

    /// Sends the ack that an event asked for.
    pub fn ack(&self, id: u64, values: Vec<ByteString>, attachments: Vec<Bytes>) {
        let arguments = Arguments { values, attachments: attachments.len() };
        self.send(Body::Ack(arguments, id), attachments);
    }

    /// Sends already encoded events of the main namespace, together.
    pub fn emit_encoded(&self, events: impl IntoIterator<Item = Encoded>) {
        // If the client is too slow, `recv` returns `None`.
        let _ = self.sender.send(events.into_iter().map(EnginePacket::from));
    }

    /// A handle for [`engine_io::Sender::ready`].
    pub fn sender(&self) -> engine_io::Sender {
        self.sender.clone()
    }

    /// Disconnects the client from the namespace. It does not reconnect by itself.
    pub fn disconnect(self) {
        self.send(Body::Disconnect, Vec::new());
    }

    /// Ends the whole connection by closing its transport: the client reconnects by itself.
    pub fn close(&self, reason: CloseReason) {
        self.sender.close(reason);
    }

    fn send(&self, body: Body, attachments: Vec<Bytes>) {
        let attachments = attachments.into_iter().map(EnginePacket::Binary);
        let _ = self.sender.send(std::iter::once(self.packet(body)).chain(attachments));
    }

    /// A packet without its attachments.
    fn packet(&self, body: Body) -> EnginePacket {
        let packet = Packet { namespace: self.namespace.clone(), body };
        EnginePacket::Text(format!("4{packet}").into())
    }
}

/// Runs a Socket.IO application as an Engine.IO application.
pub struct SocketIo<A> {
    application: Rc<A>,
    config: Config,
}

impl<A: Application> SocketIo<A> {
    /// Serves `application` by Socket.IO.
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

/// The namespaces that a client has entered or is about to enter.
struct Namespaces<A> {
    application: Rc<A>,
    sender: engine_io::Sender,
    handshake: Rc<Handshake>,
    /// Mostly one entry, as in `serving`.
    open: Vec<OpenNamespace>,
    /// Whether the client was admitted to a namespace, even if it has left since.
    admitted: Rc<Cell<bool>>,
    /// The application's futures, until each is done.
    serving: Vec<(Rc<State>, LocalBoxFuture<'static, ()>)>,
    /// An event whose namespace has no room for it yet. Meanwhile nothing is read.
    blocked: Option<(ByteString, Event)>,
}

struct OpenNamespace {
    namespace: ByteString,
    events: Rc<EventQueue>,
    state: Rc<State>,
}

/// Serves a connection until it ends or the client violates the protocol.
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
            // The timer is allocated only when it is needed.
            () = async { Box::pin(sleep_until(deadline)).await }, if late => {
                // The client may have been admitted since.
                if is_late(&namespaces, &decoder) {
                    sender.close(CloseReason::Parse);
                    break;
                }
            }
        }
    }
    // Close the queues, so that the application's futures end.
    namespaces.open.clear();
    namespaces.blocked = None;
    // They may still process earlier events, for as long as Engine.IO allows.
    poll_fn(|context| {
        let _ = namespaces.poll(context);
        if namespaces.serving.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl<A: Application> Namespaces<A> {
    /// Polls the application's futures. Ready when one of them has made room for the blocked event.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self { open, serving, .. } = self;
        serving.retain_mut(|(state, future)| {
            let goes_on = future.as_mut().poll(context).is_pending();
            if !goes_on {
                // Keep it if the client has entered the namespace again.
                open.retain(|open| !Rc::ptr_eq(&open.state, state));
            }
            goes_on
        });
        let Some((namespace, event)) = self.blocked.take() else { return Poll::Pending };
        self.blocked = self.put(namespace, event);
        if self.blocked.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Queues an event for its namespace, and returns the event if the queue is full. If the
    /// namespace is gone, the event is dropped.
    fn put(&mut self, namespace: ByteString, event: Event) -> Option<(ByteString, Event)> {
        let open = self.find(&namespace)?;
        let event = open.events.put(event).err()?;
        Some((namespace, event))
    }

    fn find(&self, namespace: &str) -> Option<&OpenNamespace> {
        self.open.iter().find(|open| open.namespace == namespace)
    }

    /// Handles a message, which may block reading.
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
            // This server asks for no acks, and has no use for connect errors of a client.
            Body::Ack(..) | Body::ConnectError(_) => {}
        }
        Ok(())
    }

    fn connect(&mut self, namespace: ByteString, auth: ByteString) {
        if self.find(&namespace).is_some() {
            // Clients do this when `connect()` is called twice.
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

/// The events that wait for an application. Its future runs in the task that queues them.
#[derive(Default)]
struct EventQueue(RefCell<QueueState>);

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Event>,
    closed: bool,
    reader: Option<Waker>,
}

impl EventQueue {
    /// Returns the event if there is no room for it. After the application has dropped its socket,
    /// events are dropped.
    fn put(&self, event: Event) -> Result<(), Event> {
        let mut queue = self.0.borrow_mut();
        if queue.closed {
            return Ok(());
        }
        if queue.waiting.len() >= MAX_EVENTS {
            return Err(event);
        }
        queue.waiting.push_back(event);
        queue.reader.take().into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Closes the queue: no more events are added.
    fn close(&self) {
        let mut queue = self.0.borrow_mut();
        queue.closed = true;
        queue.reader.take().into_iter().for_each(Waker::wake);
    }

    /// Takes the oldest event; `None` if the queue is closed and empty.
    fn poll_take(&self, context: &Context<'_>) -> Poll<Option<Event>> {
        let mut queue = self.0.borrow_mut();
        if let Some(event) = queue.waiting.pop_front() {
            if queue.waiting.is_empty() {
                // Free the memory: most clients send little.
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
