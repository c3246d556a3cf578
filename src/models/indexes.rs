//! The indexes of the original's collections: which ones are needed, and how they are kept.
//!
//! A database can be dropped, restored or cleaned up while a server uses it. So the indexes are
//! checked every few seconds, which only reads, and a missing index is built. No index is ever
//! changed or dropped: an existing one that conflicts with one of ours is reported and kept.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{Collation, IndexOptions};
use mongodb::{Collection, Database, IndexModel};

use super::failure::{DUPLICATE_KEY, INDEX_CONFLICTS, NO_COLLECTION};
use super::user::{collation, is_of_letters};
use super::{Failure, Store, StoreError, duplicates};

/// How often the indexes and the own collections are checked.
const PERIOD: Duration = Duration::from_secs(5);
/// After what time the server tries again to build an index that duplicates have prevented. MongoDB
/// reads the whole collection for each attempt.
const AFTER_DUPLICATES: Duration = Duration::from_secs(600);

/// `DatabaseDropPending` and `IndexBuildAborted`.
const DROPPED: [i32; 2] = [215, 276];

/// An index that one of the original's collections should have.
#[derive(Debug)]
pub struct Wanted {
    /// The collection.
    pub collection: &'static str,
    /// The name of the index, as Mongoose and the server would choose it.
    pub name: &'static str,
    /// The fields, each ascending.
    pub fields: &'static [&'static str],
    /// Whether it is unique.
    pub is_unique: bool,
    /// For a partial index: the field that must be at least 1 in an indexed document.
    pub at_least_one: Option<&'static str>,
    /// Whether case and accents make no difference.
    pub is_of_letters: bool,
}

/// `users.username_1`, unique: an index of Mongoose.
pub static USERNAME: Wanted = Wanted {
    collection: "users",
    name: "username_1",
    fields: &["username"],
    is_unique: true,
    at_least_one: None,
    is_of_letters: false,
};
/// `rooms.name_1`, unique: an index of Mongoose.
pub static ROOM_NAME: Wanted = Wanted {
    collection: "rooms",
    name: "name_1",
    fields: &["name"],
    is_unique: true,
    at_least_one: None,
    is_of_letters: false,
};
/// `messages.room_1__id_1`: ours, for reading the history of a room in order.
pub static BY_ROOM: Wanted = Wanted {
    collection: "messages",
    name: "room_1__id_1",
    fields: &["room", "_id"],
    is_unique: false,
    at_least_one: None,
    is_of_letters: false,
};
/// `messages.room_1_updatedAt_1`: ours, only of messages that were edited or deleted. It tells
/// whether a client that was away for long has missed a change.
pub static CHANGES: Wanted = Wanted {
    collection: "messages",
    name: "room_1_updatedAt_1",
    fields: &["room", "updatedAt"],
    is_unique: false,
    at_least_one: Some("__v"),
    is_of_letters: false,
};
/// `users.username_1__id_1`: ours, for searching users by the beginning of their names.
pub static SEARCHED: Wanted = Wanted {
    collection: "users",
    name: "username_1__id_1",
    fields: &["username", "_id"],
    is_unique: false,
    at_least_one: None,
    is_of_letters: true,
};
/// All needed indexes.
pub static WANTED: [&Wanted; 5] = [&USERNAME, &ROOM_NAME, &BY_ROOM, &CHANGES, &SEARCHED];

/// The index that keeps a value unique; shared by all workers. It has the wanted name, or the name
/// of an equivalent index that was found.
#[derive(Debug, Clone)]
pub struct UniqueIndex {
    wanted: &'static Wanted,
    // A standard lock: nothing awaits while it is held.
    found: Arc<RwLock<Option<String>>>,
}

impl UniqueIndex {
    pub(super) fn new(wanted: &'static Wanted) -> Self {
        Self { wanted, found: Arc::default() }
    }

    /// Whether the index has this name.
    pub(super) fn is(&self, name: &str) -> bool {
        let found = self.found.read().unwrap_or_else(PoisonError::into_inner);
        name == self.wanted.name || found.as_deref() == Some(name)
    }

    fn found(&self, name: &str) {
        let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
        if found.as_deref() != Some(name) {
            *found = Some(name.to_owned());
        }
    }
}

/// Whether a needed index exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// It exists, or an equivalent index does.
    There {
        /// The name of the existing index.
        name: String,
    },
    /// It does not exist and can be built.
    Missing,
    /// It cannot be built: another index has its name, or its fields with other options.
    Other {
        /// The name of the existing index.
        name: String,
    },
}

impl Wanted {
    /// Looks for the index, without changing anything.
    ///
    /// # Errors
    /// The database failed.
    pub async fn look(&self, database: &Database) -> Result<Presence, StoreError> {
        Ok(self.presence(&list(&database.collection(self.collection)).await?))
    }

    fn presence(&self, indexes: &[IndexModel]) -> Presence {
        let name_of = |index: &IndexModel| {
            let name = index.options.as_ref().and_then(|options| options.name.clone());
            name.unwrap_or_default()
        };
        if let Some(index) = indexes.iter().find(|index| self.is_equivalent(index)) {
            return Presence::There { name: name_of(index) };
        }
        let conflicts =
            |index: &&IndexModel| name_of(index) == self.name || self.has_fields_of(index);
        match indexes.iter().find(conflicts) {
            Some(index) => Presence::Other { name: name_of(index) },
            None => Presence::Missing,
        }
    }

