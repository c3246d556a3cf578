//! The sessions of this process by their secret ids, shared by all workers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::http::Method;
use tokio::time::Instant;

use super::end::CloseReason;
use super::session::Session;

/// All clones share one registry.
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
    /// Ended sessions that may still have a final packet for a poll.
    ended: HashMap<String, Arc<Session>>,
}

impl Registry {
    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.sessions().open.len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sessions ended by a panic.
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    /// How many messages were read from clients but not received by the application.
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

    /// An open session. For a poll, also an ended session that has a final packet; for a post, also
    /// one that still accepts what was sent before its end.
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
        // The session may have ended before its task has moved it to `ended`.
        let session = sessions.open.get(sid).or_else(|| sessions.ended.get(sid)).cloned()?;
        drop(sessions);
        let end = session.ended()?;
        (Instant::now() < end.reachable_until()).then_some(session)
    }

    /// Marks a session as ended: only one more poll finds it.
    pub(super) fn mark_ended(&self, session: &Arc<Session>) {
        let mut sessions = self.sessions();
        if let Some(session) = sessions.open.remove(&session.sid) {
            sessions.ended.insert(session.sid.clone(), session);
        }
    }

    /// Removes an ended session after the time for late polls.
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
