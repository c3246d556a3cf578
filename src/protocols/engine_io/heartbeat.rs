//! The heartbeat of a session: the server pings, the client answers, and a session whose client does
//! not is ended.

use std::time::Duration;

use bytestring::ByteString;
use tokio::time::Instant;

use super::end::CloseReason;
use super::packet::Packet;
use super::session::{Session, Side};

/// Absolute times, so that delays of the timer do not add up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Heartbeat {
    PingDue(Instant),
    PongDue(Instant),
}

/// A request that comes as little as this before the deadline comes at it: timers of clients count
/// whole milliseconds.
const PONG_TOLERANCE: Duration = Duration::from_millis(1);

/// A ping so late that the heartbeat itself is gone. A running one never reaches it.
const HEARTBEAT_LOST: Duration = Duration::from_secs(60);

impl Heartbeat {
    fn deadline(self) -> Instant {
        match self {
            Self::PingDue(at) | Self::PongDue(at) => at,
        }
    }

    /// Whether the session has ended by it, at this time.
    pub(super) fn is_overdue(self, now: Instant) -> bool {
        match self {
            Self::PongDue(due) => due <= now + PONG_TOLERANCE,
            Self::PingDue(due) => due + HEARTBEAT_LOST <= now,
        }
    }
}

impl Session {
    /// Pings at each interval after the last pong and ends the session when one is late. Runs
    /// also while an upgrade is tried, so that none that is abandoned is kept.
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
                // A pong came, maybe in this very moment.
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
