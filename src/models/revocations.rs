//! Tokens that were revoked before they expire.
//!
//! A revocation is of all tokens of a user that were issued before a second, of one token, or of
//! all tokens of one family, which is one login on one device. It is written by a majority, so the
//! change stream brings it to every instance. Times are the database's. A token of the Node server
//! has no id: it is known by its user and by the second in which it was issued.

use std::collections::HashSet;
use std::time::Duration;

use bson::{Bson, DateTime, Document, RawDocument, doc};
use mongodb::options::ReturnDocument;

use super::own::{FIELD, MARK, Own, REVOCATIONS};
use super::{FamilyId, StoreError, UserId};

/// How long a token of this server is valid, in seconds: the original's `expiresIn: '1h'`.
pub const TOKEN_LIFETIME: u64 = 3600;

/// How long the revocation of a family is kept, which is longer than any of its tokens is valid.
const FAMILY_KEPT: Duration = Duration::from_secs(TOKEN_LIFETIME + 900);

/// How many seconds after the revocation of all its tokens a user gets valid ones again: the rest
/// of the current second, and one more, because the clock of an instance can differ by
/// milliseconds.
const MARGIN: i64 = 2;

/// How many seconds from now on are searched for a free one by [`Revocations::first_valid`].
const SEARCHED: u64 = TOKEN_LIFETIME;

/// What identifies a token, as far as revocations are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenIdentity {
    /// The user to whom it was issued.
    pub user: UserId,
    /// When it was issued, in seconds since 1970; 0 if it does not say.
    pub issued: u64,
    /// The family of a token that belongs to a refresh token.
    pub family: Option<FamilyId>,
}

/// Which tokens of a user are revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All that were issued before a second.
    All,
    /// The one without a family that was issued in this second since 1970.
    Token(u64),
    /// Those of a family.
    Family(FamilyId),
}

/// A revocation of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// The user of the tokens.
    pub user: UserId,
    /// Which of them.
    pub scope: Scope,
    /// No token is concerned that was issued in or after this second since 1970.
    pub before: u64,
}

/// When a user's next token may be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstValid {
    /// The first second since 1970 in which a token is valid.
    pub second: u64,
    /// When all tokens of the user were last revoked.
    pub revoked_at: Option<DateTime>,
}

/// The revocations since a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// The revocations.
    pub revocations: Vec<Revocation>,
    /// The time of the newest one.
    pub newest: Option<DateTime>,
    /// Tokens that were issued before this second may be revoked by one that is not listed, because
    /// there were too many.
    pub complete_from: Option<u64>,
}

/// The [own](super::own) collection of [`REVOCATIONS`]:
/// `{_id: {user, scope}, app, before, at, expires?}`. `scope` is `"all"`, the second of a token, or
/// the id of a family. A revocation of all tokens does not expire, because a token can be valid for
/// longer than an hour if another program issued it.
#[derive(Debug, Clone)]
pub struct Revocations {
    pub(super) revocations: Own<Document>,
}

impl Revocation {
    /// Whether a token is revoked by this.
    pub fn covers(&self, token: TokenIdentity) -> bool {
        self.user == token.user
            && match self.scope {
                Scope::All => token.issued < self.before,
                Scope::Token(issued) => token.family.is_none() && token.issued == issued,
                Scope::Family(family) => token.family == Some(family),
            }
    }

    /// Reads a document of the collection; `None` for one that is none of this program's.
    pub fn read(document: &RawDocument) -> Option<Self> {
        Self::of(&Document::try_from(document).ok()?)
    }

    fn of(document: &Document) -> Option<Self> {
        let id = document.get_document("_id").ok()?;
        let scope = match id.get("scope")? {
            Bson::String(all) if all == ALL => Scope::All,
            Bson::Int64(issued) => Scope::Token(u64::try_from(*issued).ok()?),
            Bson::ObjectId(family) => Scope::Family(FamilyId(*family)),
            _ => return None,
        };
        let before = u64::try_from(document.get_i64("before").ok()?).ok()?;
        Some(Self { user: UserId(id.get_object_id("user").ok()?), scope, before })
    }
}

