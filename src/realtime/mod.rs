//! From the change stream to the sockets.

pub mod engine_io;
pub mod event;
pub mod feed;
pub mod hub;
pub mod inbox;
pub mod member;
pub mod offset;
pub mod position;
pub mod ring;
pub mod socket;
pub mod stream;

#[cfg(test)]
mod model;
