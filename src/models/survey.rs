//! Inspects a database before this server writes anything into it.
//!
//! Each check runs on its own, has a time limit, and changes nothing. If a check fails, the report
//! says so, and the other checks still run.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use mongodb::{Collection, Database};

use super::indexes::{self, Presence, WANTED};
use super::own::{self, Holding};
use super::{ID_INDEX, Privileges, StoreError, duplicates};

/// How long one check may take: a large collection must not be scanned forever.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The collections of the original, each with its unique field, if it has one.
const COLLECTIONS: [(&str, Option<&str>); 3] =
    [("users", Some("username")), ("rooms", Some("name")), ("messages", None)];

/// The actions that the user of the connection string needs, by the server's names.
const NEEDED: [(&str, &[&str]); 3] = [
    ("users", &["find", "insert", "update", "createIndex"]),
    ("rooms", &["find", "insert", "createIndex"]),
    ("messages", &["find", "insert", "update", "remove", "createIndex", "changeStream"]),
];
/// The actions that the change stream of the whole database needs. Without them, the change stream
/// of `messages` is used.
const NEEDED_OF_DATABASE: [&str; 2] = ["find", "changeStream"];
/// The actions that each own collection needs.
const NEEDED_OF_OWN: &[&str] = &["find", "insert", "update", "remove", "createIndex"];

/// The result of a check, as a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// All is well.
    Good(String),
    /// Worth knowing, but nothing is lost and everything works.
    Note(String),
    /// Something would be lost, or would not work.
    Problem(String),
}

use Finding::{Good, Note, Problem};

/// Runs all checks on a database.
///
/// # Errors
/// The database cannot be reached.
pub async fn survey(database: &Database) -> Result<Vec<Finding>, StoreError> {
    let hello = database.run_command(doc! { "hello": 1 }).await?;
    let build = database.run_command(doc! { "buildInfo": 1 }).await?;
    let mut findings = vec![deployment(&hello, build.get_str("version").unwrap_or("unknown"))];
    if !hello.get_bool("isWritablePrimary").unwrap_or(true) {
        let text = "the member that MONGO_URI connects to is not the primary, so every write fails. \
                    Name the whole replica set there";
        findings.push(Problem(text.to_owned()));
    }
    let about = |what: &str, answer: Result<Vec<Finding>, StoreError>| {
        answer.unwrap_or_else(|error| vec![Note(format!("{what} could not be checked: {error}"))])
    };
    findings.extend(about("the collections", contents(database).await));
    findings.extend(about("the privileges of the user", privileges(database).await));
    for (name, unique_field) in COLLECTIONS {
        let collection = database.collection::<Document>(name);
        let of = |what: &str| format!("{what} of {name}");
        findings
            .extend(about(&of("the indexes"), foreign_indexes(&collection, unique_field).await));
        findings.extend(about(&of("the odd documents"), odd_documents(&collection).await));
        if let Some(field) = unique_field {
            findings.extend(about(&of("the duplicates"), repeated(&collection, field).await));
        }
    }
    for wanted in WANTED {
        let text = match wanted.look(database).await {
            Ok(Presence::There { name }) if name == wanted.name => continue,
            Ok(Presence::There { name }) => format!(
                "{}.{name} replaces this server's index {}, which is not built",
                wanted.collection, wanted.name
            ),
            Ok(Presence::Missing) => format!(
                "{} gets the index {} ({}); building it does not block writes",
                wanted.collection,
                wanted.name,
                wanted.fields.join(", ")
            ),
            Ok(Presence::Other { name }) => format!(
                "{} has the index {name}, which conflicts with the index {}. It is kept; this \
                 server works without its own index, but more slowly",
                wanted.collection, wanted.name
            ),
            Err(error) => {
                format!("{}.{} could not be checked: {error}", wanted.collection, wanted.name)
            }
        };
        findings.push(Note(text));
    }
    for purpose in own::ALL {
        findings.push(match purpose.look(database).await {
            Ok(Holding::Ours) => Good(format!("{} is this server's", purpose.collection)),
            Ok(Holding::Free) => Note(format!(
                "the collection {} is added, for {}",
                purpose.collection, purpose.feature
            )),
            Ok(Holding::Others(found)) => Problem(format!(
                "{} {found}. It would be left alone, and {} would be off: rename or drop it",
                purpose.collection, purpose.feature
            )),
            Err(error) => Note(format!("{} could not be checked: {error}", purpose.collection)),
        });
    }
    findings.extend(about("the private rooms", private_rooms(database).await));
    findings.extend(about("the password hashes", hashes(database).await));
    Ok(findings)
}

