//! The connection to MongoDB: the options that this server sets, whatever the URI says.

use std::time::Duration;

use mongodb::error::ErrorKind;
use mongodb::options::{
    Acknowledgment, ClientOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Database};
use secrecy::ExposeSecret;

use super::uri::MongoUri;

/// How long the driver looks for a server. Shorter than the deadline of a request, so that the
/// logged error of a request names the servers and not only a timeout.
const SERVER_SELECTION: Duration = Duration::from_millis(4_200);

/// The most connections per client; fewer where few files may be open. Each worker has a client,
/// the feed has one, and so has what runs in the background. A worker runs on one thread, so more
/// operations at once would not make it faster.
pub const POOL_SIZE: u32 = 64;

/// The parsed options of the connection. Each worker makes a client of its own from them, since a
/// client that is shared between runtimes needs a wake-up across threads for each operation.
#[derive(Debug, Clone)]
pub struct Connector {
    options: ClientOptions,
    database: String,
}

impl Connector {
    /// Reads a connection string; `mongodb+srv://` is resolved here.
    ///
    /// # Errors
    /// Its options contradict each other, or its name cannot be resolved.
    pub async fn new(uri: &MongoUri) -> Result<Self, mongodb::error::Error> {
        let mut options = ClientOptions::parse(uri.text.expose_secret()).await?;
        options.app_name.get_or_insert_with(|| env!("CARGO_PKG_NAME").to_owned());
        options.max_pool_size.get_or_insert(POOL_SIZE);
        options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
        options.connect_timeout.get_or_insert(SERVER_SELECTION);
        // An acknowledged message can no longer be rolled back. The change stream only shows such
        // messages; with `w:1` it would show them 100 ms later. Reads are from the primary: a
        // secondary could lack what the feed has already delivered.
        options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).build());
        options.read_concern = Some(ReadConcern::local());
        options.selection_criteria =
            Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        Ok(Self { options, database: uri.database.clone() })
    }

    /// With at most so many connections in each pool.
    pub fn with_pools_of(mut self, most: usize) -> Self {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        self.options.max_pool_size = Some(most);
        self.options.min_pool_size = self.options.min_pool_size.map(|least| least.min(most));
        self
    }

    /// A database handle with its own connections, which are opened when they are needed.
    ///
    /// # Errors
    /// The options contradict each other.
    pub fn connect(&self) -> Result<Database, mongodb::error::Error> {
        Ok(Client::with_options(self.options.clone())?.database(&self.database))
    }
}

/// Whether an error says that a name cannot be resolved yet, so that a retry may succeed.
pub fn is_unresolved(error: &mongodb::error::Error) -> bool {
    matches!(*error.kind, ErrorKind::DnsResolve { .. } | ErrorKind::Io(_))
}

/// What to do about a certificate that rustls refuses, but that OpenSSL, which Node uses, may
/// accept.
pub fn certificate_hint(error: &str) -> Option<&'static str> {
    if error.contains("UnsupportedCertVersion") {
        Some(
            "the server's certificate is of X.509 version 1. OpenSSL, which Node uses, accepts \
             that; rustls, which this server uses, does not. Issue one of version 3",
        )
    } else if error.contains("NotValidForName") || error.contains("not valid for name") {
        Some(
            "the server's certificate does not have the host's name in subjectAltName. Node also \
             accepts a name in the common name (CN) only; rustls, which this server uses, does \
             not. Issue one with subjectAltName",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pools_have_at_most_what_fits() {
        let uri = "mongodb://127.0.0.1/chat?maxPoolSize=10&minPoolSize=8";
        let connector = Connector::new(&MongoUri::parse(uri).unwrap()).await.unwrap();
        let options = connector.with_pools_of(4).options;
        assert_eq!((options.max_pool_size, options.min_pool_size), (Some(4), Some(4)));
    }
}
