//! The outermost middleware: measures how long a request takes, and gives it an id for the log.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use actix_web::Error;
use actix_web::HttpMessage;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::Data;

use super::path::{self, Matched};
use crate::metrics::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id of a proxy that is accepted, in bytes.
const MAX_ID: usize = 64;

/// Middleware for `from_fn` that counts, times and logs a request.
///
/// # Errors
/// The errors of the next service.
pub async fn measure(
    metrics: Data<Metrics>,
    req: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let began = Instant::now();
    let id = request_id(&req);
    let mut res = next.call(req).await?;
    let took = began.elapsed();
    let (req, status) = (res.request(), res.status());
    // The route is labelled by its pattern, of which there are few; `none` is for all paths without
    // a route.
    let route = req.extensions().get::<Matched>().map_or("none", |matched| matched.path);
    let method = if req.method().as_str().len() <= 7 { req.method().as_str() } else { "other" };
    metrics.request(route, method, status.as_u16(), took);
    // Without the query, which may contain a token.
    log::debug!(
        "{} {} {} {:.1} ms, request {}",
        req.method(),
        path::encode(req.uri().path()),
        status.as_u16(),
        took.as_secs_f64() * 1000.0,
        id.to_str().unwrap_or_default()
    );
    res.headers_mut().insert(REQUEST_ID, id);
    Ok(res)
}

/// The id that a proxy gave, or else a new one.
fn request_id(req: &ServiceRequest) -> HeaderValue {
    /// Tells the processes apart.
    static PROCESS: LazyLock<u32> = LazyLock::new(|| {
        let mut random = [0; 4];
        // It is only a label: without random bytes it is zero.
        let _ = getrandom::fill(&mut random);
        u32::from_ne_bytes(random)
    });
    static COUNT: AtomicU64 = AtomicU64::new(1);

    let given = req.headers().get(REQUEST_ID).filter(|id| {
        let id = id.as_bytes();
        (1..=MAX_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        let id = format!("{:08x}-{:x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed));
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"))
    })
}
