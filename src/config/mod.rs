//! The configuration: every variable, read in one place, once.
//!
//! Nothing else in the program reads the environment. An invalid value stops the start, with a line
//! that names the variable, the value and what is allowed. Tests build a [`Config`] from a closure
//! instead of the environment.

pub mod database;
pub mod dotenv;
mod hints;
pub mod original;
mod units;
pub mod uri;
mod vars;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::protocols::cors::{BadOrigin, CorsOrigins};

use vars::Vars;

/// The name of every variable that [`Config::from_vars`] reads, in the order of `.env.example`.
/// `RUST_LOG` belongs to env_logger.
pub const VARIABLES: &[&str] = &[
    "PORT",
    "HOST",
    "MONGO_URI",
    "MONGODB_URI",
    "JWT_SECRET",
    "DATA_DIR",
    "MONGOD",
    "CORS_ORIGINS",
    "CORS_CREDENTIALS",
    "LEGACY_TRUST",
    "ERRORS",
    "PASSWORD_HASH",
    "RECOVERY_WINDOW",
    "RECOVERY_BYTES",
    "SHUTDOWN_TIMEOUT",
    "KEEP_ALIVE",
    "RATE_LIMIT_LOGIN",
    "RATE_LIMIT_LOGIN_NAME",
    "RATE_LIMIT_SEND",
    "RATE_LIMIT_CONNECT",
    "RATE_LIMIT_EVENTS",
    "RATE_LIMIT_ROOM",
    "RATE_LIMIT_USERS",
    "RATE_LIMIT_SIGNALS",
    "TRUST_PROXY",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_ADDRESS",
    "MAX_ROOMS_PER_SESSION",
    "WORKERS",
    "SOCKET_IO_CLIENT_DIR",
    "METRICS_TOKEN",
    "PRESENCE",
    "DEMO",
    "RUST_LOG",
];

const DEFAULT_URI: &str = "mongodb://127.0.0.1:27017/realTimeChatDatabase";

/// `MAX_CONNECTIONS` when it is not set.
pub const DEFAULT_MAX_CONNECTIONS: usize = 50_000;

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// `PORT`: where to listen; 0 takes a free port.
    pub port: u16,
    /// `HOST`: the address to listen on; `None` is every IPv4 and IPv6 address.
    pub host: Option<IpAddr>,
    /// `MONGO_URI`, `MONGODB_URI`, `DATA_DIR`, `MONGOD`: which MongoDB.
    pub mongo: Mongo,
    /// `JWT_SECRET`. `None` only with [`Mongo::Embedded`] or [`Mongo::Unset`]: then a secret is
    /// made and kept in the data folder.
    pub jwt_secret: Option<SecretString>,
    /// `DATA_DIR`, `MONGOD`: used when MongoDB is embedded.
    pub embedded: Embedded,
    /// `CORS_ORIGINS`, `CORS_CREDENTIALS`: the origins whose pages may read responses.
    pub cors: CorsOrigins,
    /// `LEGACY_TRUST`: trust any `sender`, and admit sockets without a token.
    pub legacy_trust: bool,
    /// `ERRORS`: the original's statuses and texts, or precise ones.
    pub errors: ErrorMode,
    /// `PASSWORD_HASH`: how new passwords are stored.
    pub password_hash: PasswordHash,
    /// `RECOVERY_WINDOW`: how long an event stays recoverable at least, unless `RECOVERY_BYTES` is
    /// reached.
    pub recovery_window: Duration,
    /// `RECOVERY_BYTES`: how much memory recent events may take.
    pub recovery_bytes: usize,
    /// `SHUTDOWN_TIMEOUT`: how long a stop may take.
    pub shutdown_timeout: Duration,
    /// `KEEP_ALIVE`: how long an idle connection is kept; zero keeps none.
    pub keep_alive: Duration,
    /// `RATE_LIMIT_LOGIN`: registrations, logins, refreshes and new passwords per minute and
    /// address; 0 is no limit.
    pub rate_limit_login: u32,
    /// `RATE_LIMIT_LOGIN_NAME`: failed logins per minute, name and address.
    pub rate_limit_login_name: u32,
    /// `RATE_LIMIT_SEND`: messages per minute and user.
    pub rate_limit_send: u32,
    /// `RATE_LIMIT_CONNECT`: handshakes per minute and address.
    pub rate_limit_connect: u32,
    /// `RATE_LIMIT_EVENTS`: events per minute and socket.
    pub rate_limit_events: u32,
    /// `RATE_LIMIT_ROOM`: new rooms per minute and user.
    pub rate_limit_room: u32,
    /// `RATE_LIMIT_USERS`: searches and look-ups of users per minute and user.
    pub rate_limit_users: u32,
    /// `RATE_LIMIT_SIGNALS`: read marks, and questions who is in a room, per minute and user.
    pub rate_limit_signals: u32,
    /// `TRUST_PROXY`: how many proxies in front set `X-Forwarded-For`.
    pub trust_proxy: u8,
    /// `MAX_CONNECTIONS`: sockets at once; `None` is [`DEFAULT_MAX_CONNECTIONS`], or as many as
    /// fit, without a warning.
    pub max_connections: Option<usize>,
    /// `MAX_CONNECTIONS_PER_ADDRESS`: sockets at once from one address; 0 is no limit.
    pub max_connections_per_address: usize,
    /// `MAX_ROOMS_PER_SESSION`: rooms that one socket may be in.
    pub max_rooms_per_session: usize,
    /// `WORKERS`: threads that serve requests.
    pub workers: usize,
    /// `SOCKET_IO_CLIENT_DIR`: the folder of the client bundle to serve.
    pub socket_io_client_dir: Option<PathBuf>,
    /// `METRICS_TOKEN`: what `/metrics` asks for as a bearer token.
    pub metrics_token: Option<SecretString>,
    /// `PRESENCE`: whether it can be asked who is online.
    pub presence: bool,
    /// `DEMO`: whether `/demo` is served.
    pub demo: bool,
    /// Hints about the variables, as sentences, to be logged at the start.
    pub notices: Vec<String>,
}

