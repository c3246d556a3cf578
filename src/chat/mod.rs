//! The operations of the chat, for REST and sockets alike, in one file each.

mod edit;
mod send;

use std::sync::Arc;

use actix_web::web::Data;

use crate::feed::Feed;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::models::Store;

pub use edit::{Changed, Edit};
pub use send::{Draft, Sent};

/// The chat of one worker. Clones share the store.
#[derive(Clone)]
pub struct Chat {
    store: Store,
    feed: Arc<Feed>,
    limits: Data<Limits>,
    metrics: Data<Metrics>,
    believes_senders: bool,
}

impl Chat {
    /// A chat over this store. `believes_senders` is `LEGACY_TRUST`.
    pub fn new(
        store: Store,
        feed: Arc<Feed>,
        limits: Data<Limits>,
        metrics: Data<Metrics>,
        believes_senders: bool,
    ) -> Self {
        Self { store, feed, limits, metrics, believes_senders }
    }
}
