//! Engine.IO and Socket.IO: the protocols, and what becomes of lost connections.

mod conformance;
mod echo;
mod load;
mod recovery;
