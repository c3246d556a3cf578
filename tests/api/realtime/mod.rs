//! Rooms, positions and sessions over `/ws`.

mod conversation;
mod order;
