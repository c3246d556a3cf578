//! The conformance server: the example `protocol_echo` as a process of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Between a pong and the next ping.
pub const PING_INTERVAL: Duration = Duration::from_millis(300);
/// How long a pong may take.
pub const PING_TIMEOUT: Duration = Duration::from_millis(200);
/// The largest body and frame.
pub const MAX_PAYLOAD: usize = 1_000_000;

/// A running example; dropping it ends it.
pub struct Echo {
    pub addr: SocketAddr,
    _process: Child,
}

impl Echo {
    /// Starts it on a free port.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// One whose WebSockets own their connections, and one where actix-ws carries them.
    pub async fn of_each_kind() -> [Self; 2] {
        [Self::start().await, Self::start_with(&["actix-ws"]).await]
    }

    async fn start_with(arguments: &[&str]) -> Self {
        loop {
            // Another process may take the port in between; then the example ends at once.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut process = Command::new(binary())
                .arg(port.to_string())
                .args(arguments)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("the example runs");
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect(addr).await.is_ok() {
                    return Self { addr, _process: process };
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// The one that `PROTOCOL_ECHO` names, or that beside the test binary:
/// `target/<profile>/deps/api-…` and `target/<profile>/examples/`.
fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("PROTOCOL_ECHO") {
        return binary.into();
    }
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).expect("a folder of the profile");
    let binary = profile.join("examples").join("protocol_echo");
    assert!(
        binary.exists(),
        "{} is missing: `cargo test` builds it, `cargo test --test api` alone does not; run \
         `cargo build --example protocol_echo`",
        binary.display()
    );
    binary
}
