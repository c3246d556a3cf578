//! The revoked tokens that this process knows, so that a request costs no query.
//!
//! The set is read from the collection after the stream was opened. From then on, the change stream
//! brings each revocation. Nothing is ever taken back, so the order does not matter. Where the
//! stream does not bring them, because MongoDB is a standalone or the user may follow `messages`
//! only, the collection is read twice a second. While neither has succeeded for a second, the set
//! says so, and the database is asked.
//!
//! The set is bounded. It forgets what is older than a token lives, and the oldest entries beyond
//! `MOST`. A token from before what it has forgotten is asked about, too.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bson::{DateTime, doc};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::event::Event;
use super::ring::Batch;
use super::{Feed, Phase, QUERY_TIMEOUT};
use crate::models::revocations::{Recent, TOKEN_LIFETIME};
use crate::models::{Clock, Revocation, Scope, TokenIdentity, UserId};

/// How many revocations are known at most. Each takes about 150 bytes.
const MOST: usize = 100_000;

/// How long a revocation is known, in seconds: a little longer than a token lives.
const KEPT: u64 = TOKEN_LIFETIME + 600;

/// How long the set is current after the last sign of life of the stream. The stream gives one
/// twice a second.
const CURRENT: Duration = Duration::from_secs(1);

/// How often the collection is read where the stream does not bring it.
const POLL: Duration = Duration::from_millis(500);

/// How far a poll reads back before the newest revocation that it knows, since one with an earlier
/// time may become visible later.
const OVERLAP: i64 = 10_000;

/// How often the database is asked for its time.
const SAMPLE: Duration = Duration::from_secs(10);

/// With more new revocations at once, every session is checked instead of those of their users.
const FEW: usize = 64;

/// The known revocations. See the [module](self).
#[derive(Debug)]
pub struct Revoked {
    // A standard lock: nothing awaits while it is held.
    known: RwLock<Known>,
    clock: Clock,
    started: Instant,
    /// Until when it is current, in milliseconds since `started`.
    current_until: AtomicU64,
    /// Counts how often the stream has begun anew, and for which of these times the collection was
    /// read.
    epoch: AtomicU64,
    read: AtomicU64,
    /// Notified when the collection was read.
    on_read: Notify,
}

#[derive(Debug, Default)]
struct Known {
    /// Each revocation with the second before which its tokens were issued.
    before: HashMap<(UserId, Scope), u64>,
    /// The same in the order in which they became known, each with the second in which it did.
    order: VecDeque<(u64, (UserId, Scope), u64)>,
    /// Of tokens that were issued before this second, some revocations may be forgotten.
    horizon: u64,
}

/// What is known about a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It is not revoked.
    Valid,
    /// It is revoked.
    Revoked,
    /// The database has to be asked.
    Unknown,
}

impl Revoked {
    /// An empty set, which is not current.
    pub fn new(clock: Clock) -> Self {
        Self {
            known: RwLock::default(),
            clock,
            started: Instant::now(),
            current_until: AtomicU64::new(0),
            epoch: AtomicU64::new(1),
            read: AtomicU64::new(0),
            on_read: Notify::new(),
        }
    }

    /// Whether a token is revoked.
    pub fn judge(&self, token: TokenIdentity) -> Judgement {
        let known = self.known();
        if known.covers(token) {
            Judgement::Revoked
        } else if token.issued >= known.horizon && self.is_current() {
            Judgement::Valid
        } else {
            Judgement::Unknown
        }
    }

    /// Whether a token is known to be revoked. Each revocation is known before its event is
    /// dispatched.
    pub fn has(&self, token: TokenIdentity) -> bool {
        self.known().covers(token)
    }

    /// Whether a token is known to be revoked, or may be revoked by what is forgotten.
    pub fn may_have(&self, token: TokenIdentity) -> bool {
        let known = self.known();
        token.issued < known.horizon || known.covers(token)
    }

