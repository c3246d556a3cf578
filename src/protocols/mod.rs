//! The protocols that clients use. Nothing here knows the chat or uses another part of this
//! program, so this folder could be a separate crate.
//!
//! `socket_io` runs over `engine_io`, which runs over HTTP and `websocket`.

pub mod asset;
pub mod cors;
pub mod engine_io;
pub mod headers;
pub mod panics;
pub mod socket_io;
pub mod wake_flag;
pub mod websocket;
