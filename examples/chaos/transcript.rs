//! What a client received, for the verdict.

use std::collections::HashMap;
use std::time::Duration;

use realtime_chat_backend::feed::position::Position;
use tokio::time::Instant;

use crate::wire::Told;

/// What a client received, and what it was answered.
#[derive(Debug, Default)]
pub struct Transcript {
    pub name: String,
    /// The user of the client.
    pub user: String,
    /// For each token that it had, the second since 1970 in which it was issued.
    pub tokens: Vec<u64>,
    /// The events of each room.
    pub rooms: HashMap<String, Vec<Segment>>,
    /// The final text of each message of each room: from the events, and from the history where
    /// events may have been missed.
    pub texts: HashMap<String, HashMap<String, Text>>,
    /// When each version of a message of a private room was first in a history, in milliseconds
    /// since 1970. The key is the room, the message and its `__v`.
    pub read: HashMap<(String, String, i64), u64>,
    /// Content and id of the messages whose sending was acknowledged.
    pub acked: HashMap<String, String>,
    /// Acknowledged edits and deletions.
    pub changed: Vec<Told>,
    /// Refused edits and deletions: the message and the code.
    pub refused: Vec<(String, String)>,
    /// How many messages and marks were refused because the user was not a member of the room.
    pub refused_sends: usize,
    /// The newest message up to which it has read each room, as far as that was acknowledged.
    pub marks: HashMap<String, String>,
    /// How many marks were acknowledged.
    pub marked: usize,
    /// How many messages it sent.
    pub sent: usize,
    /// For each acknowledged message, when it was first sent and when it was acknowledged.
    pub acks: Vec<(Instant, Instant)>,
    /// For each lost connection, how long it took to be back in all rooms.
    pub recoveries: Vec<Duration>,
    /// How many times connection state recovery resumed a session.
    pub returns: usize,
    /// How many events were delivered again because a connection ended before their offset.
    pub repeated: usize,
    /// How many times the server reported possibly missed events.
    pub resyncs: usize,
    /// Texts that a process delivered although it knew of their deletion.
    pub revived: Vec<String>,
    /// Other errors of the server.
    pub broken: Vec<String>,
}

/// Events of a room. The server promises that none is missing between the first and the last.
#[derive(Debug, Default)]
pub struct Segment {
    /// If known, the position after which nothing is missing.
    pub from: Option<Position>,
    pub heard: Vec<Heard>,
}

/// An event that a client received.
#[derive(Debug)]
pub struct Heard {
    pub told: Told,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The number of the connection's token.
    pub token: usize,
}

/// The text of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    pub version: i64,
    /// `None` if it was deleted.
    pub content: Option<String>,
}
