//! Connection state recovery: what a Socket.IO client finds again when it comes back.
//!
//! The client proves itself with the private id (`pid`) of its last session and its token, and
//! says how far it got (`offset`). The rooms are in a record of the database, so any instance can
//! go on, also when the one before was killed; the messages are in the ring of each instance.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use bson::DateTime;
use tokio::time::{sleep, timeout};

use super::registry::Worker;
use crate::auth::Claims;
use crate::error::ApiError;
use crate::feed::Phase;
use crate::feed::position::Position;
use crate::hub::member::Start;
use crate::hub::offset::{Entry, Offset};
use crate::middleware::deadline::DEADLINE;
use crate::models::{Owner, RoomId, SocketRecord, Sockets, StoreError, UserId};
use crate::protocols::engine_io::random_id;

/// How long a connection that another one takes over is still read, for what its client sent on it
/// before: above all a disconnect packet, which ends the record. The two connections may reach the
/// server in any order, so a client that comes back waits for so long while its last connection is
/// not known to have ended.
pub const TAKEOVER_GRACE: Duration = Duration::from_millis(300);

/// How long a client that comes back waits at most until what it sent on its last connection is
/// worked off. After that its session begins anew, which is always safe.
const TAKEOVER_WAIT: Duration = Duration::from_secs(2);

/// How long a join waits for the ring to be filled. Within the deadline of a request, which would
/// answer with an error instead.
const FILL: Duration = Duration::from_secs(4);

/// Keeps the record of one session in the database up to date, while the session lasts.
#[derive(Debug)]
pub struct RecoveryRecord {
    sockets: Sockets,
    /// The private id.
    pub pid: String,
    /// The public id, which the client keeps when it comes back.
    pub sid: String,
    user: UserId,
    /// The connection that it is.
    pub owner: Owner,
    /// How long after its token a session may still be come back to.
    window: Duration,
    expires: Cell<DateTime>,
    /// Whether there is a record: a session without rooms needs none.
    stored: Cell<bool>,
    /// Whether there may be one, since its insert was tried.
    insert_tried: Cell<bool>,
    /// Nobody can come back to the session, so nothing more is written down.
    ended: Cell<bool>,
}

/// A session that a client resumes, or that begins.
#[derive(Debug)]
pub struct Resumed {
    /// Its record, which belongs to this connection now.
    pub record: RecoveryRecord,
    /// The rooms that it was in, and where each goes on.
    pub rooms: Vec<(RoomId, Start)>,
    /// Up to where its client may have offsets that do not tell of all of them.
    pub known: Option<Position>,
    /// How many rooms it has joined so far.
    pub joins: u32,
}

impl RecoveryRecord {
    /// The record of a new session, which is not in the database yet.
    pub fn new(worker: &Worker, claims: Claims) -> Self {
        let window = worker.config.recovery_window;
        Self {
            sockets: worker.store.sockets.clone(),
            pid: random_id(),
            sid: random_id(),
            user: claims.user,
            owner: Owner { instance: worker.registry.instance, generation: 0 },
            window,
            expires: Cell::new(expiry(claims, window)),
            stored: Cell::new(false),
            insert_tried: Cell::new(false),
            ended: Cell::new(false),
        }
    }

    /// Writes down that the session is in a room, and how it came there.
    ///
    /// # Errors
    /// The database failed, or the session was taken over.
    pub async fn join(&self, room: RoomId, entry: Entry) -> Result<(), ApiError> {
        if self.ended.get() {
            return Ok(());
        }
        if !self.stored.get() {
            self.insert_tried.set(true);
            let record = SocketRecord {
                pid: self.pid.clone(),
                sid: self.sid.clone(),
                user: self.user,
                owner: self.owner,
                rooms: vec![(room, entry.to_string())],
            };
            match self.sockets.insert(&record, self.expires.get()).await {
                Ok(()) => {
                    self.stored.set(true);
                    return Ok(());
                }
                // An earlier attempt got through although it was answered with an error.
                Err(StoreError::Duplicate) => self.stored.set(true),
                Err(error) => return Err(error.into()),
            }
        }
        let joined = self.sockets.join(&self.pid, self.owner, room, &entry.to_string()).await?;
        self.check_owned(joined)
    }

    /// Writes down that the session left a room.
    ///
    /// # Errors
    /// The database failed, or the session was taken over.
    pub async fn leave(&self, room: RoomId) -> Result<(), ApiError> {
        if self.ended.get() || !self.stored.get() {
            return Ok(());
        }
        let left = self.sockets.leave(&self.pid, self.owner, room).await?;
        self.check_owned(left)
    }

    /// Writes down that the session has a newer token.
    ///
    /// # Errors
    /// The database failed, or the session was taken over.
    pub async fn extend(&self, claims: Claims) -> Result<(), ApiError> {
        self.expires.set(expiry(claims, self.window));
        if self.ended.get() || !self.stored.get() {
            return Ok(());
        }
        let kept = self.sockets.keep_until(&self.pid, self.owner, self.expires.get()).await?;
        self.check_owned(kept)
    }

    /// Writes down nothing more: the client has disconnected and will not come back to it.
    pub fn end(&self) {
        self.ended.set(true);
    }

