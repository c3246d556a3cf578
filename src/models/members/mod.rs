//! Rooms with members: private rooms and direct conversations, and who is in them.
//!
//! They are kept in collections of our own, so that neither a Node server nor the routes of the
//! original can see them. A member is a document whose `_id` is `{room, user}`: to add or remove
//! one twice changes nothing, and the change stream says room and user also when the document is
//! gone.
//!
//! The id of such a room has a mark in the place where an `ObjectId` has the random number of its
//! process ([`RoomId::may_have_members`]). So nothing has to be looked up for a public room.

mod changes;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, RawDocument, Timestamp, doc};
use moka::sync::Cache;
use mongodb::options::ReadConcern;
use sha2::{Digest, Sha256};

use super::own::{FIELD, MARK, Own};
use super::turns::Turns;
use super::{RoomId, StoreError, UserId};

pub use changes::Conversation;
pub(super) use changes::only_duplicates;

/// What stands in bytes 4 to 8 of the id of a room with members. A driver that makes ids for
/// public rooms has a random number there: of 2^40 processes one has the same, and then its rooms
/// cost a query more.
const IN_ID: [u8; 5] = *b"\x9croom";

/// A room that only its members know.
#[derive(Debug, Clone, PartialEq)]
pub struct MembersRoom {
    /// `_id`.
    pub id: RoomId,
    /// What kind of room it is.
    pub kind: RoomKind,
    /// `createdAt`.
    pub created_at: DateTime,
    /// `updatedAt`: of the last change of name or owner.
    pub updated_at: DateTime,
    /// `__v`: one more with each change of name or owner.
    pub version: i32,
    /// `memberChanges`: one more with each change of its members.
    pub member_changes: i64,
    /// Being removed: it exists for nobody any more.
    pub is_ended: bool,
}

/// The two kinds of rooms with members.
#[derive(Debug, Clone, PartialEq)]
pub enum RoomKind {
    /// A group.
    Private {
        /// Its name, which need not be unique.
        name: String,
        /// The user who may change it.
        owner: UserId,
    },
    /// A conversation of two users, which has neither name nor owner.
    Direct([UserId; 2]),
}

/// A user in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The room.
    pub room: RoomId,
    /// The user.
    pub user: UserId,
    /// The user's name when the user was added; `None` if that is no text.
    pub username: Option<String>,
    /// When the user was added, by the clock of the instance that did it. Long ago, if another
    /// program has added the user without saying it.
    pub joined_at: DateTime,
}

const LONG_AGO: DateTime = DateTime::from_millis(0);

/// The [own](super::own) collections of rooms with members and of their members:
/// `{_id, app, name, owner, direct, createdAt, updatedAt, __v, memberChanges, ended}` and
/// `{_id: {room, user}, app, username, joinedAt}`.
#[derive(Debug, Clone)]
pub struct MembersRooms {
    pub(super) rooms: Own<Document>,
    pub(super) members: Own<Document>,
    pub(super) recent: RecentMembers,
    pub(super) turns: Turns,
}

/// How long a member who was found counts as one for [`MembersRooms::was_member`].
const CACHE_AGE: Duration = Duration::from_secs(1);
/// How many members are cached.
const CACHE_SIZE: u64 = 10_000;

/// Users who were members of rooms a moment ago, shared by all workers: most messages are of few
/// senders.
pub type RecentMembers = Cache<(RoomId, UserId), ()>;

/// An empty cache of members, bounded in number and age.
pub(super) fn recent() -> RecentMembers {
    Cache::builder().max_capacity(CACHE_SIZE).time_to_live(CACHE_AGE).build()
}

impl UserId {
    /// The room of what is told to all sessions of this user. No document has this id, so nobody
    /// can join it.
    pub fn own_room(self) -> RoomId {
        RoomId(self.0)
    }
}

impl RoomId {
    /// Whether a room of this id can have members. For most others the answer is no.
    pub fn may_have_members(self) -> bool {
        self.0.bytes().get(4..9) == Some(&IN_ID)
    }

    fn with_mark(seconds: [u8; 4], rest: [u8; 3]) -> Self {
        let [a, b, c, d] = seconds;
        let [e, f, g, h, i] = IN_ID;
        let [j, k, l] = rest;
        Self(ObjectId::from_bytes([a, b, c, d, e, f, g, h, i, j, k, l]))
    }

