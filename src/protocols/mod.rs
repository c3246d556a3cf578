//! The protocols that clients speak, ignorant of the chat: nothing here uses another part of this
//! program, so that this folder could be a crate of its own.
//!
//! `socket_io` runs over `engine_io`, which runs over HTTP and `websocket`.

pub mod cors;
pub mod engine_io;
pub mod headers;
pub mod panics;
pub mod socket_io;
pub mod wake_flag;
pub mod websocket;
