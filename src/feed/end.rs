//! The end of a change stream: why it has to be opened again, and when it counts as dead.

use std::time::Duration;

use bson::Timestamp;
use tokio::time::error::Elapsed;

use super::stream::{ErrorClass, StreamError};
use crate::models::Failure;

/// The stream is stalled when it sends nothing for so long, or does not advance while the cluster
/// does. MongoDB replies every second, and an idle cluster writes a no-op every ten seconds.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// After so many failures at the same cluster time, the feed gives this time up.
pub(super) const MAX_TRIES: u32 = 3;

/// Why the stream has to be opened again.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamEnd {
    #[error("{0}")]
    Failed(#[from] StreamError),
    #[error("MongoDB has closed it")]
    Closed,
    #[error("MongoDB did not answer in time")]
    TimedOut(#[from] Elapsed),
    #[error("it did not advance for {STALL_TIMEOUT:?}, but the cluster did; is a majority up?")]
    Stalled,
    #[error("a collection was dropped or renamed")]
    Ended(Timestamp),
    #[error("the feed panicked")]
    Panicked,
}

impl StreamEnd {
    pub(super) fn standalone() -> Self {
        Self::Failed(StreamError::Standalone)
    }

    /// The kind of problem, without the text of a library.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Failed(StreamError::Database(error)) => Failure::of(error).to_string(),
            Self::Failed(StreamError::Unreadable(_)) => {
                "the answer of MongoDB cannot be read".to_owned()
            }
            end => end.to_string(),
        }
    }

    pub(super) fn class(&self) -> ErrorClass {
        match self {
            Self::Failed(error) => ErrorClass::of(error),
            // An event that causes a panic causes it again.
            Self::Panicked => ErrorClass::RetryBriefly,
            Self::Closed | Self::TimedOut(_) | Self::Stalled | Self::Ended(_) => ErrorClass::Retry,
        }
    }
}
