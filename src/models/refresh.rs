//! Refresh tokens, in families: one login on one device is one family.
//!
//! Each use of a refresh token replaces it by a new one, its successor, in one atomic step. The
//! collection has only hashes. A client that did not get the answer, or two tabs that refresh at
//! the same time, use the same token again within a few seconds and get the same successor again.
//! It is stored so that only this token reveals it: XORed with another hash of this token. Every
//! other token of the family was used before, so it may have been stolen.

use std::fmt;
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::options::ReturnDocument;
use sha2::{Digest, Sha256};

use super::own::{FIELD, MARK, Own, REFRESH};
use super::{FamilyId, StoreError, UserId};

/// How long a refresh token is valid.
pub const REFRESH_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long after its use a token gets its successor again.
pub const GRACE: Duration = Duration::from_secs(10);

/// The same if MongoDB was away meanwhile: an election alone takes longer than [`GRACE`].
pub const GRACE_AFTER_OUTAGE: Duration = Duration::from_secs(60);

/// How many families a user has at most. With one more, the one that was not used for the longest
/// time ends.
const MOST_FAMILIES: u64 = 100;

/// The secret part of a refresh token: 256 random bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RefreshSecret(pub [u8; 32]);

/// A refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshToken {
    /// Its family.
    pub family: FamilyId,
    /// Its secret.
    pub secret: RefreshSecret,
}

/// A refresh token that was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuedRefresh {
    /// The token.
    pub token: RefreshToken,
    /// Its user.
    pub user: UserId,
    /// When it was issued.
    pub at: DateTime,
    /// When its family began.
    pub began: DateTime,
}

/// What a refresh token was exchanged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Its successor.
    New(IssuedRefresh),
    /// The same successor as a few seconds ago.
    Again(IssuedRefresh),
    /// Nothing: it was used before. The user of its family.
    Reused(UserId),
    /// Nothing: its family has ended or expired.
    Unknown,
}

/// The [own](super::own) collection of [`REFRESH`]:
/// `{_id, app, user, secret, previous?, successor?, createdAt, rotatedAt, repeatedAt?}`. `secret`
/// and `previous` are hashes of the current and of the last token, `successor` is the current token
/// as only the last one can read it.
#[derive(Debug, Clone)]
pub struct Families {
    pub(super) families: Own<Document>,
}

/// The secret is not shown.
impl fmt::Debug for RefreshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshSecret")
    }
}

impl RefreshSecret {
    /// A new one; `None` if the system provides no random bytes.
    fn random() -> Option<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).ok()?;
        Some(Self(secret))
    }

    /// What is stored of it.
    fn hash(&self) -> Bson {
        binary(Sha256::digest(self.0).into())
    }

    /// The successor as only this secret can read it, or back again.
    fn seal(&self, successor: [u8; 32]) -> [u8; 32] {
        let mut mask = Sha256::new();
        mask.update(b"successor");
        mask.update(self.0);
        let mut sealed: [u8; 32] = mask.finalize().into();
        sealed.iter_mut().zip(successor).for_each(|(byte, other)| *byte ^= other);
        sealed
    }
}

