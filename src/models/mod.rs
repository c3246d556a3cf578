//! The documents of the database and every query on them.
//!
//! This module knows BSON, but neither HTTP nor JSON. Each kind of id has a type of its own, so
//! that a room's id cannot be passed as a user's.

mod batcher;
mod bulk;
pub mod clock;
pub mod failure;
pub mod idempotency;
pub mod indexes;
pub mod marks;
pub mod members;
pub mod message;
mod ordinary;
pub mod overview;
pub mod own;
pub mod presence;
pub mod readiness;
pub mod refresh;
pub mod revision;
pub mod revocations;
pub mod room;
pub mod signals;
pub mod socket;
pub mod survey;
mod turns;
pub mod user;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bson::oid::ObjectId;
use bson::{Bson, Document, doc};
use mongodb::error::Error;
use mongodb::{Collection, Database};

pub use clock::Clock;
pub use failure::{Failure, RefusingIndex};
pub use idempotency::{Idempotency, IdempotencyKey};
pub use indexes::{UniqueIndex, Upkeep};
pub use marks::{Mark, Marks};
pub use members::{Conversation, MembersRoom, MembersRooms, Membership, RoomKind};
pub use message::{Message, Messages};
use own::Own;
pub use presence::{Presence, PresenceRow};
pub use readiness::{Privileges, Unready};
pub use refresh::{Families, IssuedRefresh, RefreshSecret, RefreshToken, Rotation};
pub use revision::Revision;
pub use revocations::{Revocation, Revocations, Scope, TokenIdentity};
pub use room::{Room, Rooms};
pub use signals::SignalBundles;
pub use socket::{Claimed, Owner, SocketRecord, Sockets};
pub use user::{Credentials, Users};

/// Declares the id of one kind of document: an `ObjectId` that no other kind accepts.
macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub ObjectId);

        impl $name {
            /// Makes a new id in this process, from its clock, as the original's driver does.
            #[expect(clippy::new_without_default, reason = "a default id would be a surprise")]
            pub fn new() -> Self {
                Self(ObjectId::new())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0.to_hex())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.to_hex())
            }
        }

        /// Parses 24 hexadecimal digits in either case. Mongoose's casts of other forms are not
        /// done here.
        impl std::str::FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                ObjectId::parse_str(text).map(Self).map_err(|_| NotAnId)
            }
        }
    )+};
}

id!(
    /// The id of a user.
    UserId,
    /// The id of a room.
    RoomId,
    /// The id of a message.
    MessageId,
    /// The id of a family of refresh tokens: one login on one device.
    FamilyId,
);

/// A text that is not 24 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of 24 hexadecimal digits")]
pub struct NotAnId;

/// What all workers share: cached names of users, cached rooms and members, the indexes that keep names unique,
/// and which own collections can be used.
#[derive(Clone)]
pub struct Shared {
    names: user::Names,
    rooms: room::Seen,
    recent_members: members::RecentMembers,
    username_index: UniqueIndex,
    room_name_index: UniqueIndex,
    message_turns: turns::Turns,
    room_turns: turns::Turns,
    keys: own::State,
    sockets: own::State,
    members_rooms: own::State,
    members: own::State,
    families: own::State,
    revocations: own::State,
    marks: own::State,
    signals: own::State,
    presence: own::State,
    seen: own::State,
    ready: Arc<Mutex<Option<Instant>>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            names: user::names(),
            rooms: room::seen(),
            recent_members: members::recent(),
            username_index: UniqueIndex::new(&indexes::USERNAME),
            room_name_index: UniqueIndex::new(&indexes::ROOM_NAME),
            message_turns: turns::Turns::default(),
            room_turns: turns::Turns::default(),
            keys: own::State::new(&own::KEYS),
            sockets: own::State::new(&own::SOCKETS),
            members_rooms: own::State::new(&own::ROOMS),
            members: own::State::new(&own::MEMBERS),
            families: own::State::new(&own::REFRESH),
            revocations: own::State::new(&own::REVOCATIONS),
            marks: own::State::new(&own::MARKS),
            signals: own::State::new(&own::SIGNALS),
            presence: own::State::new(&own::PRESENCE),
            seen: own::State::new(&own::SEEN),
            ready: Arc::default(),
        }
    }
}

/// Every collection, over one connection pool.
#[derive(Clone)]
pub struct Store {
    /// `users`.
    pub users: Users,
    /// `rooms`.
    pub rooms: Rooms,
    /// `messages`, and their idempotency keys.
    pub messages: Messages,
    /// The records of sessions whose clients may reconnect.
    pub sockets: Arc<Sockets>,
    /// Private rooms and direct conversations.
    pub members_rooms: MembersRooms,
    /// Refresh tokens.
    pub families: Families,
    /// Tokens that were revoked.
    pub revocations: Revocations,
    /// How far users have read.
    pub marks: Marks,
    /// Who types, from instance to instance.
    pub signals: SignalBundles,
    /// Who is online.
    pub presence: Presence,
    own: [own::State; 10],
    /// When the database was last found to be ready.
    ready: Arc<Mutex<Option<Instant>>>,
    database: Database,
}

