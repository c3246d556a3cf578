//! `--health`: asks the server that this configuration starts whether its process serves requests.
//!
//! It is the health check of a container, which needs no other program for it and follows `PORT`
//! and `HOST`. It asks `/healthz` and not `/readyz`: an orchestrator restarts what is not healthy,
//! and a restart mends neither a MongoDB that is away nor a server that is stopping in order. Which
//! instance gets requests is the load balancer's decision, and that is what `/readyz` is for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use actix_codec::Framed;
use actix_http::body::BodySize;
use actix_http::error::ParseError;
use actix_http::h1::{ClientCodec, Message};
use actix_http::{ConnectionType, RequestHead, RequestHeadType, StatusCode};
use actix_web::http::Uri;
use actix_web::http::header::{HOST, HeaderValue};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;

use crate::config::Config;

/// What is asked.
const PATH: &str = "/healthz";
/// How long an answer may take: less than the 3 s after which Docker gives up without a reason.
// The text of `Unhealthy::Silent` names it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a server is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// `PORT` is 0.
    #[error("PORT=0 takes any free port, so the server's address is not known: set PORT")]
    NoPort,
    /// Nothing listens there, or what does answers no HTTP.
    #[error("the server at {0} cannot be asked: {1}")]
    Unreachable(SocketAddr, io::Error),
    /// It accepts connections at most.
    #[error("the server at {0} does not answer within 2 s")]
    Silent(SocketAddr),
    /// Another answer than 200.
    #[error("the server at {0} answers {1}")]
    Refuses(SocketAddr, StatusCode),
}

/// Asks the server of this configuration. The address is where it answered.
///
/// # Errors
/// It does not answer 200 in time; the error is a sentence for people.
pub async fn ask(config: &Config) -> Result<SocketAddr, Unhealthy> {
    if config.port == 0 {
        return Err(Unhealthy::NoPort);
    }
    let addr = SocketAddr::new(reachable(config.host), config.port);
    let status = tokio::time::timeout(PATIENCE, status(addr))
        .await
        .map_err(|_| Unhealthy::Silent(addr))?
        .map_err(|error| Unhealthy::Unreachable(addr, error))?;
    if status == StatusCode::OK { Ok(addr) } else { Err(Unhealthy::Refuses(addr, status)) }
}

/// Where a server that listens on `host` is reached from this machine.
fn reachable(host: Option<IpAddr>) -> IpAddr {
    match host {
        // Without `HOST` it listens on IPv6 only together with IPv4.
        None => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V4(host)) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V6(host)) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(host) => host,
    }
}

/// The status of the answer; its body is not waited for.
async fn status(addr: SocketAddr) -> io::Result<StatusCode> {
    let stream = TcpStream::connect(addr).await?;
    let mut head = RequestHead::default();
    head.uri = Uri::from_static(PATH);
    let host = HeaderValue::try_from(addr.to_string()).map_err(io::Error::other)?;
    head.headers.insert(HOST, host);
    head.set_connection_type(ConnectionType::Close);
    let mut http = Framed::new(stream, ClientCodec::default());
    http.send(Message::Item((RequestHeadType::Owned(head), BodySize::None))).await?;
    match http.next().await {
        Some(Ok(answer)) => Ok(answer.status),
        Some(Err(ParseError::Io(error))) => Err(error),
        Some(Err(error)) => Err(io::Error::other(error.to_string())),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
    }
}
