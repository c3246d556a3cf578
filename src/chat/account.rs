//! Accounts: tokens, their refresh and revocation, passwords, and what users may know of each
//! other.
//!
//! Times are the database's, and every step is in an order that leaves no gap. A token says when
//! its login began, which is before the password is read. So a revocation that comes in between
//! covers it. A family of refresh tokens that is older than the last revocation of all tokens of
//! its user has ended, whether or not its document is still there.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::Data;

use crate::auth::{Claims, Passwords, Tokens, Verified};
use crate::error::ApiError;
use crate::feed::Feed;
use crate::js::Js;
use crate::limits::{Address, Limits};
use crate::metrics::{Metrics, Refresh};
use crate::models::refresh::{GRACE, GRACE_AFTER_OUTAGE, REFRESH_LIFETIME};
use crate::models::revocations::{FirstValid, TOKEN_LIFETIME};
use crate::models::user::{Profile, Username};
use crate::models::{
    FamilyId, IssuedRefresh, RefreshToken, Rotation, Scope, Store, TokenIdentity, UserId,
};

/// A login looks at the password again if all tokens of its user were revoked since it began, or so
/// shortly before that the clocks cannot tell.
const CLOCK_ERROR: Duration = Duration::from_secs(5);

/// How many users a search finds at most.
const MOST_FOUND: i64 = 20;

/// The most characters that a search may have.
const LONGEST_SEARCH: usize = 100;

/// How often a new password is tried again if the stored one changes at the same time.
const ATTEMPTS: usize = 3;

/// The accounts of one worker.
#[derive(Clone)]
pub struct Accounts {
    store: Store,
    feed: Arc<Feed>,
    tokens: Data<Tokens>,
    passwords: Data<Passwords>,
    limits: Data<Limits>,
    metrics: Data<Metrics>,
}

/// A login whose password was right.
#[derive(Debug)]
pub struct Login {
    /// The user.
    pub user: UserId,
    /// The stored hash.
    pub hash: String,
    /// When it began, before the hash was read, in milliseconds since 1970.
    pub began: i64,
}

/// What a client gets that has logged in.
#[derive(Debug)]
pub struct LoggedIn {
    token: String,
    user: UserId,
    /// The refresh token, and when it expires, in seconds since 1970.
    refresh: Option<(String, i64)>,
}

impl Accounts {
    /// The accounts in this store.
    pub fn new(
        store: Store,
        feed: Arc<Feed>,
        tokens: Data<Tokens>,
        passwords: Data<Passwords>,
        limits: Data<Limits>,
        metrics: Data<Metrics>,
    ) -> Self {
        Self { store, feed, tokens, passwords, limits, metrics }
    }

    /// The time by which logins begin, in milliseconds since 1970.
    pub fn now(&self) -> i64 {
        self.tokens.clock().millis()
    }

    /// Issues a token, and a refresh token if the client asks for one.
    ///
    /// # Errors
    /// The database failed, or the password was changed at the same time.
    pub async fn log_in(&self, login: Login, refresh: bool) -> Result<LoggedIn, ApiError> {
        let Login { user, hash, began } = login;
        let family = match refresh {
            true => Some(self.store.families.begin(user).await?),
            false => None,
        };
        let second = u64::try_from(began / 1000).unwrap_or(0);
        let first = self.store.revocations.first_valid(user, second).await?;
        let recent = began.saturating_sub(millis(CLOCK_ERROR));
        if first.revoked_at.is_some_and(|at| at.timestamp_millis() > recent) {
            let stored = self.store.users.by_id(user).await?;
            if stored.is_none_or(|(stored, _)| stored.password.as_ref() != Ok(&hash)) {
                if let Some(family) = family {
                    self.store.families.end(family.token.family, user).await?;
                }
                let text = "the password was changed during a login";
                return Err(ApiError::Unavailable(text.to_owned()));
            }
        }
        Ok(self.issue(user, first.second, family))
    }

