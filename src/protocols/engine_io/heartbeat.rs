//! The heartbeat of a session: the server pings, and the session ends if the client does not
//! answer.

use std::time::Duration;

use bytestring::ByteString;
use tokio::time::Instant;

use super::end::CloseReason;
use super::packet::Packet;
use super::session::{Session, Side};

/// The next deadline. It is absolute, so that delays of the timer do not add up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Heartbeat {
    PingDue(Instant),
    PongDue(Instant),
}

/// A pong's deadline counts as reached this much earlier: timers of clients count whole
/// milliseconds.
const PONG_TOLERANCE: Duration = Duration::from_millis(1);

/// If a ping is this late, the heartbeat itself has stopped. A running heartbeat never reaches
/// this.
const HEARTBEAT_LOST: Duration = Duration::from_secs(60);

impl Heartbeat {
    fn deadline(self) -> Instant {
        match self {
            Self::PingDue(at) | Self::PongDue(at) => at,
        }
    }

    /// Whether the session has timed out at this time.
    pub(super) fn is_overdue(self, now: Instant) -> bool {
        match self {
            Self::PongDue(due) => due <= now + PONG_TOLERANCE,
            Self::PingDue(due) => due + HEARTBEAT_LOST <= now,
        }
    }
}

impl Session {
    /// Pings at each interval after the last pong, and ends the session when a pong is late. Also
    /// runs during an upgrade, so that a client that abandons the upgrade times out.
    pub(super) async fn run_heartbeat(&self) {
        loop {
            let deadline = self.state().heartbeat.deadline();
            let moved = self.wait_for(Side::Application, |state| {
                (state.end.is_some() || state.heartbeat.deadline() != deadline).then_some(())
            });
            tokio::select! {
                biased;
                () = moved => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
            let mut state = self.state();
            if state.end.is_some() {
                return;
            }
            if state.heartbeat.deadline() > Instant::now() {
                // A pong has just arrived.
                continue;
            }
            match state.heartbeat {
                Heartbeat::PingDue(due) => {
                    state.heartbeat = Heartbeat::PongDue(due + self.config.ping_timeout);
                    // Not through `send`: a ping must go out even when the queue is full.
                    state.push(Packet::Ping(ByteString::new()));
                    state.flush_queue();
                }
                Heartbeat::PongDue(_) => {
                    drop(state);
                    self.end(CloseReason::PingTimeout, None);
                    return;
                }
            }
        }
    }
}
