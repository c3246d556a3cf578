//! The time of the database, by which tokens are issued and revoked.
//!
//! The clocks of several instances can differ by minutes. A token says when it was issued, and a
//! revocation says from when on tokens are valid again, so both need one clock. It is MongoDB's.
//! The feed asks for it every few seconds. In between, the monotonic clock of this machine counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bson::DateTime;

/// An answer that took longer says too little about the time.
const MOST_DELAY: Duration = Duration::from_secs(1);

/// The time of the database. Until it is known, the time of this machine. Clones share it.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Reading>);

#[derive(Debug)]
struct Reading {
    started: Instant,
    /// The database's time at `started`, in milliseconds since 1970.
    at_start: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at_start = AtomicI64::new(millis(since_1970.unwrap_or_default()));
        Self(Arc::new(Reading { started: Instant::now(), at_start }))
    }
}

impl Clock {
    /// The time in milliseconds since 1970.
    pub fn millis(&self) -> i64 {
        let Reading { started, at_start } = &*self.0;
        at_start.load(Ordering::Relaxed).saturating_add(millis(started.elapsed()))
    }

    /// The time in whole seconds since 1970.
    pub fn seconds(&self) -> u64 {
        u64::try_from(self.millis() / 1000).unwrap_or(0)
    }

    /// Sets the clock to what the database answered to a question between these two moments.
    pub fn set(&self, time: DateTime, asked: Instant, answered: Instant) {
        let delay = answered.saturating_duration_since(asked);
        if delay > MOST_DELAY {
            return;
        }
        let before = answered.saturating_duration_since(self.0.started) - delay / 2;
        let at_start = time.timestamp_millis().saturating_sub(millis(before));
        self.0.at_start.store(at_start, Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_decides_what_time_it_is() {
        let clock = Clock::default();
        let here = DateTime::now().timestamp_millis();
        assert!((clock.millis() - here).abs() < 1_000);
        for ahead in [600_000, -600_000] {
            let now = Instant::now();
            clock.set(DateTime::from_millis(here + ahead), now, now);
            assert!((clock.millis() - here - ahead).abs() < 1_000);
            assert_eq!(clock.seconds() as i64, clock.millis() / 1000);
        }
        let asked = Instant::now();
        clock.set(DateTime::from_millis(0), asked, asked + MOST_DELAY * 2);
        assert!(clock.seconds() > 0, "the answer took too long");
    }
}
