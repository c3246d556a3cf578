//! Reads and writes many documents in one operation.
//!
//! MongoDB's `update` takes many statements, but says only how many documents they matched, not
//! which. For replacements, nearly always all did. Otherwise the documents are read again: each
//! says whether its replacement was stored.

use std::collections::HashMap;

use bson::oid::ObjectId;
use bson::{
    Bson, Document, RawArray, RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, doc, rawdoc,
};
use mongodb::error::Error;
use mongodb::options::ReadConcern;
use mongodb::{Collection, Cursor, Database};

use super::message::integer;
use super::{MessageId, StoreError, failure};

/// Reads messages as a majority of the replica set has them; `None` for one that is not there.
///
/// # Errors
/// The database failed.
pub(super) async fn read_all(
    collection: Collection<RawDocumentBuf>,
    ids: Vec<MessageId>,
) -> Result<Vec<Option<RawDocumentBuf>>, StoreError> {
    let majority = ReadConcern::majority();
    if let [id] = &*ids {
        let found = collection.find_one(doc! { "_id": id.0 }).read_concern(majority);
        return Ok(vec![found.await?]);
    }
    let all: Vec<_> = ids.iter().map(|id| id.0).collect();
    let found = collection.find(doc! { "_id": { "$in": all } }).read_concern(majority);
    let documents = by_id(found.await?).await?;
    // Two requests may ask for the same one.
    Ok(ids.iter().map(|id| documents.get(&id.0).cloned()).collect())
}

/// The most bytes of documents in one operation. MongoDB takes 48 MB.
const MAX_BYTES: usize = 16 << 20;

/// A document that takes the place of another one.
#[derive(Debug, Clone)]
pub(super) struct Replacement {
    /// Its `_id`.
    pub id: ObjectId,
    /// Matches the old document as it was read.
    pub guard: Document,
    /// The new document.
    pub new: RawDocumentBuf,
}

/// Whether each replacement was stored. One whose document has changed meanwhile is not.
type Replaced = Vec<Result<bool, StoreError>>;

/// What [`update_all`] has done.
pub(super) struct Updated {
    /// How many documents were matched, by the last attempt.
    pub matched: usize,
    /// The indexes of the statements that failed.
    pub failed: Vec<usize>,
    /// Whether a first attempt failed, which may have updated some of the documents.
    pub is_repeated: bool,
}

/// Replaces messages, confirmed by a majority of the replica set.
///
/// # Errors
/// The database failed. Which messages were replaced is unknown.
pub(super) async fn replace_all(
    database: Database,
    collection: Collection<RawDocumentBuf>,
    replacements: Vec<Replacement>,
) -> Result<Replaced, StoreError> {
    let mut replaced = Vec::with_capacity(replacements.len());
    let mut rest = &replacements[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|replacement| {
            bytes += replacement.new.as_bytes().len();
            bytes <= MAX_BYTES
        });
        let (part, others) = rest.split_at(fits.count().max(1));
        rest = others;
        match part {
            [one] => replaced.push(replace_one(&collection, one).await),
            part => replaced.extend(replace_together(&database, &collection, part).await?),
        }
    }
    Ok(replaced)
}

async fn replace_one(
    collection: &Collection<RawDocumentBuf>,
    replacement: &Replacement,
) -> Result<bool, StoreError> {
    let Replacement { guard, new, .. } = replacement;
    let replaced = collection.replace_one(guard.clone(), new).await?;
    Ok(replaced.matched_count > 0)
}

