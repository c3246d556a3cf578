//! The chat over Socket.IO: `io.on('connection')` of the Node server.
//!
//! Admits clients, resumes their sessions ([recovery](crate::sessions::recovery)), turns their
//! events into requests of a [session](crate::sessions), and turns its outputs into events and
//! acks. The session knows what the requests mean.

use std::rc::Rc;

use actix_web::web::Data;
use bytestring::ByteString;
use futures::FutureExt;
use futures::future::join;
use tokio::time::timeout;

use crate::auth::Claims;
use crate::auth::credentials::{Absence, Credentials, TokenRefused};
use crate::error::ApiError;
use crate::feed::event::{Delivery, Wire};
use crate::hub::inbox::DirectWriter;
use crate::js::{Fields, Js};
use crate::limits::Address;
use crate::metrics::{Deliveries, OpenSocket, WireName};
use crate::middleware::deadline::DEADLINE;
use crate::protocols::engine_io::{
    CloseReason, ConnectError, Handshake, Registry, Rejection, Sender, random_id,
};
use crate::protocols::socket_io::packet::MAIN;
use crate::protocols::socket_io::{Application, ConnectRequest, Encoded, Event, Socket};
use crate::protocols::websocket::WRITE_AT_ONCE;
use crate::sessions::recovery::{Recovery, RecoveryRecord, TAKEOVER_GRACE};
use crate::sessions::registry::Worker;
use crate::sessions::{Answer, EndReason, Output, Request, RequestKind, Session};

/// The chat on one worker.
#[derive(Clone)]
pub struct ChatIo {
    worker: Data<Worker>,
    connections: Registry,
}

/// The `auth` payload of a CONNECT packet.
struct Auth {
    token: Option<String>,
    /// The private id of the session to resume.
    pid: Option<String>,
    offset: Option<String>,
    /// How the client wants to get its offset.
    offsets: OffsetMode,
}

/// How a client gets its offset, with which it can resume its session. socket.io-client stores the
/// last argument of any event, if it is a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OffsetMode {
    /// Not at all: `recovery: false`.
    Off,
    /// In a separate event, `position`, after all events that are written together. So
    /// `receiveMessage` has one argument, as on the Node server. If the connection breaks before
    /// the `position`, those events are repeated.
    Separate,
    /// As the last argument of each event: `recovery: true`. No event is repeated.
    Inline,
}

impl ChatIo {
    /// The chat of one worker. `connections` are those of all workers.
    pub fn new(worker: Data<Worker>, connections: Registry) -> Self {
        Self { worker, connections }
    }
}

impl Application for ChatIo {
    fn admit(&self, handshake: &Handshake) -> Result<(), ConnectError> {
        let address = address(&self.worker, handshake);
        if let Err(reached) = self.worker.limits.connect.take(address) {
            return Err(ConnectError::TooMany { seconds: reached.seconds() });
        }
        let has_room = self.worker.registry.has_capacity_beside(self.connections.len());
        if has_room { Ok(()) } else { Err(ConnectError::Unavailable) }
    }

    fn on_rejection(&self, rejection: &Rejection<'_>) {
        match rejection {
            Rejection::Revision => self.worker.refusals.note_protocol(),
            Rejection::Origin(origin) => self.worker.refusals.note_origin(origin.as_bytes()),
        }
    }

    fn has(&self, namespace: &str) -> bool {
        namespace == MAIN
    }

    fn connect(&self, request: ConnectRequest) -> impl Future<Output = ()> + 'static {
        let worker = self.worker.clone();
        // Boxed like the last step, so that the future of the whole connection has no room for them.
        let admitted = admit(worker.clone(), request).boxed_local();
        async move {
            let Some(mut client) = admitted.await else { return };
            let end = client.run(&worker).await;
            client.finish(end).boxed_local().await;
        }
    }
}

/// A client that was admitted.
struct Client {
    socket: Socket,
    session: Session<Option<u64>>,
    record: Option<Rc<RecoveryRecord>>,
    offsets: OffsetMode,
    open: OpenSocket,
}

