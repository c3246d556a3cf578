//! Signals between instances: who types, and who has joined a room.
//!
//! An instance sends the signals of its sessions in bundles, at most ten a second, and only while
//! another instance lives. A bundle is not waited for by a request, not sent again, and dropped
//! when MongoDB is slow. Each instance follows the bundles of the others, with a pause after each
//! reply, so that many instances do not make MongoDB answer each of them for each bundle.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bson::oid::ObjectId;
use futures::future::join;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::hub::signals::{Origin, Signal, Signals};
use crate::models::signals::Bundled;
use crate::models::{RoomId, SignalBundles, UserId};

/// The time between two bundles, and between two looks for those of others.
const TICK: Duration = Duration::from_millis(100);

/// How many signals a bundle has at most; more are dropped.
const MAX_BUNDLED: usize = 2_000;

/// How long MongoDB may take to store a bundle.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest silence of a cursor, which answers each second.
const SILENCE: Duration = Duration::from_secs(10);

/// The pause before a cursor is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// How long other instances have to say who has joined a room.
const ANSWERS: Duration = Duration::from_secs(1);

/// How many users an instance names at most when it is asked who has joined a room.
const MAX_NAMED: usize = 10_000;

/// How many questions may wait for answers.
const MAX_QUESTIONS: usize = 1_000;

/// See the [module](self).
pub struct Exchange {
    bundles: SignalBundles,
    instance: ObjectId,
    signals: Signals,
    /// How many other instances live.
    others: watch::Receiver<usize>,
    /// What is sent with the next bundle besides the signals of sessions.
    outgoing: mpsc::Sender<Bundled>,
    waiting: Mutex<Option<mpsc::Receiver<Bundled>>>,
    questions: Mutex<HashMap<ObjectId, mpsc::Sender<Vec<UserId>>>>,
    stats: ExchangeStats,
}

/// Counters since the start of the process.
#[derive(Debug, Default)]
pub struct ExchangeStats {
    /// Bundles that were stored.
    pub sent: AtomicU64,
    /// Bundles that were not stored, or not in time.
    pub dropped: AtomicU64,
    /// Signals of other instances.
    pub received: AtomicU64,
    /// Times that the cursor had to be opened again.
    pub restarts: AtomicU64,
}

impl Exchange {
    /// The exchange of an instance. `others` is the number of other instances that live.
    pub fn new(
        bundles: SignalBundles,
        instance: ObjectId,
        signals: Signals,
        others: watch::Receiver<usize>,
    ) -> Self {
        let (outgoing, waiting) = mpsc::channel(MAX_QUESTIONS);
        Self {
            bundles,
            instance,
            signals,
            others,
            outgoing,
            waiting: Mutex::new(Some(waiting)),
            questions: Mutex::default(),
            stats: ExchangeStats::default(),
        }
    }

    /// The counters.
    pub fn stats(&self) -> &ExchangeStats {
        &self.stats
    }

    /// Sends and follows, for ever. Spawn it once.
    pub async fn run(self: Arc<Self>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(waiting) = waiting else { return };
        join(self.send_bundles(waiting), self.follow_bundles()).await;
    }

    /// The users who have joined a room, on all instances. An instance that does not answer in time
    /// is left out.
    pub async fn joined(&self, room: RoomId) -> HashSet<UserId> {
        let others = *self.others.borrow();
        if others == 0 {
            return self.signals.joined(room).await;
        }
        let deadline = Instant::now() + ANSWERS;
        let (id, (answer, mut answers)) = (ObjectId::new(), mpsc::channel(others));
        let is_asked = {
            let mut questions = self.questions();
            questions.retain(|_, answer| !answer.is_closed());
            questions.len() < MAX_QUESTIONS && {
                questions.insert(id, answer);
                self.outgoing.try_send(Bundled::Question(id, room)).is_ok()
            }
        };
        let mut users = self.signals.joined(room).await;
        let mut left = if is_asked { others } else { 0 };
        while left > 0
            && let Ok(Some(answer)) = timeout_at(deadline, answers.recv()).await
        {
            users.extend(answer);
            left -= 1;
        }
        self.questions().remove(&id);
        users
    }

