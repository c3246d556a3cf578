//! Pacing: the time between the rounds of a hub.

use std::time::Duration;

use tokio::time::Instant;

/// The pause for each write: five times the cost of a write. So writes take about a fifth of a
/// worker's time. Beyond that, more events go into fewer, larger writes, which cost the server, the
/// network and the clients less than many small ones.
const PAUSE_PER_WRITE: Duration = Duration::from_micros(40);

/// The longest pause, and the burst that causes none: a single message now and then, or a few at
/// once, are dispatched without delay.
pub(super) const MAX_PAUSE: Duration = Duration::from_millis(20);

/// Limits the rate of writes, with a burst (the generic cell rate algorithm, ITU-T I.371).
pub(super) struct Pacer {
    /// When the next write is due if all writes are evenly spaced.
    theoretical_arrival: Instant,
}

impl Pacer {
    /// A pacer without a round so far.
    pub(super) fn new(now: Instant) -> Self {
        Self { theoretical_arrival: now }
    }

    /// The end of the pause after a round with so many writes; `None` if there is no pause.
    pub(super) fn pause_after(&mut self, writes: usize, now: Instant) -> Option<Instant> {
        let writes = u32::try_from(writes).unwrap_or(u32::MAX);
        let cost = PAUSE_PER_WRITE.saturating_mul(writes).min(MAX_PAUSE);
        self.theoretical_arrival =
            (self.theoretical_arrival.max(now) + cost).min(now + MAX_PAUSE * 2);
        let end = self.theoretical_arrival.checked_sub(MAX_PAUSE)?;
        (end > now).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times of rounds with so many writes, if one is due every `gap`.
    fn rounds(writes: usize, gap: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let (mut pacer, mut now) = (Pacer::new(start), start);
        let round = |number| {
            now = now.max(start + gap * number);
            let at = now;
            now = pacer.pause_after(writes, now).unwrap_or(now);
            at - start
        };
        (0..100).map(round).collect()
    }

    #[test]
    fn only_a_stream_of_messages_to_many_is_spaced() {
        let millis = Duration::from_millis;
        // 500 clients on two workers at 50 a second, a burst to few clients, and rounds that are
        // far apart.
        for (writes, gap) in [(250, millis(20)), (5, Duration::ZERO), (100_000, millis(800))] {
            let on_time: Vec<_> = (0..100).map(|number| gap * number).collect();
            assert_eq!(rounds(writes, gap), on_time, "{writes} writes every {gap:?}");
        }
        let spaced = rounds(250, millis(2));
        // 10 ms each, after the burst.
        assert_eq!(spaced.get(..5), Some(&[0, 2, 4, 10, 20].map(millis)[..]));
        assert_eq!(spaced.last(), Some(&millis(970)));
        let longest = rounds(100_000, Duration::ZERO);
        assert_eq!(longest.get(..4), Some(&[0, 0, 20, 40].map(millis)[..]));
    }
}
