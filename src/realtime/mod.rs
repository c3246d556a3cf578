//! From the change stream to the sockets.

pub mod credentials;
pub mod engine_io;
pub mod event;
pub mod feed;
mod gate;
pub mod hub;
pub mod inbox;
pub mod io;
pub mod member;
pub mod offset;
pub mod panics;
pub mod position;
pub mod recovery;
pub mod ring;
pub mod session;
pub mod socket;
pub mod socket_io;
pub mod stream;
pub mod worker;
pub mod ws;

#[cfg(test)]
mod model;