/// Admits a client, or rejects it.
async fn admit(worker: Data<Worker>, request: ConnectRequest) -> Option<Client> {
    let worker = &worker;
    let auth = Auth::read(&request.auth);
    let claims = match claims(worker, &auth, &request.handshake) {
        Ok(claims) => Some(claims),
        Err(refused) if worker.config.legacy_trust => {
            worker.refusals.note_ignored_token(&refused);
            None
        }
        Err(refused) => {
            reject(worker, request, &refused);
            return None;
        }
    };
    let claims = match worker.unrevoked(claims).await {
        Ok(claims) => claims,
        Err(ApiError::TokenRevoked) => {
            reject(worker, request, &TokenRefused::Revoked);
            return None;
        }
        Err(_) => {
            request.close();
            return None;
        }
    };
    // From here on, a client that cannot be served is disconnected, so it reconnects by itself.
    // After a CONNECT_ERROR it would not.
    let Some(mut permit) = worker.registry.acquire(address(worker, &request.handshake)) else {
        request.close();
        return None;
    };
    let enter = |request: ConnectRequest, permit| {
        let session = Session::new(worker.clone(), permit, claims);
        let socket = request.accept(&random_id(), None);
        Some(Client::new(worker, socket, session, None, OffsetMode::Off))
    };
    let Some(claims) = claims else { return enter(request, permit) };
    // Before the feed has begun there are no positions, and without a position the client could not
    // resume later.
    if timeout(DEADLINE, worker.feed.started()).await.is_err() {
        request.close();
        return None;
    }
    let Ok(can_recover) = worker.can_recover().await else {
        request.close();
        return None;
    };
    if auth.offsets == OffsetMode::Off || !can_recover {
        return enter(request, permit);
    }
    let resumed = match resume(worker, &auth, claims).await {
        Ok(Recovery::Resumed(resumed)) => Some(resumed),
        Ok(Recovery::Lost) => None,
        Ok(Recovery::Superseded) | Err(_) => {
            request.close();
            return None;
        }
    };
    if auth.pid.is_some() {
        worker.metrics.recovery(resumed.is_some());
    }
    let resumed = match resumed {
        Some(resumed) => resumed,
        None => worker.new_session(auth.offset.as_deref(), claims).await,
    };
    let record = Rc::new(resumed.record);
    permit.make_resumable(&record.pid, claims.user, record.owner.generation);
    let mut session = Session::new(worker.clone(), permit, Some(claims));
    session.set_recovery_record(Rc::clone(&record), resumed.known, resumed.joins);
    let socket = request.accept(&record.sid, Some(&record.pid));
    session.resume(resumed.rooms, resumed.checked, resumed.since);
    Some(Client::new(worker, socket, session, Some(record), auth.offsets))
}

