//! What a database holds, before this server writes anything into it.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::{Collection, Database};

use super::{StoreError, duplicates};

/// How long one question may take: a large collection must not be scanned for ever.
const QUESTION: Duration = Duration::from_secs(20);

/// The actions that this server needs on its collections.
const NEEDED: [&str; 6] = ["find", "insert", "update", "remove", "createIndex", "changeStream"];

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The version of MongoDB.
    pub version: String,
    /// The name of the replica set; `None` is a standalone, which has no change streams.
    pub replica_set: Option<String>,
    /// Documents by collection.
    pub counts: Vec<(&'static str, u64)>,
    /// Values that exist more than once although they should be unique: what, and which.
    pub duplicates: Vec<(&'static str, String)>,
    /// Users by the kind of their password's hash: `$2b$`, `$argon2id$`, or `none`.
    pub hashes: BTreeMap<String, u64>,
    /// Documents in `messages` that no message can be made of.
    pub odd_messages: u64,
    /// What the user of the connection string may not do; `None` when nobody is authenticated, and
    /// so all is allowed.
    pub missing_privileges: Option<Vec<&'static str>>,
}

impl Survey {
    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// The database cannot be reached, or a question is not allowed.
    pub async fn of(database: &Database) -> Result<Self, StoreError> {
        let hello = database.run_command(doc! { "hello": 1 }).await?;
        let build = database.run_command(doc! { "buildInfo": 1 }).await?;
        let users = database.collection::<Document>("users");
        let rooms = database.collection::<Document>("rooms");
        let messages = database.collection::<Document>("messages");
        let mut counts = Vec::new();
        for (name, collection) in [("users", &users), ("rooms", &rooms), ("messages", &messages)] {
            counts.push((name, collection.estimated_document_count().await?));
        }
        let mut found = Vec::new();
        for (what, collection, field) in
            [("user names", &users, "username"), ("room names", &rooms, "name")]
        {
            let values = duplicates(collection, field).await?;
            if !values.is_empty() {
                found.push((what, values));
            }
        }
        Ok(Self {
            version: build.get_str("version").unwrap_or("unknown").to_owned(),
            replica_set: hello.get_str("setName").ok().map(str::to_owned),
            counts,
            duplicates: found,
            hashes: hashes(&users).await?,
            odd_messages: odd(&messages).await?,
            missing_privileges: missing_privileges(database).await?,
        })
    }
}

async fn hashes(users: &Collection<Document>) -> Result<BTreeMap<String, u64>, StoreError> {
    // `$2b$10$…` → `$2b$`, `$argon2id$v=19$…` → `$argon2id$`.
    let kind = doc! { "$regexFind": { "input": "$password", "regex": r"^\$[a-z0-9]+\$" } };
    let is_text = doc! { "$eq": [{ "$type": "$password" }, "string"] };
    let kind =
        doc! { "$cond": [is_text, { "$getField": { "field": "match", "input": kind } }, null] };
    let pipeline = [doc! { "$group": { "_id": kind, "count": { "$sum": 1_i64 } } }];
    let mut found = users.aggregate(pipeline).max_time(QUESTION).await?;
    let mut hashes = BTreeMap::new();
    while found.advance().await? {
        let group = found.deserialize_current()?;
        let kind = group.get_str("_id").unwrap_or("none").to_owned();
        let count = group.get_i64("count").unwrap_or_default();
        *hashes.entry(kind).or_default() += u64::try_from(count).unwrap_or_default();
    }
    Ok(hashes)
}

async fn odd(messages: &Collection<Document>) -> Result<u64, StoreError> {
    let is_not = |field: &str, kind: &str| doc! { field: { "$not": { "$type": kind } } };
    let filter = doc! { "$or": [
        is_not("_id", "objectId"),
        is_not("room", "objectId"),
        is_not("sender", "objectId"),
        is_not("content", "string"),
    ] };
    Ok(messages.count_documents(filter).max_time(QUESTION).await?)
}

async fn missing_privileges(database: &Database) -> Result<Option<Vec<&'static str>>, StoreError> {
    let question = doc! { "connectionStatus": 1, "showPrivileges": true };
    let status = database.run_command(question).await?;
    let Ok(auth) = status.get_document("authInfo") else { return Ok(None) };
    if auth.get_array("authenticatedUsers").is_ok_and(Vec::is_empty) {
        return Ok(None);
    }
    let none = Vec::new();
    let privileges = auth.get_array("authenticatedUserPrivileges").unwrap_or(&none);
    let allowed: Vec<&str> = privileges
        .iter()
        .filter_map(Bson::as_document)
        .filter(|privilege| covers(privilege, database.name()))
        .filter_map(|privilege| privilege.get_array("actions").ok())
        .flatten()
        .filter_map(Bson::as_str)
        .collect();
    Ok(Some(NEEDED.into_iter().filter(|action| !allowed.contains(action)).collect()))
}

/// Whether a privilege is one on every collection of a database.
fn covers(privilege: &Document, database: &str) -> bool {
    let Ok(resource) = privilege.get_document("resource") else { return false };
    if resource.get_bool("anyResource").unwrap_or(false) {
        return true;
    }
    let db = resource.get_str("db").unwrap_or("-");
    (db == database || db.is_empty()) && resource.get_str("collection").is_ok_and(str::is_empty)
}
