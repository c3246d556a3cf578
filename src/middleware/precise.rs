//! Precise errors for requests to routes of the original that ask for what the original did not
//! have: rooms with members.

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::Query;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest};

use crate::config::ErrorMode;
use crate::js::{Fields, Js};

/// Middleware for `from_fn` that makes the errors of such a request precise, also those of
/// authentication. Only a request that failed is looked at, so that the others cost nothing.
///
/// # Errors
/// The errors of the handler's service.
pub async fn precise_with_members<B: MessageBody>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let res = next.call(req).await?;
    if res.response().error().is_some() && asks_for_members(res.request()).await {
        res.request().extensions_mut().insert(ErrorMode::Precise);
    }
    Ok(res)
}

/// Whether the query has `mine=true` or the body `"private": true`.
async fn asks_for_members(req: &HttpRequest) -> bool {
    let query = Query::<Vec<(String, String)>>::from_query(req.query_string());
    let is_mine = query.is_ok_and(|query| query.iter().any(is_mine));
    // The body was read by a step before.
    let body = Fields::from_request(req, &mut Payload::None).await;
    is_mine || body.is_ok_and(|mut body| body.take("private") == Js::Bool(true))
}

fn is_mine((name, value): &(String, String)) -> bool {
    name == "mine" && value == "true"
}
