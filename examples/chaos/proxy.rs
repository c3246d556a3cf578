//! A network that can fail: a TCP proxy that can stall or cut its connections.
//!
//! Between an instance and MongoDB it also replaces the addresses of the nodes by its own, because
//! a driver connects to the addresses that the replica set announces. Both have the same length, so
//! no other byte of the protocol changes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The state of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It works.
    Up,
    /// Nothing arrives and nothing is lost, like with a paused machine or an unplugged cable.
    Stalled,
    /// All connections are reset, including new ones.
    Cut,
}

/// A proxy for one address. It ends with the program.
#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    link: watch::Sender<Link>,
    upstream: watch::Sender<SocketAddr>,
    rewrites: watch::Sender<Arc<Vec<Rewrite>>>,
}

/// A text to replace in the bytes of the server, and its replacement of the same length.
pub type Rewrite = (String, String);

impl Proxy {
    /// Listens on a free port.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let link = watch::Sender::new(Link::Up);
        let upstream = watch::Sender::new(upstream);
        let rewrites = watch::Sender::default();
        let proxy = Self {
            addr,
            link: link.clone(),
            upstream: upstream.clone(),
            rewrites: rewrites.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, rewrites) = (*upstream.borrow(), rewrites.borrow().clone());
                tokio::spawn(forward(client, to, link.subscribe(), rewrites));
            }
        });
        proxy
    }

    /// Sets the address for new connections.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        self.upstream.send_replace(upstream);
    }

    /// Sets the texts to replace.
    pub fn rewrite(&self, rewrites: Vec<Rewrite>) {
        assert!(rewrites.iter().all(|(from, to)| from.len() == to.len()), "{rewrites:?}");
        self.rewrites.send_replace(Arc::new(rewrites));
    }

    /// Sets the state of the network.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

/// Forwards one connection until either end closes it or it is cut.
async fn forward(
    client: TcpStream,
    upstream: SocketAddr,
    mut link: watch::Receiver<Link>,
    rewrites: Arc<Vec<Rewrite>>,
) {
    // With zero linger, a dropped connection is reset.
    let _ = client.set_zero_linger();
    let _ = client.set_nodelay(true);
    let (up, down) = (link.clone(), link.clone());
    let forwarding = async {
        wait_until_up(&mut up.clone()).await;
        let Ok(server) = TcpStream::connect(upstream).await else { return };
        let _ = server.set_zero_linger();
        let _ = server.set_nodelay(true);
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let nothing = Arc::default();
        tokio::join!(
            copy(client_read, server_write, up, nothing),
            copy(server_read, client_write, down, rewrites),
        );
    };
    tokio::select! {
        () = forwarding => {}
        _ = link.wait_for(|link| *link == Link::Cut) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    rewrites: Arc<Vec<Rewrite>>,
) {
    let mut buffer = vec![0; 64 * 1024];
    // Bytes that may be the beginning of a text to replace.
    let mut pending = Vec::new();
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        wait_until_up(&mut link).await;
        pending.extend_from_slice(&buffer[..count]);
        let ready = rewrite(&mut pending, &rewrites);
        if to.write_all(&ready).await.is_err() {
            return;
        }
    }
    wait_until_up(&mut link).await;
    let _ = to.shutdown().await;
}

async fn wait_until_up(link: &mut watch::Receiver<Link>) {
    let _ = link.wait_for(|link| *link != Link::Stalled).await;
}

/// Replaces texts, and takes all bytes except an end that may be the beginning of a text. No
/// message of MongoDB's protocol has such an end, because documents end with a zero byte.
fn rewrite(bytes: &mut Vec<u8>, rewrites: &[Rewrite]) -> Vec<u8> {
    for (from, to) in rewrites {
        let (from, to) = (from.as_bytes(), to.as_bytes());
        let mut at = 0;
        while at + from.len() <= bytes.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
                at += to.len();
            } else {
                at += 1;
            }
        }
    }
    let is_half = |end: &[u8]| rewrites.iter().any(|(from, _)| from.as_bytes().starts_with(end));
    let longest = rewrites.iter().map(|(from, _)| from.len()).max().unwrap_or(0);
    let first = bytes.len().saturating_sub(longest.saturating_sub(1));
    let keep = (first..bytes.len()).find(|&at| is_half(&bytes[at..])).unwrap_or(bytes.len());
    let rest = bytes.split_off(keep);
    std::mem::replace(bytes, rest)
}
