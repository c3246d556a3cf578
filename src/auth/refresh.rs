//! The text of a refresh token: its family and its secret, signed with the secret of this server.
//!
//! The signature tells a token that was used before from a text that never was a token. Without it,
//! everybody who knows the id of a family could end it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bson::oid::ObjectId;

use super::Tokens;
use crate::models::{FamilyId, RefreshSecret, RefreshToken};

/// What the signature of a refresh token begins to sign. No access token begins like this.
const PREFIX: &str = "refresh.";

/// The lengths of the id of a family and of a secret, in bytes.
const LENGTHS: (usize, usize) = (12, 32);

impl Tokens {
    /// The text of a refresh token, as a client gets it.
    pub fn write_refresh(&self, token: &RefreshToken) -> String {
        let bytes = [token.family.0.bytes().as_slice(), token.secret.0.as_slice()].concat();
        let text = URL_SAFE_NO_PAD.encode(bytes);
        let signature = self.sign(&format!("{PREFIX}{text}"));
        format!("{text}.{signature}")
    }

    /// Reads a text that [`write_refresh`](Self::write_refresh) wrote; `None` for any other.
    pub fn read_refresh(&self, text: &str) -> Option<RefreshToken> {
        let (text, signature) = text.trim().split_once('.')?;
        if !self.is_signed(&format!("{PREFIX}{text}"), signature) {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (family, secret) = bytes.split_at_checked(LENGTHS.0)?;
        Some(RefreshToken {
            family: FamilyId(ObjectId::from_bytes(family.try_into().ok()?)),
            secret: RefreshSecret(secret.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::UserId;

    #[test]
    fn only_what_was_written_is_read() {
        let tokens = Tokens::new(&"golden-secret".into());
        let token = RefreshToken { family: FamilyId::new(), secret: RefreshSecret([7; 32]) };
        let text = tokens.write_refresh(&token);
        assert_eq!(tokens.read_refresh(&text), Some(token));
        assert_eq!(tokens.read_refresh(&format!(" {text}\n")), Some(token));
        let (one, signature) = text.split_once('.').unwrap();
        assert_eq!(one.len(), (LENGTHS.0 + LENGTHS.1) * 4 / 3 + 1);
        for other in [
            String::new(),
            one.to_owned(),
            format!("{one}."),
            format!("{one}.{signature}A"),
            format!("{}.{signature}", one.replace(one.get(..1).unwrap(), "_")),
            tokens.issue(UserId::new()),
            Tokens::new(&"other".into()).write_refresh(&token),
        ] {
            assert_eq!(tokens.read_refresh(&other), None, "{other}");
        }
        assert!(tokens.verify(&text).is_err(), "it is no access token");
    }
}
