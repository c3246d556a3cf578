//! The operations of the chat, for REST and sockets alike, in one file each.

mod edit;
mod marks;
mod overview;
mod purge;
mod rooms;
mod send;

use std::sync::Arc;

use actix_web::web::Data;

use crate::error::ApiError;
use crate::feed::Feed;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::models::{RoomId, Store, UserId};

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
        let is_visible = match user {
            Some(user) if room.may_have_members() => {
                let is_member = self.feed.knows_members()
                    && self.store.members_rooms.is_member(room, user).await?;
                // Of 2^40 processes one makes public rooms with such ids.
                is_member || self.store.rooms.exists(room).await?
            }
            _ => self.store.rooms.exists(room).await?,
        };
        if is_visible { Ok(()) } else { Err(ApiError::RoomNotFound) }
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
