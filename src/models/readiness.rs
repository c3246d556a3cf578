//! Checks whether requests can succeed, without writing anything.

use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use mongodb::Database;
use mongodb::options::{ReadPreference, SelectionCriteria};

use super::{Failure, Store, StoreError};

/// How long a positive result is kept, so that frequent probes cost MongoDB little.
const VALID: Duration = Duration::from_secs(1);

/// The collections and actions that requests need.
const NEEDED: [(&str, &[&str]); 3] = [
    ("users", &["find", "insert"]),
    ("rooms", &["find", "insert"]),
    ("messages", &["find", "insert"]),
];

/// Why requests cannot succeed. Anybody may read this text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// A check has failed.
    #[error("{0}")]
    Failed(Failure),
    /// The user of the connection string lacks the privilege for an action on a collection.
    #[error("the user of MONGO_URI may not {action} in {collection}: it needs the role readWrite")]
    Privilege {
        /// The action, by the server's name.
        action: &'static str,
        /// The collection.
        collection: &'static str,
    },
}

impl Store {
    /// Whether reads and writes are possible: there is a primary, a document can be read, and the
    /// user has the needed privileges.
    ///
    /// # Errors
    /// Reads or writes are not possible.
    pub async fn ready(&self) -> Result<(), Unready> {
        // A standard lock: nothing awaits while it is held.
        let lock = || self.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lock().is_some_and(|at| at.elapsed() < VALID) {
            return Ok(());
        }
        *lock() = None;
        let asked = Instant::now();
        self.ask_whether_ready().await?;
        *lock() = Some(asked);
        Ok(())
    }

    async fn ask_whether_ready(&self) -> Result<(), Unready> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let hello = self.database.run_command(doc! { "hello": 1 }).selection_criteria(primary);
        let hello = hello.await.map_err(StoreError::from)?;
        if !hello.get_bool("isWritablePrimary").unwrap_or(false) {
            let waits = hello.get_bool("isreplicaset").unwrap_or(false);
            return Err(if waits { Failure::NotInitiated } else { Failure::NotPrimary }.into());
        }
        let rooms = self.database.collection::<Document>("rooms");
        rooms.find_one(doc! { "_id": Bson::Null }).await.map_err(StoreError::from)?;
        let Some(privileges) = Privileges::of(&self.database).await? else { return Ok(()) };
        for (collection, actions) in NEEDED {
            for action in actions {
                if !privileges.allow(action, collection) {
                    return Err(Unready::Privilege { action, collection });
                }
            }
        }
        Ok(())
    }
}

impl From<Failure> for Unready {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<StoreError> for Unready {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(error) | StoreError::Database(error) => {
                Self::Failed(Failure::of(&error))
            }
            _ => Self::Failed(Failure::Other),
        }
    }
}

/// What the user of the connection string may do in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Privileges {
    /// Collections and actions; an empty name is every collection.
    granted: Vec<(String, Vec<String>)>,
}

impl Privileges {
    /// Asks the server. `None` when no user is authenticated: then everything is allowed, or
    /// nothing.
    ///
    /// # Errors
    /// The database failed.
    pub async fn of(database: &Database) -> Result<Option<Self>, StoreError> {
        let question = doc! { "connectionStatus": 1, "showPrivileges": true };
        let status = database.run_command(question).await?;
        Ok(Self::read(&status, database.name()))
    }

    fn read(status: &Document, database: &str) -> Option<Self> {
        let auth = status.get_document("authInfo").ok()?;
        if auth.get_array("authenticatedUsers").is_ok_and(Vec::is_empty) {
            return None;
        }
        let privileges = auth.get_array("authenticatedUserPrivileges").ok()?;
        let privileges = privileges.iter().filter_map(Bson::as_document);
        let granted = privileges.filter_map(|privilege| {
            let collection = covered(privilege.get_document("resource").ok()?, database)?;
            let actions = privilege.get_array("actions").ok()?;
            let actions = actions.iter().filter_map(Bson::as_str).map(str::to_owned);
            Some((collection.to_owned(), actions.collect()))
        });
        Some(Self { granted: granted.collect() })
    }

    /// Whether an action, by the server's name, is allowed on a collection.
    pub fn allow(&self, action: &str, collection: &str) -> bool {
        self.granted.iter().any(|(on, actions)| {
            let is_meant = on.is_empty() || on == collection;
            is_meant && actions.iter().any(|granted| granted == action)
        })
    }
}

/// The collection of a database that a resource covers; empty for all of them.
fn covered<'a>(resource: &'a Document, database: &str) -> Option<&'a str> {
    if resource.get_bool("anyResource").unwrap_or(false) {
        return Some("");
    }
    let on = resource.get_str("db").ok()?;
    let collection = resource.get_str("collection").ok()?;
    (on.is_empty() || on == database).then_some(collection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privileges(granted: &[(Document, &[&str])]) -> Option<Privileges> {
        let granted: Vec<_> = granted
            .iter()
            .map(|(resource, actions)| doc! { "resource": resource, "actions": *actions })
            .collect();
        let user = doc! { "user": "chat", "db": "admin" };
        let auth = doc! { "authenticatedUsers": [user], "authenticatedUserPrivileges": granted };
        Privileges::read(&doc! { "authInfo": auth, "ok": 1 }, "chat")
    }

    #[test]
    fn a_privilege_counts_on_the_collections_that_it_covers() {
        let on = |db: &str, collection: &str| doc! { "db": db, "collection": collection };
        for (resource, on_users, on_rooms) in [
            (on("chat", ""), true, true),
            (on("", ""), true, true),
            (on("chat", "users"), true, false),
            (on("", "users"), true, false),
            (on("other", ""), false, false),
            (on("other", "users"), false, false),
            (doc! { "anyResource": true }, true, true),
            (doc! { "cluster": true }, false, false),
        ] {
            let privileges = privileges(&[(resource.clone(), &["find", "insert"])]).unwrap();
            assert_eq!(privileges.allow("find", "users"), on_users, "{resource}");
            assert_eq!(privileges.allow("insert", "rooms"), on_rooms, "{resource}");
            assert!(!privileges.allow("update", "users"), "{resource}");
        }
    }

    #[test]
    fn privileges_of_several_grants_add_up() {
        let on = |collection: &str| doc! { "db": "chat", "collection": collection };
        let privileges = privileges(&[
            (on("users"), &["find"]),
            (on("users"), &["insert"]),
            (on("rooms"), &["find"]),
        ]);
        let privileges = privileges.unwrap();
        assert!(privileges.allow("find", "users") && privileges.allow("insert", "users"));
        assert!(!privileges.allow("insert", "rooms"));
        let nobody = doc! { "authInfo": { "authenticatedUsers": [] } };
        assert_eq!(Privileges::read(&nobody, "chat"), None);
    }
}
