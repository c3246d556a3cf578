//! Rooms, positions and sessions over `/ws`.

mod changes;
mod conversation;
mod endings;
mod failover;
mod feed;
mod legacy;
mod load;
mod marks;
pub mod members;
mod order;
mod presence;
mod readiness;
mod recovery;
mod replay;
mod restore;
mod slow;
mod standalone;
mod transaction;
pub mod typing;