    /// How many revocations are known.
    pub fn len(&self) -> usize {
        self.known().before.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a revocation. Returns whether it is new.
    pub(crate) fn insert(&self, revocation: Revocation) -> bool {
        let second = self.clock.seconds();
        let mut known = self.known_mut();
        let is_new = known.insert(revocation, second);
        while known.order.len() > MOST {
            known.forget_oldest();
        }
        is_new
    }

    /// The stream has brought everything up to now.
    pub(super) fn is_heard(&self) {
        self.is_current_at(Instant::now());
    }

    /// The set had everything at this moment.
    fn is_current_at(&self, at: Instant) {
        let until = at.saturating_duration_since(self.started) + CURRENT;
        // A slow query must not take back what the stream has said meanwhile.
        self.current_until.fetch_max(millis(until), Ordering::Relaxed);
    }

    /// The stream begins anew: what happened meanwhile has to be read from the collection.
    pub(super) fn begin(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until the collection was read.
    async fn wait_until_read(&self) {
        loop {
            let read = self.on_read.notified();
            if self.is_read() {
                return;
            }
            read.await;
        }
    }

    fn is_read(&self) -> bool {
        self.read.load(Ordering::SeqCst) == self.epoch.load(Ordering::SeqCst)
    }

    fn is_current(&self) -> bool {
        self.is_read()
            && millis(self.started.elapsed()) < self.current_until.load(Ordering::Relaxed)
    }

    /// Forgets what no token of this server can be concerned by any more.
    fn forget_old(&self) {
        let horizon = self.clock.seconds().saturating_sub(KEPT);
        let mut known = self.known_mut();
        while known.order.front().is_some_and(|(second, ..)| *second <= horizon) {
            known.forget_oldest();
        }
        known.horizon = known.horizon.max(horizon);
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn covers(&self, token: TokenIdentity) -> bool {
        !self.before.is_empty()
            && token.scopes().into_iter().any(|scope| {
                let before = self.before.get(&(token.user, scope));
                before.is_some_and(|&before| {
                    Revocation { user: token.user, scope, before }.covers(token)
                })
            })
    }

    fn insert(&mut self, Revocation { user, scope, before }: Revocation, second: u64) -> bool {
        let of = (user, scope);
        if self.before.get(&of).is_some_and(|&known| known >= before) {
            return false;
        }
        self.before.insert(of, before);
        self.order.push_back((second, of, before));
        true
    }

    fn forget_oldest(&mut self) {
        if let Some((_, of, before)) = self.order.pop_front() {
            // It may have been replaced by a later one.
            if self.before.get(&of) == Some(&before) {
                self.before.remove(&of);
            }
            self.horizon = self.horizon.max(before);
        }
    }
}

impl Feed {
    /// Waits until rooms can be joined, and the database need not be asked about each token.
    pub async fn ready(&self) {
        self.started().await;
        self.revoked.wait_until_read().await;
    }

    /// Keeps the set and the clock, for ever.
    pub(super) async fn run_revocations(&self) {
        let mut newest = None;
        let mut sampled: Option<Instant> = None;
        let mut phases = self.phase.subscribe();
        loop {
            if sampled.is_none_or(|at| at.elapsed() >= SAMPLE) && self.sample_clock().await {
                sampled = Some(Instant::now());
            }
            let is_begun = self.phase() != Phase::Starting;
            if is_begun && (!self.revoked.is_read() || self.polls()) {
                self.read_revocations(&mut newest).await;
            }
            self.revoked.forget_old();
            // When the stream has begun, read at once: until then the database is asked about every
            // token, and after a start all clients come back.
            let _ = timeout(POLL, phases.changed()).await;
        }
    }

    /// Revokes tokens in this process. The change stream tells the sessions; where it does not,
    /// they are told here.
    pub fn revoke(&self, revocation: Revocation) {
        let is_new = self.revoked.insert(revocation);
        if is_new && self.polls() {
            self.tell_revoked(vec![revocation]);
        }
    }

    /// Whether the stream does not bring revocations.
    fn polls(&self) -> bool {
        self.phase() == Phase::Local || !self.knows_members()
    }

    async fn read_revocations(&self, newest: &mut Option<DateTime>) {
        let revoked = &self.revoked;
        let epoch = revoked.epoch.load(Ordering::SeqCst);
        let from = match *newest {
            Some(newest) if revoked.is_read() => newest.timestamp_millis() - OVERLAP,
            _ => {
                let kept = i64::try_from(KEPT).unwrap_or(i64::MAX);
                revoked.clock.millis().saturating_sub(kept.saturating_mul(1000))
            }
        };
        let asked = Instant::now();
        let reading = self.revocations.since(DateTime::from_millis(from), MOST);
        let recent = match timeout(QUERY_TIMEOUT, reading).await {
            Ok(Ok(recent)) => recent,
            Ok(Err(error)) => return log::debug!("The revocations cannot be read: {error}"),
            Err(_) => return log::debug!("The revocations cannot be read in time"),
        };
        let Recent { revocations, newest: last, complete_from } = recent;
        *newest = (*newest).max(last);
        let is_new = |revocation: &Revocation| revoked.insert(*revocation);
        let new: Vec<_> = revocations.into_iter().filter(is_new).collect();
        if let Some(complete_from) = complete_from {
            let mut known = revoked.known_mut();
            known.horizon = known.horizon.max(complete_from);
        }
        self.tell_revoked(new);
        revoked.forget_old();
        // What was read is as good as what the stream had brought when the query was sent.
        revoked.is_current_at(asked);
        revoked.read.store(epoch, Ordering::SeqCst);
        revoked.on_read.notify_waiters();
    }

    /// Lets the hubs end the sessions of revoked tokens.
    fn tell_revoked(&self, new: Vec<Revocation>) {
        if new.is_empty() {
            return;
        }
        // Among the events of a room, positions never go back.
        let position = self.ring.newest();
        let events = if new.len() > FEW {
            vec![Event::revoked(None, position)]
        } else {
            let event = |revocation| Event::revoked(Some(revocation), position);
            new.into_iter().map(event).collect()
        };
        let second = u32::try_from(self.revoked.clock.seconds()).unwrap_or(u32::MAX);
        self.ring.publish(Batch { events, newest: None, through: None, second });
    }

    /// Sets the clock. Returns whether the database has answered.
    async fn sample_clock(&self) -> bool {
        let asked = Instant::now();
        let hello = timeout(QUERY_TIMEOUT, self.database.run_command(doc! { "hello": 1 })).await;
        let answered = Instant::now();
        let Ok(Ok(hello)) = hello else { return false };
        let Ok(time) = hello.get_datetime("localTime") else { return false };
        self.revoked.clock.set(*time, asked, answered);
        true
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::FamilyId;

    fn token(user: UserId, issued: u64) -> TokenIdentity {
        TokenIdentity { user, issued, family: None }
    }

    fn current(now: u64) -> Revoked {
        let (clock, at) = (Clock::default(), Instant::now());
        clock.set(DateTime::from_millis(now as i64 * 1000), at, at);
        let revoked = Revoked::new(clock);
        revoked.forget_old();
        revoked.read.store(1, Ordering::SeqCst);
        revoked.is_heard();
        revoked
    }

    #[test]
    fn a_set_that_may_lack_something_says_so() {
        let (user, now) = (UserId::new(), 1_000_000);
        let revoked = current(now);
        assert_eq!(revoked.judge(token(user, now)), Judgement::Valid);
        assert_eq!(revoked.judge(token(user, now - KEPT - 1)), Judgement::Unknown, "too old");
        revoked.begin();
        assert_eq!(revoked.judge(token(user, now)), Judgement::Unknown, "not read yet");
        assert!(revoked.insert(Revocation { user, scope: Scope::All, before: now + 2 }));
        assert_eq!(revoked.judge(token(user, now)), Judgement::Revoked, "whatever it lacks");
        revoked.read.store(2, Ordering::SeqCst);
        assert_eq!(revoked.judge(token(user, now + 2)), Judgement::Valid);
        revoked.current_until.store(0, Ordering::Relaxed);
        assert_eq!(revoked.judge(token(user, now + 2)), Judgement::Unknown, "nothing was heard");
        assert!(revoked.has(token(user, now + 1)) && !revoked.has(token(user, now + 2)));
    }

    #[test]
    fn a_revocation_is_never_taken_back() {
        let (user, now) = (UserId::new(), 1_000_000);
        let revoked = current(now);
        let all = |before| Revocation { user, scope: Scope::All, before };
        assert!(revoked.insert(all(now)));
        assert!(!revoked.insert(all(now)) && !revoked.insert(all(now - 5)));
        assert!(revoked.insert(all(now + 5)));
        assert!(revoked.has(token(user, now + 4)));
        assert_eq!(revoked.len(), 1);
        let family = FamilyId::new();
        assert!(revoked.insert(Revocation { user, scope: Scope::Family(family), before: now + 2 }));
        let of_family = TokenIdentity { family: Some(family), ..token(user, now + 50) };
        assert!(revoked.has(of_family) && !revoked.has(token(user, now + 50)));
    }

    #[test]
    fn the_set_is_bounded_and_knows_what_it_has_forgotten() {
        let now = 1_000_000;
        let revoked = current(now);
        let users: Vec<_> = (0..3).map(|_| UserId::new()).collect();
        for (age, &user) in [3_000, 2_000, 1_000].iter().zip(&users) {
            revoked.insert(Revocation { user, scope: Scope::All, before: now - age });
        }
        let filling = (0..MOST as u64 - 2).map(|_| UserId::new());
        for user in filling {
            revoked.insert(Revocation { user, scope: Scope::All, before: now });
        }
        assert_eq!(revoked.len(), MOST);
        assert!(!revoked.has(token(users[0], 0)), "the oldest is forgotten");
        assert_eq!(revoked.judge(token(users[0], now - 3_001)), Judgement::Unknown);
        assert!(revoked.may_have(token(users[0], now - 3_001)));
        assert_eq!(revoked.judge(token(users[0], now - 3_000)), Judgement::Valid);
        assert_eq!(revoked.judge(token(users[1], now - 2_001)), Judgement::Revoked);
        let at = Instant::now();
        revoked.clock.set(DateTime::from_millis((now + KEPT) as i64 * 1000), at, at);
        revoked.forget_old();
        assert!(revoked.is_empty());
    }
}
