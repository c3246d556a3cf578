//! Connection state recovery of Socket.IO: a client that reconnects gets its rooms and the missed
//! events.
//!
//! The client authenticates with the private id (`pid`) of its last session and its token, and
//! sends how far it got (`offset`). The rooms are in a record in the database, so any instance can
//! resume the session, even if the previous one was killed. The events are in the ring of each
//! instance.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bson::DateTime;
use tokio::time::{sleep, timeout};

use super::registry::Worker;
use crate::auth::Claims;
use crate::error::ApiError;
use crate::feed::Phase;
use crate::feed::position::{Position, time};
use crate::feed::ring::Seq;
use crate::hub::member::Start;
use crate::hub::offset::{Entry, Offset};
use crate::middleware::deadline::DEADLINE;
use crate::models::{Claimed, Owner, RoomId, SocketRecord, Sockets, StoreError, UserId};
use crate::protocols::engine_io::random_id;

/// How long a connection is still read after another one took its session over, for the packets
/// that its client sent before: above all a disconnect packet, which ends the record. The two
/// connections can reach the server in any order, so a client that resumes waits for the same time,
/// unless its last connection is known to have ended.
pub const TAKEOVER_GRACE: Duration = Duration::from_millis(300);

/// How long a client that resumes waits at most until the requests of its last connection are
/// processed. After that it gets a new session, which is always safe.
const TAKEOVER_WAIT: Duration = Duration::from_secs(2);

/// How long a join waits for the backfill. Less than the deadline of a request, which would be
/// answered with an error.
const FILL_TIMEOUT: Duration = Duration::from_secs(4);

/// Keeps the database record of one session up to date, while the session lasts.
pub struct RecoveryRecord {
    sockets: Arc<Sockets>,
    /// The private id.
    pub pid: String,
    /// The public id, which stays the same when the session is resumed.
    pub sid: String,
    user: UserId,
    /// The connection that owns the session.
    pub owner: Owner,
    /// How long after the expiry of its token a session can be resumed.
    window: Duration,
    expires: Cell<DateTime>,
    /// Whether the record exists. A session without rooms needs none.
    stored: Cell<bool>,
    /// Whether the record may exist, because an insert was tried.
    insert_tried: Cell<bool>,
    /// Whether the session can no longer be resumed, so the record is not written any more.
    ended: Cell<bool>,
}

/// Whether a client can go on with its session.
pub enum Recovery {
    /// It goes on.
    Resumed(Resumed),
    /// The session is unknown or another user's, or a missed event is no longer recoverable.
    Lost,
    /// At the same time, another connection has taken the session over or stored it. The client
    /// should try again.
    Superseded,
}

/// A resumed session, or a new one.
pub struct Resumed {
    /// Its record, which this connection owns now.
    pub record: RecoveryRecord,
    /// Its rooms, and where each of them goes on.
    pub rooms: Vec<(RoomId, Start)>,
    /// The client may have offsets up to here that do not cover all of these rooms.
    pub known: Option<Position>,
    /// How many joins the client has made so far.
    pub joins: u32,
    /// Its user was a member of these rooms when this was the number of the hub's next event.
    pub checked: Seq,
    /// Up to where it has had what its user was told, whatever the room.
    pub since: Option<Position>,
}

