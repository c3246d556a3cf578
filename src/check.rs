//! `--check`: what a move from Node would meet, without changing anything.

use std::fmt::Write;
use std::time::Duration;

use secrecy::ExposeSecret;

use crate::app::{STRONG_SECRET, StartError};
use crate::config::database::Connector;
use crate::config::uri::MongoUri;
use crate::config::{Config, Mongo, PasswordHash};
use crate::models::Store;
use crate::models::survey::Survey;

/// How long all questions together may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was found, for people.
#[derive(Debug, Clone, Default)]
pub struct Report {
    lines: String,
    problems: usize,
}

impl Report {
    /// Whether nothing stands in the way.
    pub fn is_good(&self) -> bool {
        self.problems == 0
    }

    fn good(&mut self, line: impl std::fmt::Display) {
        self.line("ok     ", line);
    }

    fn note(&mut self, line: impl std::fmt::Display) {
        self.line("note   ", line);
    }

    fn problem(&mut self, line: impl std::fmt::Display) {
        self.problems += 1;
        self.line("problem", line);
    }

    fn line(&mut self, kind: &str, line: impl std::fmt::Display) {
        writeln!(self.lines, "{kind}  {line}").expect("writing to a string cannot fail");
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines)
    }
}

/// Looks at the configuration and at the database that it names.
///
/// # Errors
/// The connection string cannot be used.
pub async fn check(config: &Config) -> Result<Report, StartError> {
    let mut report = Report::default();
    report.good("the configuration can be read");
    match &config.jwt_secret {
        None => report.note("JWT_SECRET is not set: one is made for the embedded MongoDB"),
        Some(secret) if secret.expose_secret().len() < STRONG_SECRET => report.note(format_args!(
            "JWT_SECRET has {} bytes; tokens of Node stay valid with it, but {STRONG_SECRET} could \
             not be guessed",
            secret.expose_secret().len()
        )),
        Some(_) => report.good("JWT_SECRET is long enough"),
    }
    let Mongo::Uri { uri } = &config.mongo else {
        report.note("MONGO_URI is not set: the server would use the embedded MongoDB");
        return Ok(report);
    };
    let uri = MongoUri::parse(uri.expose_secret())?;
    let connector = Connector::new(&uri).await.map_err(StartError::Connector)?;
    let database = connector.connect().map_err(StartError::Connector)?;
    let store = Store::new(database, &Default::default());
    match tokio::time::timeout(PATIENCE, Survey::of(store.database())).await {
        Ok(Ok(survey)) => describe(&mut report, config, &survey),
        Ok(Err(error)) => report.problem(format_args!("MongoDB: {error}")),
        Err(_) => report.problem(format_args!("MongoDB did not answer within {PATIENCE:?}")),
    }
    Ok(report)
}

fn describe(report: &mut Report, config: &Config, survey: &Survey) {
    match &survey.replica_set {
        Some(name) => report.good(format_args!("MongoDB {}, replica set {name}", survey.version)),
        None => report.note(format_args!(
            "MongoDB {} is a standalone: REST works, messages reach the sockets of one process \
             only. Restart mongod with --replSet rs0 and run rs.initiate() to have them everywhere, \
             in one order, without loss",
            survey.version
        )),
    }
    let counts: Vec<String> =
        survey.counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    report.good(counts.join(", "));
    for (what, values) in &survey.duplicates {
        report.problem(format_args!(
            "{what} that exist more than once: {values}. The unique index cannot be built; until \
             they are renamed, new ones are looked up before each insert"
        ));
    }
    if survey.duplicates.is_empty() {
        report.good("names are unique");
    }
    let hashes: Vec<String> =
        survey.hashes.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if !hashes.is_empty() {
        report.good(format_args!("password hashes: {}", hashes.join(", ")));
    }
    let is_bcrypt = |kind: &String| kind.starts_with("$2");
    if config.password_hash == PasswordHash::Argon2id && survey.hashes.keys().any(is_bcrypt) {
        report.note(
            "bcrypt hashes are replaced by argon2id at login, which bcryptjs cannot read: set \
             PASSWORD_HASH=bcrypt while Node may come back",
        );
    }
    if survey.odd_messages > 0 {
        report.note(format_args!(
            "{} documents in messages have fields of other types and are skipped",
            survey.odd_messages
        ));
    }
    match &survey.missing_privileges {
        Some(missing) if !missing.is_empty() => report.problem(format_args!(
            "the user of MONGO_URI lacks: {}. The role readWrite has them",
            missing.join(", ")
        )),
        Some(_) => report.good("the user of MONGO_URI has the privileges that are needed"),
        None => report.note("MongoDB asks nobody for a password"),
    }
}
