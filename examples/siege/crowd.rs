//! Many sockets, from several addresses of the loopback, and witnesses who time what they hear.

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
use crate::wire::{Connection, Kind, Lost, Memory, Said};

/// Sockets of one address: below the 28,000 ports that the system gives out for each.
const OF_ONE_ADDRESS: usize = 5_000;
/// How many are connecting at once; the system holds 4,096 that were not accepted yet.
const AT_ONCE: usize = 2_000;
/// How long one try to connect may take.
const TRY: Duration = Duration::from_secs(10);

/// A client that comes back with what it last had.
pub struct Guest {
    number: usize,
    token: String,
    room: String,
    since: Option<String>,
    pub connection: Option<Connection>,
    /// What it has heard.
    pub heard: Vec<String>,
    /// How often it was told that it has missed something.
    pub missed: usize,
}

impl Guest {
    /// A client that is not connected yet.
    pub fn new(number: usize, room: &str) -> Self {
        let room = room.to_owned();
        let (token, heard) = (token(), Vec::new());
        Self { number, token, room, since: None, connection: None, heard, missed: 0 }
    }

    /// Connects and joins its room behind what it last had.
    pub async fn come(&mut self, addr: SocketAddr) -> Result<(), Lost> {
        let coming = async {
            let stream = connect_from(self.number, addr).await.map_err(Lost::because)?;
            let memory = Memory::default();
            let open = Connection::open_on(stream, Kind::Plain, addr, &self.token, memory);
            let mut connection = open.await?;
            let room = &self.room;
            let data = match &self.since {
                Some(since) => json!({ "room": room, "since": since }),
                None => json!(room),
            };
            connection.request("joinRoom", &data).await?;
            match connection.next().await? {
                Said::Ack { data, .. } if data["room"] == json!(room) => {
                    let position = data["position"].as_str().map(str::to_owned);
                    self.missed += usize::from(self.since.is_some() && data["recovered"] != true);
                    self.since = self.since.take().or(position);
                }
                other => return Err(Lost(format!("not joined: {other:?}"))),
            }
            self.connection = Some(connection);
            Ok(())
        };
        timeout(TRY, coming).await.map_err(Lost::because)?
    }

    /// Connects, again and again until then; whether it did.
    pub async fn come_by(&mut self, addr: SocketAddr, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if self.come(addr).await.is_ok() {
                return true;
            }
            sleep(Duration::from_millis(200 + self.number as u64 % 300)).await;
        }
        false
    }

    /// Hears messages until it has so many or the connection is gone.
    pub async fn hear(&mut self, count: usize) -> Result<(), Lost> {
        while self.heard.len() < count {
            let connection = self.connection.as_mut().ok_or(Lost("not connected".to_owned()))?;
            match connection.next().await? {
                Said::Message { content, position, .. } => {
                    self.since = position.or(self.since.take());
                    self.heard.push(content);
                }
                Said::Resync { .. } => self.missed += 1,
                Said::Ack { .. } | Said::Offset(_) | Said::Error(_) => {}
            }
        }
        Ok(())
    }
}

/// Connects from an address that has ports left for the client of this number.
pub async fn connect_from(number: usize, addr: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let last = u8::try_from(2 + number / OF_ONE_ADDRESS).unwrap_or(u8::MAX);
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    socket.connect(addr).await
}

/// Lets all come at once; answers how many are there by then.
pub async fn come_all(guests: &mut [Guest], addr: SocketAddr, within: Duration) -> usize {
    let deadline = Instant::now() + within;
    let gate = Semaphore::new(AT_ONCE);
    let coming = guests.iter_mut().map(async |guest| {
        let _turn = gate.acquire().await;
        guest.come_by(addr, deadline).await
    });
    join_all(coming).await.into_iter().filter(|came| *came).count()
}

/// What others notice: delays from a send to its last hearing, of messages at a steady pace.
pub struct Witnesses {
    listening: Vec<JoinHandle<Vec<f64>>>,
    sending: JoinHandle<usize>,
}

/// The content of the last message.
const END: &str = "the end";

impl Witnesses {
    /// Ten members of a room, to which so many messages a second are sent for so long.
    pub async fn start(server: &Arc<Server>, room: &str, rate: u64, time: Duration) -> Self {
        let mut listening = Vec::new();
        for number in 0..10 {
            let mut guest = Guest::new(number, room);
            guest.come(server.addr).await.expect("a witness is let in");
            listening.push(tokio::spawn(async move {
                let mut delays = Vec::new();
                while guest.hear(guest.heard.len() + 1).await.is_ok() {
                    match guest.heard.pop().and_then(|content| sent_at(&content)) {
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

    /// The 50th and 99th percentile of the delays in ms, and whether all heard everything.
    pub async fn verdict(self) -> (f64, f64, bool) {
        let sent = self.sending.await.unwrap();
        let heard = join_all(self.listening).await;
        let heard: Vec<_> = heard.into_iter().map(Result::unwrap).collect();
        let whole = heard.iter().all(|delays| delays.len() >= sent);
        let mut all = heard.concat();
        all.sort_by(f64::total_cmp);
        let at =
            |part: f64| all.get((all.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
        (at(0.5), at(0.99), whole)
    }
}

fn sent_at(content: &str) -> Option<f64> {
    content.split(' ').next()?.parse().ok()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