impl RecoveryRecord {
    /// The record of a new session. It is not in the database yet.
    pub fn new(worker: &Worker, claims: Claims) -> Self {
        let window = worker.config.recovery_window;
        Self {
            sockets: Arc::clone(&worker.store.sockets),
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

    /// Stores that the session is in a room, and how it entered the room.
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
                // An earlier insert succeeded, although its answer was an error.
                Err(StoreError::Duplicate) => self.stored.set(true),
                Err(error) => return Err(error.into()),
            }
        }
        let joined = self.sockets.join(&self.pid, self.owner, room, &entry.to_string()).await?;
        self.check_owned(joined)
    }

    /// Stores that the session left a room.
    ///
    /// # Errors
    /// The database failed, or the session was taken over.
    pub async fn leave(&self, room: RoomId) -> Result<(), ApiError> {
        // An insert that timed out may have succeeded.
        if self.ended.get() || !self.insert_tried.get() {
            return Ok(());
        }
        let left = self.sockets.leave(&self.pid, self.owner, room).await?;
        if self.stored.get() { self.check_owned(left) } else { Ok(()) }
    }

    /// Stores that the session has a newer token.
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

    /// Stops writing: the client has disconnected and will not resume the session.
    pub fn end(&self) {
        self.ended.set(true);
    }

    /// Removes the record.
    pub async fn remove(&self) {
        // An insert that timed out may have succeeded.
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
        // An expired record has no owner. Only LEGACY_TRUST lets a session outlive its token; then
        // the session goes on without a record. Otherwise, the connection that took the session
        // over also ends this one.
        if ours || self.expires.get() < DateTime::now() {
            Ok(())
        } else {
            Err(ApiError::Unavailable("the session moved".to_owned()))
        }
    }
}

impl Worker {
    /// Whether sessions can be resumed at all.
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

    /// A new session. Its client keeps the offset of an earlier session until it gets another one.
    pub async fn new_session(&self, offset: Option<&str>, claims: Claims) -> Resumed {
        let offset = offset.and_then(|offset| offset.parse::<Offset>().ok());
        let joins = offset.as_ref().and_then(|offset| offset.joins).unwrap_or(0);
        // An offset in the future is not from this cluster, and would never be passed.
        let known = match offset {
            Some(offset) if self.feed.cluster_reached(offset.base).await => Some(offset.base),
            _ => None,
        };
        let record = RecoveryRecord::new(self, claims);
        Resumed { record, rooms: Vec::new(), known, joins, checked: 0, since: None }
    }