    fn has_fields_of(&self, index: &IndexModel) -> bool {
        let is_ascending = |value: &Bson| match value {
            Bson::Int32(order) => *order == 1,
            Bson::Int64(order) => *order == 1,
            Bson::Double(order) => *order == 1.0,
            _ => false,
        };
        index.keys.values().all(is_ascending)
            && index.keys.keys().map(String::as_str).eq(self.fields.iter().copied())
    }

    /// Whether an index serves the same purpose as this one. A unique index may refuse more because
    /// of its collation.
    fn is_equivalent(&self, index: &IndexModel) -> bool {
        let Some(options) = &index.options else { return false };
        self.has_fields_of(index)
            && self.is_covered_by(options.partial_filter_expression.as_ref())
            && if self.is_unique {
                options.unique == Some(true)
            } else {
                options.sparse != Some(true)
                    && self.has_collation_of(options)
                    && options.hidden != Some(true)
            }
    }

    /// Whether an index compares texts in the same way. MongoDB adds the fields that are not set.
    fn has_collation_of(&self, options: &IndexOptions) -> bool {
        match &options.collation {
            None => !self.is_of_letters,
            Some(collation) => self.is_of_letters && is_of_letters(collation),
        }
    }

    fn collation(&self) -> Option<Collation> {
        self.is_of_letters.then(collation)
    }

    /// Whether an index with this filter contains all documents of this one.
    fn is_covered_by(&self, filter: Option<&Document>) -> bool {
        filter.is_none() || filter == self.filter().as_ref()
    }

    fn filter(&self) -> Option<Document> {
        self.at_least_one.map(|field| doc! { field: { "$gte": 1 } })
    }

    fn model(&self) -> IndexModel {
        let keys: Document =
            self.fields.iter().map(|field| ((*field).to_owned(), Bson::from(1))).collect();
        let unique = self.is_unique.then_some(true);
        let options = IndexOptions::builder()
            .name(self.name.to_owned())
            .unique(unique)
            .partial_filter_expression(self.filter())
            .collation(self.collation())
            .build();
        IndexModel::builder().keys(keys).options(options).build()
    }
}

/// The indexes of a collection; empty if the collection does not exist.
pub(super) async fn list(collection: &Collection<Document>) -> Result<Vec<IndexModel>, StoreError> {
    let mut indexes = Vec::new();
    let mut found = match collection.list_indexes().await {
        Ok(found) => found,
        Err(error) if has_code(&error, &[NO_COLLECTION]) => return Ok(indexes),
        Err(error) => return Err(error.into()),
    };
    while found.advance().await? {
        indexes.push(found.deserialize_current()?);
    }
    Ok(indexes)
}

/// Maintains the indexes and the own collections of a database.
pub struct Upkeep {
    store: Store,
    /// The last warning about each index.
    warned: HashMap<&'static str, String>,
    /// When the server tries again to build an index that duplicates have prevented.
    retry_at: HashMap<&'static str, Instant>,
}

impl Upkeep {
    /// Run once in a process.
    pub fn new(store: Store) -> Self {
        Self { store, warned: HashMap::new(), retry_at: HashMap::new() }
    }

    /// Checks every few seconds, forever.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            if let Err(error) = self.round().await {
                log::debug!("The indexes cannot be checked: {error}");
            }
        }
    }

    /// Builds missing indexes, and warns about those that cannot be built. Without a unique index,
    /// the server still refuses duplicates, since it checks before each insert.
    ///
    /// # Errors
    /// The database could not be reached.
    pub async fn round(&mut self) -> Result<(), StoreError> {
        self.store.check_own().await?;
        for wanted in WANTED {
            if self.retry_at.get(wanted.name).is_some_and(|at| *at > Instant::now()) {
                continue;
            }
            match self.keep(wanted).await {
                Ok(()) => {}
                Err(error) if is_outage(&error) => return Err(error),
                Err(error) => {
                    let Wanted { collection, name, .. } = wanted;
                    self.warn(wanted.name, format!("{collection} has no index {name}: {error}"));
                }
            }
        }
        Ok(())
    }

    async fn keep(&mut self, wanted: &'static Wanted) -> Result<(), StoreError> {
        let collection = self.store.database().collection::<Document>(wanted.collection);
        match wanted.presence(&list(&collection).await?) {
            Presence::There { name } => self.found(wanted, &name),
            Presence::Missing => match collection.create_index(wanted.model()).await {
                Ok(_) => self.found(wanted, wanted.name),
                Err(error) if has_code(&error, &[DUPLICATE_KEY]) => {
                    self.retry_at.insert(wanted.name, Instant::now() + AFTER_DUPLICATES);
                    let field = wanted.fields.first().copied().unwrap_or_default();
                    let values = duplicates(&collection, field).await?;
                    let text = format!(
                        "{}.{field} is not unique, so its index cannot be built: {values}. Before \
                         each insert, the server checks for duplicates, but two inserts at the \
                         same time can both pass. Rename the duplicates; the index is tried again \
                         every ten minutes",
                        wanted.collection,
                    );
                    self.warn(wanted.name, text);
                }
                // Another program has just built an index or dropped the collection: the next round
                // finds out which.
                Err(error) if has_code(&error, &INDEX_CONFLICTS) || has_code(&error, &DROPPED) => {}
                Err(error) => return Err(error.into()),
            },
            Presence::Other { name } => {
                let fields = wanted.fields.join(", ");
                let unique = if wanted.is_unique { "unique " } else { "" };
                let text = format!(
                    "{} has the index {name}, which conflicts with the {unique}index {} on \
                     {fields}. It is kept; drop it if nothing needs it",
                    wanted.collection, wanted.name,
                );
                self.warn(wanted.name, text);
            }
        }
        Ok(())
    }

    fn found(&mut self, wanted: &Wanted, name: &str) {
        if wanted.is_unique {
            for index in [&self.store.users.name_index, &self.store.rooms.name_index] {
                if (index.wanted.collection, index.wanted.name) == (wanted.collection, wanted.name)
                {
                    index.found(name);
                }
            }
        }
        self.warned.remove(wanted.name);
    }

    /// Logs a warning, unless it was the last one about this index.
    fn warn(&mut self, what: &'static str, text: String) {
        if self.warned.get(what) != Some(&text) {
            log::warn!("{text}");
            self.warned.insert(what, text);
        }
    }
}

