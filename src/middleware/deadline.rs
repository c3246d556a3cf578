//! The deadline of a request: an answer 5 s after its last byte, whatever the database does.

use std::time::Duration;

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;

use crate::error::ApiError;

/// How long a handler may take; the rest of the 5 s is for the way out. The driver would wait
/// longer: it looks for a primary anew for each operation of a handler.
pub const DEADLINE: Duration = Duration::from_millis(4_600);

/// Gives up on a handler in time, for `from_fn`. A write that is under way then may still happen,
/// which is what 503 says.
///
/// # Errors
/// What the handler's own service fails with.
pub async fn deadline(
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    // A clone is allowed here, behind the router, which needs the request for itself.
    let request = req.request().clone();
    match tokio::time::timeout(DEADLINE, next.call(req)).await {
        Ok(result) => Ok(result?.map_into_boxed_body()),
        Err(_) => {
            let error = ApiError::Unavailable("no answer within the deadline".to_owned());
            Ok(ServiceResponse::from_err(error, request))
        }
    }
}
