//! The sessions of this process, found by their secret names from every worker.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::http::Method;
use tokio::time::Instant;

use super::session::{CloseReason, Session};

/// How long a session that its client has closed is still found: a poll may be under way on
/// another worker while the close arrives.
const LATE_POLL: Duration = Duration::from_millis(100);
/// How long one that the server has closed is: until the client polls again.
const NEXT_POLL: Duration = Duration::from_secs(20);
/// How many ended sessions are remembered at most.
const MAX_ENDED: usize = 10_000;

/// Shared by all workers; clones are the same registry.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    sessions: Mutex<Sessions>,
    panics: AtomicU64,
}

#[derive(Debug, Default)]
struct Sessions {
    living: HashMap<String, Arc<Session>>,
    /// Ended ones that still owe a poll their last word, with the time until when.
    ended: HashMap<String, (Arc<Session>, Instant)>,
}

impl Registry {
    /// How many sessions live.
    pub fn len(&self) -> usize {
        self.sessions().living.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sessions ended because their application panicked.
    pub fn panics(&self) -> &AtomicU64 {
        &self.0.panics
    }

    /// Ends all sessions by closing their transports.
    pub fn close_all(&self) {
        let living: Vec<_> = self.sessions().living.values().cloned().collect();
        for session in living {
            session.end(CloseReason::Server, Some(super::Packet::Close));
        }
    }

    pub(super) fn insert(&self, session: &Arc<Session>) {
        self.sessions().living.insert(session.sid.clone(), Arc::clone(session));
    }

    /// A living session.
    pub(super) fn find(&self, sid: &str) -> Option<Arc<Session>> {
        let session = self.sessions().living.get(sid).cloned()?;
        session.ended().is_none().then_some(session)
    }

    /// A living session, or for one poll an ended one that has a last word for it.
    pub(super) fn find_for_poll(&self, sid: &str, method: &Method) -> Option<Arc<Session>> {
        if let Some(session) = self.find(sid) {
            return Some(session);
        }
        if *method != Method::GET {
            return None;
        }
        let mut sessions = self.sessions();
        // It may have ended without its task having come round to moving it.
        if let Some(session) = sessions.living.remove(sid) {
            sessions.remember(session);
        }
        let (session, until) = sessions.ended.remove(sid)?;
        (Instant::now() < until).then_some(session)
    }

    /// Forgets a session that has ended, but for its last word.
    pub(super) fn remove(&self, session: &Arc<Session>) {
        let mut sessions = self.sessions();
        if let Some(session) = sessions.living.remove(&session.sid) {
            sessions.remember(session);
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    fn remember(&mut self, session: Arc<Session>) {
        let Some(end) = session.ended() else { return };
        if end.last_word.is_none() {
            return;
        }
        let now = Instant::now();
        if self.ended.len() >= MAX_ENDED {
            self.ended.retain(|_, (_, until)| *until > now);
        }
        if self.ended.len() < MAX_ENDED {
            let wait = if end.reason == CloseReason::Client { LATE_POLL } else { NEXT_POLL };
            self.ended.insert(session.sid.clone(), (session, now + wait));
        }
    }
}
