//! The faults: what is broken, for how long, and how it is mended.
//!
//! There are two lanes. One breaks nodes of MongoDB, one after another, so that a majority is
//! always up; the other breaks instances and the network. The lanes do not know of each other, so
//! faults of both overlap as they happen to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::cluster::Instances;
use crate::proxy::Link;
use crate::random::Random;
use crate::replica_set::ReplicaSet;

/// What was done, and when the primary went away.
#[derive(Debug, Default)]
pub struct Story {
    begun: Mutex<Option<Instant>>,
    primaries: Mutex<Vec<Instant>>,
    count: Mutex<usize>,
    kills: watch::Sender<usize>,
}

impl Story {
    /// A story that begins now.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self { begun: Mutex::new(Some(Instant::now())), ..Self::default() })
    }

    /// When writes became impossible, each time.
    pub fn primaries(&self) -> Vec<Instant> {
        self.primaries.lock().unwrap().clone()
    }

    /// How many faults there were.
    pub fn count(&self) -> usize {
        *self.count.lock().unwrap()
    }

    /// How many instances were killed, as it changes.
    pub fn kills(&self) -> watch::Receiver<usize> {
        self.kills.subscribe()
    }

    fn tell(&self, what: &str) {
        let begun = self.begun.lock().unwrap().unwrap_or_else(Instant::now);
        println!("{:7.1} s  {what}", begun.elapsed().as_secs_f64());
        *self.count.lock().unwrap() += 1;
    }

    fn primary_is_gone(&self) {
        self.primaries.lock().unwrap().push(Instant::now());
    }
}

/// Breaks nodes until `end`, and leaves all of them serving.
pub async fn break_nodes(
    mut mongo: ReplicaSet,
    mut random: Random,
    story: Arc<Story>,
    end: Instant,
) -> ReplicaSet {
    #[derive(Clone, Copy)]
    enum Fault {
        Kill,
        Pause,
        Restart,
    }
    use Fault::{Kill, Pause, Restart};

    sleep(random.millis(1_000..4_000)).await;
    while Instant::now() < end {
        let primary = mongo.primary().await;
        // The primary more often: that is what hurts.
        let is_primary = random.below(3) > 0;
        let others = mongo.ports().len() - 1;
        let node = if is_primary { primary } else { (primary + random.within(1..others + 1)) % 3 };
        let role = if is_primary { "primary" } else { "secondary" };
        let down = random.millis(2_000..15_000);
        let seconds = down.as_secs_f64();
        match *random.of(&[Kill, Pause, Restart]) {
            Kill => {
                story.tell(&format!("kill the {role}, node {node}, for {seconds:.1} s"));
                mongo.kill(node).await;
                note(&story, is_primary);
                sleep(down).await;
                mongo.restart(node).await;
            }
            Pause => {
                story.tell(&format!("pause the {role}, node {node}, for {seconds:.1} s"));
                mongo.pause(node);
                // It may be back before the others have chosen another.
                if down > Duration::from_secs(10) {
                    note(&story, is_primary);
                }
                sleep(down).await;
                mongo.resume(node);
            }
            Restart => {
                story.tell(&format!("restart the {role}, node {node}"));
                mongo.stop_node(node).await;
                mongo.restart(node).await;
            }
        }
        mongo.whole().await;
        sleep(random.millis(1_000..5_000)).await;
    }
    mongo
}

fn note(story: &Story, is_primary: bool) {
    if is_primary {
        story.primary_is_gone();
    }
}

/// Breaks instances and the network until `end`, and leaves all of it working; answers how many
/// instances did not end as they should when they were asked to.
pub async fn break_instances(
    mut instances: Instances,
    mut random: Random,
    story: Arc<Story>,
    end: Instant,
) -> (Instances, usize) {
    #[derive(Clone, Copy)]
    enum Fault {
        Kill,
        Pause,
        Terminate,
        Back(Link),
        Front(Link),
    }
    use Fault::{Back, Front, Kill, Pause, Terminate};
    const ALL: [Fault; 7] = [
        Kill,
        Pause,
        Terminate,
        Back(Link::Stalls),
        Back(Link::Cut),
        Front(Link::Stalls),
        Front(Link::Cut),
    ];

    let mut bad_ends = 0;
    // The first one is always a kill, so that a short run has one, too.
    let mut next = Some(Kill);
    sleep(random.millis(1_000..3_000)).await;
    while Instant::now() < end {
        let number = random.below(instances.count());
        let any = *random.of(&ALL);
        let fault = next.take().unwrap_or(any);
        let down = random.millis(500..12_000);
        let seconds = down.as_secs_f64();
        let instance = instances.get_mut(number);
        match fault {
            Kill => {
                story.tell(&format!("kill instance {number} for {seconds:.1} s"));
                instance.kill();
                story.kills.send_modify(|kills| *kills += 1);
                sleep(down).await;
                instance.run().await;
            }
            Pause => {
                story.tell(&format!("pause instance {number} for {seconds:.1} s"));
                instance.pause();
                sleep(down).await;
                instance.resume();
            }
            Terminate => {
                story.tell(&format!("stop instance {number} and start it again"));
                bad_ends += usize::from(!instance.terminate().await);
                instance.run().await;
            }
            Back(link) => {
                let what = verb(link);
                story.tell(&format!("{what} instance {number} from MongoDB for {seconds:.1} s"));
                instance.set_back(link);
                sleep(down).await;
                instance.set_back(Link::Flows);
            }
            Front(link) => {
                let what = verb(link);
                story
                    .tell(&format!("{what} instance {number} from its clients for {seconds:.1} s"));
                instance.front.set(link);
                sleep(down).await;
                instance.front.set(Link::Flows);
            }
        }
        sleep(random.millis(500..4_000)).await;
    }
    (instances, bad_ends)
}

fn verb(link: Link) -> &'static str {
    match link {
        Link::Cut => "cut",
        Link::Stalls | Link::Flows => "stall",
    }
}
