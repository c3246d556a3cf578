//! From the change stream to the sockets.

pub mod event;
pub mod hub;
pub mod inbox;
pub mod member;
pub mod offset;
pub mod position;
pub mod ring;

#[cfg(test)]
mod model;
