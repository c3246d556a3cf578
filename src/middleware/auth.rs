//! Authentication by `Authorization: Bearer <jwt>`.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest};

use crate::auth::{Claims, Tokens};
use crate::error::ApiError;
use crate::models::UserId;

/// The user whose token the request carries. Only handlers behind [`require_auth`] have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CurrentUser(pub UserId);

/// Middleware for `from_fn` that refuses requests without a valid token.
///
/// # Errors
/// The errors of the handler's service. A refused token is a response.
pub async fn require_auth(
    tokens: Data<Tokens>,
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match authenticate(&tokens, req.headers()) {
        Ok(claims) => {
            req.extensions_mut().insert(CurrentUser(claims.user));
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
