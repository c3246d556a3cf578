//! The faults, their duration and their repair.
//!
//! Two tasks run at the same time and independently, so their faults can overlap. One breaks nodes
//! of MongoDB, one after the other, so that a majority is always up. The other one breaks instances
//! and the network.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Instances;
use crate::proxy::Link;
use crate::random::Random;
use crate::replica_set::ReplicaSet;

/// A log of the faults, and the times at which the primary was lost.
#[derive(Debug, Default)]
pub struct FaultLog {
    begun: Mutex<Option<Instant>>,
    primary_losses: Mutex<Vec<Instant>>,
    count: Mutex<usize>,
}

impl FaultLog {
    /// A log that begins now.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self { begun: Mutex::new(Some(Instant::now())), ..Self::default() })
    }

    /// The times at which the primary was lost.
    pub fn primary_losses(&self) -> Vec<Instant> {
        self.primary_losses.lock().unwrap().clone()
    }

    /// The number of faults.
    pub fn count(&self) -> usize {
        *self.count.lock().unwrap()
    }

    fn record(&self, what: &str) {
        let begun = self.begun.lock().unwrap().unwrap_or_else(Instant::now);
        println!("{:7.1} s  {what}", begun.elapsed().as_secs_f64());
        *self.count.lock().unwrap() += 1;
    }

    fn note_primary_loss(&self) {
        self.primary_losses.lock().unwrap().push(Instant::now());
    }
}

/// Breaks nodes until `end`. At the end all of them are up.
pub async fn break_nodes(
    mut mongo: ReplicaSet,
    mut random: Random,
    fault_log: Arc<FaultLog>,
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
        // Break the primary more often, because that has the most effect.
        let is_primary = random.below(3) > 0;
        let others = mongo.ports().len() - 1;
        let node = if is_primary { primary } else { (primary + random.within(1..others + 1)) % 3 };
        let role = if is_primary { "primary" } else { "secondary" };
        let down = random.millis(2_000..15_000);
        let seconds = down.as_secs_f64();
        match *random.of(&[Kill, Pause, Restart]) {
            Kill => {
                fault_log.record(&format!("kill the {role}, node {node}, for {seconds:.1} s"));
                mongo.kill(node).await;
                note(&fault_log, is_primary);
                sleep(down).await;
                mongo.restart(node).await;
            }
            Pause => {
                fault_log.record(&format!("pause the {role}, node {node}, for {seconds:.1} s"));
                mongo.pause(node);
                // After a shorter pause it may still be the primary.
                if down > Duration::from_secs(10) {
                    note(&fault_log, is_primary);
                }
                sleep(down).await;
                mongo.resume(node);
            }
            Restart => {
                fault_log.record(&format!("restart the {role}, node {node}"));
                mongo.stop_node(node).await;
                mongo.restart(node).await;
            }
        }
        mongo.whole().await;
        sleep(random.millis(1_000..5_000)).await;
    }
    mongo
}

fn note(fault_log: &FaultLog, is_primary: bool) {
    if is_primary {
        fault_log.note_primary_loss();
    }
}

/// Breaks instances and the network until `end`. At the end everything is up. Returns how many
/// instances did not end successfully after SIGTERM.
pub async fn break_instances(
    mut instances: Instances,
    mut random: Random,
    fault_log: Arc<FaultLog>,
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
        Back(Link::Stalled),
        Back(Link::Cut),
        Front(Link::Stalled),
        Front(Link::Cut),
    ];

    let mut failed_stops = 0;
    sleep(random.millis(1_000..3_000)).await;
    while Instant::now() < end {
        let number = random.below(instances.count());
        let fault = *random.of(&ALL);
        let down = random.millis(500..12_000);
        let seconds = down.as_secs_f64();
        let instance = instances.get_mut(number);
        match fault {
            Kill => {
                fault_log.record(&format!("kill instance {number} for {seconds:.1} s"));
                instance.kill();
                sleep(down).await;
                instance.run().await;
            }
            Pause => {
                fault_log.record(&format!("pause instance {number} for {seconds:.1} s"));
                instance.pause();
                sleep(down).await;
                instance.resume();
            }
            Terminate => {
                fault_log.record(&format!("stop instance {number} and start it again"));
                failed_stops += usize::from(!instance.terminate().await);
                instance.run().await;
            }
            Back(link) => {
                let what = verb(link);
                fault_log
                    .record(&format!("{what} instance {number} from MongoDB for {seconds:.1} s"));
                instance.set_mongo_link(link);
                sleep(down).await;
                instance.set_mongo_link(Link::Up);
            }
            Front(link) => {
                let what = verb(link);
                fault_log.record(&format!(
                    "{what} instance {number} from its clients for {seconds:.1} s"
                ));
                instance.client_proxy.set(link);
                sleep(down).await;
                instance.client_proxy.set(Link::Up);
            }
        }
        sleep(random.millis(500..4_000)).await;
    }
    (instances, failed_stops)
}

fn verb(link: Link) -> &'static str {
    match link {
        Link::Cut => "cut",
        Link::Stalled | Link::Up => "stall",
    }
}
