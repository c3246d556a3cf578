//! The chat on each wire: what clients send becomes requests of a [session](crate::sessions), and
//! what the session puts out becomes frames.

pub mod socket_io;
pub mod ws;
