//! Where the server listens, and what it says of that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use super::StartError;

/// Logs where the server listens.
pub(super) fn log(addr: SocketAddr) {
    let here = reachable(addr);
    if addr.ip().is_unspecified() {
        log::info!("Listening on http://{here} and all other addresses of this machine");
    } else {
        log::info!("Listening on http://{here}");
    }
}

/// Logs the pages to open in a browser.
pub(super) fn log_pages(addr: SocketAddr, demo: bool) {
    let here = reachable(addr);
    let demo = if demo { format!("try it on http://{here}/demo, ") } else { String::new() };
    log::info!(
        "To begin with: {demo}read about its API on http://{here}/docs, import http://{here}/chat.js \
         into a front end"
    );
}

/// An address for a URL: `localhost` instead of the unspecified address.
pub(super) fn reachable(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() { format!("localhost:{}", addr.port()) } else { addr.to_string() }
}

/// Listens on one address, or on all as Node does: on IPv6 together with IPv4 if the system has
/// IPv6.
pub(super) fn listen(host: Option<IpAddr>, port: u16) -> Result<TcpListener, StartError> {
    if let Some(host) = host {
        let addr = SocketAddr::new(host, port);
        return TcpListener::bind(addr).map_err(|source| StartError::Listen { addr, source });
    }
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    TcpListener::bind(any).or_else(|_| {
        let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        TcpListener::bind(addr).map_err(|source| StartError::Listen { addr, source })
    })
}