fn deployment(hello: &Document, version: &str) -> Finding {
    match hello.get_str("setName") {
        Ok(name) => Good(format!("MongoDB {version}, replica set {name}")),
        Err(_) if hello.get_str("msg").is_ok_and(|said| said == "isdbgrid") => {
            Good(format!("MongoDB {version}, a sharded cluster"))
        }
        Err(_) => Note(format!(
            "MongoDB {version} is a standalone: REST works, messages reach the sockets of one \
             process only. Restart mongod with --replSet rs0 and run rs.initiate() to have them \
             everywhere, in one order, without loss"
        )),
    }
}

/// The collections, and whether the original's three accept our documents.
async fn contents(database: &Database) -> Result<Vec<Finding>, StoreError> {
    let question = doc! { "listCollections": 1, "authorizedCollections": false };
    let answer = database.run_command(question).await?;
    let cursor = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let listed = cursor.map(Vec::as_slice).unwrap_or_default();
    let listed: Vec<_> = listed.iter().filter_map(Bson::as_document).collect();
    let name_of = |listed: &Document| listed.get_str("name").unwrap_or_default().to_owned();
    let mut counts = Vec::new();
    for (name, _) in COLLECTIONS {
        let count = database.collection::<Document>(name).estimated_document_count().await?;
        counts.push(format!("{count} {name}"));
    }
    let mut findings =
        vec![Good(format!("the database is {}: {}", database.name(), counts.join(", ")))];
    let is_ours = |name: &str| {
        let is_original = COLLECTIONS.iter().any(|(known, _)| *known == name);
        is_original || name.starts_with(own::PREFIX) || name.starts_with("system.")
    };
    let others: Vec<_> =
        listed.iter().map(|listed| name_of(listed)).filter(|name| !is_ours(name)).collect();
    if !others.is_empty() {
        findings.push(Note(format!(
            "the database also has the collections {}, which this server does not touch",
            others.join(", ")
        )));
    }
    for (name, _) in COLLECTIONS {
        let Some(found) = listed.iter().find(|listed| name_of(listed) == name) else { continue };
        if found.get_str("type").is_ok_and(|kind| kind != "collection") {
            findings.push(Problem(format!(
                "{name} is a {}, which takes no writes",
                found.get_str("type").unwrap_or_default()
            )));
        }
        let options = found.get_document("options");
        findings.extend(validator(database, name, options.unwrap_or(&Document::new())).await?);
    }
    Ok(findings)
}

/// Whether the validator of a collection, if it has one, accepts a document as this server writes
/// it.
async fn validator(
    database: &Database,
    name: &str,
    options: &Document,
) -> Result<Option<Finding>, StoreError> {
    let Ok(validator) = options.get_document("validator") else { return Ok(None) };
    if options.get_str("validationLevel").is_ok_and(|level| level == "off") {
        return Ok(None);
    }
    // `$collStats` gives one document, also for an empty collection.
    let pipeline = [
        doc! { "$collStats": { "count": {} } },
        doc! { "$replaceWith": { "$literal": written(name) } },
        doc! { "$match": validator },
    ];
    let collection = database.collection::<Document>(name);
    let mut taken = collection.aggregate(pipeline).max_time(CHECK_TIMEOUT).await?;
    if taken.advance().await? {
        return Ok(Some(Good(format!("the validator of {name} takes this server's documents"))));
    }
    Ok(Some(if options.get_str("validationAction").is_ok_and(|action| action == "warn") {
        Note(format!("the validator of {name} would log a warning for each new document"))
    } else {
        Problem(format!(
            "the validator of {name} refuses the documents that this server and Mongoose write: \
             {validator}"
        ))
    }))
}