fn reject(worker: &Worker, request: ConnectRequest, refused: &TokenRefused) {
    worker.refusals.note_token(refused);
    let (text, code) = refused.error().sentence(worker.config.errors);
    let reason = serde_json::Value::from(refused.to_string());
    request.reject(&text, Some(&format!(r#"{{"code":"{code}","reason":{reason}}}"#)));
}

/// Resumes the session of an earlier connection, if there is one.
async fn resume(worker: &Worker, auth: &Auth, claims: Claims) -> Result<Recovery, ApiError> {
    let Some(pid) = &auth.pid else { return Ok(Recovery::Lost) };
    let taking_over = worker.take_over(pid, auth.offset.as_deref(), claims);
    let late = |_| ApiError::Unavailable("no answer within the deadline".to_owned());
    let taken = timeout(DEADLINE, taking_over).await.map_err(late).and_then(|taken| taken);
    if let Err(error) = &taken {
        error.log(&"recovery");
    }
    taken
}

fn address(worker: &Worker, handshake: &Handshake) -> Address {
    worker.limits.address(handshake.peer, handshake.forwarded_for.iter())
}

/// The claims of the token in the CONNECT packet, else in the header of the handshake, else in its
/// query.
fn claims(worker: &Worker, auth: &Auth, handshake: &Handshake) -> Result<Claims, TokenRefused> {
    let credentials = Credentials {
        auth: auth.token.as_deref(),
        authorization: handshake.authorization.as_ref(),
        query: &handshake.query,
    };
    credentials.claims(&worker.tokens, Absence::OfSocketIo)
}

impl Auth {
    /// Reads leniently: a value that is not a string counts as missing, and unknown fields are
    /// ignored.
    fn read(json: &str) -> Self {
        let mut fields = Fields::from_json(json).unwrap_or_default();
        let offsets = match fields.take("recovery") {
            Js::Bool(false) => OffsetMode::Off,
            Js::Bool(true) => OffsetMode::Inline,
            _ => OffsetMode::Separate,
        };
        let mut text = |name| match fields.take(name) {
            Js::String(text) if !text.is_empty() => Some(text),
            _ => None,
        };
        Self { token: text("token"), pid: text("pid"), offset: text("offset"), offsets }
    }
}

impl OffsetMode {
    /// How events are encoded.
    fn wire(self) -> Wire {
        match self {
            Self::Off | Self::Separate => Wire::SocketIo,
            Self::Inline => Wire::SocketIoOffset,
        }
    }
}

impl Client {
    fn new(
        worker: &Worker,
        socket: Socket,
        session: Session<Option<u64>>,
        record: Option<Rc<RecoveryRecord>>,
        offsets: OffsetMode,
    ) -> Self {
        Self { socket, session, record, offsets, open: worker.metrics.open(WireName::SocketIo) }
    }

    /// Serves the client until its session must end for a reason, or its connection has ended
    /// (`None`).
    async fn run(&mut self, worker: &Worker) -> Option<EndReason> {
        let Self { socket, session, offsets, open, .. } = self;
        let offsets = *offsets;
        let deliveries = open.deliveries();
        session.set_direct_writer(EventWriter {
            sender: socket.sender(),
            offsets,
            deliveries: deliveries.clone(),
        });
        loop {
            let (sender, has_room) = (socket.sender(), session.has_room());
            tokio::select! {
                // While the sender is not ready, events wait in the inbox, which is bounded, or in
                // the ring.
                output = session.next_when(sender.ready()) => match output {
                    Output::Event(delivery) => {
                        // Write other events that are there already together with it, up to the
                        // limit.
                        let (mut next, mut offset, mut bytes) = (Some(delivery), None, 0);
                        let events = std::iter::from_fn(|| {
                            let Some(event) = next.take() else { return offset.take() };
                            let frame = session.frame(&event, offsets.wire());
                            bytes += frame.len();
                            deliveries.count();
                            if bytes < WRITE_AT_ONCE {
                                next = session.next_event();
                            }
                            if next.is_none() && offsets == OffsetMode::Separate {
                                // The offset of all events so far. No event is taken after this.
                                offset = session.offset_frame(&event).map(Encoded::Latest);
                            }
                            Some(Encoded::Event(frame))
                        });
                        socket.emit_encoded(events);
                    }
                    Output::Answer(answer) => reply(worker, socket, session, answer),
                    Output::End(end) => return Some(end),
                },
                event = socket.recv(), if has_room => match event {
                    Some(event) => request(worker, socket, session, event),
                    None => return None,
                },
                // Requests that the client sent before are processed without answers.
                () = sender.ended() => return None,
            }
        }
    }

    /// Ends the connection, if it has not ended, and processes all requests that were read from it.
    /// The Node server would have started them as soon as they came.
    async fn finish(mut self, end: Option<EndReason>) {
        self.session.mute();
        match end {
            Some(end) => {
                log::debug!("A Socket.IO session is ended: {end}");
                self.open.closes_because(end.label());
            }
            None => {
                if let Some(reason) = self.socket.close_reason() {
                    self.open.closes_because(reason.label());
                }
            }
        }
        match end {
            // The last packets of the client may still arrive, including a disconnect packet.
            Some(EndReason::TakenOver) => {
                let _ = timeout(TAKEOVER_GRACE, self.process_remaining()).await;
                self.close(EndReason::TakenOver);
            }
            Some(end) => self.close(end),
            None => {}
        }
        let is_revoked = end == Some(EndReason::Revoked);
        if is_revoked {
            self.session.drop_queued();
        } else {
            self.process_remaining().await;
        }
        let cannot_resume = is_revoked || self.socket.has_left();
        if let (true, Some(record)) = (cannot_resume, self.record.take()) {
            // Before the messages are stored, because the client may reconnect at any moment.
            record.end();
            let removing = async { record.remove().await };
            let (wrote, ()) = join(self.session.finish_in_flight(), removing).await;
            if wrote {
                record.remove().await;
            }
        }
        self.session.process_all().await;
    }

    /// Takes all events that were read before the connection ended, and processes requests
    /// meanwhile. The queue of requests may become longer than usual by the events in the buffer of
    /// the connection, which is bounded. Cancel-safe.
    async fn process_remaining(&mut self) {
        loop {
            tokio::select! {
                biased;
                event = self.socket.recv() => {
                    let Some(Event { arguments, ack, .. }) = event else { return };
                    if let Some(kind) = RequestKind::of(&arguments.name()) {
                        let data = arguments.values.into_iter().nth(1).unwrap_or_default();
                        self.session.request(Request::after_end(kind, data), ack);
                    }
                }
                () = self.session.process_next() => {}
            }
        }
    }

    fn close(&self, end: EndReason) {
        self.socket.close(match end {
            EndReason::TooSlow => CloseReason::TooSlow,
            EndReason::Draining => CloseReason::GoingAway,
            EndReason::Expired | EndReason::Revoked | EndReason::TakenOver => CloseReason::Server,
        });
    }
}

/// Writes events while the session's task sleeps.
struct EventWriter {
    sender: Sender,
    offsets: OffsetMode,
    deliveries: Deliveries,
}

impl DirectWriter for EventWriter {
    fn write(&self, delivery: &Delivery) -> bool {
        // The offset after a direct write is the position of the event.
        let offset = match self.offsets {
            OffsetMode::Separate => delivery.offset_frame(),
            OffsetMode::Off | OffsetMode::Inline => None,
        };
        let event = delivery.frame(self.offsets.wire());
        let written = self.sender.send_now(std::iter::once(event).chain(offset));
        if written {
            self.deliveries.count();
        }
        written
    }
}

fn request(worker: &Worker, socket: &Socket, session: &mut Session<Option<u64>>, event: Event) {
    let name = event.arguments.name();
    match RequestKind::of(&name) {
        Some(kind) => {
            let data = event.arguments.values.into_iter().nth(1).unwrap_or_default();
            session.request(Request::new(kind, data), event.ack);
        }
        // An event with an ack gets an answer. Without one, the Node server was silent.
        None => {
            if let Some(id) = event.ack {
                let json = ApiError::UnknownEvent.to_json(worker.config.errors, None);
                socket.ack(id, vec![json.into()], Vec::new());
            }
        }
    }
}

fn reply(
    worker: &Worker,
    socket: &Socket,
    session: &Session<Option<u64>>,
    answer: Answer<Option<u64>>,
) {
    let Answer { to, kind, result } = answer;
    if let Err(error) = &result {
        error.log(&kind.name());
    }
    if session.is_anonymous() && kind != RequestKind::SendMessage && to.is_none() {
        // The Node server sent nothing, and its front ends expect nothing. A client with an ack
        // gets its answer: with `retries`, socket.io-client sends nothing else before.
        return;
    }
    let mode = kind.errors(worker.config.errors);
    match (to, result) {
        (Some(id), Ok(json)) => socket.ack(id, vec![json.into()], Vec::new()),
        (Some(id), Err(error)) => {
            socket.ack(id, vec![error.to_json(mode, None).into()], Vec::new());
        }
        (None, Ok(_)) => {}
        (None, Err(error)) => {
            let data = error.to_json(mode, Some(&format!("\"{}\"", kind.name())));
            socket.emit("error", &[ByteString::from(data)], Vec::new());
        }
    }
}
