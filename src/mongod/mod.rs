//! A real `mongod`, private to this process: for trying, developing and testing.
//!
//! It is a replica set of one node, since change streams need one. It listens on a free loopback
//! port, and its data is in a folder that no other process uses meanwhile. `supervisor` ends it
//! with this process, however this process ends. `install` provides the binary. Nothing here knows
//! what the database is for.

mod install;
mod supervisor;

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::ClientOptions;
use secrecy::SecretString;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use install::{InstallError, Installer};
use supervisor::Supervisor;

/// How long the mongod of a server that was killed may take to stop: its supervisor kills it after
/// ten seconds.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a start may take, from the process to a primary.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a clean stop may take before the process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a starting node is checked.
const POLL: Duration = Duration::from_millis(20);

/// The log of `mongod`, in the folder of its data.
const LOG: &str = "mongod.log";
/// The log of the start before this one.
const OLD_LOG: &str = "mongod.log.1";
/// A file that is written to find out whether the disk is full, and its size in bytes.
const PROBE: &str = "room";
const PROBED: usize = 1 << 20;
/// How often the running process is checked.
const WATCH: Duration = Duration::from_millis(250);
/// The longest delay before a restart.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(60);

/// The name of the replica set of an embedded MongoDB.
pub const REPLICA_SET: &str = "embedded";

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the data; created if it does not exist.
    pub data_dir: PathBuf,
    /// The binary.
    pub binary: PathBuf,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// The replica set's name; `None` starts a standalone.
    pub replica_set: Option<String>,
    /// Whether to initiate the replica set with this node as its only member. Otherwise it has to
    /// be initiated from outside.
    pub initiate: bool,
    /// Whether the supervisor removes the data folder at the end.
    pub remove_data: bool,
    /// More arguments for `mongod`.
    pub arguments: Vec<String>,
}

impl Options {
    /// A single-node replica set on a free port.
    pub fn new(binary: PathBuf, data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            binary,
            port: 0,
            replica_set: Some(REPLICA_SET.to_owned()),
            initiate: true,
            remove_data: false,
            arguments: Vec::new(),
        }
    }
}

/// A running `mongod`. Dropping it stops it too, without waiting.
#[derive(Debug)]
pub struct Mongod {
    supervisor: Supervisor,
    port: u16,
    replica_set: Option<String>,
    data_dir: PathBuf,
    /// The lock of the data folder, held as long as this lives.
    _lock: File,
}

/// Why `mongod` did not start.
#[derive(Debug, thiserror::Error)]
pub enum MongodError {
    /// Another process uses the data.
    #[error(
        "the data folder {0} is used by another process. Stop that one, or set DATA_DIR to \
         another folder"
    )]
    Locked(PathBuf),
    /// The folder cannot be created or written.
    #[error("the data folder {path} cannot be used: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The files in the folder are broken.
    #[error(
        "the data in {path} is damaged: {cause}. Restore a copy of the folder, or move it away to \
         start without data"
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What mongod said.
        cause: String,
    },
    /// The files were written by a mongod of another version.
    #[error(
        "the data in {path} was written by another version of MongoDB: {cause}. Set MONGOD to the \
         mongod that wrote it"
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// What mongod said.
        cause: String,
    },
    /// The disk is full.
    #[error("the disk of {0} is full")]
    DiskFull(PathBuf),
    /// Another process took the port.
    #[error("the port {0} is in use")]
    PortInUse(u16),
    /// It ended for another reason.
    #[error("mongod ended: {cause}. Its log is {log}")]
    Ended {
        /// Its last message.
        cause: String,
        /// The path of the log.
        log: PathBuf,
    },
    /// It runs, but cannot be used.
    #[error("mongod was not ready within {}s: {cause}. Its log is {log}", START_TIMEOUT.as_secs())]
    NotReady {
        /// What is missing.
        cause: String,
        /// The path of the log.
        log: PathBuf,
    },
}