/// A document as this server writes it.
fn written(collection: &str) -> Document {
    let (id, now) = (ObjectId::new(), DateTime::now());
    let mut document = match collection {
        "users" => doc! { "_id": id, "username": "ann", "password": "$argon2id$v=19$m=19456" },
        "rooms" => doc! { "_id": id, "name": "general" },
        _ => doc! { "_id": id, "room": id, "sender": id, "content": "hello" },
    };
    document.extend(doc! { "createdAt": now, "updatedAt": now, "__v": 0 });
    document
}

/// Unique indexes that are not this server's and would refuse its second document.
async fn foreign_indexes(
    collection: &Collection<Document>,
    unique_field: Option<&str>,
) -> Result<Vec<Finding>, StoreError> {
    let mut findings = Vec::new();
    for index in indexes::list(collection).await? {
        let options = index.options.unwrap_or_default();
        let name = options.name.unwrap_or_default();
        // If one field differs in every document of ours, the whole key differs.
        let differs = |field: &String| field == "_id" || unique_field == Some(field.as_str());
        if options.unique != Some(true) || name == ID_INDEX || index.keys.keys().any(differs) {
            continue;
        }
        let fields: Vec<_> = index.keys.keys().map(String::as_str).collect();
        let (of, fields) = (collection.name(), fields.join(", "));
        findings.push(if options.sparse == Some(true) || options.partial_filter_expression.is_some() {
            Note(format!("{of} has the unique index {name} on {fields}, which leaves out some documents"))
        } else {
            Problem(format!(
                "{of} has the unique index {name} on {fields}, fields that this server does not \
                 write: MongoDB refuses the second document without them. Drop it, or make it \
                 partial"
            ))
        });
    }
    Ok(findings)
}

/// Documents with fields of other types than the original's schema has.
async fn odd_documents(collection: &Collection<Document>) -> Result<Vec<Finding>, StoreError> {
    let is_not = |field: &str, kind: &str| doc! { field: { "$not": { "$type": kind } } };
    let (filter, consequence) = match collection.name() {
        "users" => (
            vec![
                is_not("_id", "objectId"),
                is_not("username", "string"),
                is_not("password", "string"),
            ],
            "they are shown as by Mongoose; a user without a hash cannot log in",
        ),
        "rooms" => (
            vec![is_not("_id", "objectId"), is_not("name", "string")],
            "they are listed as by Mongoose; a room without an ObjectId cannot be joined",
        ),
        _ => (
            vec![
                is_not("_id", "objectId"),
                is_not("room", "objectId"),
                is_not("sender", "objectId"),
                is_not("content", "string"),
            ],
            "they are shown as by Mongoose",
        ),
    };
    let pipeline = [
        doc! { "$match": { "$or": filter } },
        doc! { "$group": { "_id": null, "count": { "$sum": 1_i64 }, "one": { "$first": "$_id" } } },
    ];
    let mut found = collection.aggregate(pipeline).max_time(CHECK_TIMEOUT).await?;
    if !found.advance().await? {
        return Ok(Vec::new());
    }
    let group = found.deserialize_current()?;
    let count = group.get_i64("count").unwrap_or_default();
    let one = group.get("one").unwrap_or(&Bson::Null);
    Ok(vec![Note(format!(
        "{count} documents in {} have fields of other types, such as the one with _id {one}: \
         {consequence}",
        collection.name()
    ))])
}

async fn repeated(
    collection: &Collection<Document>,
    field: &str,
) -> Result<Vec<Finding>, StoreError> {
    let values = duplicates(collection, field).await?;
    let name = collection.name();
    Ok(vec![if values.is_empty() {
        Good(format!("every {field} in {name} is unique"))
    } else {
        Problem(format!(
            "{name} has more than one document with the same {field}: {values}. Until they are \
             renamed, the unique index cannot be built, and each insert is checked for duplicates"
        ))
    }])
}

