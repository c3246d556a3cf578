//! How sessions end, and what their clients are still told of it.

use std::time::Duration;

use tokio::time::Instant;

use super::packet::Packet;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CloseReason {
    /// The client said so.
    #[error("closed by the client")]
    Client,
    /// The application did.
    #[error("closed by the server")]
    Server,
    /// The server stops.
    #[error("the server stops")]
    GoingAway,
    /// The transport went away: a lost WebSocket, an aborted poll or post.
    #[error("the transport was lost")]
    Transport,
    /// The client did not answer a ping in time.
    #[error("ping timeout")]
    PingTimeout,
    /// What it sent is no packet, or one that it may not send.
    #[error("parse error")]
    Parse,
    /// Two polls or two posts at once.
    #[error("overlapping requests")]
    Overlap,
    /// A message that is longer than allowed.
    #[error("a message is too long")]
    TooLong,
    /// It did not take what was queued for it.
    #[error("too slow")]
    TooSlow,
    /// The application panicked.
    #[error("internal error")]
    Panic,
}

impl CloseReason {
    /// A word for counters.
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

/// The end of a session, and what one poll is still told of it.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) reason: CloseReason,
    pub(super) final_packet: Option<Packet>,
    pub(super) at: Instant,
}

/// How long a session that its client has closed is still found: a poll may be under way on
/// another worker while the close arrives.
const LATE_POLL: Duration = Duration::from_millis(100);
/// How long one that the server has closed is: until the client polls again.
const NEXT_POLL: Duration = Duration::from_secs(20);

impl End {
    /// Until when a poll that comes late is answered with the final packet. After a mistake of the client's
    /// there is none for it.
    pub(super) fn reachable_until(&self) -> Instant {
        let wait = match self.reason {
            CloseReason::Client => LATE_POLL,
            CloseReason::Server | CloseReason::GoingAway | CloseReason::Panic => NEXT_POLL,
            _ => Duration::ZERO,
        };
        self.at + wait
    }
}
