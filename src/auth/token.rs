//! JSON Web Tokens, interchangeable with those of the original: HS256, `{"id","iat","exp"}`. A
//! token that belongs to a refresh token also has its family, `sid`.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;

use crate::models::revocations::TOKEN_LIFETIME;
use crate::models::{Clock, FamilyId, TokenIdentity, UserId};

/// The latest expiry: the end of the year 9999. Later ones are reduced to it.
const LATEST: u64 = 253_402_300_799;

/// The header as npm's jsonwebtoken writes it; the crate writes its keys in the other order.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Issues and verifies tokens with one secret.
#[derive(Clone)]
pub struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    clock: Clock,
}

/// The claims of a valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// The user to whom it was issued.
    pub user: UserId,
    /// When it was issued, in seconds since 1970; 0 if it does not say.
    pub issued: u64,
    /// The family of a token that belongs to a refresh token.
    pub family: Option<FamilyId>,
    /// When it expires, in seconds since 1970; the year 9999 at the latest.
    pub expires: u64,
}

impl Claims {
    /// What revocations know the token by.
    pub fn identity(self) -> TokenIdentity {
        let Self { user, issued, family, .. } = self;
        TokenIdentity { user, issued, family }
    }
}

/// Why a token is refused. Clients get the same text for all variants; the log distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token.
    #[error("not a JSON Web Token")]
    Malformed,
    /// Another algorithm, or signed with another secret.
    #[error("not signed with HS256 and the secret of this server")]
    Signature,
    /// `exp` has passed.
    #[error("expired")]
    Expired,
    /// `exp` is missing or is no number.
    #[error("without an expiry")]
    NoExpiry,
    /// `nbf` has not been reached, or is no number.
    #[error("not valid yet")]
    NotYet,
    /// `id` is missing or is no id of a user.
    #[error("without the id of a user")]
    User,
}

impl TokenError {
    /// The reason as a text that needs no allocation.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "not a JSON Web Token",
            Self::Signature => "not signed with HS256 and the secret of this server",
            Self::Expired => "expired",
            Self::NoExpiry => "without an expiry",
            Self::NotYet => "not valid yet",
            Self::User => "without the id of a user",
        }
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(secret)")
    }
}

impl Tokens {
    /// Tokens of this secret: its UTF-8 bytes are the key, as in the original. Their time is that
    /// of this machine.
    pub fn new(secret: &SecretString) -> Self {
        Self::with_clock(secret, Clock::default())
    }

    /// The same with another clock.
    pub fn with_clock(secret: &SecretString, clock: Clock) -> Self {
        let secret = secret.expose_secret().as_bytes();
        Self {
            signing: EncodingKey::from_secret(secret),
            verifying: DecodingKey::from_secret(secret),
            clock,
        }
    }

    /// The clock of all tokens.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Issues a token for this user, which is valid for an hour.
    pub fn issue(&self, user: UserId) -> String {
        self.issue_at(TokenIdentity { user, issued: self.clock.seconds(), family: None })
    }

