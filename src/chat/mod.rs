//! The operations of the chat, for REST and sockets alike, in one file each.

mod account;
mod edit;
mod marks;
mod overview;
mod purge;
mod rooms;
mod send;

use std::sync::Arc;

use actix_web::web::Data;

use crate::error::ApiError;
use crate::feed::position::{Position, time};
use crate::feed::{Feed, Phase};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::models::{RoomId, Store, UserId};

pub use account::{Accounts, LoggedIn, Login};
pub use edit::{Changed, Edit};
pub use marks::{MarkAsRead, Marked, RecentMarks};
pub use overview::{ListedRoom, Reading, RoomOverview};
pub use purge::purge_for_ever;
pub use rooms::{RoomChange, RoomWithMembers};
pub use send::{Draft, Sent};

/// The chat of one worker. Clones share the store.
#[derive(Clone)]
pub struct Chat {
    store: Store,
    feed: Arc<Feed>,
    limits: Data<Limits>,
    metrics: Data<Metrics>,
    recent_marks: Arc<RecentMarks>,
    believes_senders: bool,
}

impl Chat {
    /// Whether a room exists for this user: a public one for everybody, one with members for its
    /// members; `None` is an anonymous socket of `LEGACY_TRUST`.
    ///
    /// # Errors
    /// [`ApiError::RoomNotFound`] when it does not, or the database failed.
    pub async fn check_visible(&self, room: RoomId, user: Option<UserId>) -> Result<(), ApiError> {
        let is_member = match user {
            Some(user) if self.has_members(room) => {
                self.store.members_rooms.is_member(room, user).await?
            }
            _ => false,
        };
        self.check_exists(room, is_member).await
    }

    /// Like [`check_visible`](Self::check_visible), for a message that is about to be stored: it
    /// costs no query that the user was a member a second ago, unless a removal was heard since. The
    /// feed refuses the message if it is stored behind a removal that was not heard yet.
    ///
    /// # Errors
    /// Those of [`check_visible`](Self::check_visible).
    async fn check_sendable(&self, room: RoomId, user: Option<UserId>) -> Result<(), ApiError> {
        match user {
            Some(user)
                if self.has_members(room)
                    && self.feed.phase() != Phase::Local
                    && !self.feed.was_removed(room, user)
                    && self.store.members_rooms.was_member(room, user).await? =>
            {
                Ok(())
            }
            _ => self.check_visible(room, user).await,
        }
    }

    /// Like [`check_visible`](Self::check_visible), for a user who is about to get events: the
    /// answer is not older than what the feed has delivered, nor than `since`, the position that
    /// the client has.
    ///
    /// # Errors
    /// Those of [`check_visible`](Self::check_visible).
    pub async fn check_readable(
        &self,
        room: RoomId,
        user: Option<UserId>,
        since: Option<Position>,
    ) -> Result<(), ApiError> {
        let is_member = match user {
            Some(user) if self.has_members(room) => {
                self.is_confirmed_member(room, user, since).await?
            }
            _ => false,
        };
        self.check_exists(room, is_member).await
    }

    /// Like [`check_readable`](Self::check_readable), for a user who is about to get what was just
    /// read. A majority may not have a removal yet although the room has gone on since, so the user
    /// must be a member on the primary, too.
    ///
    /// # Errors
    /// Those of [`check_visible`](Self::check_visible).
    pub async fn check_still_readable(&self, room: RoomId, user: UserId) -> Result<(), ApiError> {
        let is_member = self.has_members(room)
            && self.is_confirmed_member(room, user, None).await?
            && self.store.members_rooms.is_member(room, user).await?;
        self.check_exists(room, is_member).await
    }

    async fn is_confirmed_member(
        &self,
        room: RoomId,
        user: UserId,
        since: Option<Position>,
    ) -> Result<bool, ApiError> {
        let mut after = self.feed.ring().tail().through;
        if let Some(since) = since
            && after < Some(since)
            && self.feed.cluster_reached(since).await
        {
            after = Some(since);
        }
        let rooms = &self.store.members_rooms;
        Ok(!rooms.which_of(&[room], user, time(after)).await?.is_empty())
    }

    fn has_members(&self, room: RoomId) -> bool {
        room.may_have_members() && self.feed.knows_members()
    }

    /// Of 2^40 processes one makes public rooms with the ids of rooms with members.
    async fn check_exists(&self, room: RoomId, is_member: bool) -> Result<(), ApiError> {
        if is_member || self.store.rooms.exists(room).await? {
            Ok(())
        } else if room.may_have_members() && !self.feed.knows_members() {
            Err(ApiError::NoMembers)
        } else {
            Err(ApiError::RoomNotFound)
        }
    }

    /// A chat over this store. `believes_senders` is `LEGACY_TRUST`.
    pub fn new(
        store: Store,
        feed: Arc<Feed>,
        limits: Data<Limits>,
        metrics: Data<Metrics>,
        recent_marks: Arc<RecentMarks>,
        believes_senders: bool,
    ) -> Self {
        Self { store, feed, limits, metrics, recent_marks, believes_senders }
    }
}
