//! Compresses long poll responses with gzip, as engine.io's `httpCompression` does.

use std::io::Write;

use actix_web::HttpRequest;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::protocols::headers::reads_gzip;

/// The smallest payload that is compressed, in bytes: engine.io's threshold. A single message is
/// mostly shorter.
const THRESHOLD: usize = 1024;
/// How many bytes are compressed before the task yields to others on its thread.
const AT_ONCE: usize = 64 * 1024;

/// Whether the payload is long enough and the client accepts gzip.
pub(super) fn is_wanted(payload: &str, req: &HttpRequest) -> bool {
    payload.len() >= THRESHOLD && reads_gzip(req)
}

/// Compresses a payload, fast rather than small: 64 KiB of messages take a fifth of the time of the
/// default level, and become 18 instead of 14 percent.
pub(super) async fn gzip(payload: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::with_capacity(payload.len() / 4), Compression::fast());
    for (index, part) in payload.chunks(AT_ONCE).enumerate() {
        if index > 0 {
            tokio::task::yield_now().await;
        }
        gzip.write_all(part).expect("writing into a vector cannot fail");
    }
    gzip.finish().expect("writing into a vector cannot fail")
}
