//! Making, changing and ending rooms with members.
//!
//! Every change of a room or of its members counts in the document of the room, and is made only if
//! that document is still as it was read. Both are written in one transaction, so a request never
//! takes effect after its user has lost the right to it, an owner is always a member, and no room
//! stays behind half-made or half-ended. A standalone MongoDB has no transactions: there, the writes
//! follow one another, and a crash can separate them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bson::{DateTime, Document, doc};
use futures::FutureExt;
use mongodb::error::{Error, ErrorKind};
use mongodb::{ClientSession, Collection};
use tokio::sync::MutexGuard;
use tokio::time::timeout;

use super::{MembersRoom, MembersRooms, Membership, RoomKind, in_room, member_id};
use crate::models::failure::DUPLICATE_KEY;
use crate::models::{RoomId, StoreError, UserId};

/// How many ids are tried for one room.
const ATTEMPTS: u8 = 16;

/// How long a transaction is tried again.
const TIMEOUT: Duration = Duration::from_secs(20);

/// `IllegalOperation`, what a standalone answers to a transaction.
const ILLEGAL: i32 = 20;

/// A conversation of two users, after a request for it.
#[derive(Debug)]
pub struct Conversation {
    /// Its room.
    pub room: MembersRoom,
    /// Whether this request has made the room.
    pub is_new: bool,
    /// Who was no member before: both, or one who had left.
    pub added: Vec<UserId>,
}

/// What is written to the document of a room.
enum RoomWrite {
    /// It is new.
    Insert(Document),
    /// It is replaced, if it matches the filter.
    Replace(Document, Document),
    /// Another change of its members is counted, if it matches the filter.
    Count(Document),
}

/// What is written to the members of a room.
enum MembersWrite {
    Insert(Vec<Document>),
    Delete(Document),
}

/// What is written together, and where.
struct Writes {
    rooms: Collection<Document>,
    room: RoomWrite,
    members: Collection<Document>,
    change: MembersWrite,
}