impl Mongod {
    /// Starts it and waits until it can be used.
    ///
    /// # Errors
    /// It did not start; the error says what to do.
    pub async fn start(options: Options) -> Result<Self, MongodError> {
        let folder = |source| MongodError::Folder { path: options.data_dir.clone(), source };
        fs::create_dir_all(options.data_dir.join("db")).map_err(folder)?;
        let lock = lock(&options.data_dir)?;
        let patience = Instant::now() + LEFTOVER_TIMEOUT;
        loop {
            let lock = lock.try_clone().map_err(folder)?;
            match Self::launch(&options, lock).await {
                // No server uses the folder, so this mongod is one of a server that was killed. Its
                // supervisor is stopping it.
                Err(MongodError::Locked(_)) if Instant::now() < patience => sleep(POLL).await,
                launched => return launched,
            }
        }
    }

    async fn launch(options: &Options, lock: File) -> Result<Self, MongodError> {
        let folder = |source| MongodError::Folder { path: options.data_dir.clone(), source };
        let port = match options.port {
            0 => free_port().map_err(folder)?,
            port => port,
        };
        let log = options.data_dir.join(LOG);
        // Otherwise mongod would keep the log of every start.
        let _ = fs::rename(&log, options.data_dir.join(OLD_LOG));
        let command = command(options, port, &log);
        let removed = options.remove_data.then_some(options.data_dir.as_path());
        let supervisor = Supervisor::spawn(&command, removed).map_err(folder)?;
        let mut mongod = Self {
            supervisor,
            port,
            replica_set: options.replica_set.clone(),
            data_dir: options.data_dir.clone(),
            _lock: lock,
        };
        let deadline = Instant::now() + START_TIMEOUT;
        let mut cause = "it does not accept connections".to_owned();
        while Instant::now() < deadline {
            if mongod.supervisor.has_ended() {
                return Err(reason(&options.data_dir, port, log));
            }
            match mongod.prepare(options.initiate).await {
                Ok(()) => return Ok(mongod),
                Err(error) => cause = error.to_string(),
            }
            sleep(POLL).await;
        }
        Err(MongodError::NotReady { cause, log })
    }

    /// The connection string of one of its databases.
    pub fn uri(&self, database: &str) -> String {
        let port = self.port;
        match &self.replica_set {
            Some(name) => format!("mongodb://127.0.0.1:{port}/{database}?replicaSet={name}"),
            None => format!("mongodb://127.0.0.1:{port}/{database}"),
        }
    }

    /// Its port on the loopback interface.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.supervisor.mongod()
    }

    /// Why it has ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<MongodError> {
        if !self.supervisor.has_ended() {
            return None;
        }
        let log = self.data_dir.join(LOG);
        let reason = reason(&self.data_dir, self.port, log.clone());
        Some(match (self.supervisor.signal(), reason) {
            // A killed process has logged no reason, so its last messages do not matter.
            (Some(signal @ 9), MongodError::Ended { .. } | MongodError::Damaged { .. }) => {
                MongodError::Ended { cause: format!("it was killed by signal {signal}"), log }
            }
            (_, reason) => reason,
        })
    }

    /// Stops it cleanly and waits for its end.
    pub async fn stop(self) {
        self.supervisor.stop(STOP_TIMEOUT).await;
    }

    /// One attempt to make the node usable; to be repeated until it succeeds.
    async fn prepare(&self, initiate: bool) -> mongodb::error::Result<()> {
        let admin = direct_client(self.port).await?.database("admin");
        if self.replica_set.is_none() || !initiate {
            return admin.run_command(doc! { "ping": 1 }).await.map(drop);
        }
        let hello = admin.run_command(doc! { "hello": 1 }).await?;
        let host = format!("127.0.0.1:{}", self.port);
        let is_primary = hello.get_bool("isWritablePrimary").unwrap_or(false);
        if is_primary && hello.get_str("me").is_ok_and(|me| me == host) {
            return Ok(());
        }
        match admin.run_command(doc! { "replSetGetConfig": 1 }).await {
            Ok(answer) => {
                if let Some(config) = with_host(&answer, &host) {
                    let command = doc! { "replSetReconfig": config, "force": true };
                    admin.run_command(command).await?;
                }
            }
            // "NotYetInitialized"; any other error is temporary.
            Err(error) if code(&error) == Some(94) => {
                let name = self.replica_set.as_deref().unwrap_or(REPLICA_SET);
                let members = [doc! { "_id": 0, "host": &host }];
                let config = doc! { "_id": name, "members": &members };
                admin.run_command(doc! { "replSetInitiate": config }).await?;
            }
            Err(error) => return Err(error),
        }
        Err(mongodb::error::Error::custom("it has not become primary"))
    }
}

