//! The settings of an Engine.IO server.

use std::time::Duration;

use crate::protocols::cors::CorsOrigins;

/// The settings. [`Config::default`] has the values of the Node server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The time between a pong and the next ping.
    pub ping_interval: Duration,
    /// How long a pong may take.
    pub ping_timeout: Duration,
    /// How long an upgrade may take.
    pub upgrade_timeout: Duration,
    /// The largest body of a post and the largest frame, in bytes.
    pub max_payload: usize,
    /// How many packets may wait for a client.
    pub max_queue: usize,
    /// How many bytes these packets may have.
    pub max_queue_bytes: usize,
    /// How many messages may wait for the application.
    pub incoming: usize,
    /// How long the application may run after the end of a session, to process messages that were
    /// read before.
    pub grace: Duration,
    /// The origins whose pages may connect.
    pub origins: CorsOrigins,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            upgrade_timeout: Duration::from_secs(10),
            max_payload: 1_000_000,
            max_queue: 4_096,
            max_queue_bytes: 4 << 20,
            incoming: 32,
            grace: Duration::from_secs(15),
            origins: CorsOrigins::Any,
        }
    }
}
