//! The deadline of a request: it is answered within 5 s after its last byte, whatever the database
//! does.

use std::time::Duration;

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;

use crate::error::ApiError;

/// How long a handler may take; the rest of the 5 s is for the response. The driver alone would
/// wait longer: it looks for a primary for each operation of a handler.
pub const DEADLINE: Duration = Duration::from_millis(4_600);

/// Middleware for `from_fn` that answers 503 if a handler is not done in time. A write that is
/// running then may still happen, as the 503 says.
///
/// # Errors
/// The errors of the handler's service.
pub async fn deadline(
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    // The router needs the request without clones, but it has already run.
    let request = req.request().clone();
    match tokio::time::timeout(DEADLINE, next.call(req)).await {
        Ok(result) => Ok(result?.map_into_boxed_body()),
        Err(_) => {
            let error = ApiError::Unavailable("no answer within the deadline".to_owned());
            Ok(ServiceResponse::from_err(error, request))
        }
    }
}
