//! Which instances live, as one of them sees it.
//!
//! Only the clock of the observer counts, not the times in the heartbeats: an instance is dead when
//! its heartbeat stays the same. A time in which the observer itself could not look, because it was
//! stopped or MongoDB was away, does not count: the others may have been in the same situation. It
//! does not begin to count anew either, or an instance would not be dead as long as MongoDB fails
//! now and then. At least every second look must succeed for that.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::DateTime;
use bson::oid::ObjectId;
use tokio::time::Instant;

use super::{BEAT, DEAD_AFTER, TIMEOUT};

/// The longest time between two looks that counts: one look may fail.
const LONGEST_GAP: Duration = BEAT.saturating_add(TIMEOUT).saturating_add(Duration::from_secs(2));

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Instances {
    observer: ObjectId,
    known: HashMap<ObjectId, Known>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    /// `None` for an instance that has rows and no heartbeat.
    beat: Option<DateTime>,
    /// How long it has been the same, as far as the observer could look.
    unchanged: Duration,
}

impl Instances {
    pub fn new(observer: ObjectId) -> Self {
        Self { observer, known: HashMap::new(), looked: None }
    }

    /// Looks at the heartbeats, and at the instances that have rows.
    pub fn see(
        &mut self,
        beats: HashMap<ObjectId, DateTime>,
        in_rows: HashSet<ObjectId>,
        now: Instant,
    ) {
        let gap =
            self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        let passed = if gap <= LONGEST_GAP { gap.min(BEAT) } else { Duration::ZERO };
        self.looked = Some(now);
        let all: HashSet<_> = beats.keys().copied().chain(in_rows).collect();
        self.known.retain(|instance, _| all.contains(instance));
        for instance in all.into_iter().filter(|instance| *instance != self.observer) {
            let beat = beats.get(&instance).copied();
            match self.known.get_mut(&instance) {
                Some(known) if known.beat == beat => known.unchanged += passed,
                _ => _ = self.known.insert(instance, Known { beat, unchanged: Duration::ZERO }),
            }
        }
    }

    /// How many other instances write heartbeats.
    pub fn living(&self) -> usize {
        let lives = |known: &&Known| known.beat.is_some() && !known.is_dead();
        self.known.values().filter(lives).count()
    }

    /// The instances that are dead, each with its last heartbeat.
    pub fn dead(&self) -> Vec<(ObjectId, Option<DateTime>)> {
        let dead = self.known.iter().filter(|(_, known)| known.is_dead());
        dead.map(|(instance, known)| (*instance, known.beat)).collect()
    }
}

impl Known {
    fn is_dead(&self) -> bool {
        self.unchanged >= DEAD_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        instances: Instances,
        other: ObjectId,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let instances = Instances::new(ObjectId::new());
            Self { instances, other: ObjectId::new(), start: Instant::now() }
        }

        /// Sees a heartbeat of the other instance, and returns whether that is dead.
        fn see(&mut self, second: u64, beat: Option<i64>) -> bool {
            let now = self.start + Duration::from_secs(second);
            let beats = beat.map(|beat| (self.other, DateTime::from_millis(beat)));
            let own = (self.instances.observer, DateTime::from_millis(second as i64));
            let beats = beats.into_iter().chain([own]).collect();
            self.instances.see(beats, HashSet::from([self.other]), now);
            !self.instances.dead().is_empty()
        }
    }

    #[test]
    fn an_instance_that_does_not_beat_is_dead() {
        let mut scene = Scene::new();
        let dead = [(0, 1), (5, 2), (10, 2), (15, 2)].map(|(at, beat)| scene.see(at, Some(beat)));
        assert_eq!(dead, [false; 4]);
        assert_eq!(scene.instances.living(), 1);
        assert!(scene.see(20, Some(2)));
        assert_eq!(scene.instances.living(), 0);
        assert!(!scene.see(25, Some(3)), "it lives after all");
    }

    #[test]
    fn clocks_that_differ_do_not_matter() {
        let mut scene = Scene::new();
        let dead =
            [(0, 100), (5, 50), (10, 1), (15, 900)].map(|(at, beat)| scene.see(at, Some(beat)));
        assert_eq!(dead, [false; 4]);
    }

    #[test]
    fn a_time_without_a_look_does_not_count() {
        let mut scene = Scene::new();
        scene.see(0, Some(1));
        for second in [60, 65, 70] {
            assert!(!scene.see(second, Some(1)));
        }
        assert!(scene.see(75, Some(1)));
    }

    #[test]
    fn an_instance_is_dead_although_mongodb_fails_again_and_again() {
        let mut scene = Scene::new();
        for second in [0, 5, 20, 25, 40] {
            assert!(!scene.see(second, Some(1)));
        }
        assert!(scene.see(45, Some(1)));
        let mut scene = Scene::new();
        // Every second look fails.
        for second in [0, 11, 22] {
            assert!(!scene.see(second, Some(1)));
        }
        assert!(scene.see(33, Some(1)));
    }

    #[test]
    fn who_beats_as_soon_as_mongodb_is_back_lives() {
        let mut scene = Scene::new();
        let mut beat = 1;
        for outage in (0..600).step_by(30) {
            assert!(!scene.see(outage, Some(beat)));
            assert!(!scene.see(outage + 5, Some(beat)), "its last beat was just before the outage");
            assert!(!scene.see(outage + 20, Some(beat)));
            beat += 1;
            assert!(!scene.see(outage + 25, Some(beat)), "{outage}");
        }
    }

    #[test]
    fn rows_without_a_heartbeat_are_of_a_dead_instance() {
        let mut scene = Scene::new();
        assert!(![0, 5, 10].iter().any(|at| scene.see(*at, None)));
        assert_eq!(scene.instances.living(), 0);
        assert!(scene.see(15, None));
    }
}