/// Which MongoDB to use.
#[derive(Debug, Clone)]
pub enum Mongo {
    /// One that runs already.
    Uri {
        /// The connection string; may hold a password, so it is not logged.
        uri: SecretString,
    },
    /// A private one, started with the server and stopped with it.
    Embedded,
    /// Not set: [`Mongo::Embedded`]. But if something listens on the port of the original's
    /// database, the server does not start.
    Unset,
}

impl Mongo {
    /// The database that the original used, on this machine.
    pub fn original() -> Self {
        Self::Uri { uri: DEFAULT_URI.into() }
    }
}

/// The paths of the embedded MongoDB.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// `DATA_DIR`: the folder of its data and of the generated secret.
    pub data_dir: PathBuf,
    /// `MONGOD`: its binary; `None` looks on `PATH`, then installs one.
    pub mongod: Option<PathBuf>,
}

/// The form of error responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorMode {
    /// The original's statuses and texts.
    Original,
    /// More precise statuses, and a code.
    Precise,
}

/// How new passwords are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordHash {
    /// argon2id; bcrypt hashes are replaced at login.
    Argon2id,
    /// bcrypt, for a deployment that may go back to Node; argon2id hashes are replaced at login.
    Bcrypt,
}

/// An invalid variable, or a needed one that is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value that is not allowed.
    #[error("{name}={value:?} is not allowed: {allowed}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its value; never that of a secret.
        value: String,
        /// The allowed values.
        allowed: &'static str,
    },
    /// An entry of `CORS_ORIGINS` that can match no page.
    #[error("CORS_ORIGINS={value:?} is not allowed: {:?} can match no page, {}", .bad.origin, .bad.reason)]
    Origin {
        /// The whole value.
        value: String,
        /// The entry, and why it matches nothing.
        bad: BadOrigin,
    },
    /// No secret although the database is not embedded.
    #[error(
        "JWT_SECRET is not set, so no token could be signed. Put the secret of your Node server \
         into .env, or make one: JWT_SECRET=$(openssl rand -hex 32)"
    )]
    NoSecret,
    /// An empty secret.
    #[error(
        "JWT_SECRET is set but empty {place}. Put the secret of your Node server there, or make \
         one: JWT_SECRET=$(openssl rand -hex 32)"
    )]
    EmptySecret {
        /// Where it is empty.
        place: &'static str,
    },
    /// A value that would be allowed without the quotes around it.
    #[error(
        "{name} is in quotes, which count as part of its value: docker's --env-file does not \
         remove them. Write it without quotes"
    )]
    Quoted {
        /// The variable.
        name: &'static str,
    },
}

