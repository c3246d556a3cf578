//! A histogram of durations with buckets of at most 3 %, for any number of threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets for each power of two.
const STEPS: u64 = 32;
/// Enough for every 64-bit number of nanoseconds.
const BUCKETS: usize = 60 * STEPS as usize;

/// A histogram.
pub struct Histogram(Vec<AtomicU64>);

impl Default for Histogram {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Histogram {
    /// Adds a duration.
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.0.get(bucket(nanos)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Clears the histogram, at the end of the warm-up.
    pub fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Ordering::Relaxed);
        }
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The quantile for `share`, in milliseconds; 0 if the histogram is empty.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, bucket) in self.0.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= wanted.max(1) {
                return upper_bound(index as u64) as f64 / 1e6;
            }
        }
        0.0
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < 2 * STEPS {
        return nanos as usize;
    }
    let shift = u64::from(nanos.ilog2() - STEPS.ilog2());
    (shift * STEPS + (nanos >> shift)) as usize
}

fn upper_bound(bucket: u64) -> u64 {
    if bucket < 2 * STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    (bucket % STEPS + STEPS + 1) << shift
}
