//! The collections that this server adds to the original's three.
//!
//! Their names have a [prefix](PREFIX) that no other program uses. Each contains one document that
//! says whose it is, the marker. A collection is checked before its first use, and then every few
//! seconds. A collection without the marker is claimed if it does not exist, is empty, or contains
//! only our documents, for example after it was dropped while the server ran. A collection with
//! anything else is never written to or indexed. Its feature is then off until a person renames or
//! drops the collection; a warning says so.
//!
//! Every document of ours has a [field](FIELD) with the same value as the marker's. The index that
//! removes old documents covers only documents with this field, so it removes no document of
//! another program.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::options::IndexOptions;
use mongodb::{Collection, Database, IndexModel};

use super::failure::INDEX_CONFLICTS;
use super::indexes::{has_code, list};
use super::{Failure, ID_INDEX, StoreError};

/// The prefix of the names of all own collections.
pub const PREFIX: &str = "realtime_chat_backend_";

/// The `_id` of the marker, and the value of [`FIELD`].
pub const MARK: &str = "realtime-chat-backend";

/// The field that marks a document as ours.
pub const FIELD: &str = "app";

/// Marks a document as ours.
pub(super) fn mark(document: &mut RawDocumentBuf) {
    document.append(bson::cstr!("app"), MARK);
}

/// `NamespaceExists`.
const EXISTS: i32 = 48;

/// How long the search for foreign documents may take in a collection without a marker.
const SEARCH: Duration = Duration::from_secs(2);

/// One collection of our own.
#[derive(Debug)]
pub struct Purpose {
    /// The name of the collection, which begins with [`PREFIX`].
    pub collection: &'static str,
    /// The feature that needs the collection, as the subject of a sentence.
    pub feature: &'static str,
    /// The field with the date from which the age of a document counts, and the age at which it is
    /// removed; `None` if documents stay.
    expiry: Option<(&'static str, Duration)>,
    /// Other fields by which documents are looked up.
    looked_up_by: &'static [&'static str],
    /// The bytes of a capped collection, in which old documents give way to new ones.
    capped: Option<i64>,
}

/// The records of sockets whose clients may reconnect.
pub static SOCKETS: Purpose = Purpose {
    collection: "realtime_chat_backend_sockets",
    feature: "Connection state recovery",
    expiry: Some(("expires", Duration::ZERO)),
    looked_up_by: &[],
    capped: None,
};

/// The idempotency keys of messages, each with the message that was prepared for it.
pub static KEYS: Purpose = Purpose {
    collection: "realtime_chat_backend_keys",
    feature: "Idempotency-Key",
    expiry: Some(("createdAt", Duration::from_secs(24 * 3600))),
    looked_up_by: &["message._id"],
    capped: None,
};

/// Private rooms and direct conversations.
pub static ROOMS: Purpose = Purpose {
    collection: "realtime_chat_backend_rooms",
    feature: "Membership of private rooms",
    expiry: None,
    looked_up_by: &["ended"],
    capped: None,
};

/// The members of private rooms and direct conversations.
pub static MEMBERS: Purpose = Purpose {
    collection: "realtime_chat_backend_members",
    feature: "Membership of private rooms",
    expiry: None,
    looked_up_by: &["_id.user", "_id.room"],
    capped: None,
};

/// How far users have read in rooms.
pub static MARKS: Purpose = Purpose {
    collection: "realtime_chat_backend_marks",
    feature: "Marking messages as read",
    expiry: None,
    looked_up_by: &["_id.user"],
    capped: None,
};

/// Who types, from instance to instance.
pub static SIGNALS: Purpose = Purpose {
    collection: "realtime_chat_backend_signals",
    feature: "Typing across instances",
    expiry: None,
    looked_up_by: &[],
    capped: Some(8 << 20),
};

/// Which instances live, and which users are connected to each of them.
pub static PRESENCE: Purpose = Purpose {
    collection: "realtime_chat_backend_presence",
    feature: "Who is online",
    expiry: None,
    looked_up_by: &[],
    capped: None,
};

/// When users were last online.
pub static SEEN: Purpose = Purpose {
    collection: "realtime_chat_backend_seen",
    feature: "When users were last online",
    expiry: None,
    looked_up_by: &[],
    capped: None,
};

/// Refresh tokens, by families.
pub static REFRESH: Purpose = Purpose {
    collection: "realtime_chat_backend_refresh",
    feature: "Refreshing tokens",
    expiry: Some(("rotatedAt", super::refresh::REFRESH_LIFETIME)),
    looked_up_by: &["user"],
    capped: None,
};

/// Tokens that were revoked before they expire.
pub static REVOCATIONS: Purpose = Purpose {
    collection: "realtime_chat_backend_revocations",
    feature: "Logging out",
    expiry: Some(("expires", Duration::ZERO)),
    looked_up_by: &["at"],
    capped: None,
};