    /// A new id for a private room.
    fn of_private_room() -> Self {
        let [a, b, c, d, .., j, k, l] = ObjectId::new().bytes();
        Self::with_mark([a, b, c, d], [j, k, l])
    }

    /// The id of the conversation of two users: the same for both, and for every instance.
    fn of_direct([one, other]: [UserId; 2], attempt: u8) -> Self {
        let mut hash = Sha256::new();
        hash.update(one.0.bytes());
        hash.update(other.0.bytes());
        hash.update([attempt]);
        let [a, b, c, d, j, k, l, ..] = <[u8; 32]>::from(hash.finalize());
        Self::with_mark([a, b, c, d], [j, k, l])
    }
}

impl MembersRoom {
    /// Reads a document of the collection; `None` for one that is none of this program's.
    pub fn read(document: &RawDocument) -> Option<Self> {
        Self::of(&Document::try_from(document).ok()?)
    }

    fn of(document: &Document) -> Option<Self> {
        let id = RoomId(document.get_object_id("_id").ok()?);
        let kind = match document.get_array("direct") {
            Ok(users) => {
                let [one, other] = users.as_slice() else { return None };
                RoomKind::Direct([UserId(one.as_object_id()?), UserId(other.as_object_id()?)])
            }
            Err(_) => RoomKind::Private {
                name: document.get_str("name").ok()?.to_owned(),
                owner: UserId(document.get_object_id("owner").ok()?),
            },
        };
        Some(Self {
            id,
            kind,
            created_at: *document.get_datetime("createdAt").ok()?,
            updated_at: *document.get_datetime("updatedAt").ok()?,
            version: i32::try_from(whole(document.get("__v"))?).ok()?,
            member_changes: whole(document.get("memberChanges")).unwrap_or(0),
            is_ended: document.get_bool("ended").unwrap_or(false),
        })
    }

    fn new(id: RoomId, kind: RoomKind) -> Self {
        let now = DateTime::now();
        Self {
            id,
            kind,
            created_at: now,
            updated_at: now,
            version: 0,
            member_changes: 0,
            is_ended: false,
        }
    }

    fn to_document(&self) -> Document {
        let mut document = doc! { "_id": self.id.0, FIELD: MARK };
        match &self.kind {
            RoomKind::Private { name, owner } => {
                document.insert("name", name);
                document.insert("owner", owner.0);
            }
            RoomKind::Direct(users) => {
                document.insert("direct", users.map(|user| user.0).to_vec());
            }
        }
        document.insert("createdAt", self.created_at);
        document.insert("updatedAt", self.updated_at);
        document.insert("__v", self.version);
        document.insert("memberChanges", self.member_changes);
        if self.is_ended {
            document.insert("ended", true);
        }
        document
    }

    /// The user who may change it; nobody may change a direct conversation.
    pub fn owner(&self) -> Option<UserId> {
        match &self.kind {
            RoomKind::Private { owner, .. } => Some(*owner),
            RoomKind::Direct(_) => None,
        }
    }
}

impl Membership {
    /// Reads a document of the collection; `None` for one that is none of this program's.
    pub fn read(document: &RawDocument) -> Option<Self> {
        Self::of(&Document::try_from(document).ok()?)
    }

    /// Reads which member a change event says is gone.
    pub fn removed(event: &RawDocument) -> Option<(RoomId, UserId)> {
        let id = event.get_document("documentKey").ok()?.get_document("_id").ok()?;
        Some((RoomId(id.get_object_id("room").ok()?), UserId(id.get_object_id("user").ok()?)))
    }

    fn of(document: &Document) -> Option<Self> {
        let id = document.get_document("_id").ok()?;
        Some(Self {
            room: RoomId(id.get_object_id("room").ok()?),
            user: UserId(id.get_object_id("user").ok()?),
            username: document.get_str("username").ok().map(str::to_owned),
            joined_at: document.get_datetime("joinedAt").copied().unwrap_or(LONG_AGO),
        })
    }

