//! The chat on each wire: frames of clients become requests of a [session](crate::sessions), and
//! the session's outputs become frames.

pub mod socket_io;
pub mod ws;