    /// Removes the record.
    pub async fn remove(&self) {
        // An insert that was given up may have been done all the same.
        if !self.insert_tried.get() {
            return;
        }
        let removing = self.sockets.remove(&self.pid, self.owner);
        match timeout(DEADLINE, removing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                log::debug!("The record of a socket was not removed and will expire: {error}");
            }
            Err(_) => log::debug!("The record of a socket was not removed in time"),
        }
    }

    fn check_owned(&self, ours: bool) -> Result<(), ApiError> {
        // A record that is over is nobody's: only LEGACY_TRUST lets a session outlive its token, and
        // then it goes on without one. Otherwise the connection that took it over also ends this.
        if ours || self.expires.get() < DateTime::now() {
            Ok(())
        } else {
            Err(ApiError::Unavailable("the session moved".to_owned()))
        }
    }
}

impl Worker {
    /// Whether sessions can be come back to at all.
    ///
    /// # Errors
    /// The database failed.
    pub async fn can_recover(&self) -> Result<bool, ApiError> {
        if self.config.recovery_window.is_zero() || self.hub.through().is_none() {
            return Ok(false);
        }
        let asked = timeout(DEADLINE, self.store.sockets.are_on()).await;
        let late = |_| ApiError::Unavailable("no answer within the deadline".to_owned());
        Ok(asked.map_err(late)??)
    }

    /// A session that begins anew. Its client keeps the offset of an earlier one until it gets
    /// another.
    pub async fn new_session(&self, offset: Option<&str>, claims: Claims) -> Resumed {
        let offset = offset.and_then(|offset| offset.parse::<Offset>().ok());
        let joins = offset.as_ref().and_then(|offset| offset.joins).unwrap_or(0);
        // One that is still to come is none of this cluster, and would stand for ever.
        let known = match offset {
            Some(offset) if self.feed.cluster_reached(offset.base).await => Some(offset.base),
            _ => None,
        };
        Resumed { record: RecoveryRecord::new(self, claims), rooms: Vec::new(), known, joins }
    }

    /// Takes a session over for a client that comes back. `None` when it is unknown, another
    /// user's, or something that it missed is gone: then the client begins anew.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_over(
        &self,
        pid: &str,
        offset: Option<&str>,
        claims: Claims,
    ) -> Result<Option<Resumed>, ApiError> {
        let window = self.config.recovery_window;
        let expires = expiry(claims, window);
        let offset = match offset.map(str::parse::<Offset>) {
            Some(Ok(offset)) => Some(offset),
            Some(Err(_)) => return Ok(None),
            None => None,
        };
        let sockets = &self.store.sockets;
        match self.registry.end_and_wait(pid, claims.user, TAKEOVER_WAIT).await {
            Some(true) => {}
            Some(false) => return Ok(None),
            None => match sockets.instance_of(pid, claims.user).await? {
                None => return Ok(None),
                Some(instance) if instance == self.registry.instance => {}
                // It may be killed, or about to read a disconnect packet.
                Some(_) => sleep(TAKEOVER_GRACE).await,
            },
        }
        let claimed = sockets.claim(pid, claims.user, self.registry.instance, expires).await?;
        let Some(stored) = claimed else { return Ok(None) };
        self.registry.take_over(pid, stored.owner.generation);
        let record = RecoveryRecord {
            sockets: sockets.clone(),
            pid: stored.pid,
            sid: stored.sid,
            user: stored.user,
            owner: stored.owner,
            window,
            expires: Cell::new(expires),
            stored: Cell::new(true),
            insert_tried: Cell::new(true),
            ended: Cell::new(false),
        };
        let mut rooms = Vec::with_capacity(stored.rooms.len());
        let mut known = offset.as_ref().map(|offset| offset.base);
        let mut joins = offset.as_ref().and_then(|offset| offset.joins).unwrap_or(0);
        for (room, entry) in stored.rooms {
            let Ok(entry) = entry.parse::<Entry>() else { return Ok(None) };
            known = known.max(entry.known);
            joins = joins.max(entry.join);
            let since = offset.as_ref().map_or(entry.from, |offset| offset.since(room, entry));
            let start = self.start_after(room, since).await?;
            rooms.push((room, start));
            if !matches!(start, Start::After(_)) {
                // It cannot come back, and each room might wait for the past once more.
                break;
            }
        }
        // All of them now, since the ring has gone on while the database was asked.
        let ring = self.hub.ring();
        let is_whole = |&(room, start): &(RoomId, Start)| matches!(start, Start::After(since) if ring.recovers(room, since));
        if rooms.iter().all(is_whole) {
            Ok(Some(Resumed { record, rooms, known, joins }))
        } else {
            record.remove().await;
            Ok(None)
        }
    }

    /// Where a client begins in a room that has had everything up to `since`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn start_after(&self, room: RoomId, since: Position) -> Result<Start, ApiError> {
        if timeout(FILL, self.feed.filled()).await.is_err() || self.feed.phase() == Phase::Local {
            return Ok(Start::Resync);
        }
        let ahead = self.hub.through().is_none_or(|through| since > through);
        if ahead && !self.feed.cluster_reached(since).await {
            return Ok(Start::Resync);
        }
        let ring = self.hub.ring();
        if let Some(beginning) = ring.beginning(room)
            && since < beginning
            && !self.store.messages.any_since(room, since.seconds()).await?
        {
            // Older than anything that this process remembers, but nothing was missed.
            return Ok(Start::After(beginning));
        }
        Ok(Start::After(since))
    }
}

/// Until when a session can be come back to. The client needs a valid token all the same.
fn expiry(claims: Claims, window: Duration) -> DateTime {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.expires) + window;
    DateTime::from_system_time(at)
}
