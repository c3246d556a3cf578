//! Rooms with members: making, changing and leaving them.
//!
//! To everybody who is not a member such a room does not exist, so every question begins with
//! whether the user is one. Nobody is told here: the change stream brings each change to the
//! members' sessions, at its position.

use std::collections::HashMap;

use bson::DateTime;
use tokio::sync::MutexGuard;

use super::Chat;
use crate::casts::{required_id, required_text};
use crate::error::ApiError;
use crate::feed::event::Event;
use crate::js::{Fields, Js};
use crate::models::user::Username;
use crate::models::{Conversation, MembersRoom, Membership, RoomId, RoomKind, UserId};
use crate::views;

/// How many members a room can be made with.
const MAX_MEMBERS_AT_ONCE: usize = 1_000;

/// How often a change is tried again when others change the same room.
const ATTEMPTS: usize = 20;

/// A room with its members, as a member sees it.
#[derive(Debug, Clone)]
pub struct RoomWithMembers {
    room: MembersRoom,
    members: Vec<Membership>,
}

/// What may be changed of a private room.
#[derive(Debug)]
pub struct RoomChange {
    name: Js,
    owner: Js,
}

impl RoomChange {
    /// Takes `name` and `owner` out of a request.
    pub fn take(fields: &mut Fields) -> Self {
        Self { name: fields.take("name"), owner: fields.take("owner") }
    }
}

impl Chat {
    /// Makes a private room; `user` is its owner and a member.
    ///
    /// # Errors
    /// A field cannot be cast, a member does not exist, or the user makes too many rooms.
    pub async fn create_private_room(
        &self,
        name: &Js,
        members: &Js,
        user: UserId,
    ) -> Result<RoomWithMembers, ApiError> {
        self.check_members_known()?;
        self.limits.room.take(user)?;
        let name = required_text("name", name)?;
        let mut ids = match members {
            Js::Undefined | Js::Null => Vec::new(),
            Js::Array(members) => members
                .iter()
                .map(|member| required_id("members", member))
                .collect::<Result<Vec<UserId>, _>>()?,
            _ => return Err(invalid("members", "must be a list of ids")),
        };
        if ids.len() > MAX_MEMBERS_AT_ONCE {
            return Err(invalid("members", "must be at most 1000 ids"));
        }
        ids.push(user);
        let users = self.existing_users("members", ids).await?;
        let room = self.store.members_rooms.create_private(&name, user, &users).await?;
        let room = self.with_members(room).await?;
        self.announce(&room.members);
        Ok(room)
    }

    /// The conversation of `user` with another; and whether it is new.
    ///
    /// # Errors
    /// The other user does not exist, the id cannot be cast, or the user makes too many rooms.
    pub async fn direct_room(
        &self,
        other: &Js,
        user: UserId,
    ) -> Result<(RoomWithMembers, bool), ApiError> {
        self.check_members_known()?;
        self.limits.room.take(user)?;
        let other: UserId = required_id("user", other)?;
        let users = self.existing_users("user", vec![user, other]).await?;
        let Conversation { room, is_new, added } = self.store.members_rooms.direct(&users).await?;
        let room = self.with_members(room).await?;
        self.announce(room.members.iter().filter(|member| added.contains(&member.user)));
        Ok((room, is_new))
    }

    /// A room with members that `user` is a member of.
    ///
    /// # Errors
    /// There is none.
    pub async fn room_of_member(
        &self,
        room: RoomId,
        user: UserId,
    ) -> Result<RoomWithMembers, ApiError> {
        let room = self.members_room(room, user).await?;
        let room = self.with_members(room).await?;
        // Removed in the meantime?
        if room.has(user) { Ok(room) } else { Err(ApiError::RoomNotFound) }
    }

    /// Adds a member. One who is there already stays.
    ///
    /// # Errors
    /// The room is not there for this user, who must be its owner; the new member does not exist.
    pub async fn add_member(
        &self,
        room: RoomId,
        member: &Js,
        user: UserId,
    ) -> Result<RoomWithMembers, ApiError> {
        self.limits.room.take(user)?;
        let rooms = &self.store.members_rooms;
        let _turn = self.turn(room, user).await?;
        for _ in 0..ATTEMPTS {
            let room = self.members_room(room, user).await?;
            let member: UserId = required_id("user", member)?;
            if room.owner() != Some(user) {
                return Err(ApiError::NotTheOwner);
            }
            let users = self.existing_users("user", vec![member]).await?;
            if rooms.add(&room, &users).await?.is_none() {
                continue;
            }
            let room = self.with_members(room).await?;
            // Also if the user is one already: the answer to the first request may have been lost
            // before this.
            self.announce(room.members.iter().find(|added| added.user == member));
            return Ok(room);
        }
        Err(contended())
    }

