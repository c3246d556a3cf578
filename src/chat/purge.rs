//! Removes in the background what no user can see any more: the messages of ended rooms, and
//! messages that were refused after they were stored.
//!
//! An ended room is marked in its document, which is removed last. So any instance can go on with
//! it, also after the one that began was killed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::feed::Feed;
use crate::models::{RoomId, Store, StoreError};

/// How often to look for something to remove.
const PERIOD: Duration = Duration::from_secs(5);

/// How many messages are removed by one operation.
const AT_ONCE: i64 = 500;

/// The pause between two operations, so that they do not delay others.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks for something to remove, for ever. Run it once in a process.
pub async fn purge_for_ever(store: Store, feed: Arc<Feed>) {
    loop {
        sleep(PERIOD).await;
        if let Err(error) = remove_refused(&store, &feed).await {
            log::debug!("Refused messages are not removed yet: {error}");
        }
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

/// Removes refused messages. Normally the instance that stored one has removed it already.
async fn remove_refused(store: &Store, feed: &Feed) -> Result<(), StoreError> {
    while let Some(refused) = feed.next_refused() {
        let removing = async {
            // A member again may have sent the same message again.
            if !store.members_rooms.is_member(refused.room, refused.sender).await? {
                store.messages.take_back(refused.message).await?;
            }
            Ok(())
        };
        if let Err(error) = removing.await {
            feed.refuse_again(refused);
            return Err(error);
        }
    }
    Ok(())
}

async fn purge(store: &Store, room: RoomId) -> Result<(), StoreError> {
    // First, if the end was interrupted before: nothing may be sent to a room that is removed.
    store.members_rooms.remove_members(room).await?;
    while store.messages.remove_some(room, AT_ONCE).await? {
        sleep(PAUSE).await;
    }
    match store.marks.remove_all(room).await {
        Ok(()) | Err(StoreError::Off(_)) => {}
        Err(error) => return Err(error),
    }
    store.members_rooms.remove_ended(room).await
}