    /// Issues a token that is valid for an hour from the second in which it is issued.
    pub fn issue_at(&self, token: TokenIdentity) -> String {
        #[derive(Serialize)]
        struct Payload {
            id: String,
            iat: u64,
            exp: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            sid: Option<String>,
        }

        let payload = Payload {
            id: token.user.to_string(),
            iat: token.issued,
            exp: token.issued.saturating_add(TOKEN_LIFETIME),
            sid: token.family.map(|family| family.to_string()),
        };
        let payload = serde_json::to_vec(&payload).expect("plain fields serialise");
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(payload));
        let signature = self.sign(&message);
        format!("{message}.{signature}")
    }

    /// The HMAC-SHA256 of a text with the secret, in base64url.
    pub(super) fn sign(&self, message: &str) -> String {
        jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, Algorithm::HS256)
            .expect("HMAC accepts keys and messages of any length")
    }

    /// Whether this is the HMAC of the text.
    pub(super) fn is_signed(&self, message: &str, signature: &str) -> bool {
        let (message, key) = (message.as_bytes(), &self.verifying);
        jsonwebtoken::crypto::verify(signature, message, key, Algorithm::HS256)
            .is_ok_and(|signed| signed)
    }

    /// How long the token of these claims is still valid.
    pub fn remaining(&self, claims: Claims) -> Duration {
        let expires = claims.expires.saturating_mul(1000);
        let now = u64::try_from(self.clock.millis()).unwrap_or(0);
        Duration::from_millis(expires.saturating_sub(now))
    }

    /// Checks signature, expiry and user.
    ///
    /// # Errors
    /// The token is refused.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let payload = self.signed_payload(token)?;
        // Whole seconds, as in npm's jsonwebtoken: a token expires at the beginning of the second
        // `exp`.
        let now = self.clock.seconds() as f64;
        let time = |claim: &str| payload.get(claim).map(|at| at.as_f64().unwrap_or(f64::NAN));
        if time("nbf").is_some_and(|nbf| nbf.is_nan() || nbf > now) {
            return Err(TokenError::NotYet);
        }
        let exp = time("exp").filter(|exp| !exp.is_nan()).ok_or(TokenError::NoExpiry)?;
        if exp <= now {
            return Err(TokenError::Expired);
        }
        let id = payload.get("id").and_then(Value::as_str);
        let user = id.and_then(|id| id.parse().ok()).ok_or(TokenError::User)?;
        // A negative number becomes 0.
        let issued = time("iat").filter(|iat| !iat.is_nan()).map_or(0, |iat| iat as u64);
        let family = payload.get("sid").and_then(Value::as_str).and_then(|id| id.parse().ok());
        Ok(Claims { user, issued, family, expires: (exp as u64).min(LATEST) })
    }

    /// The payload of a token that this server, or one with the same secret, has signed with HS256.
    ///
    /// The crate only verifies the signature. Its rules for headers and claims differ from those of
    /// npm's jsonwebtoken (fractions of seconds, `aud`, leeway, the types of unused fields), whose
    /// tokens must be accepted here.
    fn signed_payload(&self, token: &str) -> Result<Value, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let signed = self.is_signed(message, signature);
        let algorithm = json(header).ok_or(TokenError::Malformed)?;
        let ours = algorithm.get("alg").is_some_and(|alg| alg == "HS256");
        if !ours || !signed {
            return Err(TokenError::Signature);
        }
        json(payload).ok_or(TokenError::Malformed)
    }
}

/// The JSON in one part of a token.
fn json(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_str(&String::from_utf8_lossy(&bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_original_shape_and_verifies() {
        let tokens = Tokens::new(&"golden-secret".into());
        let user = UserId::new();
        let token = tokens.issue(user);
        assert!(token.starts_with("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."));
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let text = String::from_utf8(payload).unwrap();
        assert!(text.starts_with(&format!("{{\"id\":\"{user}\",\"iat\":")), "{text}");
        let claims = tokens.verify(&token).unwrap();
        assert_eq!((claims.user, claims.family), (user, None));
        assert_eq!(claims.issued + TOKEN_LIFETIME, claims.expires);
        assert!(tokens.remaining(claims) <= Duration::from_secs(TOKEN_LIFETIME));
        assert!(Tokens::new(&"other".into()).verify(&token).is_err());
    }

    #[test]
    fn a_token_says_to_which_family_it_belongs() {
        let tokens = Tokens::new(&"golden-secret".into());
        let issued = tokens.clock().seconds();
        let family = Some(FamilyId::new());
        let token = TokenIdentity { user: UserId::new(), issued, family };
        assert_eq!(tokens.verify(&tokens.issue_at(token)).unwrap().identity(), token);
    }

    #[test]
    fn the_clock_of_the_database_decides() {
        let clock = Clock::default();
        let tokens = Tokens::with_clock(&"golden-secret".into(), clock.clone());
        let now = std::time::Instant::now();
        let later = clock.millis() + 600_000;
        clock.set(bson::DateTime::from_millis(later), now, now);
        let claims = tokens.verify(&tokens.issue(UserId::new())).unwrap();
        assert!(claims.issued.abs_diff(later as u64 / 1000) <= 1);
        clock.set(bson::DateTime::from_millis(later + 3_600_000), now, now);
        let expired = TokenIdentity { user: UserId::new(), issued: claims.issued, family: None };
        assert_eq!(tokens.verify(&tokens.issue_at(expired)), Err(TokenError::Expired));
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert!(!format!("{:?}", Tokens::new(&"golden-secret".into())).contains("golden"));
    }
}