    /// Removes a member: the owner may remove everybody, everybody else only themselves. One who is
    /// none stays none. An owner who leaves hands over to the member who is there longest; with the
    /// last member the room ends.
    ///
    /// # Errors
    /// The room is not there for this user, or the user may not do this.
    pub async fn remove_member(
        &self,
        room: RoomId,
        member: &Js,
        user: UserId,
    ) -> Result<RoomWithMembers, ApiError> {
        self.limits.room.take(user)?;
        let member: UserId = required_id("user", member)?;
        let rooms = &self.store.members_rooms;
        let _turn = self.turn(room, user).await?;
        for _ in 0..ATTEMPTS {
            let room = self.members_room(room, user).await?;
            if member != user && room.owner() != Some(user) {
                return Err(ApiError::NotTheOwner);
            }
            let members = rooms.members_of(room.id).await?;
            let Some(next) = members.iter().find(|next| next.user != member) else {
                if !self.end_room(&room).await? {
                    continue;
                }
                return Ok(RoomWithMembers { room, members: Vec::new() });
            };
            let next = (room.owner() == Some(member)).then_some(next.user);
            let is_member = members.iter().any(|other| other.user == member);
            if is_member || next.is_some() {
                match self.remove_at_once(room, member, next).await? {
                    Some(room) => return self.with_members(room).await,
                    None => continue,
                }
            }
            // The answer to the first request may have been lost before this.
            self.feed.publish_local(|| Event::member_removed(room.id, member, None));
            return Ok(RoomWithMembers { room, members });
        }
        Err(contended())
    }

    /// Removes a member and tells of it; `None` when the room has changed since it was read.
    async fn remove_at_once(
        &self,
        room: MembersRoom,
        member: UserId,
        next: Option<UserId>,
    ) -> Result<Option<MembersRoom>, ApiError> {
        let chat = self.clone();
        to_its_end(async move {
            let removed = chat.store.members_rooms.remove(&room, member, next).await?;
            if let Some(room) = &removed {
                if next.is_some() {
                    chat.announce_change(room);
                }
                chat.feed.publish_local(|| Event::member_removed(room.id, member, None));
            }
            Ok(removed)
        })
        .await
    }

    /// Changes the name or the owner of a private room, who must be a member.
    ///
    /// # Errors
    /// The room is not there for this user, who must be its owner; a field cannot be cast.
    pub async fn change_room(
        &self,
        room: RoomId,
        change: RoomChange,
        user: UserId,
    ) -> Result<RoomWithMembers, ApiError> {
        self.limits.room.take(user)?;
        let rooms = &self.store.members_rooms;
        let _turn = self.turn(room, user).await?;
        for _ in 0..ATTEMPTS {
            let room = self.members_room(room, user).await?;
            let RoomKind::Private { name, owner } = &room.kind else {
                return Err(ApiError::NotTheOwner);
            };
            if *owner != user {
                return Err(ApiError::NotTheOwner);
            }
            let name = match change.name.is_nullish() {
                true => name.clone(),
                false => required_text("name", &change.name)?.into_owned(),
            };
            let owner: UserId = match change.owner.is_nullish() {
                true => *owner,
                false => required_id("owner", &change.owner)?,
            };
            if !rooms.is_member(room.id, owner).await? {
                return Err(invalid("owner", "must be a member"));
            }
            if let Some(changed) = rooms.change(&room, RoomKind::Private { name, owner }).await? {
                self.announce_change(&changed);
                return self.with_members(changed).await;
            }
        }
        Err(contended())
    }

    /// Ends a private room: it is gone for everybody at once. Its messages are removed in the
    /// background.
    ///
    /// # Errors
    /// The room is not there for this user, who must be its owner.
    pub async fn delete_room(&self, room: RoomId, user: UserId) -> Result<(), ApiError> {
        self.limits.room.take(user)?;
        let _turn = self.turn(room, user).await?;
        for _ in 0..ATTEMPTS {
            let room = self.members_room(room, user).await?;
            if room.owner() != Some(user) {
                return Err(ApiError::NotTheOwner);
            }
            if self.end_room(&room).await? {
                return Ok(());
            }
        }
        Err(contended())
    }

