//! Locks that make changes of one document run one after another in this process.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bson::oid::ObjectId;
use tokio::sync::{Mutex, MutexGuard};

/// The number of locks, and so of documents that can be changed at the same time.
const LOCKS: usize = 256;

/// See the [module](self). Clones share the locks.
///
/// A document has one of a fixed number of locks, so no lock has to be removed. Different documents
/// may have the same lock.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<[Mutex<()>]>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..LOCKS).map(|_| Mutex::default()).collect())
    }
}

impl Turns {
    /// Waits until nobody else has the lock of this document.
    pub async fn of(&self, document: ObjectId) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        document.hash(&mut hasher);
        let number = hasher.finish() % self.0.len() as u64;
        self.0
            .get(number as usize)
            .expect("the remainder is below the number of locks")
            .lock()
            .await
    }
}
