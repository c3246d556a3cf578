//! The rooms of a user, with what is new in them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bson::{DateTime, RawDocumentBuf};

use super::{Chat, RoomWithMembers};
use crate::error::ApiError;
use crate::feed::position::time;
use crate::models::overview::{Since, Unread};
use crate::models::{MessageId, RoomId, StoreError, UserId};

/// A room in the list of a user.
#[derive(Debug)]
pub struct RoomOverview {
    /// The room.
    pub room: ListedRoom,
    /// Its last message that is not deleted.
    pub last_message: Option<RawDocumentBuf>,
    /// What the user has read of it; `None` while marks cannot be used.
    pub reading: Option<Reading>,
}

/// What a user has read of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// How many messages of others the user has not read, at most
    /// [`MAX_UNREAD`](crate::models::overview::MAX_UNREAD).
    pub unread: u32,
    /// The last message that the user has read.
    pub last_read: Option<MessageId>,
}

/// A room of either kind.
#[derive(Debug)]
pub enum ListedRoom {
    /// One with members.
    WithMembers(RoomWithMembers),
    /// A public one, as it is stored.
    Public(RawDocumentBuf),
}

impl Chat {
    /// A page of the rooms of `user`, in the order of their ids: the last ones before `before` of
    /// the rooms with members that the user is in and the public rooms that the user has a mark in.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rooms_of_user(
        &self,
        user: UserId,
        limit: usize,
        before: Option<RoomId>,
    ) -> Result<Vec<RoomOverview>, ApiError> {
        self.check_members_known()?;
        let marks = match self.store.marks.of_user(user).await {
            Ok(marks) => Some(marks),
            Err(StoreError::Off(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let marked = marks.iter().flat_map(HashMap::keys).copied();
        let page = self.page_of_rooms(user, marked.collect(), limit, before).await?;
        let ids: Vec<_> = page.keys().copied().collect();
        let mut last_messages = self.store.messages.last_of(&ids).await?;
        let mut reading = match marks {
            Some(marks) => self.reading(user, &page, &marks, &last_messages).await?,
            None => HashMap::new(),
        };
        // The user may have been removed from a room meanwhile, and must not get what was stored
        // since.
        let with_members =
            ids.iter().copied().filter(|id| page.get(id).is_some_and(ListedRoom::has_members));
        let with_members: Vec<_> = with_members.collect();
        let after = time(self.feed.ring().tail().through);
        let rooms = &self.store.members_rooms;
        let confirmed = rooms.which_of(&with_members, user, after).await?;
        // A removal that a majority does not have yet counts, too.
        let visible: HashSet<_> = match confirmed.is_empty() {
            true => HashSet::new(),
            false => rooms.rooms_of(user).await?.into_iter().map(|room| room.id).collect(),
        };
        let page = page.into_iter().filter(|(id, room)| {
            !room.has_members() || (confirmed.contains(id) && visible.contains(id))
        });
        let overview = |(id, room)| RoomOverview {
            room,
            last_message: last_messages.remove(&id),
            reading: reading.remove(&id),
        };
        Ok(page.map(overview).collect())
    }

    async fn page_of_rooms(
        &self,
        user: UserId,
        marked: Vec<RoomId>,
        limit: usize,
        before: Option<RoomId>,
    ) -> Result<BTreeMap<RoomId, ListedRoom>, ApiError> {
        let is_before = |room: RoomId| before.is_none_or(|before| room < before);
        let rooms = &self.store.members_rooms;
        let with_members = rooms.rooms_of(user).await?.into_iter();
        let mut with_members: BTreeMap<_, _> =
            with_members.filter(|room| is_before(room.id)).map(|room| (room.id, room)).collect();
        let wanted = marked.into_iter().filter(|&room| is_before(room));
        let wanted: Vec<_> = wanted.filter(|room| !with_members.contains_key(room)).collect();
        let mut public = self.store.rooms.last_of(&wanted, limit).await?;
        let ids: BTreeSet<_> = with_members.keys().chain(public.keys()).copied().collect();
        let ids: Vec<_> = ids.into_iter().rev().take(limit).collect();
        let mut members = rooms.members_of_all(&ids).await?;
        let listed = |id: RoomId| {
            let room = match with_members.remove(&id) {
                Some(room) => {
                    let members = members.remove(&id).unwrap_or_default();
                    ListedRoom::WithMembers(RoomWithMembers::new(room, members))
                }
                None => ListedRoom::Public(public.remove(&id)?),
            };
            Some((id, room))
        };
        Ok(ids.into_iter().filter_map(listed).collect())
    }

    /// What `user` has read of each of these rooms.
    async fn reading(
        &self,
        user: UserId,
        page: &BTreeMap<RoomId, ListedRoom>,
        marks: &HashMap<RoomId, MessageId>,
        last_messages: &HashMap<RoomId, RawDocumentBuf>,
    ) -> Result<HashMap<RoomId, Reading>, ApiError> {
        let mut reading = HashMap::with_capacity(page.len());
        let mut unclear = Vec::new();
        for (&id, room) in page {
            let mark = marks.get(&id).copied();
            reading.insert(id, Reading { unread: 0, last_read: mark });
            let Some(last) = last_messages.get(&id) else { continue };
            let last_id = last.get_object_id("_id").ok().map(MessageId);
            if last.get_object_id("sender").ok() == Some(user.0) {
                reading.insert(id, Reading { unread: 0, last_read: mark.max(last_id) });
            } else if last_id.is_none() || last_id > mark {
                let since = mark.map(Since::Mark).or_else(|| room.joined_at(user).map(Since::Date));
                unclear.extend(since.map(|since| (id, since)));
            }
        }
        let unread = self.store.messages.unread(user, &unclear).await?;
        for (id, Unread { count, own }) in unread {
            let mark = marks.get(&id).copied();
            reading.insert(id, Reading { unread: count, last_read: mark.max(own) });
        }
        Ok(reading)
    }
}

impl ListedRoom {
    fn has_members(&self) -> bool {
        matches!(self, Self::WithMembers(_))
    }

    /// Since when a user is a member.
    fn joined_at(&self, user: UserId) -> Option<DateTime> {
        match self {
            Self::WithMembers(room) => room.joined_at(user),
            Self::Public(_) => None,
        }
    }
}
