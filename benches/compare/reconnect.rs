//! Sockets that lose their connection and come back, all at the same time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{sleep, timeout};

use crate::Result;
use crate::http::Connection;
use crate::process::Process;
use crate::seed::{User, message};
use crate::websocket::{Socket, Source};
use crate::wire::{Event, Wire};

/// How many connect at the same time. More than the usual backlog of a listener would lose some of
/// their first packets, which the kernel repeats a second later.
const CONNECTING: usize = 400;
/// How long the sockets are away before something is said.
const AWAY: Duration = Duration::from_secs(1);
/// The timeout for the return of one of them.
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);

/// Who comes back, and from where.
pub struct Plan<'a> {
    /// The server.
    pub addr: SocketAddr,
    /// Its process.
    pub process: Process,
    /// The wire.
    pub wire: Wire,
    /// The user of all sockets.
    pub user: &'a User,
    /// The rooms that each of them has joined.
    pub rooms: &'a [String],
    /// The number of sockets.
    pub sockets: usize,
    /// Whether the server sends what they have missed. Otherwise, each joins its rooms again.
    pub is_recovered: bool,
}

/// The results.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// From the first connection to the time when the last socket is in its rooms again, and has
    /// what it missed if the server sends that.
    pub seconds: f64,
    /// The server's CPU time for each socket, in µs.
    pub cpu: f64,
}

/// What a client needs to come back.
#[derive(Default)]
struct Ticket {
    /// The private id of a session of Socket.IO.
    pid: String,
    /// Up to where the client has everything.
    position: String,
}

impl Plan<'_> {
    /// Connects the sockets, cuts them off, says something, and measures their return.
    ///
    /// # Errors
    /// A socket did not come back, or without what it has missed.
    pub async fn measure(&self) -> Result<Outcome> {
        let connected: Vec<(Socket, Ticket)> = stream::iter(0..self.sockets)
            .map(|number| self.connect(number))
            .buffer_unordered(CONNECTING / 4)
            .try_collect()
            .await?;
        let tickets: Vec<Ticket> = if self.is_recovered {
            self.say("before the loss").await?;
            let reading = stream::iter(connected).map(|(socket, ticket)| self.read(socket, ticket));
            reading.buffer_unordered(self.sockets).try_collect().await?
        } else {
            connected.into_iter().map(|(_, ticket)| ticket).collect()
        };
        // Their sockets were dropped. The server has to find out before they are back.
        sleep(AWAY).await;
        self.say("during the loss").await?;
        self.process.settle().await?;

        let (begin, cpu) = (Instant::now(), self.process.cpu()?);
        let back: Vec<Socket> = stream::iter(tickets.into_iter().enumerate())
            .map(|(number, ticket)| async move {
                let back = timeout(RETURN_TIMEOUT, self.come_back(number, ticket));
                back.await.map_err(|_| "a socket did not come back")?
            })
            .buffer_unordered(CONNECTING)
            .try_collect()
            .await?;
        let (seconds, cpu) = (begin.elapsed().as_secs_f64(), self.process.cpu()? - cpu);
        drop(back);
        Ok(Outcome { seconds, cpu: cpu * 1e6 / self.sockets.max(1) as f64 })
    }

    async fn connect(&self, number: usize) -> Result<(Socket, Ticket)> {
        let (source, token) = (Source::of(number), &self.user.token);
        let (mut socket, admitted) = self.wire.connect(self.addr, source, token).await?;
        self.wire.join(&mut socket, self.rooms).await?;
        let pid = after(&admitted, "\"pid\":\"").unwrap_or_default().to_owned();
        Ok((socket, Ticket { pid, ..Ticket::default() }))
    }

    /// Sends a message to the last room.
    async fn say(&self, content: &str) -> Result<()> {
        let room = self.rooms.last().ok_or("no rooms")?;
        let mut server = Connection::open(self.addr).await?;
        server.json(&message(room, self.user, content), 201).await?;
        Ok(())
    }

    /// Reads a message and its position. Drops the socket.
    async fn read(&self, mut socket: Socket, mut ticket: Ticket) -> Result<Ticket> {
        let mut is_there = false;
        while !is_there || ticket.position.is_empty() {
            let read = socket.read(|text| {
                is_there |= self.wire.read(text) == Event::Message;
                if let Some(position) = self.wire.position(text) {
                    ticket.position = position.to_owned();
                }
            });
            timeout(RETURN_TIMEOUT, read).await.map_err(|_| "a position did not come")??;
        }
        Ok(ticket)
    }

    async fn come_back(&self, number: usize, ticket: Ticket) -> Result<Socket> {
        let (source, token) = (Source::of(number), &self.user.token);
        if !self.is_recovered {
            let (mut socket, _) = self.wire.connect(self.addr, source, token).await?;
            self.wire.join(&mut socket, self.rooms).await?;
            return Ok(socket);
        }
        let Ticket { pid, position } = ticket;
        let mut socket = self.wire.open(self.addr, source, token).await?;
        let requests: Vec<String> = match self.wire {
            Wire::Plain => {
                let join = |(id, room): (usize, &String)| {
                    let data = format!(r#"{{"room":"{room}","since":"{position}"}}"#);
                    format!(r#"{{"event":"joinRoom","data":{data},"id":{id}}}"#)
                };
                self.rooms.iter().enumerate().map(join).collect()
            }
            Wire::SocketIo => {
                let auth = format!(r#"{{"token":"{token}","pid":"{pid}","offset":"{position}"}}"#);
                vec![format!("40{auth}")]
            }
        };
        socket.send_texts(&requests).await?;
        let (mut answers, mut recovered, mut messages) = (0, 0, 0);
        while answers < requests.len() || (recovered == answers && messages == 0) {
            // What was missed can come in one piece with the answer.
            socket
                .read(|text| match (self.wire, text) {
                    (Wire::SocketIo, [b'4', b'0' | b'4', ..]) => {
                        answers += 1;
                        let text = String::from_utf8_lossy(text);
                        recovered += usize::from(after(&text, "\"pid\":\"") == Some(&pid));
                    }
                    _ => match self.wire.read(text) {
                        Event::Message => messages += 1,
                        Event::Ack(_) | Event::Refusal(_) => {
                            answers += 1;
                            let text = String::from_utf8_lossy(text);
                            recovered += usize::from(text.contains("\"recovered\":true"));
                        }
                        Event::Ping | Event::Other => {}
                    },
                })
                .await?;
        }
        match (recovered == answers, messages) {
            (true, 1) => Ok(socket),
            (true, _) => Err("a message came twice".into()),
            (false, _) => Err(format!("{recovered} of {answers} were recovered").into()),
        }
    }
}

/// The text in quotes after this beginning.
fn after<'a>(text: &'a str, begin: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once('"').map(|(value, _)| value)
}
