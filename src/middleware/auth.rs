//! Authentication by `Authorization: Bearer <jwt>`, and the refusal of revoked tokens.

use std::sync::Arc;
use std::time::Duration;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest};

use moka::sync::Cache;
use tokio::time::timeout;

use super::deadline::DEADLINE;
use crate::auth::{Claims, Tokens};
use crate::error::ApiError;
use crate::feed::revoked::{Judgement, Revoked};
use crate::metrics::Metrics;
use crate::models::{Revocations, TokenIdentity, UserId};

/// How long an answer of the database is used, so that a client with many requests costs few
/// queries.
const ANSWER_AGE: Duration = Duration::from_millis(250);
/// How many answers are kept.
const MOST_ANSWERS: u64 = 10_000;

/// The user whose token the request carries. Only handlers behind [`require_auth`] have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CurrentUser(pub UserId);

/// The claims of the token of a request. Only handlers behind [`require_auth`] have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CurrentToken(pub Claims);

/// Refuses revoked tokens. The set in memory answers; while it may lack something, the database
/// does.
pub struct Guard {
    revoked: Arc<Revoked>,
    revocations: Revocations,
    answers: Answers,
    metrics: Data<Metrics>,
}

/// What the database has answered a moment ago; shared by all workers.
#[derive(Clone)]
pub struct Answers(Cache<TokenIdentity, bool>);

impl Default for Answers {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MOST_ANSWERS).time_to_live(ANSWER_AGE).build())
    }
}

impl Guard {
    /// The guard of one worker, with its connections to the database.
    pub fn new(
        revoked: Arc<Revoked>,
        revocations: Revocations,
        answers: Answers,
        metrics: Data<Metrics>,
    ) -> Self {
        Self { revoked, revocations, answers, metrics }
    }

    /// Checks that a token is not revoked.
    ///
    /// # Errors
    /// [`ApiError::TokenRevoked`], or the database had to be asked and failed.
    pub async fn check(&self, token: TokenIdentity) -> Result<(), ApiError> {
        let is_revoked = match self.revoked.judge(token) {
            Judgement::Valid => false,
            Judgement::Revoked => true,
            // Boxed, so that the futures of all connections have no room for this rare step.
            Judgement::Unknown => Box::pin(self.ask(token)).await?,
        };
        if is_revoked { Err(ApiError::TokenRevoked) } else { Ok(()) }
    }

    async fn ask(&self, token: TokenIdentity) -> Result<bool, ApiError> {
        if let Some(answer) = self.answers.0.get(&token) {
            return Ok(answer);
        }
        self.metrics.revocation_query();
        let asked = timeout(DEADLINE, self.revocations.is_revoked(token)).await;
        let late = |_| ApiError::Unavailable("no answer within the deadline".to_owned());
        let answer = asked.map_err(late)??;
        self.answers.0.insert(token, answer);
        Ok(answer)
    }
}

/// Middleware for `from_fn` that refuses requests without a valid token, or with a revoked one.
///
/// # Errors
/// The errors of the handler's service. A refused token is a response.
pub async fn require_auth(
    tokens: Data<Tokens>,
    guard: Data<Guard>,
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let claims = match authenticate(&tokens, req.headers()) {
        Ok(claims) => guard.check(claims.identity()).await.map(|()| claims),
        Err(error) => Err(error),
    };
    match claims {
        Ok(claims) => {
            req.extensions_mut().insert(CurrentUser(claims.user));
            req.extensions_mut().insert(CurrentToken(claims));
            Ok(next.call(req).await?.map_into_boxed_body())
        }
        Err(error) => Ok(req.error_response(error)),
    }
}

/// Reads the token of a request as the original's `authMiddleware` does.
///
/// # Errors
/// The header is missing, is not exactly `Bearer` and one word, or its token is refused.
pub fn authenticate(tokens: &Tokens, headers: &HeaderMap) -> Result<Claims, ApiError> {
    let value = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes().trim_ascii());
    let value = value.filter(|value| !value.is_empty()).ok_or(ApiError::TokenMissing)?;
    let mut parts = value.split(|byte| *byte == b' ');
    let (Some(b"Bearer"), Some(token), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ApiError::TokenFormat);
    };
    let token = std::str::from_utf8(token).map_err(|_| ApiError::TokenInvalid("not UTF-8"))?;
    tokens.verify(token).map_err(|error| ApiError::TokenInvalid(error.reason()))
}

impl FromRequest for CurrentUser {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        // Only missing if a route lacks `require_auth`; then no request is accepted.
        let user = req.extensions().get::<Self>().copied();
        std::future::ready(user.ok_or(ApiError::TokenMissing))
    }
}

impl FromRequest for CurrentToken {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let token = req.extensions().get::<Self>().copied();
        std::future::ready(token.ok_or(ApiError::TokenMissing))
    }
}