    /// Ends a room; false when it has changed since it was read.
    async fn end_room(&self, room: &MembersRoom) -> Result<bool, ApiError> {
        let (room, chat) = (room.clone(), self.clone());
        to_its_end(async move {
            let rooms = &chat.store.members_rooms;
            let members = rooms.members_of(room.id).await?;
            if !rooms.end(&room).await? {
                return Ok(false);
            }
            let removed = |member: Membership| Event::member_removed(room.id, member.user, None);
            chat.feed.publish_local(|| members.into_iter().flat_map(removed));
            Ok(true)
        })
        .await
    }

    /// Tells of new members, where no stream does.
    fn announce<'a>(&self, members: impl IntoIterator<Item = &'a Membership>) {
        let added = |member| Event::member_added(member, None);
        self.feed.publish_local(|| members.into_iter().flat_map(added));
    }

    /// Tells of another name or owner, where no stream does.
    fn announce_change(&self, room: &MembersRoom) {
        let RoomKind::Private { name, owner } = &room.kind else { return };
        self.feed.publish_local(|| Some(Event::room_changed(room.id, name, *owner, None)));
    }

    /// Rooms with members must not be used where a removal would not be heard of.
    pub(super) fn check_members_known(&self) -> Result<(), ApiError> {
        if self.feed.knows_members() { Ok(()) } else { Err(ApiError::NoMembers) }
    }

    /// A room with members, if there is one that this user is in.
    async fn members_room(&self, room: RoomId, user: UserId) -> Result<MembersRoom, ApiError> {
        let rooms = &self.store.members_rooms;
        if !room.may_have_members() {
            return Err(ApiError::RoomNotFound);
        }
        self.check_members_known()?;
        if !rooms.is_member(room, user).await? {
            return Err(ApiError::RoomNotFound);
        }
        rooms.room(room).await?.ok_or(ApiError::RoomNotFound)
    }

    /// Waits for other changes of a room that this user is in. Other users do not wait, or the time
    /// of their answer would tell them that there is a room.
    async fn turn(&self, room: RoomId, user: UserId) -> Result<MutexGuard<'_, ()>, ApiError> {
        self.members_room(room, user).await?;
        Ok(self.store.members_rooms.turn(room).await)
    }

    async fn with_members(&self, room: MembersRoom) -> Result<RoomWithMembers, ApiError> {
        let members = self.store.members_rooms.members_of(room.id).await?;
        Ok(RoomWithMembers { room, members })
    }

    /// These users with their names, each of whom must exist.
    async fn existing_users(
        &self,
        field: &'static str,
        ids: Vec<UserId>,
    ) -> Result<HashMap<UserId, Option<String>>, ApiError> {
        let names = self.store.users.names_of(ids).await?;
        names
            .into_iter()
            .map(|(user, name)| match name {
                Some(Username::Text(name)) => Ok((user, Some(name.to_string()))),
                Some(Username::Null | Username::Missing) => Ok((user, None)),
                None => Err(invalid(field, "must be the id of a user")),
            })
            .collect()
    }
}

impl RoomWithMembers {
    fn has(&self, user: UserId) -> bool {
        self.members.iter().any(|member| member.user == user)
    }

    pub(super) fn new(room: MembersRoom, members: Vec<Membership>) -> Self {
        Self { room, members }
    }

    /// When a member was added.
    pub(super) fn joined_at(&self, user: UserId) -> Option<DateTime> {
        let member = self.members.iter().find(|member| member.user == user);
        member.map(|member| member.joined_at)
    }

    /// `{"room":{…}}`, as all routes but the creation answer it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = br#"{"room":"#.to_vec();
        self.write(&mut json);
        json.push(b'}');
        json
    }

    /// Appends the room alone.
    pub fn write(&self, out: &mut Vec<u8>) {
        views::room_with_members(out, &self.room, &self.members);
    }
}

/// Does something that must not stop half-way when its request ends early.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(work).await.map_err(|error| ApiError::Internal(error.to_string()))?
}

fn invalid(field: &'static str, problem: &'static str) -> ApiError {
    ApiError::InvalidField { field, problem }
}

fn contended() -> ApiError {
    ApiError::Unavailable("others change the same room all the time".to_owned())
}
