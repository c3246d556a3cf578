//! How many connections are allowed: the configured number, or as many as the limit of open files
//! permits.
//!
//! A process that has reached its limit of open files can accept no connection, open none and read
//! no certificate. So connections are counted, and refused before that. Sockets are refused first,
//! with a response; requests are served for longer.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files of the process itself: its log, the listener, the event queues of the runtimes, the pipes
/// of the embedded MongoDB, and connections that monitor the nodes of a replica set, for some ten
/// workers.
const OWN_FILES: usize = 128;
/// A pool has at least so many connections. Those of the feed and of the background need three: a
/// change stream or another cursor that waits for the next event keeps one busy.
const LEAST_POOL: usize = 4;
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
    /// The most connections of each pool to the database.
    pub pool: usize,
}

/// The pools of connections to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// How many there are.
    pub number: usize,
    /// How many connections each should have at most.
    pub size: usize,
}

impl Capacity {
    /// The capacity with `files` open files and these pools, for at most `wanted` sockets. A client
    /// that polls needs up to two connections. Where few files may be open, the pools are smaller,
    /// too, because with many requests at once each pool opens all of its connections.
    pub fn within(files: usize, pools: Pools, wanted: usize) -> Self {
        let waiting = WAITING.min(files / 16);
        let own = OWN_FILES.min(files / 8);
        let left = (files / 4).saturating_sub(own + waiting) / pools.number.max(1);
        let pool = pools.size.min(left.max(LEAST_POOL)).max(1);
        let all =
            |own: usize, pool| pools.number.saturating_mul(pool).saturating_add(own + waiting);
        let wished = all(OWN_FILES, pools.size).min(files / 4);
        // With very many workers, sockets give way to their pools.
        let free = files - wished.max(all(own, pool)).min(files / 2);
        let reserve = RESERVE.min(files / 4);
        let sockets = wanted.min(free - reserve);
        let connections = free.min(sockets.saturating_mul(2).saturating_add(reserve));
        Self { sockets, for_sockets: connections - reserve / 2, connections, waiting, pool }
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

    const POOLS: Pools = Pools { number: 3, size: 64 };

    #[test]
    fn what_fits_is_granted() {
        let capacity = Capacity::within(1 << 20, POOLS, 50_000);
        assert_eq!((capacity.sockets, capacity.pool), (50_000, 64));
        assert_eq!((capacity.for_sockets, capacity.connections), (100_512, 101_024));
        assert_eq!(Capacity::within(usize::MAX, POOLS, 10_000_000).sockets, 10_000_000);
    }

    #[test]
    fn what_does_not_is_lowered() {
        let capacity = Capacity::within(20_000, POOLS, 50_000);
        assert_eq!((capacity.sockets, capacity.pool), (17_632, 64));
        assert_eq!((capacity.for_sockets, capacity.connections), (18_144, 18_656));
    }

    #[test]
    fn something_is_left_of_any_limit() {
        let pools = Pools { number: 5, size: 500 };
        for files in [8, 64, 256, 1_024, 4_096, 65_536] {
            let Capacity { sockets, for_sockets, connections, waiting, pool } =
                Capacity::within(files, pools, 50_000);
            assert!(0 < sockets && sockets <= for_sockets, "{files}");
            assert!(for_sockets < connections && connections + waiting < files, "{files}");
            let others = OWN_FILES.min(files / 8) + waiting + pool * pools.number;
            assert!(files < 64 || connections + others <= files, "{files}");
        }
        for files in 0..8 {
            Capacity::within(files, pools, 50_000);
        }
        Capacity::within(1_024, Pools { number: usize::MAX, size: usize::MAX }, usize::MAX);
    }

    #[test]
    fn pools_are_smaller_where_few_files_may_be_open() {
        let pool =
            |files, number, size| Capacity::within(files, Pools { number, size }, 50_000).pool;
        assert_eq!([256, 1_024, 4_096, 20_000].map(|files| pool(files, 4, 64)), [4, 16, 64, 64]);
        assert_eq!(pool(1_024, 34, 64), LEAST_POOL, "many workers");
        assert_eq!(pool(256, 3, 2), 2, "as the operator wants it");
    }
}
