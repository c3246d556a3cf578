//! The token of a socket's client: where it is looked for, and why it is refused.
//!
//! REST reads a token from one header, by the original's rules. Sockets read it from several
//! places, since browsers cannot set headers of a WebSocket. The first place that has a token
//! decides. Content for other purposes, such as a proxy's `Authorization: Basic`, is ignored.

use std::fmt;

use actix_web::http::header::HeaderValue;
use url::form_urlencoded;

use super::{Claims, TokenError, Tokens};
use crate::error::ApiError;

/// The places of a handshake that may contain a token.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// `auth.token` of Socket.IO's CONNECT.
    pub auth: Option<&'a str>,
    /// The header `Authorization` of the handshake.
    pub authorization: Option<&'a HeaderValue>,
    /// The query of the handshake.
    pub query: &'a str,
}

/// Where a token was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// `auth.token` of Socket.IO's CONNECT.
    Auth,
    /// The header `Authorization` of the handshake.
    Header,
    /// The parameter `token` of the handshake's query.
    Query,
    /// The data of an event `authenticate`.
    Event,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRefused {
    /// There is no token.
    Missing(Absence),
    /// The token is refused.
    Invalid(TokenError, TokenSource),
    /// The token was valid, and was revoked.
    Revoked,
}

/// Why a token is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// No place of Socket.IO's handshake has a token.
    OfSocketIo,
    /// No place of the upgrade to a plain WebSocket has a token, and none came in time.
    OfPlain,
    /// There is only an `Authorization` header with another scheme.
    Scheme,
    /// The first frame of a plain WebSocket is not an `authenticate` with a token.
    FirstFrame,
}

impl Credentials<'_> {
    /// Finds the token, verifies it and returns its claims.
    ///
    /// # Errors
    /// There is no token, or it is refused. `nowhere` is the absence to report if no place has one.
    pub fn claims(&self, tokens: &Tokens, nowhere: Absence) -> Result<Claims, TokenRefused> {
        if let Some(token) = self.auth.and_then(bare) {
            return verify(tokens, token, TokenSource::Auth);
        }
        let header = self.authorization.map(|value| value.as_bytes().trim_ascii());
        let header = header.filter(|value| !value.is_empty());
        if let Some(token) = header.and_then(of_scheme) {
            let token = std::str::from_utf8(token);
            let token = token
                .map_err(|_| TokenRefused::Invalid(TokenError::Malformed, TokenSource::Header))?;
            return verify(tokens, token, TokenSource::Header);
        }
        // If a parameter is repeated, the last one counts, as everywhere.
        let mut parameters = form_urlencoded::parse(self.query.as_bytes());
        let token = parameters.by_ref().filter(|(name, _)| name == "token").last();
        if let Some(token) = token.as_ref().and_then(|(_, token)| bare(token)) {
            return verify(tokens, token, TokenSource::Query);
        }
        Err(TokenRefused::Missing(if header.is_some() { Absence::Scheme } else { nowhere }))
    }
}

/// Verifies the token of an event `authenticate`.
///
/// # Errors
/// The token is empty or refused.
pub fn verify_event(tokens: &Tokens, token: &str) -> Result<Claims, TokenRefused> {
    let token = bare(token).ok_or(TokenRefused::Missing(Absence::FirstFrame))?;
    verify(tokens, token, TokenSource::Event)
}

fn verify(tokens: &Tokens, token: &str, source: TokenSource) -> Result<Claims, TokenRefused> {
    tokens.verify(token).map_err(|error| TokenRefused::Invalid(error, source))
}

/// A token without the prefix `Bearer`, which some clients write in every place; `None` if nothing
/// is left.
fn bare(text: &str) -> Option<&str> {
    let text = text.trim();
    let token = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER) => token.trim_start(),
        None if text.eq_ignore_ascii_case(BEARER) => "",
        _ => text,
    };
    Some(token).filter(|token| !token.is_empty())
}

/// The token of an `Authorization` header with the scheme `Bearer`, in any letter case (RFC 9110,
/// section 11.1).
fn of_scheme(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(BEARER.len())?;
    let is_ours = scheme.eq_ignore_ascii_case(BEARER.as_bytes()) && token.first() == Some(&b' ');
    Some(token.trim_ascii()).filter(|_| is_ours)
}

const BEARER: &str = "Bearer";

impl TokenRefused {
    /// The same error as for REST.
    pub fn error(self) -> ApiError {
        match self {
            Self::Missing(Absence::Scheme) => ApiError::TokenFormat,
            Self::Missing(_) => ApiError::TokenMissing,
            Self::Invalid(error, _) => ApiError::TokenInvalid(error.reason()),
            Self::Revoked => ApiError::TokenRevoked,
        }
    }

