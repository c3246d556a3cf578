//! A panic ends the session in which it happens, and no other.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// Runs the future that serves one client. When it panics, the panic is logged and `note` is called; all
/// that the future held is dropped by then, and the result is `None`.
///
/// No `async fn`, which would keep the future twice.
pub fn catch_panic<T>(
    future: impl Future<Output = T>,
    note: impl FnOnce(),
) -> impl Future<Output = Option<T>> {
    AssertUnwindSafe(future).catch_unwind().map(|result| {
        if result.is_err() {
            log::error!("A session ended because of a panic");
            note();
        }
        result.ok()
    })
}
