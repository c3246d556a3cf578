//! A network that can fail: a TCP proxy that stalls or cuts what goes through it.
//!
//! Between an instance and MongoDB it also has to say its own addresses for those of the nodes,
//! since a driver goes where the members of a set say they are. As long as both have the same
//! length, no other byte of the protocol changes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It works.
    Flows,
    /// Nothing arrives, and nothing is lost: like a paused machine, or a cable that is pulled and
    /// put back.
    Stalls,
    /// Connections are reset, and so are new ones.
    Cut,
}

/// A proxy in front of one address. It ends with the program.
#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    link: watch::Sender<Link>,
    upstream: watch::Sender<SocketAddr>,
    rewrites: watch::Sender<Arc<Vec<Rewrite>>>,
}

/// A text in what the other end says, and what is said instead. Both have the same length.
pub type Rewrite = (String, String);

impl Proxy {
    /// Listens on a free port.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let link = watch::Sender::new(Link::Flows);
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
                tokio::spawn(carry(client, to, link.subscribe(), rewrites));
            }
        });
        proxy
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.upstream.send_replace(upstream);
    }

    /// Says these texts for those.
    pub fn rewrite(&self, rewrites: Vec<Rewrite>) {
        assert!(rewrites.iter().all(|(from, to)| from.len() == to.len()), "{rewrites:?}");
        self.rewrites.send_replace(Arc::new(rewrites));
    }

    /// Lets the network work, or not.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

/// Carries one connection until either end closes it or it is cut.
async fn carry(
    client: TcpStream,
    upstream: SocketAddr,
    mut link: watch::Receiver<Link>,
    rewrites: Arc<Vec<Rewrite>>,
) {
    // A connection that is dropped is reset, as far as the system can do it.
    let _ = client.set_zero_linger();
    let _ = client.set_nodelay(true);
    let (up, down) = (link.clone(), link.clone());
    let carrying = async {
        flows(&mut up.clone()).await;
        let Ok(server) = TcpStream::connect(upstream).await else { return };
        let _ = server.set_zero_linger();
        let _ = server.set_nodelay(true);
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let nothing = Arc::default();
        tokio::join!(
            pump(client_read, server_write, up, nothing),
            pump(server_read, client_write, down, rewrites),
        );
    };
    tokio::select! {
        () = carrying => {}
        _ = link.wait_for(|link| *link == Link::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    rewrites: Arc<Vec<Rewrite>>,
) {
    let mut buffer = vec![0; 64 * 1024];
    // What may be the beginning of a text to rewrite.
    let mut held = Vec::new();
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        flows(&mut link).await;
        held.extend_from_slice(&buffer[..count]);
        let ready = rewrite(&mut held, &rewrites);
        if to.write_all(&ready).await.is_err() {
            return;
        }
    }
    flows(&mut link).await;
    let _ = to.shutdown().await;
}

async fn flows(link: &mut watch::Receiver<Link>) {
    let _ = link.wait_for(|link| *link != Link::Stalls).await;
}

/// Rewrites the bytes and takes all of them, but for an end that may be half of a text. No message
/// of MongoDB's protocol ends so, since documents end in a zero.
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