    /// Whether the client sent nothing that looks like a token.
    pub fn is_absent(self) -> bool {
        matches!(self, Self::Missing(absence) if absence != Absence::Scheme)
    }

    /// Whether the token has expired.
    pub fn is_expired(self) -> bool {
        matches!(self, Self::Invalid(TokenError::Expired, _))
    }
}

/// What is wrong, and where, for a person.
impl fmt::Display for TokenRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(absence) => f.write_str(match absence {
                Absence::OfSocketIo => {
                    "looked for it in auth.token, the Authorization header and ?token="
                }
                Absence::OfPlain => "looked in the Authorization header, ?token= and a first frame",
                Absence::Scheme => "the Authorization header is not `Bearer <token>`",
                Absence::FirstFrame => "the first frame must be `authenticate` with a token",
            }),
            Self::Invalid(error, source) => write!(f, "{}, in {}", error.reason(), source.name()),
            Self::Revoked => f.write_str("revoked"),
        }
    }
}

impl TokenSource {
    const fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth.token",
            Self::Header => "the Authorization header",
            Self::Query => "?token=",
            Self::Event => "the token of authenticate",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::UserId;

    #[test]
    fn the_first_place_that_holds_a_token_decides() {
        let tokens = Tokens::new(&"secret".into());
        let (ann, bob) = (UserId::new(), UserId::new());
        let [a, b] = [ann, bob].map(|user| tokens.issue(user));
        let claims = |auth: Option<&str>, header: Option<&str>, query: &str| {
            let header = header.map(|header| HeaderValue::from_str(header).unwrap());
            let given = Credentials { auth, authorization: header.as_ref(), query };
            given.claims(&tokens, Absence::OfSocketIo).map(|claims| claims.user)
        };
        let bearer = |token: &str| format!("Bearer {token}");
        let query = |token: &str| format!("EIO=4&token={token}&t=x");
        for (auth, header, query, user) in [
            (Some(a.clone()), Some(bearer(&b)), query(&b), ann),
            (Some(bearer(&a)), None, String::new(), ann),
            (Some(format!("bearer  {a} ")), None, String::new(), ann),
            (Some(String::new()), Some(bearer(&b)), query(&a), bob),
            (Some("Bearer ".to_owned()), None, query(&a), ann),
            (None, Some(format!("bEARER   {b}")), query(&a), bob),
            (None, None, query(&a), ann),
            (None, None, format!("token=Bearer%20{a}"), ann),
            (None, None, format!("token=Bearer+{a}"), ann),
            (None, None, format!("token={b}&token={a}"), ann),
            (None, Some("Basic YTpi".to_owned()), query(&a), ann),
            (None, Some("Bearer".to_owned()), query(&a), ann),
            (None, Some(b.clone()), query(&a), ann),
            (Some(a.clone()), Some("Basic YTpi".to_owned()), query("x"), ann),
        ] {
            assert_eq!(
                claims(auth.as_deref(), header.as_deref(), &query),
                Ok(user),
                "{auth:?} {header:?} {query}"
            );
        }
        for (auth, header, query, said) in [
            (None, None, "", "looked for it in auth.token, the Authorization header and ?token="),
            (None, Some("Basic YTpi"), "", "the Authorization header is not `Bearer <token>`"),
            (None, Some(&*a), "", "the Authorization header is not `Bearer <token>`"),
            (Some("user-42"), None, "", "not a JSON Web Token, in auth.token"),
            (None, None, "token=null", "not a JSON Web Token, in ?token="),
            (
                None,
                Some("Bearer undefined"),
                &*query(&a),
                "not a JSON Web Token, in the Authorization header",
            ),
        ] {
            assert_eq!(claims(auth, header, query).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn a_close_frame_has_room_for_every_reason() {
        let absences =
            [Absence::OfSocketIo, Absence::OfPlain, Absence::Scheme, Absence::FirstFrame];
        let errors = [
            TokenError::Malformed,
            TokenError::Signature,
            TokenError::Expired,
            TokenError::NoExpiry,
            TokenError::NotYet,
            TokenError::User,
        ];
        let sources =
            [TokenSource::Auth, TokenSource::Header, TokenSource::Query, TokenSource::Event];
        let invalid = errors
            .iter()
            .flat_map(|error| sources.map(|source| TokenRefused::Invalid(*error, source)));
        for refused in absences.map(TokenRefused::Missing).into_iter().chain(invalid) {
            let (text, _) = refused.error().sentence(crate::config::ErrorMode::Original);
            let reason = format!("{text} ({refused})");
            assert!(reason.len() <= 123, "{} bytes: {reason}", reason.len());
        }
    }
}