impl MembersRooms {
    /// Waits until no other change of this room is running in this process.
    pub async fn turn(&self, room: RoomId) -> MutexGuard<'_, ()> {
        self.turns.of(room.0).await
    }

    /// Makes a private room, of which `owner` is a member, too.
    ///
    /// # Errors
    /// The database failed.
    pub async fn create_private(
        &self,
        name: &str,
        owner: UserId,
        users: &HashMap<UserId, Option<String>>,
    ) -> Result<MembersRoom, StoreError> {
        let kind = RoomKind::Private { name: name.to_owned(), owner };
        for _ in 0..ATTEMPTS {
            let room = MembersRoom::new(RoomId::of_private_room(), kind.clone());
            if self.insert(&room, users).await? {
                return Ok(room);
            }
        }
        Err(StoreError::Duplicate)
    }

    /// The conversation of two users, which both are members of afterwards. Two requests at the same
    /// time make one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn direct(
        &self,
        users: &HashMap<UserId, Option<String>>,
    ) -> Result<Conversation, StoreError> {
        let mut pair: Vec<UserId> = users.keys().copied().collect();
        pair.sort_unstable();
        let pair = match *pair.as_slice() {
            [one, other] => [one, other],
            [one] => [one, one],
            _ => return Err(StoreError::Malformed(self.rooms.name(), "direct")),
        };
        // More than ids, since others can make and end the room meanwhile.
        for attempt in (0..ATTEMPTS).cycle().take(4 * usize::from(ATTEMPTS)) {
            if let Some(room) = self.going_on(pair).await? {
                match self.add(&room, users).await? {
                    Some(added) => return Ok(Conversation { room, is_new: false, added }),
                    None => continue,
                }
            }
            // Its id can be taken: by other users whose hash begins alike, or by an earlier
            // conversation that is being removed.
            let room = MembersRoom::new(RoomId::of_direct(pair, attempt), RoomKind::Direct(pair));
            if self.insert(&room, users).await? {
                let added = users.keys().copied().collect();
                return Ok(Conversation { room, is_new: true, added });
            }
        }
        Err(StoreError::Duplicate)
    }

    /// The conversation of two users that goes on, if there is one. While an earlier one is being
    /// removed, its id is taken, so it can have any of its ids.
    async fn going_on(&self, pair: [UserId; 2]) -> Result<Option<MembersRoom>, StoreError> {
        let ids = (0..ATTEMPTS).map(|attempt| RoomId::of_direct(pair, attempt).0);
        let wanted = doc! { "_id": { "$in": ids.collect::<Vec<_>>() }, "ended": { "$ne": true } };
        let mut found = self.rooms.get().await?.find(wanted).await?;
        while found.advance().await? {
            let room = MembersRoom::of(&found.deserialize_current()?);
            if let Some(room) = room.filter(|room| room.kind == RoomKind::Direct(pair)) {
                return Ok(Some(room));
            }
        }
        Ok(None)
    }

    /// Inserts a room with its first members. Returns false if its id is taken.
    async fn insert(
        &self,
        room: &MembersRoom,
        users: &HashMap<UserId, Option<String>>,
    ) -> Result<bool, StoreError> {
        let members = MembersWrite::Insert(documents(room.id, users));
        match self.write(RoomWrite::Insert(room.to_document()), members).await {
            Err(StoreError::Duplicate) => Ok(false),
            inserted => inserted,
        }
    }

    /// Adds members; those who are there stay as they are. Returns who is new; `None` if the room
    /// has changed since it was read.
    ///
    /// # Errors
    /// The database failed.
    pub async fn add(
        &self,
        room: &MembersRoom,
        users: &HashMap<UserId, Option<String>>,
    ) -> Result<Option<Vec<UserId>>, StoreError> {
        let before = self.members_of(room.id).await?;
        let before: HashSet<_> = before.iter().map(|member| member.user).collect();
        let new = users.iter().filter(|(user, _)| !before.contains(user));
        let new: HashMap<_, _> = new.map(|(&user, name)| (user, name.clone())).collect();
        if new.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let members = MembersWrite::Insert(documents(room.id, &new));
        match self.write(RoomWrite::Count(guard(room)), members).await {
            Ok(true) => Ok(Some(new.into_keys().collect())),
            // Another program, or an instance of another version, has added one of them.
            Ok(false) | Err(StoreError::Duplicate) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a member, who hands over to `next` as the owner if there is one. Returns the room as
    /// it is then; `None` if it has changed since it was read.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove(
        &self,
        room: &MembersRoom,
        user: UserId,
        next: Option<UserId>,
    ) -> Result<Option<MembersRoom>, StoreError> {
        let mut changed =
            MembersRoom { member_changes: room.member_changes.saturating_add(1), ..room.clone() };
        let write = match (&room.kind, next) {
            (RoomKind::Private { name, .. }, Some(owner)) => {
                changed = changed.with(RoomKind::Private { name: name.clone(), owner });
                RoomWrite::Replace(guard(room), changed.to_document())
            }
            _ => RoomWrite::Count(guard(room)),
        };
        let removal = MembersWrite::Delete(doc! { "_id": member_id(room.id, user) });
        Ok(self.write(write, removal).await?.then_some(changed))
    }

    /// Changes name or owner of a private room, unless it has changed since it was read. `None`
    /// when it has.
    ///
    /// # Errors
    /// The database failed.
    pub async fn change(
        &self,
        room: &MembersRoom,
        kind: RoomKind,
    ) -> Result<Option<MembersRoom>, StoreError> {
        let changed = room.clone().with(kind);
        let rooms = self.rooms.get().await?;
        let replaced = rooms.replace_one(guard(room), changed.to_document()).await?;
        Ok((replaced.matched_count > 0).then_some(changed))
    }

    /// Begins to remove a room: from now on it exists for nobody, and nobody is a member. False
    /// when it has changed since it was read.
    ///
    /// # Errors
    /// The database failed.
    pub async fn end(&self, room: &MembersRoom) -> Result<bool, StoreError> {
        let version = room.version.saturating_add(1);
        let ended = MembersRoom { version, is_ended: true, ..room.clone() };
        let write = RoomWrite::Replace(guard(room), ended.to_document());
        self.write(write, MembersWrite::Delete(in_room(room.id))).await
    }

    /// Removes all members of a room that is being removed.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_members(&self, room: RoomId) -> Result<(), StoreError> {
        self.members.get().await?.delete_many(in_room(room)).await?;
        Ok(())
    }

    /// Removes what is left of a room whose messages are gone.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_ended(&self, room: RoomId) -> Result<(), StoreError> {
        self.remove_members(room).await?;
        let rooms = self.rooms.get().await?;
        rooms.delete_one(doc! { "_id": room.0, "ended": true }).await?;
        Ok(())
    }

    /// Writes to a room and its members, both or neither. Returns false if the room is not as it
    /// was read.
    async fn write(&self, room: RoomWrite, change: MembersWrite) -> Result<bool, StoreError> {
        let (rooms, members) = (self.rooms.get().await?, self.members.get().await?);
        let writes = Writes { rooms: rooms.clone(), room, members: members.clone(), change };
        // A transaction that is dropped while MongoDB works on it stays open there, so the request
        // must not take it along when it ends early.
        let written = tokio::spawn(async move { timeout(TIMEOUT, writes.run_together()).await });
        let written = match written.await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            Err(failed) => Err(std::io::Error::other(failed).into()),
        };
        written.map_err(|error| match only_duplicates(&error) {
            true => StoreError::Duplicate,
            false => StoreError::from(error).or_duplicate_id(),
        })
    }
}

