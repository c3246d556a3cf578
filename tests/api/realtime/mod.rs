//! Rooms, positions and sessions over `/ws`.

mod conversation;
mod legacy;
mod load;
mod order;
mod readiness;
mod recovery;
mod replay;
mod standalone;
mod transaction;
