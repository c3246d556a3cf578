//! What is refused again and again: counted each time, and said in the log once a minute.
//!
//! One client that cannot connect tries for ever, and a thousand do so at once. The operator has to
//! learn of each kind, and of how many there are, without reading a line for each.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::credentials::TokenRefused;

/// How often one kind is said at most.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// The longest text of a client that a line of the log quotes, in characters.
const QUOTED: usize = 100;

/// Refusals of one kind.
#[derive(Debug, Default)]
pub struct Tally {
    count: AtomicU64,
    said: Mutex<Option<Said>>,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    at: Instant,
    /// How many there were then.
    count: u64,
}

impl Tally {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts one more, and says so unless it was said within the last minute.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(new) = self.count_at(Instant::now()) {
            let what = what();
            match new {
                1 => log::warn!("{what}"),
                new => log::warn!("{what} ({new} times since this was said last)"),
            }
        }
    }

    /// Counts one more; when it is to be said, how many there were since the last time.
    fn count_at(&self, now: Instant) -> Option<u64> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match *said {
            Some(before) if now.saturating_duration_since(before.at) < SAY_EVERY => return None,
            before => before.map_or(0, |before| before.count),
        };
        *said = Some(Said { at: now, count });
        Some(count.saturating_sub(before).max(1))
    }
}

/// Sockets that are refused for what they are; those that are too many are counted by the
/// [limits](crate::limits).
#[derive(Debug, Default)]
pub struct Refusals {
    protocol: Tally,
    origin: Tally,
    token_missing: Tally,
    token_invalid: Tally,
    token_expired: Tally,
    token_passed_over: Tally,
}

impl Refusals {
    /// A client speaks a revision of Engine.IO that is not served.
    pub fn note_protocol(&self) {
        self.protocol.note(|| {
            "A client of another revision of Engine.IO than 4 was refused: socket.io-client 2 and \
             older need an update to version 3 or 4"
                .to_owned()
        });
    }

    /// A page of an origin that is not in `CORS_ORIGINS`.
    pub fn note_origin(&self, origin: &[u8]) {
        self.origin.note(|| {
            let origin = String::from_utf8_lossy(origin);
            let origin: String = origin.chars().take(QUOTED).collect();
            format!("A page of the origin {origin:?} was refused, which is not in CORS_ORIGINS")
        });
    }

    /// A socket without a valid token.
    pub fn note_token(&self, refused: &TokenRefused) {
        match refused {
            TokenRefused::Missing(_) => self.token_missing.note(|| {
                "A socket without a token was refused. Its front end needs \
                 `auth: (send) => send({ token })` in its io() call; LEGACY_TRUST=true lets it in \
                 as the Node server did"
                    .to_owned()
            }),
            TokenRefused::Invalid(..) => {
                let is_over = refused.is_expired();
                let tally = if is_over { &self.token_expired } else { &self.token_invalid };
                tally.note(|| format!("A socket was refused because of its token: {refused}"));
            }
        }
    }

    /// A socket whose token counts as none, because of `LEGACY_TRUST`.
    pub fn note_passed_over(&self, refused: &TokenRefused) {
        if !refused.is_absent() {
            self.token_passed_over
                .note(|| format!("LEGACY_TRUST let a socket in as if it had no token: {refused}"));
        }
    }

    /// How many sockets were refused, by the reason.
    pub fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("protocol_version", self.protocol.count()),
            ("origin", self.origin.count()),
            ("token_missing", self.token_missing.count()),
            ("token_invalid", self.token_invalid.count()),
            ("token_expired", self.token_expired.count()),
        ]
    }
}

/// A line for a limit that was reached, which `setting` sets.
pub fn limit_reached(setting: &str, most: impl Display, what: &str) -> String {
    format!("{setting}={most} was reached: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_said_once_a_minute_with_the_number() {
        let (tally, now) = (Tally::default(), Instant::now());
        let said: Vec<_> = (0..100).filter_map(|_| tally.count_at(now)).collect();
        assert_eq!(said, [1]);
        assert_eq!(tally.count_at(now + SAY_EVERY / 2), None);
        assert_eq!(tally.count_at(now + SAY_EVERY), Some(101));
        assert_eq!(tally.count_at(now + SAY_EVERY), None);
        assert_eq!(tally.count_at(now + SAY_EVERY * 2), Some(2));
        assert_eq!(tally.count(), 104);
    }
}