impl MembersRoom {
    /// The same room with another name or owner.
    fn with(self, kind: RoomKind) -> Self {
        let version = self.version.saturating_add(1);
        Self { kind, updated_at: DateTime::now(), version, ..self }
    }
}

impl Writes {
    /// Writes in one transaction, if MongoDB has them.
    async fn run_together(&self) -> Result<bool, Error> {
        let mut session = self.rooms.client().start_session().await?;
        let together = session
            .start_transaction()
            .and_run(self, |session, writes| writes.run(Some(session)).boxed());
        match together.await {
            Err(error) if has_no_transactions(&error) => self.run(None).await,
            written => written,
        }
    }

    async fn run(&self, mut session: Option<&mut ClientSession>) -> Result<bool, Error> {
        /// The action, in the transaction if there is one.
        macro_rules! within {
            ($action:expr) => {
                match session.as_deref_mut() {
                    Some(session) => $action.session(session).await?,
                    None => $action.await?,
                }
            };
        }
        let is_written = match &self.room {
            RoomWrite::Insert(room) => {
                within!(self.rooms.insert_one(room));
                true
            }
            RoomWrite::Replace(filter, room) => {
                within!(self.rooms.replace_one(filter.clone(), room)).matched_count > 0
            }
            RoomWrite::Count(filter) => {
                let count = doc! { "$inc": { "memberChanges": 1_i64 } };
                within!(self.rooms.update_one(filter.clone(), count)).matched_count > 0
            }
        };
        if is_written {
            match &self.change {
                MembersWrite::Insert(members) => {
                    within!(self.members.insert_many(members));
                }
                MembersWrite::Delete(filter) => {
                    within!(self.members.delete_many(filter.clone()));
                }
            }
        }
        Ok(is_written)
    }
}

/// Matches the document of a room as long as it is as it was read.
fn guard(room: &MembersRoom) -> Document {
    let counted = match room.member_changes {
        // The field is missing in rooms of an earlier version.
        0 => doc! { "$in": [0, null] },
        changes => doc! { "$eq": changes },
    };
    doc! {
        "_id": room.id.0,
        "__v": room.version,
        "memberChanges": counted,
        "ended": { "$exists": false },
    }
}

fn documents(room: RoomId, users: &HashMap<UserId, Option<String>>) -> Vec<Document> {
    let joined_at = DateTime::now();
    let member = |(&user, username): (&UserId, &Option<String>)| {
        Membership { room, user, username: username.clone(), joined_at }.to_document()
    };
    users.iter().map(member).collect()
}

fn has_no_transactions(error: &Error) -> bool {
    match error.kind.as_ref() {
        ErrorKind::Command(refused) => refused.code == ILLEGAL,
        ErrorKind::Transaction { message, .. } => message.contains("not supported"),
        _ => false,
    }
}

/// Whether an error of an insert of many says only that some were there already.
pub(in crate::models) fn only_duplicates(error: &Error) -> bool {
    let ErrorKind::InsertMany(failed) = error.kind.as_ref() else { return false };
    failed.write_concern_error.is_none()
        && failed.write_errors.iter().flatten().all(|refused| refused.code == DUPLICATE_KEY)
}
