//! Which MongoDB it is, and what is prepared there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bson::Document;
use mongodb::Database;
use secrecy::SecretString;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::StartError;
use crate::chat::purge_for_ever;
use crate::config::database::certificate_hint;
use crate::config::original;
use crate::config::uri::MongoUri;
use crate::config::{Config, ConfigError, Embedded, Mongo, PasswordHash};
use crate::feed::Feed;
use crate::models::{Store, StoreError, Upkeep};
use crate::mongod::{self, Installer, Mongod, Options};

/// The task that keeps the embedded MongoDB running. Dropping this stops MongoDB.
pub(super) struct MongodTask {
    pub(super) task: JoinHandle<()>,
    pub(super) stop: DropGuard,
}

/// The connection string and the secret. Starts the embedded MongoDB if it is used.
pub(super) async fn find(
    config: &Config,
) -> Result<(SecretString, SecretString, Option<MongodTask>), StartError> {
    let uri = match &config.mongo {
        Mongo::Uri { uri } => Some(uri.clone()),
        Mongo::Embedded => None,
        Mongo::Unset => match original::look(original::ADDRESS).await {
            Some(found) => return Err(StartError::Found(found)),
            None => None,
        },
    };
    if let Some(uri) = uri {
        let secret = config.jwt_secret.clone().ok_or(ConfigError::NoSecret)?;
        return Ok((uri, secret, None));
    }
    let Embedded { data_dir, mongod } = config.embedded.clone();
    let installer = Installer::from_env(mongod);
    let binary = tokio::task::spawn_blocking(move || installer.binary());
    let binary = binary.await.map_err(|error| StartError::Secret(io::Error::other(error)))??;
    let options = Options::new(binary, data_dir.clone());
    let mongod = Mongod::start(options.clone()).await?;
    log::info!(
        "Embedded MongoDB on port {}, its data in {}: for tests and development, set MONGO_URI in \
         production",
        mongod.port(),
        data_dir.display()
    );
    let secret = match &config.jwt_secret {
        Some(secret) => secret.clone(),
        None => mongod::secret(&data_dir).map_err(StartError::Secret)?,
    };
    let uri = mongod.uri(original::DATABASE).into();
    let stop = CancellationToken::new();
    let task = tokio::spawn(mongod::keep_running(mongod, options, stop.clone()));
    Ok((uri, secret, Some(MongodTask { task, stop: stop.drop_guard() })))
}

/// Logs effects of the connection string that may be unexpected.
pub(super) fn log_uri(uri: &MongoUri) {
    if !uri.names_database {
        log::info!("MONGO_URI names no database, so it is {:?}, as for Mongoose", uri.database);
    }
    if !uri.passed_over.is_empty() {
        log::info!(
            "These options of MONGO_URI have no effect here: {}",
            uri.passed_over.join(", ")
        );
    }
}

/// Builds the indexes and checks the password hashes when MongoDB answers, then maintains the
/// indexes for ever.
pub(super) async fn prepare(store: Store, feed: Arc<Feed>, scheme: PasswordHash) {
    let mut upkeep = Upkeep::new(store.clone());
    let mut wait = Duration::from_millis(250);
    while let Err(error) = prepare_once(&mut upkeep, &store, scheme).await {
        match &error {
            StoreError::Unavailable(cause) => match certificate_hint(&cause.to_string()) {
                Some(hint) => log::warn!("MongoDB is not ready yet: {hint}"),
                None => log::warn!("MongoDB is not ready yet: {error}"),
            },
            error => log::error!("The indexes cannot be built: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(15));
    }
    futures::future::join(upkeep.run(), purge_for_ever(store, feed)).await;
}

async fn prepare_once(
    upkeep: &mut Upkeep,
    store: &Store,
    scheme: PasswordHash,
) -> Result<(), StoreError> {
    log_contents(store.database()).await?;
    upkeep.round().await?;
    if scheme == PasswordHash::Argon2id && store.users.any_with_bcrypt().await? {
        log::warn!(
            "Users of the Node server were found. Their bcrypt hashes are replaced by argon2id at \
             their next login, which bcryptjs cannot read: set PASSWORD_HASH=bcrypt if you may go \
             back to Node or run both side by side"
        );
    }
    Ok(())
}

/// Logs which database it is and what it contains, so that a wrong one is noticed.
async fn log_contents(database: &Database) -> Result<(), StoreError> {
    let mut counts = Vec::new();
    for name in original::COLLECTIONS {
        let documents = database.collection::<Document>(name).estimated_document_count().await?;
        counts.push((name, documents));
    }
    log::info!("The database {:?} has about {}", database.name(), original::counts(&counts));
    Ok(())
}
