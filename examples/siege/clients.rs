//! Many clients, from several addresses of the loopback, and probes that measure the delay of
//! messages.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::server::{Server, token};
use crate::wire::{Connection, Disconnected, Incoming, Kind, ResumeState};

/// The number of sockets from one address: less than the 28,000 ephemeral ports of an address.
const PER_ADDRESS: usize = 5_000;
/// How many clients connect at the same time. The listen queue of the system holds 4,096.
const AT_ONCE: usize = 2_000;
/// The timeout of one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that reconnects with its last position.
pub struct Client {
    number: usize,
    token: String,
    room: String,
    since: Option<String>,
    pub connection: Option<Connection>,
    /// The contents that it received.
    pub received: Vec<String>,
    /// How often the server said that messages may have been missed.
    pub missed: usize,
}

impl Client {
    /// A client without a connection.
    pub fn new(number: usize, room: &str) -> Self {
        let room = room.to_owned();
        let (token, received) = (token(), Vec::new());
        Self { number, token, room, since: None, connection: None, received, missed: 0 }
    }

    /// Connects, and joins its room after its last position.
    pub async fn connect(&mut self, addr: SocketAddr) -> Result<(), Disconnected> {
        let connecting = async {
            let stream = connect_from(self.number, addr).await.map_err(Disconnected::because)?;
            let resume_state = ResumeState::default();
            let open = Connection::open_on(stream, Kind::Plain, addr, &self.token, resume_state);
            let mut connection = open.await?;
            let room = &self.room;
            let data = match &self.since {
                Some(since) => json!({ "room": room, "since": since }),
                None => json!(room),
            };
            connection.request("joinRoom", &data).await?;
            match connection.next().await? {
                Incoming::Ack { data, .. } if data["room"] == json!(room) => {
                    let position = data["position"].as_str().map(str::to_owned);
                    self.missed += usize::from(self.since.is_some() && data["recovered"] != true);
                    self.since = self.since.take().or(position);
                }
                other => return Err(Disconnected(format!("not joined: {other:?}"))),
            }
            self.connection = Some(connection);
            Ok(())
        };
        timeout(CONNECT_TIMEOUT, connecting).await.map_err(Disconnected::because)?
    }

    /// Tries to connect until the deadline. Returns whether it succeeded.
    pub async fn connect_until(&mut self, addr: SocketAddr, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if self.connect(addr).await.is_ok() {
                return true;
            }
            sleep(Duration::from_millis(200 + self.number as u64 % 300)).await;
        }
        false
    }

    /// Receives messages until it has `count` or the connection ends.
    pub async fn receive(&mut self, count: usize) -> Result<(), Disconnected> {
        while self.received.len() < count {
            let connection =
                self.connection.as_mut().ok_or(Disconnected("not connected".to_owned()))?;
            match connection.next().await? {
                Incoming::Event { told, position } => {
                    self.since = position.or(self.since.take());
                    self.received.push(told.content);
                }
                Incoming::Resync { .. } => self.missed += 1,
                Incoming::Ack { .. }
                | Incoming::Offset(_)
                | Incoming::Membership { .. }
                | Incoming::Signal { .. }
                | Incoming::Error(_) => {}
            }
        }
        Ok(())
    }
}

/// Connects from an address that has free ports for the client with this number.
pub async fn connect_from(number: usize, addr: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(2 + number / PER_ADDRESS).unwrap_or(u8::MAX);
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    socket.connect(addr).await
}

/// Connects all clients at once. Returns how many succeeded in time.
pub async fn connect_all(clients: &mut [Client], addr: SocketAddr, within: Duration) -> usize {
    let deadline = Instant::now() + within;
    let gate = Semaphore::new(AT_ONCE);
    let connecting = clients.iter_mut().map(async |client| {
        let _turn = gate.acquire().await;
        client.connect_until(addr, deadline).await
    });
    join_all(connecting).await.into_iter().filter(|connected| *connected).count()
}

/// Measures the delay from a send to each receiver, with messages at a steady rate.
pub struct LatencyProbe {
    listening: Vec<JoinHandle<Vec<f64>>>,
    sending: JoinHandle<usize>,
}

/// The content of the last message.
const END: &str = "the end";

impl LatencyProbe {
    /// Ten members of a room, to which `rate` messages a second are sent for `time`.
    pub async fn start(server: &Arc<Server>, room: &str, rate: u64, time: Duration) -> Self {
        let mut listening = Vec::new();
        for number in 0..10 {
            let mut client = Client::new(number, room);
            client.connect(server.addr).await.expect("a probe is admitted");
            listening.push(tokio::spawn(async move {
                let mut delays = Vec::new();
                while client.receive(client.received.len() + 1).await.is_ok() {
                    match client.received.pop().and_then(|content| sent_at(&content)) {
                        Some(sent) => delays.push((now() - sent) * 1_000.0),
                        None => break,
                    }
                }
                delays
            }));
        }
        let (server, room) = (Arc::clone(server), room.to_owned());
        let sending = tokio::spawn(async move {
            let http = reqwest::Client::new();
            let mut pace = interval(Duration::from_micros(1_000_000 / rate));
            let mut running = Vec::new();
            let end = Instant::now() + time;
            while Instant::now() < end {
                pace.tick().await;
                let (server, http, room) = (Arc::clone(&server), http.clone(), room.clone());
                running.push(tokio::spawn(async move {
                    server.send(&http, &room, &format!("{:.6} {}", now(), "x".repeat(200))).await
                }));
            }
            let sent = join_all(running).await.into_iter().filter(|sent| *sent.as_ref().unwrap());
            let sent = sent.count();
            server.send(&http, &room, END).await;
            sent
        });
        Self { listening, sending }
    }

    /// The 50th and 99th percentile of the delays in ms, and whether all members received
    /// everything.
    pub async fn finish(self) -> (f64, f64, bool) {
        let sent = self.sending.await.unwrap();
        let received = join_all(self.listening).await;
        let received: Vec<_> = received.into_iter().map(Result::unwrap).collect();
        let complete = received.iter().all(|delays| delays.len() >= sent);
        let mut all = received.concat();
        all.sort_by(f64::total_cmp);
        let at =
            |part: f64| all.get((all.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
        (at(0.5), at(0.99), complete)
    }
}

fn sent_at(content: &str) -> Option<f64> {
    content.split(' ').next()?.parse().ok()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