/// Watches a `mongod`, and starts it again on the same port and data when it ends. Stops it when
/// `stop` is cancelled. Logs what happens.
pub async fn keep_running(mut mongod: Mongod, options: Options, stop: CancellationToken) {
    let options = Options { port: mongod.port(), ..options };
    let mut wait = Duration::from_secs(1);
    loop {
        let started = Instant::now();
        let reason = loop {
            if let Some(reason) = mongod.ended() {
                break reason;
            }
            if stop.run_until_cancelled(sleep(WATCH)).await.is_none() {
                return mongod.stop().await;
            }
        };
        // The delay only grows while restarts fail soon after one another.
        if started.elapsed() > MAX_RESTART_DELAY {
            wait = Duration::from_secs(1);
        }
        // Also releases the lock of the data folder.
        drop(mongod);
        log::error!("The embedded MongoDB has ended: {reason}. It is started again in {wait:?}");
        mongod = loop {
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                return;
            }
            wait = (wait * 2).min(MAX_RESTART_DELAY);
            match stop.run_until_cancelled(Mongod::start(options.clone())).await {
                None => return,
                Some(Ok(mongod)) => break mongod,
                Some(Err(error)) => log::error!(
                    "The embedded MongoDB does not start: {error}. The next attempt is in {wait:?}"
                ),
            }
        };
        log::info!("The embedded MongoDB runs again");
    }
}