    fn to_document(&self) -> Document {
        let mut document = doc! { "_id": member_id(self.room, self.user), FIELD: MARK };
        if let Some(username) = &self.username {
            document.insert("username", username);
        }
        document.insert("joinedAt", self.joined_at);
        document
    }
}

/// A whole number of any type: a database that was restored may have another one.
fn whole(value: Option<&Bson>) -> Option<i64> {
    match *value? {
        Bson::Int32(number) => Some(number.into()),
        Bson::Int64(number) => Some(number),
        Bson::Double(number) if number.fract() == 0.0 => Some(number as i64),
        _ => None,
    }
}

/// The `_id` of what there is once for a user in a room.
pub(super) fn member_id(room: RoomId, user: UserId) -> Document {
    doc! { "room": room.0, "user": user.0 }
}

/// Matches what there is for the users of a room, by the index of `_id`.
pub(super) fn in_room(room: RoomId) -> Document {
    doc! { "_id": {
        "$gte": { "room": room.0, "user": Bson::MinKey },
        "$lte": { "room": room.0, "user": Bson::MaxKey },
    } }
}

impl MembersRooms {
    /// A room, unless it is being removed.
    ///
    /// # Errors
    /// The database failed.
    pub async fn room(&self, room: RoomId) -> Result<Option<MembersRoom>, StoreError> {
        Ok(self.stored(room).await?.filter(|room| !room.is_ended))
    }

    async fn stored(&self, room: RoomId) -> Result<Option<MembersRoom>, StoreError> {
        let found = self.rooms.get().await?.find_one(doc! { "_id": room.0 }).await?;
        Ok(found.as_ref().and_then(MembersRoom::of))
    }

    /// Whether a user is a member of a room.
    ///
    /// # Errors
    /// The database failed.
    pub async fn is_member(&self, room: RoomId, user: UserId) -> Result<bool, StoreError> {
        let members = self.members.get().await?;
        let found = members.find_one(doc! { "_id": member_id(room, user) });
        Ok(found.projection(doc! { "_id": 1 }).await?.is_some())
    }

    /// Like [`is_member`](Self::is_member), but a user who was a member a second ago can still count
    /// as one. Only for messages, which the feed refuses behind the removal of their sender.
    ///
    /// # Errors
    /// The database failed.
    pub async fn was_member(&self, room: RoomId, user: UserId) -> Result<bool, StoreError> {
        if self.recent.contains_key(&(room, user)) {
            return Ok(true);
        }
        let is_member = self.is_member(room, user).await?;
        if is_member {
            self.recent.insert((room, user), ());
        }
        Ok(is_member)
    }

    /// The rooms of these that a user is a member of, in a state that includes everything up to the
    /// cluster time `after`. So a primary that was replaced without its knowledge does not answer.
    ///
    /// # Errors
    /// The database failed.
    pub async fn which_of(
        &self,
        rooms: &[RoomId],
        user: UserId,
        after: Option<Timestamp>,
    ) -> Result<HashSet<RoomId>, StoreError> {
        let members = self.members.get().await?;
        let ids: Vec<_> = rooms.iter().map(|&room| member_id(room, user)).collect();
        let found = members.find(doc! { "_id": { "$in": ids } });
        let mut of = HashSet::new();
        let mut take = |member: Document| {
            of.extend(Membership::of(&member).map(|member| member.room));
        };
        // A standalone has no cluster time, and nothing that could replace it.
        if let Some(after) = after {
            let mut session = members.client().start_session().await?;
            session.advance_operation_time(after);
            let found = found.read_concern(ReadConcern::majority()).session(&mut session);
            let mut found = found.await?;
            while let Some(member) = found.next(&mut session).await {
                take(member?);
            }
        } else {
            let mut found = found.await?;
            while found.advance().await? {
                take(found.deserialize_current()?);
            }
        }
        Ok(of)
    }

    /// Whether anybody is a member of any room.
    ///
    /// # Errors
    /// The database failed.
    pub async fn any_member(&self) -> Result<bool, StoreError> {
        let members = match self.members.get().await {
            Err(StoreError::Off(_)) => return Ok(false),
            members => members?,
        };
        // Not the marker of the collection, whose `_id` is a text.
        let found = members.find_one(doc! { "_id": { "$type": "object" } });
        Ok(found.projection(doc! { "_id": 1 }).await?.is_some())
    }

