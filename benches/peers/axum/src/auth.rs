//! Tokens and passwords.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use bson::oid::ObjectId;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::refusal::Refusal;
use crate::routes::Context;
use crate::views::hex;

const LIFETIME: u64 = 60 * 60;

#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(with = "hex")]
    id: ObjectId,
    iat: u64,
    exp: u64,
}

/// Issues and checks tokens.
pub struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
    validation: Validation,
}

impl Tokens {
    pub fn new(secret: &[u8]) -> Result<Self, jsonwebtoken::errors::Error> {
        let mut validation = Validation::default();
        validation.leeway = 0;
        Ok(Self {
            signing: EncodingKey::from_secret(secret)?,
            checking: DecodingKey::from_secret(secret)?,
            validation,
        })
    }

    pub fn issue(&self, id: ObjectId) -> Result<String, Refusal> {
        let iat = jsonwebtoken::get_current_timestamp();
        let claims = Claims { id, iat, exp: iat + LIFETIME };
        let token = jsonwebtoken::encode(&Header::default(), &claims, &self.signing);
        token.map_err(|_| Refusal::SERVER_ERROR)
    }

    pub fn check(&self, token: &str) -> Result<ObjectId, Refusal> {
        let checked = jsonwebtoken::decode::<Claims>(token, &self.checking, &self.validation);
        match checked {
            Ok(checked) => Ok(checked.claims.id),
            Err(_) => Err(Refusal(StatusCode::UNAUTHORIZED, "Invalid token")),
        }
    }
}

/// The user of the request's token.
pub struct CurrentUser(pub ObjectId);

impl FromRequestParts<Context> for CurrentUser {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Refusal> {
        let refused = |text| Refusal(StatusCode::UNAUTHORIZED, text);
        let header = parts.headers.get(AUTHORIZATION);
        let header = header.ok_or(refused("Access denied. No token provided."))?;
        let token = header.to_str().ok().and_then(|header| header.strip_prefix("Bearer "));
        match token {
            Some(token) if !token.is_empty() && !token.contains(' ') => {
                context.shared.tokens.check(token).map(Self)
            }
            _ => Err(refused("Invalid token format")),
        }
    }
}

/// argon2id as this repository's server uses it, so that a login costs everybody the same.
fn argon2id() -> Argon2<'static> {
    let params = Params::new(19 * 1024, 2, 1, None).expect("the parameters are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

pub async fn hash(password: String) -> Result<String, Refusal> {
    let hashing = spawn_blocking(move || {
        argon2id().hash_password(password.as_bytes()).map(|hash| hash.to_string())
    });
    match hashing.await {
        Ok(Ok(hash)) => Ok(hash),
        Ok(Err(_)) | Err(_) => Err(Refusal::SERVER_ERROR),
    }
}

pub async fn is_password(password: String, hash: String) -> Result<bool, Refusal> {
    let checking = spawn_blocking(move || {
        let hash = PasswordHash::new(&hash);
        hash.is_ok_and(|hash| argon2id().verify_password(password.as_bytes(), &hash).is_ok())
    });
    checking.await.map_err(|_| Refusal::SERVER_ERROR)
}
