//! Users: the document that Mongoose's `User` model writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use moka::sync::Cache;
use mongodb::Collection;
use mongodb::options::{Collation, CollationStrength};

use super::{StoreError, UniqueIndex, UserId};
use crate::mongoose::value::Value;
use crate::mongoose::{Hydrated, Shown};

/// How long a name is cached.
const CACHE_AGE: Duration = Duration::from_secs(10);
/// How many names are cached.
const CACHE_SIZE: u64 = 10_000;

/// The names of users by id, shared by all workers; `None` for a user who does not exist.
pub type Names = Cache<UserId, Option<Username>>;

/// The `username` of an existing user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Username {
    /// A text, or a value that was cast to text.
    Text(Arc<str>),
    /// `null`.
    Null,
    /// The field is not there, or cannot be cast.
    Missing,
}

/// An empty cache of names, bounded in number and age.
pub(super) fn names() -> Names {
    Cache::builder().max_capacity(CACHE_SIZE).time_to_live(CACHE_AGE).build()
}

/// The collection `users`.
#[derive(Clone)]
pub struct Users {
    pub(super) collection: Collection<RawDocumentBuf>,
    pub(super) names: Names,
    pub(super) name_index: UniqueIndex,
}

/// The fields of a user that a login needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `_id`.
    pub id: UserId,
    /// `password`: a hash of either kind, or the JavaScript type of another value.
    pub password: Result<String, &'static str>,
}

/// What everybody may know about a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// `_id`.
    pub id: UserId,
    /// `username`.
    pub name: Username,
    /// `createdAt`; `None` if it is no date.
    pub created_at: Option<DateTime>,
}

/// How names are compared in a search: case and accents make no difference, in any script.
pub(super) fn collation() -> Collation {
    Collation::builder().locale("en").strength(CollationStrength::Primary).build()
}

/// Whether this is that [`collation`]. MongoDB adds the fields that are not set.
pub(super) fn is_of_letters(collation: &Collation) -> bool {
    collation.locale == "en" && matches!(collation.strength, Some(CollationStrength::Primary))
}

/// Sorts behind every character in a [`collation`].
const LAST: char = '\u{ffff}';

/// How long a search may take while its index is being built.
const SEARCH_TIME: Duration = Duration::from_secs(2);

impl Users {
    /// Stores a new user.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when the name is taken.
    pub async fn insert(&self, username: &str, password_hash: &str) -> Result<UserId, StoreError> {
        // The index may be missing, for example after the database was dropped.
        if self.is_taken(username).await? {
            return Err(StoreError::Duplicate);
        }
        let id = UserId::new();
        let now = DateTime::now();
        let user = rawdoc! {
            "_id": id.0,
            "username": username,
            "password": password_hash,
            "createdAt": now,
            "updatedAt": now,
            "__v": 0_i32,
        };
        match self.collection.insert_one(user).await.map_err(StoreError::from) {
            Ok(_) => Ok(id),
            Err(StoreError::Refused(refusing))
                if self.name_index.is(&refusing.index) && self.is_taken(username).await? =>
            {
                Err(StoreError::Duplicate)
            }
            Err(error) => Err(error),
        }
    }

    async fn is_taken(&self, username: &str) -> Result<bool, StoreError> {
        let same = self.collection.find_one(doc! { "username": username });
        Ok(same.projection(doc! { "_id": 1 }).await?.is_some())
    }

