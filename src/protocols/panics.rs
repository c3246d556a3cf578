//! What becomes of a panic: the session in which it happens ends, and no other.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// Runs what serves one client. When it panics, that is logged and told to `note`; whatever it
/// held is dropped by then, and the result is `None`.
///
/// No `async fn`, which would keep the future twice.
pub fn survive<T>(
    serving: impl Future<Output = T>,
    note: impl FnOnce(),
) -> impl Future<Output = Option<T>> {
    AssertUnwindSafe(serving).catch_unwind().map(|result| {
        if result.is_err() {
            log::error!("A session ended because of a panic");
            note();
        }
        result.ok()
    })
}