/// The secret of this data folder, created at first use: 64 hexadecimal digits in a file that only
/// its owner can read.
///
/// # Errors
/// The file cannot be read or written.
pub fn secret(data_dir: &Path) -> io::Result<SecretString> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let path = data_dir.join("jwt_secret");
    match fs::read_to_string(&path) {
        Ok(secret) if !secret.trim().is_empty() => return Ok(secret.trim().into()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(data_dir)?;
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(secret.as_bytes())?;
    file.sync_all()?;
    Ok(secret.into())
}

fn lock(data_dir: &Path) -> Result<File, MongodError> {
    let folder = |source| MongodError::Folder { path: data_dir.to_owned(), source };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(data_dir.join("lock"))
        .map_err(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(MongodError::Locked(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(folder(source)),
    }
}

/// The command line: small caches and no diagnostics, since this is not for production.
fn command(options: &Options, port: u16, log: &Path) -> Vec<std::ffi::OsString> {
    let mut command: Vec<std::ffi::OsString> = vec![options.binary.clone().into()];
    let mut add = |arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
        command.extend(arguments.iter().map(|argument| argument.as_ref().to_owned()));
    };
    add(&[&"--dbpath", &options.data_dir.join("db"), &"--logpath", &log]);
    add(&[&"--port", &port.to_string(), &"--bind_ip", &"127.0.0.1", &"--nounixsocket"]);
    add(&[&"--wiredTigerCacheSizeGB", &"0.25", &"--quiet"]);
    add(&[&"--setParameter", &"diagnosticDataCollectionEnabled=false"]);
    if let Some(name) = &options.replica_set {
        add(&[&"--replSet", name]);
    }
    for argument in &options.arguments {
        add(&[argument]);
    }
    command
}

/// The stored configuration with this host, since each start may have another port; `None` if the
/// host is the same.
fn with_host(answer: &Document, host: &str) -> Option<Document> {
    let mut config = answer.get_document("config").ok()?.clone();
    let members = config.get_array_mut("members").ok()?;
    let [member] = members.as_mut_slice() else { return None };
    let member = member.as_document_mut()?;
    if member.get_str("host").is_ok_and(|stored| stored == host) {
        return None;
    }
    member.insert("host", host);
    let version = config.get_i32("version").unwrap_or(1);
    config.insert("version", version.saturating_add(1));
    Some(config)
}

/// A client that connects to this node directly, whatever its replica set says.
async fn direct_client(port: u16) -> mongodb::error::Result<Client> {
    let mut options = ClientOptions::parse(format!("mongodb://127.0.0.1:{port}")).await?;
    options.direct_connection = Some(true);
    options.server_selection_timeout = Some(Duration::from_secs(2));
    Client::with_options(options)
}

fn code(error: &mongodb::error::Error) -> Option<i32> {
    match error.kind.as_ref() {
        mongodb::error::ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Finds the reason for its end in its log.
fn reason(data_dir: &Path, port: u16, log: PathBuf) -> MongodError {
    let path = data_dir.to_owned();
    let text = fs::read_to_string(&log).unwrap_or_default();
    let last: Vec<&str> = text.lines().rev().take(60).collect();
    let says =
        |words: &[&str]| words.iter().any(|word| last.iter().any(|line| line.contains(word)));
    // The cause is its last message about an error; mongod logs one JSON object per line.
    let cause = last
        .iter()
        .find(|line| line.contains("\"s\":\"F\"") || line.contains("\"s\":\"E\""))
        .or(last.first())
        .map_or_else(|| "it logged nothing".to_owned(), |line| message(line));
    // A stop takes many lines.
    let asked = text.lines().rev().find(|line| line.contains("\"msg\":\"Received signal\""));
    if let Some(line) = asked {
        // What it has logged as an error before is not the reason.
        return MongodError::Ended { cause: message(line), log };
    }
    if says(&["No space left on device"]) || is_full(&data_dir.join(PROBE)) {
        MongodError::DiskFull(path)
    } else if says(&["Address already in use"]) {
        MongodError::PortInUse(port)
    } else if says(&["DBPathInUse"]) {
        MongodError::Locked(path)
    } else if says(&[
        "Wrong mongod version",
        "UPGRADE PROBLEM",
        "featureCompatibilityVersion",
        "unsupported WiredTiger file version",
    ]) {
        MongodError::Version { path, cause }
    } else if says(&[
        "WT_PANIC",
        "WT_TRY_SALVAGE",
        "WiredTiger error",
        "Terminating.",
        "corrupt",
        "WiredTigerRecoveryError",
        "Failed to start up WiredTiger",
    ]) {
        MongodError::Damaged { path, cause }
    } else {
        MongodError::Ended { cause, log }
    }
}

/// Whether the disk is full. Then mongod cannot even log that.
fn is_full(probe: &Path) -> bool {
    let written = fs::write(probe, vec![0; PROBED]);
    let _ = fs::remove_file(probe);
    written.is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
}

/// The message of a line of mongod's log.
fn message(line: &str) -> String {
    let Ok(entry) = serde_json::from_str::<serde_json::Value>(line) else { return line.to_owned() };
    let text = entry.get("msg").and_then(|text| text.as_str()).unwrap_or(line);
    match entry.get("attr") {
        Some(details) => {
            format!("{text} {}", details.to_string().chars().take(300).collect::<String>())
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_noticed() {
        // `/dev/full` refuses every byte as a full disk does. Only a link to it is removed.
        let folder = tempfile::tempdir().unwrap();
        let full = folder.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        assert!(is_full(&full));
        assert!(!full.exists() && Path::new("/dev/full").exists());
        assert!(!is_full(&folder.path().join("empty")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the probe is removed");
    }
}
