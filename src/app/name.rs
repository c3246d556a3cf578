//! A `mongodb+srv` name that cannot be resolved yet.

use std::net::TcpListener;
use std::time::Duration;

use actix_web::App;
use actix_web::web::Data;

use super::{FEED_START_TIMEOUT, HEAD_TIMEOUT, StartError, address};
use crate::config::Config;
use crate::config::database::{Connector, is_unresolved};
use crate::config::uri::MongoUri;
use crate::limits::Limits;
use crate::refusals::Refusals;
use crate::routes;
use crate::server::capacity::Capacity;
use crate::server::{self, Connections};

/// How long the start waits for the name of MongoDB to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of each later attempt to resolve it, and the longest pause between two attempts.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// What connects to MongoDB; `None` if its name is not resolved within a short time.
pub(super) async fn connector(uri: &MongoUri) -> Result<Option<Connector>, StartError> {
    match &uri.srv_name {
        None => Ok(Some(Connector::new(uri).await.map_err(StartError::Connector)?)),
        Some(name) => resolve(uri, name, RESOLVE_TIMEOUT).await,
    }
}

/// Answers all requests with 503 until the name of MongoDB is resolved.
pub(super) async fn wait_for(
    uri: &MongoUri,
    config: &Config,
    listener: &TcpListener,
    capacity: Capacity,
) -> Result<Connector, StartError> {
    let name = uri.srv_name.as_deref().unwrap_or_default();
    let options = server::Options {
        workers: 1,
        connections: Connections::new(capacity.connections),
        waiting: capacity.waiting,
        keep_alive: Duration::ZERO,
        head_timeout: HEAD_TIMEOUT,
        shutdown_timeout: FEED_START_TIMEOUT,
    };
    let app_config = Data::new(config.clone());
    let limits = Data::new(Limits::new(config));
    let refusals = Data::new(Refusals::default());
    let waiting = listener.try_clone().map_err(StartError::Server)?;
    let waiting = server::serve(waiting, options, move || {
        App::new()
            .app_data(app_config.clone())
            .app_data(limits.clone())
            .app_data(refusals.clone())
            .configure(routes::configure_waiting)
    })
    .map_err(StartError::Server)?;
    let handle = waiting.handle();
    let serving = tokio::spawn(waiting);
    address::log(listener.local_addr().map_err(StartError::Server)?);
    log::info!("Requests for MongoDB are answered 503 until the SRV record of {name:?} is known");
    let mut wait = Duration::from_secs(1);
    let connector = loop {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_TIMEOUT);
        if let Some(connector) = resolve(uri, name, RETRY_TIMEOUT).await? {
            break connector;
        }
    };
    log::info!("The SRV record of {name:?} is known now");
    handle.stop(true).await;
    // Its result does not matter: the real server replaces it.
    let _ = serving.await;
    Ok(connector)
}

/// Tries once to resolve the name of MongoDB; `None` if it cannot be resolved within `most`.
async fn resolve(
    uri: &MongoUri,
    name: &str,
    most: Duration,
) -> Result<Option<Connector>, StartError> {
    match tokio::time::timeout(most, Connector::new(uri)).await {
        Ok(Ok(connector)) => return Ok(Some(connector)),
        Ok(Err(error)) if !is_unresolved(&error) => return Err(StartError::Connector(error)),
        Ok(Err(error)) => {
            log::warn!("The SRV record of {name:?}, the name in MONGO_URI, cannot be read yet");
            log::debug!("It cannot be read: {error}");
        }
        Err(_) => log::warn!("No name server has answered for {name:?}, the name in MONGO_URI"),
    }
    Ok(None)
}