/// All own collections.
pub static ALL: [&Purpose; 10] =
    [&SOCKETS, &KEYS, &ROOMS, &MEMBERS, &MARKS, &SIGNALS, &PRESENCE, &SEEN, &REFRESH, &REVOCATIONS];

/// What a collection with the name of an own collection contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// Our marker.
    Ours,
    /// Nothing, or only documents of ours: it can be claimed.
    Free,
    /// Something else; the text is the end of a sentence that begins with the collection's name.
    Others(String),
}

impl Purpose {
    /// Checks the collection, without changing anything.
    ///
    /// # Errors
    /// The database failed.
    pub async fn look(&self, database: &Database) -> Result<Holding, StoreError> {
        Ok(self.examine(database).await?.0)
    }

    /// What the collection contains, and which of its indexes are missing.
    async fn examine(&self, database: &Database) -> Result<(Holding, Vec<IndexModel>), StoreError> {
        let collection = database.collection::<Document>(self.collection);
        let others = |found| Ok((Holding::Others(found), Vec::new()));
        let marker = collection.find_one(doc! { "_id": MARK }).await?;
        let is_marked = match &marker {
            Some(marker) if marker.get_str(FIELD).is_ok_and(|app| app == MARK) => true,
            Some(_) => return others(held(&Bson::from(MARK))),
            None => false,
        };
        if !is_marked {
            if let Some(kind) = self.kind(database).await?
                && kind != "collection"
            {
                return others(format!("is a {kind}"));
            }
            let foreign = collection.find_one(doc! { FIELD: { "$ne": MARK } }).max_time(SEARCH);
            if let Some(foreign) = foreign.projection(doc! { "_id": 1 }).await? {
                return others(held(foreign.get("_id").unwrap_or(&Bson::Null)));
            }
        }
        let mut missing = self.indexes();
        for index in list(&collection).await? {
            let Some(options) = index.options else { continue };
            let name = options.name.unwrap_or_default();
            if options.unique == Some(true) && name != ID_INDEX {
                return others(format!("has the unique index {name}"));
            }
            missing.retain(|wanted| name_of(wanted) != name);
        }
        Ok((if is_marked { Holding::Ours } else { Holding::Free }, missing))
    }

    /// The type of the collection or view of this name, if there is one.
    async fn kind(&self, database: &Database) -> Result<Option<String>, StoreError> {
        // Every user may do this, unlike a list with options.
        let question = doc! {
            "listCollections": 1,
            "filter": { "name": self.collection },
            "nameOnly": true,
            "authorizedCollections": true,
        };
        let answer = database.run_command(question).await?;
        let found = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let first = found.ok().and_then(|found| found.first()).and_then(Bson::as_document);
        Ok(first.and_then(|found| found.get_str("type").ok()).map(str::to_owned))
    }

    /// Claims the collection if it is free, and builds its indexes.
    async fn claim(&self, database: &Database) -> Result<Holding, StoreError> {
        let (holding, missing) = self.examine(database).await?;
        let collection = database.collection::<Document>(self.collection);
        match holding {
            Holding::Others(_) => return Ok(holding),
            Holding::Ours => {}
            Holding::Free => {
                self.create_capped(database).await?;
                let marker = doc! {
                    "_id": MARK,
                    FIELD: MARK,
                    "about": format!(
                        "{} of realtime-chat-backend needs this collection. While this document is \
                         here, that program writes and removes the other documents",
                        self.feature
                    ),
                };
                if let Err(error) = collection.insert_one(marker).await {
                    match StoreError::from(error).or_duplicate_id() {
                        // Another instance was faster, or the document is of another program: find
                        // out which.
                        StoreError::Duplicate => {}
                        error => return Err(error),
                    }
                    if let holding @ Holding::Others(_) = self.look(database).await? {
                        return Ok(holding);
                    }
                }
            }
        }
        // An operator may have built the index with another age.
        for index in missing {
            match collection.create_index(index).await {
                Err(error) if has_code(&error, &INDEX_CONFLICTS) => {}
                result => drop(result?),
            }
        }
        Ok(Holding::Ours)
    }

