//! Counters of refused sockets, which are logged at most once a minute.
//!
//! A client that cannot connect tries again for ever, and a thousand of them may do so at the same
//! time. The operator must see each kind of refusal and its number, without one line for each.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::credentials::TokenRefused;

/// The minimum time between two log lines of one kind.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How many characters of a client's text a log line quotes at most.
const MAX_QUOTED: usize = 100;

/// A counter of one kind of refusal.
#[derive(Debug, Default)]
pub struct Tally {
    count: AtomicU64,
    logged: Mutex<Option<LastLine>>,
}

#[derive(Debug, Clone, Copy)]
struct LastLine {
    at: Instant,
    /// The count at that time.
    count: u64,
}

impl Tally {
    /// The count.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts one more, and logs it unless one was logged within the last minute.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if let Some(new) = self.count_at(Instant::now()) {
            let what = what();
            match new {
                1 => log::warn!("{what}"),
                new => log::warn!("{what} ({new} times since the last such line)"),
            }
        }
    }

    /// Counts one more. If it must be logged, returns how many there were since the last log line.
    fn count_at(&self, now: Instant) -> Option<u64> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match *logged {
            Some(before) if now.saturating_duration_since(before.at) < LOG_INTERVAL => return None,
            before => before.map_or(0, |before| before.count),
        };
        *logged = Some(LastLine { at: now, count });
        Some(count.saturating_sub(before).max(1))
    }
}

/// Sockets that are refused for another reason than a limit. The [limits](crate::limits) count the
/// others.
#[derive(Debug, Default)]
pub struct Refusals {
    protocol: Tally,
    origin: Tally,
    token_missing: Tally,
    token_invalid: Tally,
    token_expired: Tally,
    token_revoked: Tally,
    token_ignored: Tally,
}

impl Refusals {
    /// Counts a client with an unsupported revision of Engine.IO.
    pub fn note_protocol(&self) {
        self.protocol.note(|| {
            "A client with another revision of Engine.IO than 4 was refused: update socket.io-client \
             2 and older to version 3 or 4"
                .to_owned()
        });
    }

    /// Counts a page whose origin is not in `CORS_ORIGINS`.
    pub fn note_origin(&self, origin: &[u8]) {
        self.origin.note(|| {
            let origin = String::from_utf8_lossy(origin);
            let origin: String = origin.chars().take(MAX_QUOTED).collect();
            format!("A page was refused, because its origin {origin:?} is not in CORS_ORIGINS")
        });
    }

    /// Counts a socket without a valid token.
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
            TokenRefused::Revoked => {
                let tally = &self.token_revoked;
                tally.note(|| format!("A socket was refused because of its token: {refused}"));
            }
        }
    }

    /// Counts a socket with an invalid token, which `LEGACY_TRUST` admits as one without a token.
    pub fn note_ignored_token(&self, refused: &TokenRefused) {
        if !refused.is_absent() {
            self.token_ignored
                .note(|| format!("LEGACY_TRUST let a socket in as if it had no token: {refused}"));
        }
    }

    /// How many sockets were refused, by reason.
    pub fn counts(&self) -> [(&'static str, u64); 6] {
        [
            ("protocol_version", self.protocol.count()),
            ("origin", self.origin.count()),
            ("token_missing", self.token_missing.count()),
            ("token_invalid", self.token_invalid.count()),
            ("token_expired", self.token_expired.count()),
            ("token_revoked", self.token_revoked.count()),
        ]
    }
}

/// The log line for a reached limit, which the variable `setting` sets.
pub fn limit_reached(setting: &str, most: impl Display, what: &str) -> String {
    format!("{setting}={most} was reached: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_logged_once_a_minute_with_its_number() {
        let (tally, now) = (Tally::default(), Instant::now());
        let logged: Vec<_> = (0..100).filter_map(|_| tally.count_at(now)).collect();
        assert_eq!(logged, [1]);
        assert_eq!(tally.count_at(now + LOG_INTERVAL / 2), None);
        assert_eq!(tally.count_at(now + LOG_INTERVAL), Some(101));
        assert_eq!(tally.count_at(now + LOG_INTERVAL), None);
        assert_eq!(tally.count_at(now + LOG_INTERVAL * 2), Some(2));
        assert_eq!(tally.count(), 104);
    }
}
