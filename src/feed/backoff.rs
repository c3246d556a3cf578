//! Exponential backoff.

use std::time::Duration;

use tokio::time::sleep;

/// Pauses between failed attempts. Each is twice as long as the one before, up to a maximum, with
/// jitter so that the instances do not retry at the same moment.
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(5);

    pub(super) async fn pause(&mut self) {
        // Without entropy, pause without jitter.
        let jitter = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        sleep(self.0.mul_f64(0.5 + jitter / 2.0)).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}