    /// Exchanges a refresh token for a token and the next refresh token.
    ///
    /// # Errors
    /// The token is not valid (any more), the address makes too many requests, or the database
    /// failed.
    pub async fn refresh(&self, token: &Js, address: Address) -> Result<LoggedIn, ApiError> {
        self.limits.login.take(address)?;
        let Some(token) = self.read_refresh(token)? else {
            self.metrics.refresh(Refresh::Refused);
            return Err(ApiError::RefreshInvalid);
        };
        // A client whose answer was lost in a failover asks again once there is a new primary.
        let grace = match self.feed.was_interrupted(GRACE_AFTER_OUTAGE) {
            true => GRACE_AFTER_OUTAGE,
            false => GRACE,
        };
        let (issued, outcome) = match self.store.families.rotate(&token, grace).await? {
            Rotation::New(issued) => (issued, Refresh::Refreshed),
            Rotation::Again(issued) => (issued, Refresh::Repeated),
            Rotation::Reused(user) => {
                self.metrics.refresh(Refresh::Reused);
                log::warn!("A refresh token of user {user} was used twice; its login has ended");
                self.end_family(user, token.family).await?;
                return Err(ApiError::RefreshReused);
            }
            Rotation::Unknown => {
                self.metrics.refresh(Refresh::Refused);
                return Err(ApiError::RefreshInvalid);
            }
        };
        let user = issued.user;
        let second = u64::try_from(issued.at.timestamp_millis() / 1000).unwrap_or(0);
        let FirstValid { second, revoked_at } =
            self.store.revocations.first_valid(user, second).await?;
        let has_ended = revoked_at.is_some_and(|at| at > issued.began);
        if has_ended || self.store.users.profile(user).await?.is_none() {
            self.metrics.refresh(Refresh::Refused);
            self.store.families.end(token.family, user).await?;
            return Err(ApiError::RefreshInvalid);
        }
        self.metrics.refresh(outcome);
        Ok(self.issue(user, second, Some(issued)))
    }

    /// Ends a token, with the family that it belongs to, and the family of a refresh token of the
    /// same user, if there is one.
    ///
    /// # Errors
    /// `refresh` is no text, or the database failed.
    pub async fn log_out(&self, claims: Claims, refresh: &Js) -> Result<(), ApiError> {
        let refresh = self.read_refresh(refresh)?;
        let user = claims.user;
        match claims.family {
            Some(family) => self.end_family(user, family).await?,
            None => self.revoke(user, Scope::Token(claims.issued), claims.expires).await?,
        }
        let other = refresh.map(|token| token.family).filter(|&other| Some(other) != claims.family);
        if let Some(other) = other
            && self.store.families.user_of(other).await? == Some(user)
        {
            self.end_family(user, other).await?;
        }
        Ok(())
    }

    /// Ends all tokens and families of a user.
    ///
    /// # Errors
    /// The database failed.
    pub async fn log_out_everywhere(&self, user: UserId) -> Result<(), ApiError> {
        self.revoke(user, Scope::All, 0).await?;
        Ok(self.store.families.end_all(user).await?)
    }

    /// Changes the password of a user, and ends all tokens and families of the user. The client
    /// gets a new token, and a new refresh token if it had one.
    ///
    /// # Errors
    /// The old password is wrong, a password is no text, there are too many attempts, or the
    /// database failed.
    pub async fn change_password(
        &self,
        claims: Claims,
        [password, new, refresh]: [&Js; 3],
        address: Address,
    ) -> Result<LoggedIn, ApiError> {
        self.limits.login.take(address)?;
        let text = |field, value: &Js| match value {
            Js::String(text) => Ok(text.clone()),
            _ => Err(ApiError::InvalidField { field, problem: "must be a string" }),
        };
        let (password, new) = (text("password", password)?, text("newPassword", new)?);
        let has_family = claims.family.is_some() || self.read_refresh(refresh)?.is_some();
        let user = claims.user;
        let users = &self.store.users;
        for _ in 0..ATTEMPTS {
            let (stored, name) = users.by_id(user).await?.ok_or(ApiError::NoSuchUser)?;
            let name: Box<str> = match &name {
                Username::Text(name) => name.as_ref().into(),
                Username::Null | Username::Missing => Box::default(),
            };
            self.limits.login_name.check(&(address, name.clone()))?;
            let old = stored.password.map_err(|_| ApiError::InvalidCredentials)?;
            if self.passwords.verify(password.clone(), old.clone()).await? == Verified::No {
                // This one is answered as it is; the next one too many is not.
                let _ = self.limits.login_name.take((address, name));
                return Err(ApiError::InvalidCredentials);
            }
            let hash = self.passwords.hash(new.clone()).await?;
            if users.change_password(user, &old, &hash).await? {
                self.log_out_everywhere(user).await?;
                let login = Login { user, hash, began: self.now() };
                return self.log_in(login, has_family).await;
            }
        }
        Err(ApiError::Unavailable("others change the same password all the time".to_owned()))
    }

