//! Why sessions end, and the final packet for their clients.

use std::time::Duration;

use tokio::time::Instant;

use super::packet::Packet;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CloseReason {
    /// The client closed the session.
    #[error("closed by the client")]
    Client,
    /// The application closed the session.
    #[error("closed by the server")]
    Server,
    /// The server is stopping.
    #[error("the server stops")]
    GoingAway,
    /// The transport was lost: a broken WebSocket, or an aborted poll or post.
    #[error("the transport was lost")]
    Transport,
    /// The client did not answer a ping in time.
    #[error("ping timeout")]
    PingTimeout,
    /// The client sent an invalid packet, or one that it may not send.
    #[error("parse error")]
    Parse,
    /// The client made two polls or two posts at once.
    #[error("overlapping requests")]
    Overlap,
    /// The client sent a message that is longer than allowed.
    #[error("a message is too long")]
    TooLong,
    /// The client did not take its queued packets fast enough.
    #[error("too slow")]
    TooSlow,
    /// The application panicked.
    #[error("internal error")]
    Panic,
}

impl CloseReason {
    /// The label of the reason in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::GoingAway => "draining",
            Self::Transport => "transport",
            Self::PingTimeout => "ping_timeout",
            Self::Parse => "parse_error",
            Self::Overlap => "overlap",
            Self::TooLong => "too_long",
            Self::TooSlow => "too_slow",
            Self::Panic => "panic",
        }
    }
}

/// The end of a session, and the final packet for one poll.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) reason: CloseReason,
    pub(super) final_packet: Option<Packet>,
    pub(super) at: Instant,
}

/// How long a poll still finds a session that its client has closed: the poll may be in flight on
/// another worker when the close arrives.
const LATE_POLL: Duration = Duration::from_millis(100);
/// How long a poll still finds a session that the server has closed: until the client polls again.
const NEXT_POLL: Duration = Duration::from_secs(20);

impl End {
    /// Until when a late poll gets the final packet. After an error of the client, no late poll
    /// does.
    pub(super) fn reachable_until(&self) -> Instant {
        let wait = match self.reason {
            CloseReason::Client => LATE_POLL,
            CloseReason::Server | CloseReason::GoingAway | CloseReason::Panic => NEXT_POLL,
            _ => Duration::ZERO,
        };
        self.at + wait
    }
}
