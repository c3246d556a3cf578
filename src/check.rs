//! `--check`: finds problems of a move from the Node server, without changing anything.

use std::fmt::Write;
use std::time::Duration;

use secrecy::ExposeSecret;

use crate::app::{STRONG_SECRET, StartError};
use crate::config::database::Connector;
use crate::config::uri::MongoUri;
use crate::config::{Config, Mongo};
use crate::models::survey::{Finding, survey};

/// The timeout of all queries together.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The findings, as text for people.
#[derive(Debug, Clone, Default)]
pub struct Report {
    lines: String,
    problems: usize,
}

impl Report {
    /// Whether there is no problem.
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

    fn add(&mut self, finding: Finding) {
        match finding {
            Finding::Good(text) => self.good(text),
            Finding::Note(text) => self.note(text),
            Finding::Problem(text) => self.problem(text),
        }
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

/// Checks the configuration and its database.
///
/// # Errors
/// The connection string cannot be used.
pub async fn check(config: &Config) -> Result<Report, StartError> {
    let mut report = Report::default();
    report.good("the configuration can be read");
    match &config.jwt_secret {
        None => report.note("JWT_SECRET is not set: the server makes one for the embedded MongoDB"),
        Some(secret) if secret.expose_secret().len() < STRONG_SECRET => report.note(format_args!(
            "JWT_SECRET has {} bytes and can be guessed: use at least {STRONG_SECRET} as soon as \
             the tokens of the Node server need not stay valid",
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
    match tokio::time::timeout(TIMEOUT, survey(&database)).await {
        Ok(Ok(findings)) => findings.into_iter().for_each(|finding| report.add(finding)),
        Ok(Err(error)) => report.problem(format_args!("MongoDB: {error}")),
        Err(_) => report.problem(format_args!("MongoDB did not answer within {TIMEOUT:?}")),
    }
    Ok(report)
}