    /// What a user may know about a user.
    ///
    /// # Errors
    /// There is no such user, too many were asked about, or the database failed.
    pub async fn profile(&self, user: UserId, by: UserId) -> Result<Profile, ApiError> {
        self.limits.users.take(by)?;
        self.store.users.profile(user).await?.ok_or(ApiError::NoSuchUser)
    }

    /// The users whose names begin with a text, sorted by name; 20 at most.
    ///
    /// # Errors
    /// The text is too short or too long, too many were asked about, or the database failed.
    pub async fn search(&self, beginning: &str, by: UserId) -> Result<Vec<Profile>, ApiError> {
        if !(1..=LONGEST_SEARCH).contains(&beginning.chars().count()) {
            let problem = "must have 1 to 100 characters";
            return Err(ApiError::InvalidField { field: "search", problem });
        }
        self.limits.users.take(by)?;
        Ok(self.store.users.search(beginning, MOST_FOUND).await?)
    }

    /// Ends the tokens of a family, and then the family. If only the first is done, the next use of
    /// an old refresh token does it again.
    async fn end_family(&self, user: UserId, family: FamilyId) -> Result<(), ApiError> {
        self.revoke(user, Scope::Family(family), TOKEN_LIFETIME).await?;
        Ok(self.store.families.end(family, user).await?)
    }

    /// `expires` is when the token of [`Scope::Token`] expires.
    async fn revoke(&self, user: UserId, scope: Scope, expires: u64) -> Result<(), ApiError> {
        self.feed.revoke(self.store.revocations.revoke(user, scope, expires).await?);
        self.metrics.revocation(match scope {
            Scope::All => "user",
            Scope::Token(_) => "token",
            Scope::Family(_) => "family",
        });
        Ok(())
    }

    fn issue(&self, user: UserId, issued: u64, refresh: Option<IssuedRefresh>) -> LoggedIn {
        let family = refresh.map(|refresh| refresh.token.family);
        let token = self.tokens.issue_at(TokenIdentity { user, issued, family });
        let refresh = refresh.map(|refresh| {
            let expires = refresh.at.timestamp_millis().saturating_add(millis(REFRESH_LIFETIME));
            (self.tokens.write_refresh(&refresh.token), expires / 1000)
        });
        LoggedIn { token, user, refresh }
    }

    /// The refresh token in a field; `None` for a text that is none.
    fn read_refresh(&self, value: &Js) -> Result<Option<RefreshToken>, ApiError> {
        match value {
            Js::Undefined | Js::Null => Ok(None),
            Js::String(text) => Ok(self.tokens.read_refresh(text)),
            _ => {
                let problem = "must be a string";
                Err(ApiError::InvalidField { field: "refreshToken", problem })
            }
        }
    }
}

impl LoggedIn {
    /// `{"token","userId"}`, with `refreshToken` and `refreshExpires` if there is a refresh token.
    pub fn to_json(&self) -> String {
        let Self { token, user, refresh } = self;
        match refresh {
            None => format!(r#"{{"token":"{token}","userId":"{user}"}}"#),
            Some((refresh, expires)) => format!(
                r#"{{"token":"{token}","userId":"{user}","refreshToken":"{refresh}","refreshExpires":{expires}}}"#
            ),
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
