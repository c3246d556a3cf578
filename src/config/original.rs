//! Finds out what listens at the address of the original's database, for a start without settings.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::options::{ClientOptions, ServerAddress};
use mongodb::{Client, Database};

/// Where the original's database listens.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 27017);
/// The name of the original's database.
pub const DATABASE: &str = "realTimeChatDatabase";
/// The collections of the original.
pub const COLLECTIONS: [&str; 3] = ["users", "rooms", "messages"];

/// How long the address may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// How long all answers together may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What listens at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The address.
    pub addr: SocketAddr,
    /// What listens there.
    pub what: What,
}

/// What its answers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Something other than MongoDB.
    Stranger,
    /// MongoDB that lists its collections only after a login.
    Locked {
        /// Its version.
        version: String,
    },
    /// MongoDB that lists its collections without a login.
    Open {
        /// Its version.
        version: String,
        /// The original's collections that its database has, and how many documents each contains.
        collections: Vec<(&'static str, u64)>,
    },
}

/// Finds out what listens at an address; `None` when nothing does.
pub async fn look(addr: SocketAddr) -> Option<Found> {
    let connecting = tokio::net::TcpStream::connect(addr);
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.ok()?.ok()?;
    let what = tokio::time::timeout(ANSWER_TIMEOUT, ask(addr)).await;
    Some(Found { addr, what: what.ok().and_then(Result::ok).unwrap_or(What::Stranger) })
}

async fn ask(addr: SocketAddr) -> mongodb::error::Result<What> {
    let host = ServerAddress::Tcp { host: addr.ip().to_string(), port: Some(addr.port()) };
    let mut options = ClientOptions::builder().hosts(vec![host]).build();
    options.direct_connection = Some(true);
    options.server_selection_timeout = Some(ANSWER_TIMEOUT);
    let database = Client::with_options(options)?.database(DATABASE);
    let build: Document = database.run_command(doc! { "buildInfo": 1 }).await?;
    let version = build.get_str("version").unwrap_or_default().to_owned();
    match collections(&database).await {
        Ok(collections) => Ok(What::Open { version, collections }),
        Err(_) => Ok(What::Locked { version }),
    }
}

async fn collections(database: &Database) -> mongodb::error::Result<Vec<(&'static str, u64)>> {
    let names = database.list_collection_names().await?;
    let mut found = Vec::new();
    for name in COLLECTIONS.into_iter().filter(|name| names.iter().any(|there| there == name)) {
        let documents = database.collection::<Document>(name).estimated_document_count().await?;
        found.push((name, documents));
    }
    Ok(found)
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = self.addr;
        match &self.what {
            What::Stranger => {
                write!(f, "something other than MongoDB listens on {addr}")
            }
            What::Locked { version } => write!(
                f,
                "MongoDB {version} listens on {addr}; it requires a password, so it is unknown \
                 whether it has the Node server's collections"
            ),
            What::Open { version, collections } if collections.is_empty() => write!(
                f,
                "MongoDB {version} listens on {addr}; it has none of the Node server's \
                 collections in the database {DATABASE}"
            ),
            What::Open { version, collections } => write!(
                f,
                "MongoDB {version} listens on {addr}; it has the Node server's collections in the \
                 database {DATABASE}: {}",
                counts(collections)
            ),
        }
    }
}

/// The counts as text: `12 users, 3 rooms, 40 messages`.
pub fn counts(collections: &[(&'static str, u64)]) -> String {
    let counts: Vec<_> =
        collections.iter().map(|(name, documents)| format!("{documents} {name}")).collect();
    counts.join(", ")
}
