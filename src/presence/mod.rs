//! Who is online, on all instances.
//!
//! A user is online while a row says that a session of the user is connected to an instance. An
//! instance writes the rows of its users in batches, and removes a row only some time after the
//! last session has ended, so that a reload of a page is not noticed. The change stream brings the
//! rows of all instances to each of them.
//!
//! Each instance writes a heartbeat. One whose heartbeat has not changed for [`DEAD_AFTER`] by the
//! clock of the observer is dead, and everybody removes its rows. If it lives after all, it was
//! stopped or cut off for a while: it hears of the removal and writes its rows again.

mod instances;
mod sessions;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bson::DateTime;
use bson::oid::ObjectId;
use futures::future::join;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::feed::{Feed, Phase, PresenceChange};
use crate::hub::signals::{Origin, Signal, Signals};
use crate::models::presence::PresenceRow;
use crate::models::{Presence as Rows, StoreError, UserId};

use instances::Instances;
use sessions::Sessions;

/// How long a user stays online after the last session has ended.
pub const LINGER: Duration = Duration::from_secs(15);

/// The time between two heartbeats.
const BEAT: Duration = Duration::from_secs(5);

/// An instance whose heartbeat has not changed for so long is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);

/// The time between two batches of rows.
const TICK: Duration = Duration::from_millis(250);

/// How many rows are written or removed at once.
const BATCH: usize = 1_000;

/// How long the database may take for one step.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// See the [module](self).
pub struct Presence {
    is_on: bool,
    instance: ObjectId,
    store: Rows,
    feed: Arc<Feed>,
    signals: Signals,
    sessions: Mutex<Sessions>,
    rows: Mutex<RowsByUser>,
    others: watch::Sender<usize>,
}

/// The instances that each user is connected to.
type RowsByUser = HashMap<UserId, HashSet<ObjectId>>;

impl Presence {
    /// That of an instance. When it is off, only the heartbeats are written.
    pub fn new(
        is_on: bool,
        instance: ObjectId,
        store: Rows,
        feed: Arc<Feed>,
        signals: Signals,
    ) -> Self {
        Self {
            is_on,
            instance,
            store,
            feed,
            signals,
            sessions: Mutex::default(),
            rows: Mutex::default(),
            others: watch::Sender::new(0),
        }
    }

    /// Whether it can be asked who is online (`PRESENCE`).
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// How many other instances live.
    pub fn others(&self) -> watch::Receiver<usize> {
        self.others.subscribe()
    }

    /// A session of a user has begun.
    pub fn enter(&self, user: UserId) {
        if self.is_on {
            self.sessions().enter(user);
        }
    }

    /// A session of a user has ended.
    pub fn leave(&self, user: UserId) {
        if self.is_on {
            self.sessions().leave(user, Instant::now(), DateTime::now());
        }
    }

    /// How many users are online.
    pub fn count(&self) -> usize {
        self.signals.online().count()
    }

    /// Those of these users who are online.
    pub fn online(&self, users: &[UserId]) -> Vec<UserId> {
        self.signals.online().of(users)
    }

    /// When these users were last online, where that is known.
    ///
    /// # Errors
    /// The database failed.
    pub async fn last_seen(
        &self,
        users: &[UserId],
    ) -> Result<HashMap<UserId, DateTime>, StoreError> {
        match self.store.seen(users).await {
            Err(StoreError::Off(_)) => Ok(HashMap::new()),
            seen => seen,
        }
    }

    /// Writes heartbeats and rows, and follows those of all instances, for ever. Spawn it once,
    /// before the feed runs.
    pub async fn run(self: Arc<Self>, changes: broadcast::Receiver<PresenceChange>) {
        let rows = async {
            if self.is_on {
                self.keep_rows(changes).await;
            }
        };
        join(self.keep_alive(), rows).await;
    }