async fn replace_together(
    database: &Database,
    collection: &Collection<RawDocumentBuf>,
    all: &[Replacement],
) -> Result<Replaced, StoreError> {
    let mut statements = RawArrayBuf::new();
    for Replacement { guard, new, .. } in all {
        statements.push(rawdoc! { "q": encode(guard)?, "u": new.clone() });
    }
    // What the first of two attempts has replaced is not matched again.
    let reply = update_all(database, collection.name(), statements).await?;
    let mut replaced: Replaced = all.iter().map(|_| Ok(true)).collect();
    if reply.matched + reply.failed.len() < all.len() {
        let ids: Vec<_> = all.iter().map(|one| one.id).collect();
        let stored = by_id(collection.find(doc! { "_id": { "$in": ids } }).await?).await?;
        let found: Vec<_> = all.iter().map(|one| state(one, stored.get(&one.id))).collect();
        let certain = found.iter().filter(|state| **state == Some(true)).count();
        let uncertain = found.iter().filter(|state| state.is_none()).count();
        // The statements that matched, but whose documents are gone again.
        let overtaken = match reply.matched.checked_sub(certain) {
            Some(0) if !reply.is_repeated => Some(false),
            Some(count) if !reply.is_repeated && count == uncertain => Some(true),
            _ => None,
        };
        for (result, state) in replaced.iter_mut().zip(found) {
            *result = state.or(overtaken).ok_or_else(unknown);
        }
    }
    for index in reply.failed {
        if let (Some(result), Some(one)) = (replaced.get_mut(index), all.get(index)) {
            // Alone, so that the error is the driver's own.
            *result = replace_one(collection, one).await;
        }
    }
    Ok(replaced)
}

/// Encodes a document.
///
/// # Errors
/// It cannot be encoded, for example because it is too large.
pub(super) fn encode(document: &Document) -> Result<RawDocumentBuf, StoreError> {
    let encoded = RawDocumentBuf::try_from(document);
    encoded.map_err(|error| StoreError::Database(Error::custom(error.to_string())))
}

/// Runs these statements, `{q, u}` each, confirmed by a majority of the replica set. If the
/// connection breaks, or the primary changes, all of them are run once more. So a statement must
/// not match a document that it has updated already.
///
/// # Errors
/// The database failed. Which of the documents were updated is unknown.
pub(super) async fn update_all(
    database: &Database,
    collection: &str,
    statements: RawArrayBuf,
) -> Result<Updated, StoreError> {
    match update(database, collection, &statements).await {
        Err(StoreError::Unavailable(error)) if failure::is_worth_repeating(&error) => {
            let updated = update(database, collection, &statements).await?;
            Ok(Updated { is_repeated: true, ..updated })
        }
        result => result,
    }
}

async fn update(
    database: &Database,
    collection: &str,
    statements: &RawArray,
) -> Result<Updated, StoreError> {
    let mut command = rawdoc! {
        "update": collection,
        "ordered": false,
        "writeConcern": { "w": "majority" },
    };
    command.append(bson::cstr!("updates"), RawBsonRef::Array(statements));
    let reply = database.run_raw_command(command).await?;
    if let Ok(unconfirmed) = reply.get_document("writeConcernError") {
        return Err(StoreError::Unavailable(Error::custom(unconfirmed.to_string())));
    }
    let errors = reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
    let indexes = errors.iter().filter_map(Bson::as_document).map(|error| error.get_i32("index"));
    let indexes = indexes.map(|index| index.ok().and_then(|index| usize::try_from(index).ok()));
    Ok(Updated {
        matched: reply.get_i32("n").ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
        failed: indexes.flatten().collect(),
        is_repeated: false,
    })
}

async fn by_id(
    mut found: Cursor<RawDocumentBuf>,
) -> Result<HashMap<ObjectId, RawDocumentBuf>, StoreError> {
    let mut documents = HashMap::new();
    while found.advance().await? {
        let document = found.current().to_owned();
        if let Ok(id) = document.get_object_id("_id") {
            documents.insert(id, document);
        }
    }
    Ok(documents)
}

/// Whether a replacement is stored; `None` if its document is gone, or is a later one, which may
/// have taken the place of this one.
fn state(replacement: &Replacement, stored: Option<&RawDocumentBuf>) -> Option<bool> {
    let stored = stored?;
    if *stored == replacement.new {
        return Some(true);
    }
    (version(stored) <= version(&replacement.new)).then_some(false)
}

fn version(document: &RawDocument) -> i32 {
    document.get("__v").ok().flatten().and_then(integer).unwrap_or_default()
}

fn unknown() -> StoreError {
    StoreError::Unavailable(Error::custom("it is not known whether the message was replaced"))
}
