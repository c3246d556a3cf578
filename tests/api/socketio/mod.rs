//! Engine.IO and Socket.IO: the protocols, and what becomes of lost connections.

mod bundles;
mod conformance;
mod echo;
mod load;
mod recovery;
mod polls;
mod subprotocols;
