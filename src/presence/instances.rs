//! Which instances live, as one of them sees it.
//!
//! Only the clock of the observer counts, not the times in the heartbeats: an instance is dead when
//! its heartbeat stays the same. If the observer itself could not look for a while, because it was
//! stopped or MongoDB was away, it begins to count anew. The others may have been in the same
//! situation.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::DateTime;
use bson::oid::ObjectId;
use tokio::time::Instant;

use super::{BEAT, DEAD_AFTER};

/// After a longer pause between two looks, the observer begins anew.
const LONGEST_GAP: Duration = BEAT.saturating_mul(2);

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
    since: Instant,
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
        let is_anew = self.looked.is_none_or(|looked| now > looked + LONGEST_GAP);
        self.looked = Some(now);
        let all: HashSet<_> = beats.keys().copied().chain(in_rows).collect();
        self.known.retain(|instance, _| all.contains(instance));
        for instance in all.into_iter().filter(|instance| *instance != self.observer) {
            let beat = beats.get(&instance).copied();
            let known = self.known.entry(instance).or_insert(Known { beat, since: now });
            if is_anew || known.beat != beat {
                *known = Known { beat, since: now };
            }
        }
    }

    /// How many other instances write heartbeats.
    pub fn living(&self) -> usize {
        let now = self.looked.unwrap_or_else(Instant::now);
        let lives = |known: &&Known| known.beat.is_some() && !known.is_dead(now);
        self.known.values().filter(lives).count()
    }

    /// The instances that are dead, each with its last heartbeat.
    pub fn dead(&self, now: Instant) -> Vec<(ObjectId, Option<DateTime>)> {
        let dead = self.known.iter().filter(|(_, known)| known.is_dead(now));
        dead.map(|(instance, known)| (*instance, known.beat)).collect()
    }
}

impl Known {
    fn is_dead(&self, now: Instant) -> bool {
        now >= self.since + DEAD_AFTER
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
            !self.instances.dead(now).is_empty()
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
    fn who_could_not_look_begins_anew() {
        let mut scene = Scene::new();
        scene.see(0, Some(1));
        assert!(!scene.see(60, Some(1)));
        assert!(!scene.see(65, Some(1)));
        assert!(!scene.see(70, Some(1)));
        assert!(scene.see(75, Some(1)));
    }

    #[test]
    fn rows_without_a_heartbeat_are_of_a_dead_instance() {
        let mut scene = Scene::new();
        assert!(![0, 5, 10].iter().any(|at| scene.see(*at, None)));
        assert_eq!(scene.instances.living(), 0);
        assert!(scene.see(15, None));
    }
}
