//! Rooms, positions and sessions over `/ws`.

mod conversation;
mod order;
mod recovery;
mod replay;
mod transaction;
