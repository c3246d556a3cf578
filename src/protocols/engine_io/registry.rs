//! The sessions of this process, found by their secret names from every worker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::http::Method;
use tokio::time::Instant;

use super::end::CloseReason;
use super::session::Session;

/// Shared by all workers; clones are the same registry.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    sessions: Mutex<Sessions>,
    panics: AtomicU64,
    unread: AtomicU64,
}

#[derive(Debug, Default)]
struct Sessions {
    open: HashMap<String, Arc<Session>>,
    /// Ended ones whose final packet may still be the answer to a poll.
    ended: HashMap<String, Arc<Session>>,
}

impl Registry {
    /// How many sessions live.
    pub fn len(&self) -> usize {
        self.sessions().open.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sessions ended by a panic.
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    /// How many messages were read from clients and not taken by their application.
    pub fn unread(&self) -> u64 {
        self.0.unread.load(Ordering::Relaxed)
    }

    pub(super) fn count_unread(&self, count: usize) {
        self.0.unread.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn count_panic(&self) {
        self.0.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends all sessions by closing their transports.
    pub fn close_all(&self) {
        let open: Vec<_> = self.sessions().open.values().cloned().collect();
        for session in open {
            session.end(CloseReason::Server, Some(super::Packet::Close));
        }
    }

    pub(super) fn insert(&self, session: &Arc<Session>) {
        self.sessions().open.insert(session.sid.clone(), Arc::clone(session));
    }

    /// An open session.
    pub(super) fn find(&self, sid: &str) -> Option<Arc<Session>> {
        let session = self.sessions().open.get(sid).cloned()?;
        session.ended().is_none().then_some(session)
    }

    /// An open session; for one poll an ended one that has a final packet for it, for a post one that
    /// still takes what was sent before its end.
    pub(super) fn find_for_poll(&self, sid: &str, method: &Method) -> Option<Arc<Session>> {
        if let Some(session) = self.find(sid) {
            return Some(session);
        }
        let sessions = self.sessions();
        if *method == Method::POST {
            let session = sessions.open.get(sid).or_else(|| sessions.ended.get(sid))?;
            return session.is_receiving().then(|| Arc::clone(session));
        }
        if *method != Method::GET {
            return None;
        }
        // It may have ended without its task having come round to moving it.
        let session = sessions.open.get(sid).or_else(|| sessions.ended.get(sid)).cloned()?;
        drop(sessions);
        let end = session.ended()?;
        (Instant::now() < end.reachable_until()).then_some(session)
    }

    /// A session that has ended is only found by one more poll.
    pub(super) fn mark_ended(&self, session: &Arc<Session>) {
        let mut sessions = self.sessions();
        if let Some(session) = sessions.open.remove(&session.sid) {
            sessions.ended.insert(session.sid.clone(), session);
        }
    }

    /// Forgets a session that has ended, once it has nothing more to say.
    pub(super) async fn remove_ended(&self, session: &Session) {
        if let Some(end) = session.ended() {
            tokio::time::sleep_until(end.reachable_until()).await;
        }
        self.sessions().ended.remove(&session.sid);
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
