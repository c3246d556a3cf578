//! Engine.IO and Socket.IO: the protocols, real clients, and what becomes of lost connections.

mod conformance;
mod echo;
