//! The connection to MongoDB: what we decide, whatever the URI says.

use std::time::Duration;

use mongodb::error::ErrorKind;
use mongodb::options::{
    Acknowledgment, ClientOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Database};
use secrecy::ExposeSecret;

use super::uri::MongoUri;

/// How long the driver looks for a server. Below the deadline of a request, so that the error that
/// a client causes in the log names the servers and not just the time.
const SERVER_SELECTION: Duration = Duration::from_millis(4_200);

/// Connections per client; there is one client for each worker and one for the feed. A worker runs
/// on one thread, which more operations at once than this would not speed up.
pub const POOL_SIZE: u32 = 64;

/// How to connect, parsed once; every worker makes a client of its own from it, because a client
/// shared between runtimes costs a wake-up across threads for each operation.
#[derive(Debug, Clone)]
pub struct Connector {
    options: ClientOptions,
    database: String,
}

impl Connector {
    /// Follows a connection string; `mongodb+srv://` is resolved here.
    ///
    /// # Errors
    /// Its options contradict each other, or its name cannot be resolved.
    pub async fn new(uri: &MongoUri) -> Result<Self, mongodb::error::Error> {
        let mut options = ClientOptions::parse(uri.text.expose_secret()).await?;
        options.app_name.get_or_insert_with(|| env!("CARGO_PKG_NAME").to_owned());
        options.max_pool_size.get_or_insert(POOL_SIZE);
        options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
        options.connect_timeout.get_or_insert(SERVER_SELECTION);
        // A message is acknowledged once it cannot be rolled back, and only then does the change
        // stream see it; with `w:1` it would see it 100 ms later. A secondary could lack what the
        // feed has already delivered.
        options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).build());
        options.read_concern = Some(ReadConcern::local());
        options.selection_criteria =
            Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        Ok(Self { options, database: uri.database.clone() })
    }

    /// A database handle with connections of its own, which are made when they are needed.
    ///
    /// # Errors
    /// The options contradict each other.
    pub fn connect(&self) -> Result<Database, mongodb::error::Error> {
        Ok(Client::with_options(self.options.clone())?.database(&self.database))
    }
}

/// Whether an error says that a name is not known (yet), and so may go away.
pub fn is_unresolved(error: &mongodb::error::Error) -> bool {
    matches!(*error.kind, ErrorKind::DnsResolve { .. } | ErrorKind::Io(_))
}

/// What to do about a certificate that rustls refuses and OpenSSL, which Node uses, may accept.
pub fn certificate_hint(error: &str) -> Option<&'static str> {
    if error.contains("UnsupportedCertVersion") {
        Some(
            "the server's certificate is of X.509 version 1, which OpenSSL accepts and rustls, \
             which is used here, does not: issue one of version 3",
        )
    } else if error.contains("NotValidForName") || error.contains("not valid for name") {
        Some(
            "the server's certificate does not have the host's name in subjectAltName, where \
             rustls, which is used here, looks for it; a name in the common name (CN) only, which \
             Node also accepts, does not count: issue one with subjectAltName",
        )
    } else {
        None
    }
}