    /// The members of a room, the one who is there longest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn members_of(&self, room: RoomId) -> Result<Vec<Membership>, StoreError> {
        let members = self.members.get().await?;
        let mut found = members.find(in_room(room)).await?;
        let mut all = Vec::new();
        while found.advance().await? {
            all.extend(Membership::of(&found.deserialize_current()?));
        }
        all.sort_by_key(|member| (member.joined_at, member.user));
        Ok(all)
    }

    /// The members of rooms, of each the one who is there longest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn members_of_all(
        &self,
        rooms: &[RoomId],
    ) -> Result<HashMap<RoomId, Vec<Membership>>, StoreError> {
        let mut all: HashMap<_, Vec<_>> = HashMap::new();
        if rooms.is_empty() {
            return Ok(all);
        }
        let ids: Vec<_> = rooms.iter().map(|room| room.0).collect();
        let in_rooms = doc! { "_id.room": { "$in": ids } };
        let mut found = self.members.get().await?.find(in_rooms).await?;
        while found.advance().await? {
            if let Some(member) = Membership::of(&found.deserialize_current()?) {
                all.entry(member.room).or_default().push(member);
            }
        }
        for members in all.values_mut() {
            members.sort_by_key(|member| (member.joined_at, member.user));
        }
        Ok(all)
    }

    /// The rooms of a user, in the order of their ids.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rooms_of(&self, user: UserId) -> Result<Vec<MembersRoom>, StoreError> {
        let members = self.members.get().await?;
        let mut found = members.find(doc! { "_id.user": user.0 }).await?;
        let mut ids = Vec::new();
        while found.advance().await? {
            ids.extend(Membership::of(&found.deserialize_current()?).map(|member| member.room.0));
        }
        let rooms = self.rooms.get().await?;
        let mut found = rooms.find(doc! { "_id": { "$in": ids } }).sort(doc! { "_id": 1 }).await?;
        let mut all = Vec::new();
        while found.advance().await? {
            all.extend(MembersRoom::of(&found.deserialize_current()?));
        }
        all.retain(|room: &MembersRoom| !room.is_ended);
        Ok(all)
    }

    /// A room that is being removed, if there is one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn any_ended(&self) -> Result<Option<RoomId>, StoreError> {
        let rooms = self.rooms.get().await?;
        let found = rooms.find_one(doc! { "ended": true }).projection(doc! { "_id": 1 }).await?;
        Ok(found.and_then(|room| room.get_object_id("_id").ok()).map(RoomId))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_rooms_with_members_have_the_mark() {
        assert!(RoomId::of_private_room().may_have_members());
        assert_ne!(RoomId::of_private_room(), RoomId::of_private_room());
        assert!(!RoomId::new().may_have_members());
        let mut pair = [UserId::new(), UserId::new()];
        pair.sort_unstable();
        let direct = RoomId::of_direct(pair, 0);
        assert!(direct.may_have_members());
        assert_eq!(direct, RoomId::of_direct(pair, 0));
        assert_ne!(direct, RoomId::of_direct(pair, 1));
        assert_ne!(direct, RoomId::of_direct([pair[0], UserId::new()], 0));
    }

    #[test]
    fn documents_read_back() {
        let [one, other] = [UserId::new(), UserId::new()];
        for kind in [
            RoomKind::Private { name: "cellar".to_owned(), owner: one },
            RoomKind::Direct([one, other]),
        ] {
            let room = MembersRoom::new(RoomId::of_private_room(), kind);
            assert_eq!(MembersRoom::of(&room.to_document()), Some(room.clone()));
            let changed = MembersRoom { version: 3, member_changes: 5, is_ended: true, ..room };
            let mut document = changed.to_document();
            assert_eq!(MembersRoom::of(&document), Some(changed.clone()));
            document.extend(doc! { "__v": 3.0, "memberChanges": 5 });
            assert_eq!(MembersRoom::of(&document), Some(changed));
        }
        for username in [Some("ada".to_owned()), None] {
            let joined_at = DateTime::from_millis(5);
            let member =
                Membership { room: RoomId::of_private_room(), user: one, username, joined_at };
            assert_eq!(Membership::of(&member.to_document()), Some(member));
        }
    }
}
