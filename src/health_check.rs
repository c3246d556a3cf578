//! `--health`: asks the server of this configuration whether it serves requests.
//!
//! It is the health check of a container: it needs no other program and follows `PORT` and `HOST`.
//! It asks `/healthz` and not `/readyz`, because an orchestrator restarts an unhealthy container,
//! and a restart does not help when MongoDB is down or the server is stopping. A load balancer
//! decides with `/readyz` which instance gets requests.

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

/// The path of the request.
const PATH: &str = "/healthz";
/// The timeout: less than the 3 s after which Docker gives up without a reason.
// The text of `Unhealthy::Silent` names it.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The server is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// `PORT` is 0.
    #[error("PORT=0 takes any free port, so the server's address is not known: set PORT")]
    NoPort,
    /// Nothing listens there, or it does not answer with HTTP.
    #[error("the server at {0} cannot be asked: {1}")]
    Unreachable(SocketAddr, io::Error),
    /// It does not answer in time.
    #[error("the server at {0} does not answer within 2 s")]
    Silent(SocketAddr),
    /// It does not answer 200.
    #[error("the server at {0} answers {1}")]
    Refuses(SocketAddr, StatusCode),
}

/// Asks the server of this configuration. Returns the address at which it answered.
///
/// # Errors
/// It does not answer 200 in time. The text of the error is for people.
pub async fn ask(config: &Config) -> Result<SocketAddr, Unhealthy> {
    if config.port == 0 {
        return Err(Unhealthy::NoPort);
    }
    let addr = SocketAddr::new(reachable(config.host), config.port);
    let status = tokio::time::timeout(TIMEOUT, status(addr))
        .await
        .map_err(|_| Unhealthy::Silent(addr))?
        .map_err(|error| Unhealthy::Unreachable(addr, error))?;
    if status == StatusCode::OK { Ok(addr) } else { Err(Unhealthy::Refuses(addr, status)) }
}

/// The address at which this machine reaches a server that listens on `host`.
fn reachable(host: Option<IpAddr>) -> IpAddr {
    match host {
        // Without `HOST`, a server on IPv6 also listens on IPv4.
        None => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V4(host)) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V6(host)) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(host) => host,
    }
}

/// The status of the answer. The body is not read.
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
        None => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"))
        }
    }
}