    /// Creates a capped collection, if it is to be one and does not exist.
    async fn create_capped(&self, database: &Database) -> Result<(), StoreError> {
        let Some(bytes) = self.capped else { return Ok(()) };
        let command = doc! { "create": self.collection, "capped": true, "size": bytes };
        match database.run_command(command).await {
            Err(error) if !has_code(&error, &[EXISTS]) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Makes the collection capped, because it was created in another way: by a write after it was
    /// dropped, or by a restore.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn make_capped(&self, database: &Database) -> Result<(), StoreError> {
        if let Some(bytes) = self.capped {
            let command = doc! { "convertToCapped": self.collection, "size": bytes };
            database.run_command(command).await?;
        }
        Ok(())
    }

    /// The indexes that the collection should have.
    fn indexes(&self) -> Vec<IndexModel> {
        let expiry = self.expiry.map(|(field, age)| {
            let options = IndexOptions::builder()
                .name(format!("{field}_1"))
                .expire_after(age)
                .partial_filter_expression(doc! { FIELD: MARK })
                .build();
            IndexModel::builder().keys(doc! { field: 1 }).options(options).build()
        });
        let looked_up_by = self.looked_up_by.iter().map(|&field| {
            let options = IndexOptions::builder().name(format!("{field}_1")).build();
            IndexModel::builder().keys(doc! { field: 1 }).options(options).build()
        });
        expiry.into_iter().chain(looked_up_by).collect()
    }
}

fn name_of(index: &IndexModel) -> &str {
    index.options.as_ref().and_then(|options| options.name.as_deref()).unwrap_or_default()
}

fn held(id: &Bson) -> String {
    format!("holds documents of another program, such as the one with _id {id}")
}

/// The status of an own collection; shared by all workers.
#[derive(Debug, Clone)]
pub(super) struct State(Arc<Known>);

#[derive(Debug)]
struct Known {
    purpose: &'static Purpose,
    /// One of [`UNKNOWN`], [`OURS`] and [`OFF`].
    status: AtomicU8,
    /// Why it is off.
    reason: Mutex<Option<String>>,
}

const UNKNOWN: u8 = 0;
const OURS: u8 = 1;
const OFF: u8 = 2;

impl State {
    pub(super) fn new(purpose: &'static Purpose) -> Self {
        let (status, reason) = (AtomicU8::new(UNKNOWN), Mutex::new(None));
        Self(Arc::new(Known { purpose, status, reason }))
    }

    /// Claims the collection, or finds out that it is not ours. Logs when that changes.
    pub(super) async fn check(&self, database: &Database) -> Result<(), StoreError> {
        let Purpose { collection, feature, .. } = self.0.purpose;
        let reason = match self.0.purpose.claim(database).await {
            Ok(Holding::Others(found)) => format!(
                "{collection} {found}. It is left alone, and {feature} is off. Rename or drop it; \
                 it is checked again every few seconds"
            ),
            Ok(Holding::Ours | Holding::Free) => {
                self.0.status.store(OURS, Ordering::Relaxed);
                if self.set_reason(None) {
                    log::info!("{feature} is on: {collection} is this server's");
                }
                return Ok(());
            }
            Err(error) if is_refusal(&error) => {
                format!("{collection} cannot be used, so {feature} is off: {error}")
            }
            Err(error) => return Err(error),
        };
        self.0.status.store(OFF, Ordering::Relaxed);
        if self.set_reason(Some(reason.clone())) {
            log::warn!("{reason}");
        }
        Ok(())
    }

    /// Sets the reason. Returns whether it has changed.
    fn set_reason(&self, reason: Option<String>) -> bool {
        let mut known = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *known != reason;
        *known = reason;
        is_new
    }
}

/// Whether the database would refuse again, so that waiting is of no use.
fn is_refusal(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable(error) => Failure::of(error) == Failure::Privilege,
        StoreError::Database(_) | StoreError::Refused(_) => true,
        _ => false,
    }
}

/// An own collection, with the connections of one worker.
#[derive(Debug, Clone)]
pub(super) struct Own<T: Send + Sync> {
    database: Database,
    collection: Collection<T>,
    state: State,
}

impl<T: Send + Sync> Own<T> {
    pub(super) fn new(database: &Database, state: &State) -> Self {
        Self {
            database: database.clone(),
            collection: database.collection(state.0.purpose.collection),
            state: state.clone(),
        }
    }

    /// The database.
    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// What the collection is for.
    pub(super) fn purpose(&self) -> &'static Purpose {
        self.state.0.purpose
    }

    /// The name of the collection.
    pub(super) fn name(&self) -> &'static str {
        self.state.0.purpose.collection
    }

    /// The collection, once it is known to be ours.
    ///
    /// # Errors
    /// [`StoreError::Off`] when it is not; or the database failed.
    pub(super) async fn get(&self) -> Result<&Collection<T>, StoreError> {
        if self.state.0.status.load(Ordering::Relaxed) == UNKNOWN {
            self.state.check(&self.database).await?;
        }
        match self.state.0.status.load(Ordering::Relaxed) {
            OURS => Ok(&self.collection),
            _ => Err(StoreError::Off(self.state.0.purpose)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_marked_in_the_field_that_is_looked_at() {
        let mut document = RawDocumentBuf::new();
        mark(&mut document);
        assert_eq!(document.get_str(FIELD).unwrap(), MARK);
    }

    #[test]
    fn own_collections_share_the_prefix_and_no_name() {
        assert!(ALL.iter().all(|purpose| purpose.collection.starts_with(PREFIX)));
        let mut names: Vec<_> = ALL.iter().map(|purpose| purpose.collection).collect();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