/// Whether the operation may succeed later without any other change.
fn is_outage(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(error) if Failure::of(error) != Failure::Privilege)
}

pub(super) fn has_code(error: &Error, codes: &[i32]) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(command) if codes.contains(&command.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(keys: Document, options: Document) -> IndexModel {
        let mut spec = doc! { "v": 2, "key": keys };
        spec.extend(options);
        bson::deserialize_from_document(spec).unwrap()
    }

    fn presence(wanted: &Wanted, others: &[IndexModel]) -> Presence {
        let mut indexes = vec![index(doc! { "_id": 1 }, doc! { "name": "_id_" })];
        indexes.extend_from_slice(others);
        wanted.presence(&indexes)
    }

    #[test]
    fn an_index_counts_by_what_it_does_and_not_by_its_name() {
        let there = |name: &str| Presence::There { name: name.to_owned() };
        let other = |name: &str| Presence::Other { name: name.to_owned() };
        let unique = |name: &str| doc! { "name": name, "unique": true };
        for (keys, options, expected) in [
            (doc! { "username": 1 }, unique("username_1"), there("username_1")),
            (doc! { "username": 1_i64 }, unique("by_name"), there("by_name")),
            (doc! { "username": 1.0 }, unique("by_name"), there("by_name")),
            (doc! { "username": 1 }, doc! { "name": "username_1" }, other("username_1")),
            (doc! { "email": 1 }, unique("username_1"), other("username_1")),
            (doc! { "username": 1, "a": 1 }, unique("username_1_a_1"), Presence::Missing),
            (doc! { "username": -1 }, unique("username_-1"), Presence::Missing),
            (doc! { "username": "text" }, doc! { "name": "username_text" }, Presence::Missing),
        ] {
            let given = format!("{keys} {options}");
            assert_eq!(presence(&USERNAME, &[index(keys, options)]), expected, "{given}");
        }
        let mut partial = unique("username_1");
        partial.insert("partialFilterExpression", doc! { "active": true });
        let partial = index(doc! { "username": 1 }, partial);
        assert_eq!(presence(&USERNAME, &[partial]), other("username_1"));
        let history = index(doc! { "room": 1, "_id": 1 }, doc! { "name": "history" });
        assert_eq!(presence(&BY_ROOM, &[history]), there("history"));
        let swapped = index(doc! { "_id": 1, "room": 1 }, doc! { "name": "_id_1_room_1" });
        assert_eq!(presence(&BY_ROOM, &[swapped]), Presence::Missing);

        let changes = doc! { "room": 1, "updatedAt": 1 };
        let partial = |filter: Document| doc! { "name": "x", "partialFilterExpression": filter };
        for (options, expected) in [
            (doc! { "name": "x" }, there("x")),
            (partial(doc! { "__v": { "$gte": 1 } }), there("x")),
            (partial(doc! { "__v": { "$gte": 2 } }), other("x")),
        ] {
            assert_eq!(presence(&CHANGES, &[index(changes.clone(), options)]), expected);
        }

        let names = doc! { "username": 1, "_id": 1 };
        let compared = |collation: Document| doc! { "name": "x", "collation": collation };
        for (options, expected) in [
            (doc! { "name": "x" }, other("x")),
            (compared(doc! { "locale": "en", "strength": 1, "caseLevel": false }), there("x")),
            (compared(doc! { "locale": "en", "strength": 2 }), other("x")),
            (compared(doc! { "locale": "sv", "strength": 1 }), other("x")),
        ] {
            assert_eq!(presence(&SEARCHED, &[index(names.clone(), options)]), expected);
        }
    }
}