impl Config {
    /// Reads the process environment. Variables that are not set there come from a `.env` file.
    ///
    /// # Errors
    /// A value that is not allowed.
    pub fn from_env(dotenv: &[(String, String)]) -> Result<Self, ConfigError> {
        let environment = |name: &str| std::env::var(name).ok();
        let file = |name: &str| {
            dotenv.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        Self::from_sources(environment, file)
    }

    /// Reads variables from an environment, and those that are not set there from a file. A
    /// variable that is empty in the environment counts as set there, as with npm's dotenv.
    fn from_sources(
        environment: impl Fn(&str) -> Option<String>,
        file: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::from_vars(|name| environment(name).or_else(|| file(name)))
            .map_err(|error| hints::explain(error, &environment, &file))?;
        config.notices.extend(hints::notices(&environment, &file));
        Ok(config)
    }

    /// Reads variables by `var`. An empty value counts as not set.
    ///
    /// # Errors
    /// A value that is not allowed.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars(&|name| var(name).filter(|value| !value.is_empty()));
        let jwt_secret = vars.get("JWT_SECRET");
        let mongo = vars.mongo(jwt_secret.is_some())?;
        if jwt_secret.is_none() && matches!(mongo, Mongo::Uri { .. }) {
            return Err(ConfigError::NoSecret);
        }
        let mut notices = Vec::new();
        Ok(Self {
            port: vars.parse("PORT", 5000, "a port from 0 to 65535")?,
            host: vars.host(&mut notices)?,
            mongo,
            jwt_secret: jwt_secret.map(Into::into),
            embedded: Embedded {
                data_dir: vars.get("DATA_DIR").unwrap_or_else(|| "data".to_owned()).into(),
                mongod: vars.get("MONGOD").map(Into::into),
            },
            cors: vars.cors()?,
            legacy_trust: vars.flag("LEGACY_TRUST", false)?,
            errors: vars.choice(
                "ERRORS",
                &[("original", ErrorMode::Original), ("precise", ErrorMode::Precise)],
                "original or precise",
            )?,
            password_hash: vars.choice(
                "PASSWORD_HASH",
                &[("argon2id", PasswordHash::Argon2id), ("bcrypt", PasswordHash::Bcrypt)],
                "argon2id or bcrypt",
            )?,
            recovery_window: vars.duration(
                "RECOVERY_WINDOW",
                120,
                86_400,
                "a duration of at most 24h, such as 120 (seconds), 120s or 2m",
            )?,
            recovery_bytes: vars.bytes("RECOVERY_BYTES", 64 << 20)?,
            shutdown_timeout: vars.duration("SHUTDOWN_TIMEOUT", 10, 3600, UP_TO_AN_HOUR)?,
            keep_alive: vars.duration("KEEP_ALIVE", 6, 3600, UP_TO_AN_HOUR)?,
            rate_limit_login: vars.parse("RATE_LIMIT_LOGIN", 600, PER_MINUTE)?,
            rate_limit_login_name: vars.parse("RATE_LIMIT_LOGIN_NAME", 30, PER_MINUTE)?,
            rate_limit_send: vars.parse("RATE_LIMIT_SEND", 3000, PER_MINUTE)?,
            rate_limit_connect: vars.parse("RATE_LIMIT_CONNECT", 6000, PER_MINUTE)?,
            rate_limit_events: vars.parse("RATE_LIMIT_EVENTS", 6000, PER_MINUTE)?,
            rate_limit_room: vars.parse("RATE_LIMIT_ROOM", 600, PER_MINUTE)?,
            rate_limit_users: vars.parse("RATE_LIMIT_USERS", 300, PER_MINUTE)?,
            rate_limit_signals: vars.parse("RATE_LIMIT_SIGNALS", 3000, PER_MINUTE)?,
            trust_proxy: vars.parse("TRUST_PROXY", 0, "the number of proxies, 0 to 255")?,
            max_connections: vars.in_range(
                "MAX_CONNECTIONS",
                1..=10_000_000,
                "a whole number from 1 to 10000000",
            )?,
            max_connections_per_address: vars
                .in_range(
                    "MAX_CONNECTIONS_PER_ADDRESS",
                    0..=10_000_000,
                    "a whole number from 0 (no limit) to 10000000",
                )?
                .unwrap_or(0),
            max_rooms_per_session: vars
                .in_range("MAX_ROOMS_PER_SESSION", 1..=10_000, "a whole number from 1 to 10000")?
                .unwrap_or(10_000),
            workers: vars
                .in_range("WORKERS", 1..=1024, "a whole number from 1 to 1024")?
                .unwrap_or_else(cores),
            socket_io_client_dir: vars.get("SOCKET_IO_CLIENT_DIR").map(Into::into),
            metrics_token: vars.get("METRICS_TOKEN").map(Into::into),
            presence: vars.flag("PRESENCE", true)?,
            demo: vars.flag("DEMO", true)?,
            notices,
        })
    }
}

