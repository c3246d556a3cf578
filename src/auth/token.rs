//! JSON Web Tokens, interchangeable with those of the original: HS256, `{"id","iat","exp"}`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;

use crate::models::UserId;

/// How long a token lasts, in seconds: the original's `expiresIn: '1h'`.
const LIFETIME: u64 = 3600;

/// The latest expiry: the end of the year 9999. Later ones are reduced to it.
const LATEST: u64 = 253_402_300_799;

/// The header as npm's jsonwebtoken writes it; the crate writes its keys in the other order.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Issues and verifies tokens with one secret.
#[derive(Clone)]
pub struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
}

/// The claims of a valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// The user to whom it was issued.
    pub user: UserId,
    /// When it expires, in seconds since 1970; the year 9999 at the latest.
    pub expires: u64,
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
    /// Tokens of this secret: its UTF-8 bytes are the key, as in the original.
    pub fn new(secret: &SecretString) -> Self {
        let secret = secret.expose_secret().as_bytes();
        Self {
            signing: EncodingKey::from_secret(secret),
            verifying: DecodingKey::from_secret(secret),
        }
    }

    /// Issues a token for this user, which is valid for an hour.
    pub fn issue(&self, user: UserId) -> String {
        #[derive(Serialize)]
        struct Payload {
            id: String,
            iat: u64,
            exp: u64,
        }

        let iat = jsonwebtoken::get_current_timestamp();
        let payload = Payload { id: user.to_string(), iat, exp: iat + LIFETIME };
        let payload = serde_json::to_vec(&payload).expect("three plain fields serialise");
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(payload));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, Algorithm::HS256)
                .expect("HMAC accepts keys and messages of any length");
        format!("{message}.{signature}")
    }

    /// Checks signature, expiry and user.
    ///
    /// # Errors
    /// The token is refused.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let payload = self.signed_payload(token)?;
        // Whole seconds, as in npm's jsonwebtoken: a token expires at the beginning of the second
        // `exp`.
        let now = jsonwebtoken::get_current_timestamp() as f64;
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
        Ok(Claims { user, expires: (exp as u64).min(LATEST) })
    }

    /// The payload of a token that this server, or one with the same secret, has signed with HS256.
    ///
    /// The crate only verifies the signature. Its rules for headers and claims differ from those of
    /// npm's jsonwebtoken (fractions of seconds, `aud`, leeway, the types of unused fields), whose
    /// tokens must be accepted here.
    fn signed_payload(&self, token: &str) -> Result<Value, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let signed = jsonwebtoken::crypto::verify(
            signature,
            message.as_bytes(),
            &self.verifying,
            Algorithm::HS256,
        );
        let algorithm = json(header).ok_or(TokenError::Malformed)?;
        let ours = algorithm.get("alg").is_some_and(|alg| alg == "HS256");
        if !ours || !signed.is_ok_and(|signed| signed) {
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
        assert_eq!(claims.user, user);
        assert!(Tokens::new(&"other".into()).verify(&token).is_err());
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert!(!format!("{:?}", Tokens::new(&"golden-secret".into())).contains("golden"));
    }
}