async fn privileges(database: &Database) -> Result<Vec<Finding>, StoreError> {
    let Some(privileges) = Privileges::of(database).await? else {
        return Ok(vec![Note("MongoDB requires no password".to_owned())]);
    };
    let own = own::ALL.map(|purpose| (purpose.collection, NEEDED_OF_OWN));
    let missing: Vec<_> = NEEDED
        .into_iter()
        .chain(own)
        .flat_map(|(collection, actions)| actions.iter().map(move |action| (collection, *action)))
        .filter(|(collection, action)| !privileges.allow(action, collection))
        .map(|(collection, action)| format!("{action} on {collection}"))
        .collect();
    let mut findings = Vec::new();
    if !NEEDED_OF_DATABASE.iter().all(|action| privileges.allow(action, "")) {
        findings.push(Note(
            "the user of MONGO_URI may not open a change stream on the database, so only that of \
             messages would be read, and private rooms would be off. It needs find and \
             changeStream on the database, without a collection"
                .to_owned(),
        ));
    }
    findings.push(if missing.is_empty() {
        Good("the user of MONGO_URI has the privileges that are needed".to_owned())
    } else {
        Problem(format!(
            "the user of MONGO_URI lacks: {}. The role readWrite has them",
            missing.join(", ")
        ))
    });
    Ok(findings)
}

/// Whether there are rooms that a Node server would open to everybody.
async fn private_rooms(database: &Database) -> Result<Vec<Finding>, StoreError> {
    let rooms = database.collection::<Document>(own::ROOMS.collection);
    // The marker of the collection has a text as its `_id`.
    let ours = doc! { own::FIELD: own::MARK, "_id": { "$type": "objectId" } };
    let count = rooms.count_documents(ours).max_time(CHECK_TIMEOUT).await?;
    Ok(match count {
        0 => Vec::new(),
        count => vec![Note(format!(
            "private rooms are in use: {count} in {}. A Node server would let every user read and \
             write them, so run none on this database; docs/migrating.md has the way back",
            own::ROOMS.collection
        ))],
    })
}

/// Counts users by the kind of their password hash.
async fn hashes(database: &Database) -> Result<Vec<Finding>, StoreError> {
    // `$2b$10$…` → `$2b$`, `$argon2id$v=19$…` → `$argon2id$`. Without `$getField`, which MongoDB
    // 4.4 does not know.
    let found = doc! { "$regexFind": { "input": "$password", "regex": r"^\$[a-z0-9]+\$" } };
    let matched = doc! { "$let": { "vars": { "found": found }, "in": "$$found.match" } };
    let is_text = doc! { "$eq": [{ "$type": "$password" }, "string"] };
    let kind = doc! { "$cond": [is_text, matched, null] };
    let pipeline = [doc! { "$group": { "_id": kind, "count": { "$sum": 1_i64 } } }];
    let users = database.collection::<Document>("users");
    let mut groups = users.aggregate(pipeline).max_time(CHECK_TIMEOUT).await?;
    let mut hashes = BTreeMap::<String, i64>::new();
    while groups.advance().await? {
        let group = groups.deserialize_current()?;
        let kind = group.get_str("_id").unwrap_or("none").to_owned();
        *hashes.entry(kind).or_default() += group.get_i64("count").unwrap_or_default();
    }
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let counts: Vec<_> = hashes.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let mut findings = vec![Good(format!("password hashes: {}", counts.join(", ")))];
    if hashes.keys().any(|kind| kind.starts_with("$2")) {
        findings.push(Note(
            "with PASSWORD_HASH=argon2id, the default, a login replaces a bcrypt hash by one that \
             bcryptjs cannot read: set PASSWORD_HASH=bcrypt if you may go back to Node"
                .to_owned(),
        ));
    }
    Ok(findings)
}