fn binary(bytes: [u8; 32]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

impl Families {
    /// Begins a family. Ends those of the user that are too many.
    ///
    /// # Errors
    /// The database failed, or the system provides no random bytes.
    pub async fn begin(&self, user: UserId) -> Result<IssuedRefresh, StoreError> {
        let families = self.families.get().await?;
        let token = RefreshToken { family: FamilyId::new(), secret: random()? };
        let fields = doc! {
            FIELD: MARK,
            "user": user.0,
            "secret": token.secret.hash(),
            "createdAt": "$$NOW",
            "rotatedAt": "$$NOW",
        };
        let stored = families
            .find_one_and_update(doc! { "_id": token.family.0 }, vec![doc! { "$set": fields }])
            .upsert(true)
            .return_document(ReturnDocument::After)
            .await?
            .ok_or(malformed("rotatedAt"))?;
        self.end_unused(user).await?;
        issued(token, &stored)
    }

    /// Exchanges a token. Until `grace` after that, it gets the same successor again.
    ///
    /// # Errors
    /// The database failed, or the system provides no random bytes.
    pub async fn rotate(
        &self,
        token: &RefreshToken,
        grace: Duration,
    ) -> Result<Rotation, StoreError> {
        let RefreshToken { family, secret } = *token;
        let families = self.families.get().await?;
        let successor = RefreshToken { family, secret: random()? };
        let rotated = families
            .find_one_and_update(
                doc! { "_id": family.0, "secret": secret.hash(), "$expr": young(REFRESH_LIFETIME) },
                vec![doc! { "$set": {
                    "previous": "$secret",
                    "secret": successor.secret.hash(),
                    "successor": binary(secret.seal(successor.secret.0)),
                    "rotatedAt": "$$NOW",
                } }],
            )
            .return_document(ReturnDocument::After)
            .await?;
        if let Some(rotated) = rotated {
            return Ok(Rotation::New(issued(successor, &rotated)?));
        }
        // This writes, so that the answer waits until a majority has the successor, too.
        let repeated = families
            .find_one_and_update(
                doc! { "_id": family.0, "previous": secret.hash(), "$expr": young(grace) },
                vec![doc! { "$set": { "repeatedAt": "$$NOW" } }],
            )
            .return_document(ReturnDocument::After)
            .await?;
        if let Some(repeated) = repeated {
            let sealed = match repeated.get("successor") {
                Some(Bson::Binary(sealed)) => <[u8; 32]>::try_from(sealed.bytes.as_slice()).ok(),
                _ => None,
            };
            let successor = secret.seal(sealed.ok_or(malformed("successor"))?);
            let token = RefreshToken { family, secret: RefreshSecret(successor) };
            return Ok(Rotation::Again(issued(token, &repeated)?));
        }
        let found = families
            .find_one(doc! { "_id": family.0, "$expr": young(REFRESH_LIFETIME) })
            .projection(doc! { "user": 1 })
            .await?;
        let Some(found) = found else { return Ok(Rotation::Unknown) };
        Ok(Rotation::Reused(user_of(&found)?))
    }

    /// Whose family this is; `None` if it has ended.
    ///
    /// # Errors
    /// The database failed.
    pub async fn user_of(&self, family: FamilyId) -> Result<Option<UserId>, StoreError> {
        let found = self.families.get().await?.find_one(doc! { "_id": family.0 });
        found.projection(doc! { "user": 1 }).await?.as_ref().map(user_of).transpose()
    }

    /// Ends a family of a user.
    ///
    /// # Errors
    /// The database failed.
    pub async fn end(&self, family: FamilyId, user: UserId) -> Result<(), StoreError> {
        let family = doc! { "_id": family.0, "user": user.0 };
        self.families.get().await?.delete_one(family).await?;
        Ok(())
    }

    /// Ends all families of a user.
    ///
    /// # Errors
    /// The database failed.
    pub async fn end_all(&self, user: UserId) -> Result<(), StoreError> {
        let families = match self.families.get().await {
            // There are none.
            Err(StoreError::Off(_)) => return Ok(()),
            families => families?,
        };
        families.delete_many(doc! { "user": user.0 }).await?;
        Ok(())
    }

    async fn end_unused(&self, user: UserId) -> Result<(), StoreError> {
        let families = self.families.get().await?;
        let mut found = families
            .find(doc! { "user": user.0 })
            .projection(doc! { "_id": 1 })
            .sort(doc! { "rotatedAt": -1 })
            .skip(MOST_FAMILIES)
            .await?;
        let mut unused = Vec::new();
        while found.advance().await? {
            unused.extend(found.deserialize_current()?.remove("_id"));
        }
        if !unused.is_empty() {
            families.delete_many(doc! { "_id": { "$in": unused } }).await?;
        }
        Ok(())
    }
}

fn random() -> Result<RefreshSecret, StoreError> {
    let failed = || mongodb::error::Error::custom("the system provides no random bytes".to_owned());
    RefreshSecret::random().ok_or_else(|| StoreError::Database(failed()))
}

/// Whether the current token was issued within this time, by the database's clock.
fn young(age: Duration) -> Document {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    doc! { "$gt": ["$rotatedAt", { "$subtract": ["$$NOW", age] }] }
}

fn issued(token: RefreshToken, stored: &Document) -> Result<IssuedRefresh, StoreError> {
    let date = |field| stored.get_datetime(field).copied().map_err(|_| malformed(field));
    let (at, began) = (date("rotatedAt")?, date("createdAt")?);
    Ok(IssuedRefresh { token, user: user_of(stored)?, at, began })
}

fn user_of(stored: &Document) -> Result<UserId, StoreError> {
    stored.get_object_id("user").map(UserId).map_err(|_| malformed("user"))
}

fn malformed(field: &'static str) -> StoreError {
    StoreError::Malformed(REFRESH.collection, field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_token_reads_its_successor() {
        let [one, other, next] = [(); 3].map(|()| RefreshSecret::random().unwrap());
        let sealed = one.seal(next.0);
        assert_eq!(one.seal(sealed), next.0);
        assert_ne!(other.seal(sealed), next.0);
        assert_ne!(sealed, next.0);
        let Bson::Binary(hash) = one.hash() else { panic!("bytes") };
        // What is stored does not unseal it, either.
        let hash = RefreshSecret(hash.bytes.try_into().unwrap());
        assert_ne!(hash.seal(sealed), next.0);
    }

    #[test]
    fn a_secret_is_not_shown() {
        let token = RefreshToken { family: FamilyId::new(), secret: RefreshSecret([b'x'; 32]) };
        assert!(!format!("{token:?}").contains("120"));
    }
}
