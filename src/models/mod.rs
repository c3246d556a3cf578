//! The documents of the database and every query on them.
//!
//! Documents know BSON and nothing of HTTP or JSON; an id leaves this module as a type of its
//! own, so that a room's id cannot be passed where a user's is meant.

mod batcher;
pub mod idempotency;
pub mod message;
mod ordinary;
pub mod room;
pub mod socket;
pub mod survey;
pub mod user;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::IndexOptions;
use mongodb::{Collection, Database, IndexModel};

pub use idempotency::{Idempotency, IdempotencyKey};
pub use message::{Message, Messages};
pub use room::{Room, Rooms};
pub use socket::{Owner, SocketRecord, Sockets};
pub use user::{Credentials, Users};

/// Declares the id of one kind of document: an `ObjectId` that no other kind accepts.
macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub ObjectId);

        impl $name {
            /// Makes a fresh id, as the original's driver does: by this process, from its clock.
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

        /// 24 hexadecimal digits in either case. Mongoose's other forms are casts, not ids.
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
);

/// A text that is not 24 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of 24 hexadecimal digits")]
pub struct NotAnId;

/// How long an idempotency key is remembered.
const IDEMPOTENCY_AGE: Duration = Duration::from_secs(24 * 3600);

/// What all workers know together: names of users, rooms that were seen, and which unique indexes
/// are missing.
#[derive(Clone)]
pub struct Shared {
    names: user::Names,
    rooms: room::Seen,
    username_index: UniqueIndex,
    room_name_index: UniqueIndex,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            names: user::names(),
            rooms: room::seen(),
            username_index: UniqueIndex::default(),
            room_name_index: UniqueIndex::default(),
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
    /// `messages`, with `idempotency` behind it.
    pub messages: Messages,
    /// `sockets`: what sessions leave for when their clients come back.
    pub sockets: Sockets,
    database: Database,
}

impl Store {
    /// The collections of this database. Connects when the first query does.
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
                database.collection("messages"),
                Idempotency { collection: database.collection("idempotency") },
            ),
            sockets: Sockets { collection: database.collection("sockets") },
            database,
        }
    }

    /// The database itself, for what is no query of a model.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Whether MongoDB answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.database.run_command(doc! { "ping": 1 }).await?;
        Ok(())
    }

    /// Builds the indexes that are missing, by Mongoose's names and options.
    ///
    /// One that cannot be built because of existing duplicates is a warning that names them; what
    /// it would have guarded is then looked up before each insert.
    ///
    /// # Errors
    /// The database could not be reached.
    pub async fn build_indexes(&self) -> Result<(), StoreError> {
        let users = self.database.collection("users");
        let rooms = self.database.collection("rooms");
        unique(&users, "username", &self.users.name_index).await?;
        unique(&rooms, "name", &self.rooms.name_index).await?;
        let by_room = IndexModel::builder()
            .keys(doc! { "room": 1, "_id": 1 })
            .options(IndexOptions::builder().name("room_1__id_1".to_owned()).build())
            .build();
        build(&self.database.collection("messages"), by_room).await?;
        let keys = expiring("createdAt", IDEMPOTENCY_AGE);
        build(&self.database.collection("idempotency"), keys).await?;
        build(&self.database.collection("sockets"), expiring("expires", Duration::ZERO)).await
    }
}

/// Whether a unique index is known to be there; shared by all workers. At first it is not.
#[derive(Debug, Clone, Default)]
pub struct UniqueIndex {
    built: Arc<AtomicBool>,
}

impl UniqueIndex {
    /// True while the index is not known to be there, so that an insert may not find duplicates.
    fn is_missing(&self) -> bool {
        !self.built.load(Ordering::Relaxed)
    }
}