    /// Takes a session over for a client that resumes it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_over(
        &self,
        pid: &str,
        offset: Option<&str>,
        claims: Claims,
    ) -> Result<Recovery, ApiError> {
        let window = self.config.recovery_window;
        let expires = expiry(claims, window);
        let offset = match offset.map(str::parse::<Offset>) {
            Some(Ok(offset)) => Some(offset),
            Some(Err(_)) => return Ok(Recovery::Lost),
            None => None,
        };
        let sockets = &self.store.sockets;
        match self.registry.end_and_wait(pid, claims.user, TAKEOVER_WAIT).await {
            Some(true) => {}
            Some(false) => return Ok(Recovery::Lost),
            None => match sockets.instance_of(pid, claims.user).await? {
                None => return Ok(Recovery::Lost),
                Some(instance) if instance == self.registry.instance => {}
                // That instance may be killed, or about to read a disconnect packet.
                Some(_) => sleep(TAKEOVER_GRACE).await,
            },
        }
        let claimed = sockets.claim(pid, claims.user, self.registry.instance, expires).await?;
        let stored = match claimed {
            Claimed::Record(record) => record,
            Claimed::Superseded => return Ok(Recovery::Superseded),
            Claimed::Nothing => return Ok(Recovery::Lost),
        };
        self.registry.take_over(pid, stored.owner.generation);
        let record = RecoveryRecord {
            sockets: Arc::clone(sockets),
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
        let checked = self.hub.cursor();
        let since = offset.as_ref().map(|offset| offset.of(claims.user.own_room()));
        let had: Vec<_> = stored.rooms.iter().map(|(room, _)| *room).collect();
        let stored_rooms = self.still_visible(stored.rooms, claims.user).await?;
        let was_removed = stored_rooms.len() < had.len();
        for room in had {
            if !stored_rooms.iter().any(|(kept, _)| *kept == room) {
                // Offsets from now on say nothing about it, also if the user is added again.
                record.leave(room).await?;
            }
        }
        if !self.can_tell_user(claims.user, since, was_removed).await? {
            record.remove().await;
            return Ok(Recovery::Lost);
        }
        let mut rooms = Vec::with_capacity(stored_rooms.len());
        let mut known = offset.as_ref().map(|offset| offset.base);
        let mut joins = offset.as_ref().and_then(|offset| offset.joins).unwrap_or(0);
        for (room, entry) in stored_rooms {
            let Ok(entry) = entry.parse::<Entry>() else { return Ok(Recovery::Lost) };
            known = known.max(entry.known);
            joins = joins.max(entry.join);
            let since = offset.as_ref().map_or(entry.from, |offset| offset.since(room, entry));
            let start = self.start_after(room, since).await?;
            rooms.push((room, start));
            if !matches!(start, Start::After(_)) {
                // The session cannot be resumed. Checking more rooms could wait for the backfill
                // again.
                break;
            }
        }
        // Check all rooms again, because the ring has moved on during the queries.
        let ring = self.hub.ring();
        let is_whole = |&(room, start): &(RoomId, Start)| matches!(start, Start::After(since) if ring.recovers(room, since));
        if rooms.iter().all(is_whole) {
            Ok(Recovery::Resumed(Resumed { record, rooms, known, joins, checked, since }))
        } else {
            record.remove().await;
            Ok(Recovery::Lost)
        }
    }

    /// The rooms of these that the user may still be in.
    async fn still_visible(
        &self,
        rooms: Vec<(RoomId, String)>,
        user: UserId,
    ) -> Result<Vec<(RoomId, String)>, ApiError> {
        let with_members: Vec<_> =
            rooms.iter().map(|(room, _)| *room).filter(|room| room.may_have_members()).collect();
        if with_members.is_empty() {
            return Ok(rooms);
        }
        let after = self.hub.ring().tail().through;
        let visible = self.store.members_rooms.which_of(&with_members, user, time(after)).await?;
        let is_visible = |room: RoomId| !room.may_have_members() || visible.contains(&room);
        Ok(rooms.into_iter().filter(|(room, _)| is_visible(*room)).collect())
    }

    /// Whether everything that this user was told after `since`, whatever the room, can be
    /// delivered: above all that the user was removed from a room.
    async fn can_tell_user(
        &self,
        user: UserId,
        since: Option<Position>,
        was_removed: bool,
    ) -> Result<bool, ApiError> {
        let Some(since) = since else { return Ok(!was_removed) };
        let (ring, own) = (self.hub.ring(), user.own_room());
        if ring.recovers(own, since) {
            return Ok(true);
        }
        // If the ring has lost nothing that the user was told, it begins too late. What was told
        // before is not known, unless nobody is a member of any room. A user who is a member of none
        // now may have been removed from one.
        Ok(!was_removed
            && ring.beginning(own).is_some()
            && !self.store.members_rooms.any_member().await?)
    }

    /// Where a client begins in a room, if it has got everything up to `since`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn start_after(&self, room: RoomId, since: Position) -> Result<Start, ApiError> {
        if timeout(FILL_TIMEOUT, self.feed.filled()).await.is_err()
            || self.feed.phase() == Phase::Local
        {
            return Ok(Start::Resync);
        }
        let ahead = self.hub.through().is_none_or(|through| since > through);
        if ahead && !self.feed.cluster_reached(since).await {
            return Ok(Start::Resync);
        }
        let ring = self.hub.ring();
        if let Some(beginning) = ring.beginning(room)
            && since < beginning
            // The database does not know which members were removed since.
            && !room.may_have_members()
            && !self.store.messages.any_since(room, since.seconds()).await?
        {
            // The position is older than the ring, but nothing was missed.
            return Ok(Start::After(beginning));
        }
        Ok(Start::After(since))
    }
}

/// Until when a session can be resumed. The client still needs a valid token.
fn expiry(claims: Claims, window: Duration) -> DateTime {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.expires) + window;
    DateTime::from_system_time(at)
}