const PER_MINUTE: &str = "a whole number per minute, 0 for no limit";
const UP_TO_AN_HOUR: &str = "a duration of at most 1h, such as 10 (seconds), 10s or 1m";
/// How many processors this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn config(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_defaults_are_the_originals() {
        let config = config(&[("JWT_SECRET", "s")]).unwrap();
        assert_eq!(config.port, 5000);
        assert_eq!(config.host, None);
        assert!(matches!(config.mongo, Mongo::Uri { .. }));
        assert_eq!(config.errors, ErrorMode::Original);
        assert_eq!(config.cors, CorsOrigins::Any);
        assert!(!config.legacy_trust);
    }

    #[test]
    fn nothing_set_leaves_the_database_open_and_a_uri_needs_a_secret() {
        assert!(matches!(config(&[]).unwrap().mongo, Mongo::Unset));
        assert!(matches!(config(&[("MONGO_URI", "embedded")]).unwrap().mongo, Mongo::Embedded));
        let uri = ("MONGODB_URI", "mongodb://db/chat");
        assert_eq!(config(&[uri]).unwrap_err(), ConfigError::NoSecret);
        assert!(config(&[uri, ("JWT_SECRET", "s")]).is_ok());
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        for (name, value) in [
            ("PORT", "70000"),
            ("HOST", "localhost:80"),
            ("MONGO_URI", "postgres://x"),
            ("CORS_CREDENTIALS", "true"),
            ("LEGACY_TRUST", "yes"),
            ("ERRORS", "loud"),
            ("PASSWORD_HASH", "md5"),
            ("RECOVERY_WINDOW", "soon"),
            ("RECOVERY_WINDOW", "25h"),
            ("RECOVERY_BYTES", "17GiB"),
            ("KEEP_ALIVE", "-1"),
            ("HOST", "10.0.0.300"),
            ("WORKERS", "0"),
            ("MAX_CONNECTIONS", "-1"),
        ] {
            let error = config(&[("JWT_SECRET", "s"), (name, value)]).unwrap_err();
            assert!(matches!(&error, ConfigError::Invalid { name: named, .. } if *named == name));
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn an_origin_that_matches_nobody_is_named_with_the_reason() {
        let list = "https://a.example, https://b.example/chat";
        let error = config(&[("JWT_SECRET", "s"), ("CORS_ORIGINS", list)]).unwrap_err().to_string();
        for said in [list, "\"https://b.example/chat\" can match no page", "has no path"] {
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn credentials_need_a_list_of_real_origins() {
        let origins = |origins: &str| {
            let vars =
                [("JWT_SECRET", "s"), ("CORS_CREDENTIALS", "true"), ("CORS_ORIGINS", origins)];
            config(&vars).map(|config| config.cors)
        };
        assert!(
            matches!(origins("https://a.example"), Ok(CorsOrigins::List(list)) if list.credentials)
        );
        for refused in ["", "*", "https://a.example,null"] {
            let error = origins(refused).unwrap_err().to_string();
            assert!(error.starts_with("CORS_CREDENTIALS=\"true\""), "{error}");
        }
    }

    #[test]
    fn sizes_and_durations_have_units_and_a_refusal_says_what_is_taken() {
        let vars = [
            ("JWT_SECRET", "s"),
            ("RECOVERY_BYTES", "64MiB"),
            ("RECOVERY_WINDOW", "120s"),
            ("SHUTDOWN_TIMEOUT", "1m"),
            ("KEEP_ALIVE", "0"),
        ];
        let config = config(&vars).unwrap();
        assert_eq!(config.recovery_bytes, 64 << 20);
        assert_eq!(config.recovery_window, Duration::from_secs(120));
        assert_eq!(config.shutdown_timeout, Duration::from_secs(60));
        assert_eq!(config.keep_alive, Duration::ZERO);
        for (name, taken) in [
            ("RECOVERY_BYTES", "64MiB"),
            ("RECOVERY_WINDOW", "120s"),
            ("KEEP_ALIVE", "10s"),
            ("MAX_CONNECTIONS", "from 1 to 10000000"),
            ("WORKERS", "from 1 to 1024"),
        ] {
            let error = self::config(&[("JWT_SECRET", "s"), (name, "many")]).unwrap_err();
            assert!(error.to_string().contains(taken), "{error}");
        }
    }

    #[test]
    fn a_name_as_host_is_no_address() {
        let host = |host| config(&[("JWT_SECRET", "s"), ("HOST", host)]).unwrap();
        assert_eq!(host("localhost").host, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(host("::1").host, Some("::1".parse().unwrap()));
        for name in ["build-host", "x86_64-conda-linux-gnu", "ann.example.com"] {
            let config = host(name);
            assert_eq!(config.host, None);
            assert!(matches!(&config.notices[..], [said] if said.contains(name)));
        }
    }

    #[test]
    fn what_was_set_and_does_not_count_is_said() {
        type Vars<'a> = &'a [(&'a str, &'a str)];
        let read = |environment: Vars<'_>, file: Vars<'_>| {
            let find = |vars: Vars<'_>, name: &str| {
                vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            Config::from_sources(|name| find(environment, name), |name| find(file, name))
        };
        let uri = ("MONGO_URI", "mongodb://db/chat");
        for (environment, file, said) in [
            (&[("JWT_SECRET", ""), uri][..], &[("JWT_SECRET", "s")][..], ".env is not read"),
            (&[uri], &[("JWT_SECRET", "")], "set but empty in .env"),
            (&[uri], &[], "JWT_SECRET is not set"),
            (&[("MONGO_URI", "\"mongodb://db/x\"")], &[], "MONGO_URI is in quotes"),
            (&[("PORT", "'80'")], &[], "PORT is in quotes"),
        ] {
            let error = read(environment, file).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for (environment, file, said) in [
            (&[("JWT_SECRET", "\"s\""), uri][..], &[][..], "JWT_SECRET is in quotes"),
            (&[("JWT_SECRET", "s"), ("ERRORS", "")], &[("ERRORS", "precise")], "ERRORS is set but"),
            (&[("MONGO_URL", "mongodb://db")], &[], "MONGO_URL is a connection string"),
            (&[], &[("DATABASE_URL", "mongodb+srv://db")], "DATABASE_URL is a connection string"),
        ] {
            let notices = read(environment, file).unwrap().notices;
            assert!(matches!(&notices[..], [notice] if notice.contains(said)), "{notices:?}");
        }
        let quiet = [("DATABASE_URL", "postgres://db"), ("WORKERS", "")];
        assert!(read(&quiet, &[("JWT_SECRET", "'s"), uri]).unwrap().notices.is_empty());
    }

    #[test]
    fn a_connection_string_is_never_shown() {
        let error = config(&[("MONGO_URI", "mongo//user:hunter2@db")]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
        let shown = format!(
            "{:?}",
            config(&[("MONGO_URI", "mongodb://u:hunter2@db"), ("JWT_SECRET", "s3cr3t")]).unwrap()
        );
        assert!(!shown.contains("hunter2") && !shown.contains("s3cr3t"), "{shown}");
    }

    #[test]
    fn the_example_file_names_every_variable_with_its_default() {
        let example = include_str!("../../.env.example");
        let named = |line: &str| {
            let (name, value) = line.trim_start_matches("# ").split_once('=')?;
            let is_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            is_name.then(|| (name.to_owned(), value.to_owned()))
        };
        let shown: Vec<(String, String)> = example.lines().filter_map(named).collect();
        let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
        for name in VARIABLES {
            assert_eq!(names.iter().filter(|shown| *shown == name).count(), 1, "{name}");
        }
        assert_eq!(names.len(), VARIABLES.len(), "{names:?}");

        let read = |shown: &[(String, String)]| {
            let mut config = Config::from_vars(|name| match name {
                "JWT_SECRET" => Some("s".to_owned()),
                name => shown.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()),
            })
            .unwrap();
            config.workers = 0;
            config.max_connections.get_or_insert(DEFAULT_MAX_CONNECTIONS);
            format!("{config:?}")
        };
        assert_eq!(read(&shown), read(&[]), "the values shown are the defaults");
    }
}