    /// The user of this name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn by_name(&self, username: &str) -> Result<Option<Credentials>, StoreError> {
        let found = self
            .collection
            .find_one(doc! { "username": username })
            .projection(doc! { "password": 1 })
            .await?;
        found.map(|user| Credentials::of(&user)).transpose()
    }

    /// The user with this id, and the user's name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn by_id(&self, user: UserId) -> Result<Option<(Credentials, Username)>, StoreError> {
        let found = self.collection.find_one(doc! { "_id": user.0 });
        let found = found.projection(doc! { "username": 1, "password": 1 }).await?;
        let of = |user| Ok((Credentials::of(user)?, Username::of(user)));
        found.as_deref().map(of).transpose()
    }

    /// Replaces a hash by one of the same password, unless it has been replaced meanwhile. Returns
    /// whether it was replaced.
    ///
    /// # Errors
    /// The database failed.
    pub async fn replace_password(
        &self,
        user: UserId,
        old_hash: &str,
        new_hash: &str,
    ) -> Result<bool, StoreError> {
        self.set_password(user, old_hash, doc! { "password": new_hash }).await
    }

    /// Replaces a hash by one of another password, unless it has been replaced meanwhile. Returns
    /// whether it was replaced.
    ///
    /// # Errors
    /// The database failed.
    pub async fn change_password(
        &self,
        user: UserId,
        old_hash: &str,
        new_hash: &str,
    ) -> Result<bool, StoreError> {
        let fields = doc! { "password": new_hash, "updatedAt": DateTime::now() };
        self.set_password(user, old_hash, fields).await
    }

    async fn set_password(
        &self,
        user: UserId,
        old_hash: &str,
        fields: Document,
    ) -> Result<bool, StoreError> {
        let guard = doc! { "_id": user.0, "password": old_hash };
        let updated = self.collection.update_one(guard, doc! { "$set": fields }).await?;
        Ok(updated.matched_count > 0)
    }

    /// What everybody may know about a user.
    ///
    /// # Errors
    /// The database failed.
    pub async fn profile(&self, user: UserId) -> Result<Option<Profile>, StoreError> {
        let found = self.collection.find_one(doc! { "_id": user.0 });
        let found = found.projection(doc! { "username": 1, "createdAt": 1 }).await?;
        Ok(found.as_deref().and_then(Profile::of))
    }

    /// The first `most` users whose names begin with a text, sorted by name. Case and accents make
    /// no difference.
    ///
    /// # Errors
    /// The database failed.
    pub async fn search(&self, beginning: &str, most: i64) -> Result<Vec<Profile>, StoreError> {
        let names = doc! { "$gte": beginning, "$lt": format!("{beginning}{LAST}") };
        let mut found = self
            .collection
            .find(doc! { "username": names })
            .projection(doc! { "username": 1, "createdAt": 1 })
            .collation(collation())
            .sort(doc! { "username": 1, "_id": 1 })
            .limit(most)
            .max_time(SEARCH_TIME)
            .await?;
        let mut profiles = Vec::new();
        while found.advance().await? {
            profiles.extend(Profile::of(found.current()));
        }
        Ok(profiles)
    }

    /// Whether a user has a bcrypt hash, which a login would replace by default.
    ///
    /// # Errors
    /// The database failed.
    pub async fn any_with_bcrypt(&self) -> Result<bool, StoreError> {
        let bcrypt = doc! { "password": { "$regex": "^\\$2[aby]\\$" } };
        Ok(self.collection.find_one(bcrypt).projection(doc! { "_id": 1 }).await?.is_some())
    }

    /// The names of these users, with one query for those that are not cached.
    ///
    /// # Errors
    /// The database failed.
    pub async fn names_of(
        &self,
        ids: impl IntoIterator<Item = UserId>,
    ) -> Result<HashMap<UserId, Option<Username>>, StoreError> {
        let mut names = HashMap::new();
        let mut unknown: Vec<ObjectId> = Vec::new();
        for id in ids {
            if names.contains_key(&id) {
                continue;
            }
            match self.names.get(&id) {
                Some(name) => drop(names.insert(id, name)),
                None => {
                    names.insert(id, None);
                    unknown.push(id.0);
                }
            }
        }
        if unknown.is_empty() {
            return Ok(names);
        }
        let mut found = self
            .collection
            .find(doc! { "_id": { "$in": &unknown } })
            .projection(doc! { "username": 1 })
            .await?;
        while found.advance().await? {
            let user = found.current();
            if let Ok(id) = user.get_object_id("_id") {
                names.insert(UserId(id), Some(Username::of(user)));
            }
        }
        for id in unknown.into_iter().map(UserId) {
            self.names.insert(id, names.get(&id).cloned().flatten());
        }
        Ok(names)
    }
}

impl Credentials {
    fn of(user: &RawDocument) -> Result<Self, StoreError> {
        let mut user = Hydrated::user(user);
        let id = user.id("_id").ok_or(StoreError::Malformed("users", "_id"))?;
        let password = match user.take("password") {
            Some(Shown::Value(Value::Text(hash))) => Ok(hash),
            Some(Shown::Value(value)) => Err(value.type_of()),
            _ => Err(Value::Undefined.type_of()),
        };
        Ok(Self { id: UserId(id), password })
    }
}

impl Profile {
    /// `None` if the `_id` is no id.
    fn of(user: &RawDocument) -> Option<Self> {
        Some(Self {
            id: UserId(user.get_object_id("_id").ok()?),
            name: Username::of(user),
            created_at: user.get_datetime("createdAt").ok(),
        })
    }
}

impl Username {
    fn of(user: &RawDocument) -> Self {
        if let Ok(name) = user.get_str("username") {
            return Self::Text(name.into());
        }
        match Hydrated::user(user).take("username") {
            Some(Shown::Value(Value::Text(name))) => Self::Text(name.into()),
            Some(_) => Self::Null,
            None => Self::Missing,
        }
    }
}
