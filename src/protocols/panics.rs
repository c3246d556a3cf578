//! A panic ends only the session in which it happens.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// Runs the future that serves one client. If it panics: drops all that the future held, logs the
/// panic, calls `note` and returns `None`.
///
/// Not an `async fn`: its state would contain the future twice.
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
