//! Precise errors for requests to routes of the original that ask for what the original did not
//! have: rooms with members.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::Query;
use actix_web::{Error, HttpMessage};

use crate::config::ErrorMode;
use crate::js::{Fields, Js};

/// Middleware for `from_fn` that makes the errors of such a request precise, also those of
/// authentication.
///
/// # Errors
/// The errors of the handler's service.
pub async fn precise_with_members(
    mut req: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let query = Query::<Vec<(String, String)>>::from_query(req.query_string());
    let is_mine = query.is_ok_and(|query| query.iter().any(is_mine));
    let mut body = req.extract::<Fields>().await.unwrap_or_default();
    if is_mine || body.take("private") == Js::Bool(true) {
        req.extensions_mut().insert(ErrorMode::Precise);
    }
    next.call(req).await
}

fn is_mine((name, value): &(String, String)) -> bool {
    name == "mine" && value == "true"
}
