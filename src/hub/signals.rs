//! What is passed on at once and never kept: who types, who comes and who goes.
//!
//! Signals have no position and no order with respect to events. All workers of the process hear
//! each signal. A worker that lags misses signals, which is allowed: clients drop who types after
//! some seconds, and [who is online](OnlineUsers) can be looked up.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bson::DateTime;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

use crate::models::{RoomId, UserId};

/// How many signals a worker may lag behind.
const CAPACITY: usize = 4_096;

/// How long a worker may take to say who has joined a room.
const CENSUS: Duration = Duration::from_millis(500);

/// A signal.
#[derive(Debug, Clone)]
pub enum Signal {
    /// A user types in a room.
    Typing {
        /// The room.
        room: RoomId,
        /// The user.
        user: UserId,
        /// The user's name, if it is a text.
        name: Option<Arc<str>>,
    },
    /// A user does not type any more.
    Stopped {
        /// The room.
        room: RoomId,
        /// The user.
        user: UserId,
    },
    /// A user came.
    Online(UserId),
    /// A user went.
    Offline {
        /// The user.
        user: UserId,
        /// When the user was last there, if that is known.
        last_seen: Option<DateTime>,
    },
    /// Each worker is asked who has joined a room there.
    Census {
        /// The room.
        room: RoomId,
        /// Where the answer goes.
        reply: mpsc::Sender<Vec<UserId>>,
    },
}

/// Where a signal comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A session of this process.
    Here,
    /// Another instance.
    Elsewhere,
}

/// The signals of a process. Clones are handles on the same.
#[derive(Debug, Clone)]
pub struct Signals {
    sender: broadcast::Sender<(Origin, Signal)>,
    online: Arc<OnlineUsers>,
}

/// Who is online, on all instances.
#[derive(Debug, Default)]
pub struct OnlineUsers(RwLock<HashSet<UserId>>);

impl Default for Signals {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(CAPACITY), online: Arc::default() }
    }
}

impl Signals {
    /// Tells all workers. Never waits.
    pub fn send(&self, origin: Origin, signal: Signal) {
        // Without a worker, nobody has to hear it.
        let _ = self.sender.send((origin, signal));
    }

    /// Hears all signals from now on.
    pub fn listen(&self) -> broadcast::Receiver<(Origin, Signal)> {
        self.sender.subscribe()
    }

    /// Who is online.
    pub fn online(&self) -> &OnlineUsers {
        &self.online
    }

    /// The users who have joined a room on a worker of this process. A worker that does not answer
    /// in time is left out.
    pub async fn joined(&self, room: RoomId) -> HashSet<UserId> {
        let (reply, mut answers) = mpsc::channel(self.sender.receiver_count().max(1));
        self.send(Origin::Here, Signal::Census { room, reply });
        let mut users = HashSet::new();
        let gathering = async {
            // It ends when no worker has the question any more.
            while let Some(answer) = answers.recv().await {
                users.extend(answer);
            }
        };
        let _ = timeout(CENSUS, gathering).await;
        users
    }
}

impl OnlineUsers {
    /// Whether a user is online.
    pub fn contains(&self, user: UserId) -> bool {
        self.read().contains(&user)
    }

    /// Those of these users who are online.
    pub fn of(&self, users: &[UserId]) -> Vec<UserId> {
        let online = self.read();
        users.iter().copied().filter(|user| online.contains(user)).collect()
    }

    /// How many users are online.
    pub fn count(&self) -> usize {
        self.read().len()
    }

    /// Notes whether a user is online. Returns whether that has changed.
    pub fn set(&self, user: UserId, is_online: bool) -> bool {
        let mut online = self.write();
        if is_online { online.insert(user) } else { online.remove(&user) }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashSet<UserId>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashSet<UserId>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
