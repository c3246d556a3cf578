//! What is compared.

use crate::wire::Wire;

/// A contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// This repository's server.
    Ours,
    /// The Node server of `benches/node`, with the packages of the one that ours replaces.
    Node,
    /// A peer: Bun with the engine of Socket.IO for it.
    Bun,
    /// A peer: Node with uWebSockets.js below Socket.IO.
    Uws,
    /// A peer: axum with socketioxide.
    Axum,
    /// The lower bound: one write for each subscriber and nothing else.
    Floor,
}

impl Contender {
    /// All contenders, in the order of the columns.
    pub const ALL: [Self; 6] =
        [Self::Ours, Self::Node, Self::Bun, Self::Uws, Self::Axum, Self::Floor];
    /// What somebody who wants speed might write today. Built only if asked for.
    pub const PEERS: [Self; 3] = [Self::Bun, Self::Uws, Self::Axum];

    /// Its name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Node => "Node",
            Self::Bun => "Bun",
            Self::Uws => "uWS",
            Self::Axum => "axum",
            Self::Floor => "floor",
        }
    }

    /// Whether it is one of [`Self::PEERS`].
    pub fn is_peer(self) -> bool {
        Self::PEERS.contains(&self)
    }

    /// Its wires.
    pub fn wires(self) -> &'static [Wire] {
        match self {
            Self::Ours => &[Wire::Plain, Wire::SocketIo],
            Self::Node | Self::Bun | Self::Uws | Self::Axum => &[Wire::SocketIo],
            Self::Floor => &[Wire::Plain],
        }
    }
}
