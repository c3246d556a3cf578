//! Engine.IO and Socket.IO: the protocols, and what becomes of lost connections.

mod bundles;
mod conformance;
mod echo;
mod handshake;
mod load;
mod polls;
mod recovery;
mod subprotocols;
mod takeovers;
