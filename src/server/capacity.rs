//! How many connections are allowed: the configured number, or as many as the limit of open files
//! permits.
//!
//! A process that has reached its limit of open files can accept no connection, open none and read
//! no certificate. So connections are counted, and refused before that. Sockets are refused first,
//! with a response; requests are served for longer.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files of the process itself: its log, the listener, the event queues of the runtimes, the pipes
/// of the embedded MongoDB, and connections that monitor the nodes of a replica set.
const OWN_FILES: usize = 128;
/// Connections that the system has accepted but no worker has taken yet.
const WAITING: usize = 1_024;
/// Connections beyond those of the sockets. Half of them are for requests only.
const RESERVE: usize = 1_024;

/// How many connections are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Sockets, on any transport.
    pub sockets: usize,
    /// From this many TCP connections on, sockets are refused.
    pub for_sockets: usize,
    /// TCP connections in all.
    pub connections: usize,
    /// TCP connections beyond those that may wait for a worker. They are not counted yet, but each
    /// has a file.
    pub waiting: usize,
}

impl Capacity {
    /// The capacity with `files` open files and `pools` connections to the database, for at most
    /// `wanted` sockets. A client that polls needs up to two connections.
    pub fn within(files: usize, pools: usize, wanted: usize) -> Self {
        let waiting = WAITING.min(files / 16);
        let free = files - (OWN_FILES + pools + waiting).min(files / 4);
        let reserve = RESERVE.min(files / 4);
        let sockets = wanted.min(free - reserve);
        let connections = free.min(sockets.saturating_mul(2).saturating_add(reserve));
        Self { sockets, for_sockets: connections - reserve / 2, connections, waiting }
    }
}

/// Raises the soft limit of open files to the hard one. Returns how many files may be open then.
pub fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, hard)| {
        // A system with a lower limit of its own refuses this; then the soft limit stays.
        let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
        if raised { hard } else { soft }
    });
    match limit {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            log::warn!("The limit of open files is not known: {error}");
            usize::MAX
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_granted() {
        let capacity = Capacity::within(1 << 20, 192, 50_000);
        assert_eq!(capacity.sockets, 50_000);
        assert_eq!((capacity.for_sockets, capacity.connections), (100_512, 101_024));
        assert_eq!(Capacity::within(usize::MAX, 192, 10_000_000).sockets, 10_000_000);
    }

    #[test]
    fn what_does_not_is_lowered() {
        let capacity = Capacity::within(20_000, 192, 50_000);
        assert_eq!(capacity.sockets, 17_632);
        assert_eq!((capacity.for_sockets, capacity.connections), (18_144, 18_656));
    }

    #[test]
    fn something_is_left_of_any_limit() {
        for files in [8, 64, 256, 1_024, 4_096] {
            let Capacity { sockets, for_sockets, connections, waiting } =
                Capacity::within(files, 4_160, 50_000);
            assert!(0 < sockets && sockets <= for_sockets, "{files}");
            assert!(for_sockets < connections && connections + waiting < files, "{files}");
        }
    }
}