/// What a query can meet.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A unique index holds this value already.
    #[error("the value exists already")]
    Duplicate,
    /// MongoDB cannot be reached, has no primary, or did not finish in time. Whether a write
    /// happened is unknown.
    #[error("{0}")]
    Unavailable(Error),
    /// A stored document lacks what every document must have: collection and field.
    #[error("a document in {0} has no valid {1}")]
    Malformed(&'static str, &'static str),
    /// Anything else: a refused command, a lack of privileges.
    #[error("{0}")]
    Database(Error),
}

/// The server's code for a duplicate key.
const DUPLICATE_KEY: i32 = 11000;
/// The server's codes for options of an existing index that differ from ours.
const INDEX_CONFLICTS: [i32; 2] = [85, 86];
/// The server's codes for "not primary", "shutting down", "interrupted" and the like that carry no
/// retry label: HostUnreachable, HostNotFound, NetworkTimeout, MaxTimeMSExpired, WriteConcern
/// timeouts, ShutdownInProgress, PrimarySteppedDown, ExceededTimeLimit, Interrupted.
const PASSING: [i32; 15] =
    [6, 7, 50, 64, 89, 91, 100, 189, 262, 9001, 10107, 11600, 11601, 11602, 13435];

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        if let ErrorKind::Write(WriteFailure::WriteError(write)) = error.kind.as_ref()
            && write.code == DUPLICATE_KEY
        {
            return Self::Duplicate;
        }
        if is_passing(&error) { Self::Unavailable(error) } else { Self::Database(error) }
    }
}

/// Whether the same operation may succeed later without anyone mending anything.
fn is_passing(error: &Error) -> bool {
    let labelled = ["RetryableWriteError", "TransientTransactionError", "SystemOverloadedError"]
        .iter()
        .any(|label| error.contains_label(label));
    labelled
        || match error.kind.as_ref() {
            ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::Shutdown => true,
            ErrorKind::Command(command) => PASSING.contains(&command.code),
            ErrorKind::Write(WriteFailure::WriteConcernError(_)) => true,
            ErrorKind::InsertMany(failed) => failed.write_concern_error.is_some(),
            _ => false,
        }
}

/// Builds the unique index on one field, or finds out that duplicates forbid it.
async fn unique(
    collection: &Collection<Document>,
    field: &str,
    state: &UniqueIndex,
) -> Result<(), StoreError> {
    let options = IndexOptions::builder().name(format!("{field}_1")).unique(true).build();
    let index = IndexModel::builder().keys(doc! { field: 1 }).options(options).build();
    match collection.create_index(index).await {
        Ok(_) => state.built.store(true, Ordering::Relaxed),
        Err(error) if has_code(&error, &[DUPLICATE_KEY]) => {
            let duplicates = duplicates(collection, field).await?;
            log::warn!(
                "{}.{field} is not unique, so its index cannot be built: {duplicates}. New \
                 duplicates are refused by a look before each insert, which two inserts at the \
                 same moment can pass. Rename the duplicates and restart",
                collection.name(),
            );
        }
        Err(error) if has_code(&error, &INDEX_CONFLICTS) => {
            log::warn!("{}.{field} has an index with other options: {error}", collection.name());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// An index by which MongoDB removes documents some time after the date in `field`.
fn expiring(field: &str, after: Duration) -> IndexModel {
    let options = IndexOptions::builder().name(format!("{field}_1")).expire_after(after).build();
    IndexModel::builder().keys(doc! { field: 1 }).options(options).build()
}

/// Builds an index that existing documents cannot forbid.
async fn build(collection: &Collection<Document>, index: IndexModel) -> Result<(), StoreError> {
    match collection.create_index(index).await {
        Err(error) if has_code(&error, &INDEX_CONFLICTS) => {
            log::warn!("{} has an index with other options: {error}", collection.name());
            Ok(())
        }
        result => result.map(drop).map_err(StoreError::from),
    }
}

/// Up to five values that several documents share, as a text for a person.
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

fn has_code(error: &Error, codes: &[i32]) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(command) if codes.contains(&command.code))
}