    /// Writes heartbeats, and removes the rows of instances that do not.
    async fn keep_alive(&self) {
        let mut instances = Instances::new(self.instance);
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            match timeout(TIMEOUT, self.beat(&mut instances)).await {
                Ok(Ok(())) => {}
                Ok(Err(StoreError::Off(_))) => {
                    self.others.send_replace(0);
                }
                Ok(Err(error)) => log::debug!("The heartbeat is not written: {error}"),
                Err(_) => log::debug!("The heartbeat was not written in time"),
            }
        }
    }

    async fn beat(&self, instances: &mut Instances) -> Result<(), StoreError> {
        self.store.beat(self.instance).await?;
        let beats = self.store.beats().await?;
        let in_rows: HashSet<_> = self.rows().values().flatten().copied().collect();
        instances.see(beats, in_rows, Instant::now());
        let living = instances.living();
        self.others.send_if_modified(|others| std::mem::replace(others, living) != living);
        for (instance, last_beat) in instances.dead() {
            log::info!("The instance {instance} is gone, its users are connected to it no more");
            if let Some(at) = last_beat {
                let seen: Vec<_> =
                    self.only_on(instance).into_iter().map(|user| (user, at)).collect();
                for seen in seen.chunks(BATCH) {
                    self.set_seen(seen).await?;
                }
            }
            self.store.bury(instance, last_beat).await?;
            if self.is_local() {
                self.change_rows(|rows| {
                    for on in rows.values_mut() {
                        on.remove(&instance);
                    }
                })
                .await;
            }
        }
        Ok(())
    }

    /// The users who are connected to this instance alone.
    fn only_on(&self, instance: ObjectId) -> Vec<UserId> {
        let rows = self.rows();
        let only = rows.iter().filter(|(_, on)| on.len() == 1 && on.contains(&instance));
        only.map(|(user, _)| *user).collect()
    }

    /// Writes the rows of this instance and reads those of all.
    async fn keep_rows(&self, mut changes: broadcast::Receiver<PresenceChange>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(PresenceChange::Lost) | Err(RecvError::Lagged(_)) => self.read_rows().await,
                    Ok(change) => {
                        let mut batch = vec![change];
                        let mut is_lost = false;
                        while batch.len() < BATCH && let Ok(change) = changes.try_recv() {
                            is_lost |= matches!(change, PresenceChange::Lost);
                            batch.push(change);
                        }
                        if is_lost {
                            self.read_rows().await;
                        } else {
                            self.apply(batch).await;
                        }
                    }
                    Err(RecvError::Closed) => return,
                },
                _ = ticks.tick() => {
                    if let Err(error) = self.write_rows().await {
                        log::debug!("It is not written yet who is online here: {error}");
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Reads all rows, because changes of them were missed.
    async fn read_rows(&self) {
        let rows = loop {
            match timeout(TIMEOUT, self.store.rows()).await {
                Ok(Ok(rows)) => break rows,
                Ok(Err(StoreError::Off(_))) => break Vec::new(),
                Ok(Err(error)) => log::debug!("It cannot be read who is online: {error}"),
                Err(_) => {}
            }
            sleep(PAUSE).await;
        };
        let mut read = RowsByUser::new();
        // Without the change stream, the users of this instance alone are known.
        let is_known = |row: &PresenceRow| !self.is_local() || row.instance == self.instance;
        for row in rows.into_iter().filter(is_known) {
            read.entry(row.user).or_default().insert(row.instance);
        }
        let is_here = |user| read.get(&user).is_some_and(|on| on.contains(&self.instance));
        self.sessions().rewrite_unless(is_here);
        self.change_rows(|rows| {
            // Those who are gone stay without an instance, until it is seen that they are offline.
            rows.values_mut().for_each(HashSet::clear);
            for (user, on) in read {
                rows.insert(user, on);
            }
        })
        .await;
    }

    async fn apply(&self, changes: Vec<PresenceChange>) {
        for change in &changes {
            if let PresenceChange::Removed(row) = change
                && row.instance == self.instance
            {
                self.sessions().removed(row.user);
            }
        }
        self.change_rows(|rows| {
            for change in changes {
                match change {
                    PresenceChange::Added(row) => {
                        rows.entry(row.user).or_default().insert(row.instance);
                    }
                    PresenceChange::Removed(row) => {
                        if let Some(on) = rows.get_mut(&row.user) {
                            on.remove(&row.instance);
                        }
                    }
                    PresenceChange::Lost => {}
                }
            }
        })
        .await;
    }

    /// Changes the rows, and tells who came and who went.
    async fn change_rows(&self, change: impl FnOnce(&mut RowsByUser)) {
        let mut gone = Vec::new();
        {
            let mut rows = self.rows();
            change(&mut rows);
            rows.retain(|&user, on| {
                let is_online = !on.is_empty();
                if self.signals.online().set(user, is_online) {
                    if is_online {
                        self.signals.send(Origin::Here, Signal::Online(user));
                    } else {
                        gone.push(user);
                    }
                }
                is_online
            });
        }
        for users in gone.chunks(BATCH) {
            let seen = timeout(TIMEOUT, self.last_seen(users)).await;
            let seen = seen.ok().and_then(Result::ok).unwrap_or_default();
            for &user in users {
                let last_seen = seen.get(&user).copied();
                // He may have come back in the meantime, which was told then.
                if !self.signals.online().contains(user) {
                    self.signals.send(Origin::Here, Signal::Offline { user, last_seen });
                }
            }
        }
    }

    /// Writes the rows of users who have come, and removes those of users who have gone.
    async fn write_rows(&self) -> Result<(), StoreError> {
        let row = |user| PresenceRow { instance: self.instance, user };
        let come = self.sessions().take_come(BATCH);
        if !come.is_empty() {
            let rows: Vec<_> = come.iter().copied().map(row).collect();
            if let Err(error) = in_time(self.store.add(&rows)).await {
                self.sessions().put_back_come(come);
                return off_is_done(error);
            }
            self.apply_here(rows.into_iter().map(PresenceChange::Added).collect()).await;
        }
        let gone = self.sessions().take_gone(BATCH, Instant::now());
        if !gone.is_empty() {
            if let Err(error) = self.remove_rows(&gone).await {
                self.sessions().put_back_gone(gone, Instant::now());
                return off_is_done(error);
            }
            let rows = gone.into_iter().map(|(user, _)| PresenceChange::Removed(row(user)));
            self.apply_here(rows.collect()).await;
        }
        Ok(())
    }

    async fn remove_rows(&self, gone: &[(UserId, DateTime)]) -> Result<(), StoreError> {
        let elsewhere = |user: &UserId| {
            let rows = self.rows();
            rows.get(user).is_some_and(|on| on.iter().any(|instance| *instance != self.instance))
        };
        let seen: Vec<_> = gone.iter().copied().filter(|(user, _)| !elsewhere(user)).collect();
        // First, so that whoever hears of the removal finds it.
        in_time(self.set_seen(&seen)).await?;
        let rows: Vec<_> =
            gone.iter().map(|&(user, _)| PresenceRow { instance: self.instance, user }).collect();
        in_time(self.store.remove(&rows)).await
    }

    async fn set_seen(&self, seen: &[(UserId, DateTime)]) -> Result<(), StoreError> {
        match self.store.set_seen(seen).await {
            Err(StoreError::Off(_)) => Ok(()),
            result => result,
        }
    }

    /// Applies changes of this instance where the change stream does not bring them.
    async fn apply_here(&self, changes: Vec<PresenceChange>) {
        if self.is_local() {
            self.apply(changes).await;
        }
    }

    /// Whether the change stream brings no rows.
    fn is_local(&self) -> bool {
        self.feed.phase() == Phase::Local || !self.feed.knows_members()
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows(&self) -> MutexGuard<'_, RowsByUser> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a step of the database, for [`TIMEOUT`] at most.
async fn in_time(step: impl Future<Output = Result<(), StoreError>>) -> Result<(), StoreError> {
    let late =
        || StoreError::Unavailable(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    timeout(TIMEOUT, step).await.unwrap_or_else(|_| Err(late()))
}

/// An own collection that cannot be used is not a failure that is worth a pause.
fn off_is_done(error: StoreError) -> Result<(), StoreError> {
    match error {
        StoreError::Off(_) => Ok(()),
        error => Err(error),
    }
}
