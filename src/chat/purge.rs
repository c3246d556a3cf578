//! Removes the messages of rooms that have ended, in the background.
//!
//! An ended room says so in its document, which is removed last. So whichever instance comes by goes
//! on with it, also after the one that had begun was killed.

use std::time::Duration;

use tokio::time::sleep;

use crate::models::{RoomId, Store, StoreError};

/// How often ended rooms are looked for.
const PERIOD: Duration = Duration::from_secs(5);

/// How many messages are removed by one operation.
const AT_ONCE: i64 = 500;

/// Between two operations, so that others are not held up.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks for ended rooms for ever. To be run once in a process.
pub async fn purge_for_ever(store: Store) {
    loop {
        sleep(PERIOD).await;
        match store.members_rooms.any_ended().await {
            Ok(Some(room)) => {
                if let Err(error) = purge(&store, room).await {
                    log::warn!(
                        "The messages of the ended room {room} are not removed yet: {error}"
                    );
                }
            }
            Ok(None) | Err(StoreError::Off(_)) => {}
            Err(error) => log::debug!("Ended rooms cannot be looked for: {error}"),
        }
    }
}

async fn purge(store: &Store, room: RoomId) -> Result<(), StoreError> {
    while store.messages.remove_some(room, AT_ONCE).await? {
        sleep(PAUSE).await;
    }
    match store.marks.remove_all(room).await {
        Ok(()) | Err(StoreError::Off(_)) => {}
        Err(error) => return Err(error),
    }
    store.members_rooms.remove_ended(room).await
}