impl Store {
    /// The collections of this database. The first query connects.
    pub fn new(database: Database, shared: &Shared) -> Self {
        Self {
            users: Users {
                collection: database.collection("users"),
                names: shared.names.clone(),
                name_index: shared.username_index.clone(),
            },
            rooms: Rooms::new(
                database.collection("rooms"),
                shared.room_name_index.clone(),
                shared.rooms.clone(),
            ),
            messages: Messages::new(
                database.clone(),
                Idempotency { keys: Own::new(&database, &shared.keys) },
                shared.message_turns.clone(),
            ),
            sockets: Arc::new(Sockets::new(Own::new(&database, &shared.sockets))),
            members_rooms: MembersRooms {
                rooms: Own::new(&database, &shared.members_rooms),
                members: Own::new(&database, &shared.members),
                recent: shared.recent_members.clone(),
                turns: shared.room_turns.clone(),
            },
            families: Families { families: Own::new(&database, &shared.families) },
            revocations: Revocations { revocations: Own::new(&database, &shared.revocations) },
            marks: Marks { marks: Own::new(&database, &shared.marks) },
            signals: SignalBundles { bundles: Own::new(&database, &shared.signals) },
            presence: Presence {
                rows: Own::new(&database, &shared.presence),
                seen: Own::new(&database, &shared.seen),
            },
            own: [
                shared.keys.clone(),
                shared.sockets.clone(),
                shared.members_rooms.clone(),
                shared.members.clone(),
                shared.families.clone(),
                shared.revocations.clone(),
                shared.marks.clone(),
                shared.signals.clone(),
                shared.presence.clone(),
                shared.seen.clone(),
            ],
            ready: Arc::clone(&shared.ready),
            database,
        }
    }

    /// The database, for commands that belong to no model.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Checks the own collections, and claims those that are free.
    async fn check_own(&self) -> Result<(), StoreError> {
        for state in &self.own {
            state.check(&self.database).await?;
        }
        Ok(())
    }
}

/// Why a query failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A unique index of ours already has this value.
    #[error("the value exists already")]
    Duplicate,
    /// A unique index that is not ours refuses the document, for example one of an older schema.
    #[error(
        "the unique index {} on {} refuses a document and is not one of this server's. Drop it, or \
         make it partial so that it leaves out documents without its fields", .0.index, .0.collection
    )]
    Refused(RefusingIndex),
    /// An own collection cannot be used, so its feature is off.
    #[error("{} is off, since {} cannot be used", .0.feature, .0.collection)]
    Off(&'static own::Purpose),
    /// MongoDB cannot be reached, has no primary, refuses the user, or did not finish in time.
    /// Whether a write happened is unknown.
    #[error("{}", failure::describe(.0))]
    Unavailable(Error),
    /// A stored document lacks a required field: the collection and the field.
    #[error("a document in {0} has no valid {1}")]
    Malformed(&'static str, &'static str),
    /// Anything else that the server refuses.
    #[error("{}", failure::describe(.0))]
    Database(Error),
}

impl StoreError {
    /// [`Duplicate`](Self::Duplicate) if a document with this `_id` exists, else the same error.
    fn or_duplicate_id(self) -> Self {
        match self {
            Self::Refused(refusing) if refusing.index == ID_INDEX => Self::Duplicate,
            error => error,
        }
    }
}

/// The name of the index that every collection has.
const ID_INDEX: &str = "_id_";

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        if let Some(refusing) = RefusingIndex::of(&error) {
            return Self::Refused(refusing);
        }
        match Failure::of(&error) {
            Failure::Other if !failure::is_transient(&error) => Self::Database(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// Up to five values that several documents share, as text for a person.
async fn duplicates(collection: &Collection<Document>, field: &str) -> Result<String, StoreError> {
    let mut found = collection
        .aggregate([
            doc! { "$group": { "_id": format!("${field}"), "documents": { "$sum": 1 } } },
            doc! { "$match": { "documents": { "$gt": 1 } } },
            doc! { "$limit": 5 },
        ])
        .await?;
    let mut texts = Vec::new();
    while found.advance().await? {
        let group: Document = found.deserialize_current()?;
        let value = group.get("_id").unwrap_or(&Bson::Null);
        texts.push(format!("{value} ({} times)", group.get("documents").unwrap_or(&Bson::Null)));
    }
    Ok(texts.join(", "))
}