/// The `scope` of a revocation of all tokens.
const ALL: &str = "all";

impl Scope {
    fn to_bson(self) -> Bson {
        match self {
            Self::All => ALL.into(),
            Self::Token(issued) => seconds(issued).into(),
            Self::Family(family) => family.0.into(),
        }
    }
}

impl TokenIdentity {
    /// The scopes that revoke this token.
    pub fn scopes(self) -> [Scope; 2] {
        [Scope::All, self.family.map_or(Scope::Token(self.issued), Scope::Family)]
    }
}

fn id(user: UserId, scope: impl Into<Bson>) -> Document {
    doc! { "user": user.0, "scope": scope.into() }
}

fn seconds(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Revocations {
    /// Revokes tokens of a user. `expires` is when the token of [`Scope::Token`] expires, in
    /// seconds since 1970.
    ///
    /// # Errors
    /// The database failed.
    pub async fn revoke(
        &self,
        user: UserId,
        scope: Scope,
        expires: u64,
    ) -> Result<Revocation, StoreError> {
        let this_second = doc! { "$toLong": { "$floor": {
            "$divide": [{ "$toLong": "$$NOW" }, 1000]
        } } };
        let mut soon = vec![
            doc! { "$add": [this_second, MARGIN] }.into(),
            // Since the last revocation, tokens were issued from that second on.
            Bson::from(doc! { "$add": ["$before", 1] }),
        ];
        if scope == Scope::All {
            // The next token was issued behind the seconds of those that were revoked one by one.
            soon.extend(self.last_token(user).await?.map(|second| Bson::from(second + 2)));
        }
        let soon = doc! { "$max": soon };
        let mut fields = doc! { FIELD: MARK, "at": "$$NOW", "before": soon };
        match scope {
            Scope::All => {}
            Scope::Token(issued) => {
                fields.insert("before", seconds(issued.saturating_add(1)));
                let expires = DateTime::from_millis(seconds(expires).saturating_mul(1000));
                fields.insert("expires", expires);
            }
            Scope::Family(_) => {
                let kept = i64::try_from(FAMILY_KEPT.as_millis()).unwrap_or(i64::MAX);
                fields.insert("expires", doc! { "$add": ["$$NOW", kept] });
            }
        }
        let stored = self
            .revocations
            .get()
            .await?
            .find_one_and_update(
                doc! { "_id": id(user, scope.to_bson()) },
                vec![doc! { "$set": fields }],
            )
            .upsert(true)
            .return_document(ReturnDocument::After)
            .await?;
        let stored = stored.as_ref().and_then(Revocation::of);
        stored.ok_or(StoreError::Malformed(REVOCATIONS.collection, "before"))
    }

    /// The last second of which a token of the user was revoked by itself.
    async fn last_token(&self, user: UserId) -> Result<Option<i64>, StoreError> {
        let of_tokens = doc! { "_id": { "$gte": id(user, 0_i64), "$lte": id(user, i64::MAX) } };
        let found = self.revocations.get().await?.find_one(of_tokens).sort(doc! { "_id": -1 });
        let last = found.await?.as_ref().and_then(Revocation::of);
        Ok(last.and_then(|last| match last.scope {
            Scope::Token(issued) => Some(seconds(issued)),
            Scope::All | Scope::Family(_) => None,
        }))
    }

    /// Whether a token is revoked.
    ///
    /// # Errors
    /// The database failed.
    pub async fn is_revoked(&self, token: TokenIdentity) -> Result<bool, StoreError> {
        let revocations = match self.revocations.get().await {
            // Nobody can revoke anything.
            Err(StoreError::Off(_)) => return Ok(false),
            revocations => revocations?,
        };
        let ids = token.scopes().map(|scope| Bson::from(id(token.user, scope.to_bson())));
        let mut found = revocations.find(doc! { "_id": { "$in": ids.to_vec() } }).await?;
        while found.advance().await? {
            let revocation = Revocation::of(&found.deserialize_current()?);
            if revocation.is_some_and(|revocation| revocation.covers(token)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first second from `second` on in which a token of the user can be issued that is valid.
    ///
    /// # Errors
    /// The database failed.
    pub async fn first_valid(&self, user: UserId, second: u64) -> Result<FirstValid, StoreError> {
        let revocations = match self.revocations.get().await {
            Err(StoreError::Off(_)) => return Ok(FirstValid { second, revoked_at: None }),
            revocations => revocations?,
        };
        let last = second.saturating_add(SEARCHED);
        let of_tokens = doc! { "_id": {
            "$gte": id(user, seconds(second)),
            "$lte": id(user, seconds(last)),
        } };
        let of_all = doc! { "_id": id(user, ALL) };
        let mut found = revocations.find(doc! { "$or": [of_all, of_tokens] }).await?;
        let (mut revoked_at, mut first, mut taken) = (None, second, HashSet::new());
        while found.advance().await? {
            let document: Document = found.deserialize_current()?;
            match Revocation::of(&document) {
                Some(Revocation { scope: Scope::All, before, .. }) => {
                    first = first.max(before);
                    revoked_at = document.get_datetime("at").ok().copied();
                }
                Some(Revocation { scope: Scope::Token(issued), .. }) => {
                    taken.insert(issued);
                }
                _ => {}
            }
        }
        while taken.contains(&first) {
            first += 1;
        }
        Ok(FirstValid { second: first, revoked_at })
    }

    /// The revocations from a time on, the newest `most` of them.
    ///
    /// # Errors
    /// The database failed.
    pub async fn since(&self, at: DateTime, most: usize) -> Result<Recent, StoreError> {
        let mut recent = Recent { revocations: Vec::new(), newest: None, complete_from: None };
        let revocations = match self.revocations.get().await {
            Err(StoreError::Off(_)) => return Ok(recent),
            revocations => revocations?,
        };
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let newest_first = doc! { "at": -1 };
        let found = revocations.find(doc! { "at": { "$gte": at } }).sort(newest_first).limit(limit);
        let (mut found, mut count) = (found.await?, 0);
        while found.advance().await? {
            let document: Document = found.deserialize_current()?;
            let at = document.get_datetime("at").ok().copied();
            count += 1;
            if count == most {
                let ahead = MARGIN + seconds(SEARCHED);
                let second = at.map_or(0, DateTime::timestamp_millis) / 1000 + ahead;
                recent.complete_from = u64::try_from(second).ok();
            }
            recent.newest = recent.newest.max(at);
            recent.revocations.extend(Revocation::of(&document));
        }
        Ok(recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_covers_what_it_names() {
        let (user, other) = (UserId::new(), UserId::new());
        let id = FamilyId::new();
        let family = Some(id);
        let token = |user, issued, family| TokenIdentity { user, issued, family };
        let of = |scope| Revocation { user, scope, before: 10 };
        for (scope, covered, spared) in [
            (
                Scope::All,
                vec![token(user, 9, None), token(user, 0, None), token(user, 9, family)],
                vec![token(user, 10, None), token(other, 9, None)],
            ),
            (
                Scope::Token(9),
                vec![token(user, 9, None)],
                vec![token(user, 8, None), token(user, 9, family), token(other, 9, None)],
            ),
            (
                Scope::Family(id),
                vec![token(user, 9, family), token(user, 99, family)],
                vec![token(user, 9, None), token(user, 9, Some(FamilyId::new()))],
            ),
        ] {
            assert!(covered.into_iter().all(|token| of(scope).covers(token)), "{scope:?}");
            assert!(!spared.into_iter().any(|token| of(scope).covers(token)), "{scope:?}");
        }
    }

    #[test]
    fn documents_read_back() {
        let user = UserId::new();
        for scope in [Scope::All, Scope::Token(7), Scope::Family(FamilyId::new())] {
            let document = doc! { "_id": id(user, scope.to_bson()), "before": 8_i64 };
            let revocation = Revocation { user, scope, before: 8 };
            assert_eq!(Revocation::of(&document), Some(revocation));
        }
        assert_eq!(Revocation::of(&doc! { "_id": MARK, FIELD: MARK }), None);
    }
}