    async fn send_bundles(&self, mut waiting: mpsc::Receiver<Bundled>) {
        let mut heard = self.signals.listen();
        let mut last = Instant::now();
        loop {
            let mut bundle = Vec::new();
            tokio::select! {
                signal = heard.recv() => match signal {
                    Ok((origin, signal)) => bundle.extend(bundled(origin, signal)),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                // The sender is a field of `self`.
                Some(other) = waiting.recv() => bundle.push(other),
            }
            if bundle.is_empty() || *self.others.borrow() == 0 {
                continue;
            }
            sleep_until(last + TICK).await;
            last = Instant::now();
            loop {
                match heard.try_recv() {
                    Ok((origin, signal)) => bundle.extend(bundled(origin, signal)),
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            while let Ok(other) = waiting.try_recv() {
                bundle.push(other);
            }
            bundle.truncate(MAX_BUNDLED);
            let sending = self.bundles.send(self.instance, &bundle);
            let counter = match timeout(SEND_TIMEOUT, sending).await {
                Ok(Ok(())) => &self.stats.sent,
                Ok(Err(error)) => {
                    log::debug!("Signals are dropped: {error}");
                    &self.stats.dropped
                }
                Err(_) => &self.stats.dropped,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn follow_bundles(&self) {
        let mut others = self.others.clone();
        loop {
            if others.wait_for(|others| *others > 0).await.is_err() {
                return;
            }
            let alone = async {
                let _ = others.wait_for(|others| *others == 0).await;
            };
            tokio::select! {
                () = alone => {}
                () = self.follow() => {
                    self.stats.restarts.fetch_add(1, Ordering::Relaxed);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Follows the bundles of others until the cursor ends.
    async fn follow(&self) {
        let mut cursor = match timeout(SILENCE, self.bundles.follow(self.instance)).await {
            Ok(Ok(cursor)) => cursor,
            Ok(Err(error)) => {
                log::debug!("The signals of other instances cannot be followed: {error}");
                return;
            }
            Err(_) => return,
        };
        loop {
            match timeout(SILENCE, cursor.next()).await {
                Ok(Some(Ok(signals))) => {
                    self.stats.received.fetch_add(signals.len() as u64, Ordering::Relaxed);
                    signals.into_iter().for_each(|signal| self.hear(signal));
                }
                Ok(Some(Err(error))) => {
                    log::debug!("The signals of other instances are not followed: {error}");
                    return;
                }
                Ok(None) | Err(_) => return,
            }
            sleep(TICK).await;
        }
    }

    fn hear(&self, signal: Bundled) {
        match signal {
            Bundled::Typing(room, user, name) => {
                let name = name.map(Arc::from);
                self.signals.send(Origin::Elsewhere, Signal::Typing { room, user, name });
            }
            Bundled::Stopped(room, user) => {
                self.signals.send(Origin::Elsewhere, Signal::Stopped { room, user });
            }
            Bundled::Question(id, room) => {
                let (signals, outgoing) = (self.signals.clone(), self.outgoing.clone());
                tokio::spawn(async move {
                    let users = signals.joined(room).await.into_iter().take(MAX_NAMED);
                    // When too much waits, the question is not answered.
                    let _ = outgoing.try_send(Bundled::Answer(id, users.collect()));
                });
            }
            Bundled::Answer(id, users) => {
                if let Some(answer) = self.questions().get(&id) {
                    let _ = answer.try_send(users);
                }
            }
        }
    }

    fn questions(&self) -> MutexGuard<'_, HashMap<ObjectId, mpsc::Sender<Vec<UserId>>>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What other instances hear of a signal.
fn bundled(origin: Origin, signal: Signal) -> Option<Bundled> {
    match (origin, signal) {
        (Origin::Here, Signal::Typing { room, user, name }) => {
            Some(Bundled::Typing(room, user, name.map(|name| name.as_ref().to_owned())))
        }
        (Origin::Here, Signal::Stopped { room, user }) => Some(Bundled::Stopped(room, user)),
        _ => None,
    }
}
