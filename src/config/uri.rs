//! The connection string: translates its meaning for the Node driver into a string for the Rust
//! driver.
//!
//! A deployment brings the string that it gave to Mongoose. So the database is the one that
//! Mongoose would use, and every option of the Node driver is known, in any letter case. An option
//! is passed on, decided by this server, ignored, or refused with a reason. Strings that the Node
//! driver refuses are refused. `tests/uris.json` has the results of the Node driver.

use std::collections::HashSet;

use mongodb::options::ConnectionString;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::SecretString;

/// The database when the string names none, as for Mongoose.
const DEFAULT_DATABASE: &str = "test";
/// The longest name of a database, in bytes.
const MAX_NAME: usize = 63;
/// The shortest time between two checks of a node, in milliseconds. The Node driver raises shorter
/// ones, too.
const MIN_HEARTBEAT: u32 = 500;

/// A parsed connection string.
pub struct MongoUri {
    /// The string for the driver; it may contain a password.
    pub(super) text: SecretString,
    /// The name of the database.
    pub database: String,
    /// Whether the string names the database.
    pub names_database: bool,
    /// The name in `mongodb+srv://`, which has to be resolved to find the nodes.
    pub srv_name: Option<String>,
    /// The options that are ignored.
    pub passed_over: Vec<&'static str>,
    /// How many connections each client may have, if the string says so.
    pub pool_size: Option<u32>,
}

/// Why a connection string cannot be used. No variant holds a user's name or password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// An option that the Node driver does not know either.
    #[error("{0:?} is not an option of a connection string")]
    Unknown(String),
    /// An option of the Node driver that is not supported here.
    #[error("its option {name} {why}")]
    Refused {
        /// The option.
        name: &'static str,
        /// Why, and what to do.
        why: &'static str,
    },
    /// An invalid value.
    #[error("its option {name} must be {allowed}")]
    Value {
        /// The option.
        name: &'static str,
        /// The allowed values.
        allowed: &'static str,
    },
    /// A repeated option.
    #[error("its option {0} is repeated")]
    Repeated(&'static str),
    /// An invalid name of a database.
    #[error(
        "{0:?} cannot be the name of a database: at most {MAX_NAME} bytes, without spaces and any \
         of / \\ . \" $"
    )]
    Database(String),
    /// A question mark or a number sign in a user's name or password.
    #[error(
        "a user's name or password in it has a character that must be written in percent encoding \
         (such as %3F for ?, %40 for @, %2F for /)"
    )]
    Userinfo,
    /// The error of the driver.
    #[error("{0}")]
    Malformed(String),
}

/// How an option of the Node driver is handled.
#[derive(Clone, Copy)]
enum Meaning {
    /// Passed on as it is.
    Text,
    /// Passed on; `true` or `false`.
    Flag,
    /// Passed on; a whole number.
    Number,
    /// Passed on, except 0, which would remove a limit that stays here.
    Limit,
    /// The name of the database, unless the path has one.
    Database,
    /// The mechanism of authentication.
    Mechanism,
    /// Decided by this server, which uses this value.
    Decided(&'static str),
    /// Ignored.
    Ignored,
    /// Not supported, unless it is `false`.
    Refused(&'static str),
    /// Can only be set by code, not by a connection string.
    Code,
}

use Meaning::{Code, Database, Decided, Flag, Ignored, Limit, Mechanism, Number, Refused, Text};

const NODE_TLS: &str = "sets up TLS in a way that only Node knows: use tlsCAFile and \
                        tlsCertificateKeyFile, which name files";
const PROXY: &str = "asks for a SOCKS proxy, which cannot be used here";

/// The options of the Node driver 6.12, which Mongoose 8.9 uses.
const OPTIONS: &[(&str, Meaning)] = &[
    ("appName", Text),
    ("auth", Ignored),
    ("authMechanism", Mechanism),
    ("authMechanismProperties", Text),
    ("authSource", Text),
    ("autoEncryption", Code),
    ("autoSelectFamily", Ignored),
    ("autoSelectFamilyAttemptTimeout", Ignored),
    ("bsonRegExp", Ignored),
    ("serverApi", Code),
    ("checkKeys", Ignored),
    ("compressors", Ignored),
    ("connectTimeoutMS", Limit),
    ("dbName", Database),
    ("directConnection", Flag),
    ("driverInfo", Code),
    ("enableUtf8Validation", Ignored),
    ("family", Ignored),
    ("fieldsAsRaw", Code),
    ("forceServerObjectId", Ignored),
    ("fsync", Ignored),
    ("heartbeatFrequencyMS", Number),
    ("ignoreUndefined", Ignored),
    ("j", Decided("true")),
    ("journal", Decided("true")),
    ("loadBalanced", Flag),
    ("localThresholdMS", Number),
    ("maxConnecting", Number),
    ("maxIdleTimeMS", Number),
    ("maxPoolSize", Limit),
    ("maxStalenessSeconds", Decided("-1")),
    ("minInternalBufferSize", Ignored),
    ("minPoolSize", Number),
    ("minHeartbeatFrequencyMS", Ignored),
    ("monitorCommands", Ignored),
    ("name", Ignored),
    ("noDelay", Ignored),
    ("pkFactory", Code),
    ("promoteBuffers", Ignored),
    ("promoteLongs", Ignored),
    ("promoteValues", Ignored),
    ("useBigInt64", Ignored),
    ("proxyHost", Refused(PROXY)),
    ("proxyPassword", Refused(PROXY)),
    ("proxyPort", Refused(PROXY)),
    ("proxyUsername", Refused(PROXY)),
    ("raw", Ignored),
    ("readConcern", Code),
    ("readConcernLevel", Decided("local")),
    ("readPreference", Decided("primary")),
    ("readPreferenceTags", Decided("")),
    ("replicaSet", Text),
    ("retryReads", Flag),
    ("retryWrites", Flag),
    ("serializeFunctions", Ignored),
    ("serverMonitoringMode", Text),
    ("serverSelectionTimeoutMS", Limit),
    ("servername", Refused(NODE_TLS)),
    ("socketTimeoutMS", Ignored),
    ("srvMaxHosts", Number),
    ("srvServiceName", Text),
    ("ssl", Flag),
    ("timeoutMS", Ignored),
    ("tls", Flag),
    ("tlsAllowInvalidCertificates", Flag),
    (
        "tlsAllowInvalidHostnames",
        Refused(
            "asks to believe the certificate of any server, which cannot be done here: use a \
             certificate with the server's name, or tlsAllowInvalidCertificates=true on a network \
             that nobody else uses, which checks nothing",
        ),
    ),
    ("tlsCAFile", Text),
    ("tlsCRLFile", Refused("names a list of revoked certificates, which is not checked here")),
    ("tlsCertificateKeyFile", Text),
    (
        "tlsCertificateKeyFilePassword",
        Refused(
            "is for an encrypted key, which cannot be read here: decrypt it (openssl pkey) and \
             protect the file instead",
        ),
    ),
    // The Rust driver has one switch for this: like `tlsAllowInvalidCertificates`, it turns off all
    // checks.
    ("tlsInsecure", Flag),
    ("w", Decided("majority")),
    ("waitQueueTimeoutMS", Ignored),
    ("writeConcern", Decided("majority")),
    ("wtimeout", Decided("0")),
    ("wtimeoutMS", Decided("0")),
    ("zlibCompressionLevel", Ignored),
    ("connectionType", Ignored),
    ("srvPoller", Ignored),
    ("allowPartialTrustChain", Refused(NODE_TLS)),
    ("minDHSize", Refused(NODE_TLS)),
    ("pskCallback", Refused(NODE_TLS)),
    ("secureContext", Refused(NODE_TLS)),
    ("enableTrace", Ignored),
    ("requestCert", Ignored),
    // Node compares it with the boolean `false`, and a string never equals that.
    ("rejectUnauthorized", Ignored),
    ("checkServerIdentity", Refused(NODE_TLS)),
    ("ALPNProtocols", Ignored),
    ("SNICallback", Ignored),
    ("session", Ignored),
    ("requestOCSP", Ignored),
    ("localAddress", Ignored),
    ("localPort", Ignored),
    ("hints", Ignored),
    ("lookup", Ignored),
    ("ca", Refused(NODE_TLS)),
    ("cert", Refused(NODE_TLS)),
    ("ciphers", Refused(NODE_TLS)),
    ("crl", Refused(NODE_TLS)),
    ("ecdhCurve", Refused(NODE_TLS)),
    ("key", Refused(NODE_TLS)),
    ("passphrase", Refused(NODE_TLS)),
    ("pfx", Refused(NODE_TLS)),
    ("secureProtocol", Refused(NODE_TLS)),
    ("index", Ignored),
    ("useNewUrlParser", Ignored),
    ("useUnifiedTopology", Ignored),
    ("mongodbLogPath", Ignored),
    ("mongodbLogComponentSeverities", Code),
    ("mongodbLogMaxDocumentLength", Ignored),
];

const MECHANISMS: &[&str] = &["SCRAM-SHA-1", "SCRAM-SHA-256", "MONGODB-X509", "PLAIN"];

impl MongoUri {
    /// Parses a connection string, without using the network.
    ///
    /// # Errors
    /// It cannot be used; the error says why and shows no password.
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        let uri = uri.trim();
        let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        let (userinfo, hosts) = address.rsplit_once('@').map_or(("", address), |(u, h)| (u, h));
        let (hosts, path) = hosts.split_once('/').unwrap_or((hosts, ""));
        let (hosts, fragment_at_once) =
            hosts.split_once('#').map_or((hosts, false), |(hosts, _)| (hosts, true));
        let path = path.split_once('#').map_or(path, |(path, _)| path).trim_end();
        let path = if fragment_at_once { "" } else { path };

        let mut options = Options::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            options.take(pair).map_err(|error| match error {
                // The name of the option may be the rest of a password, which must not be shown.
                UriError::Unknown(_) if query.contains('@') => UriError::Userinfo,
                error => error,
            })?;
        }
        if options.tls.iter().any(|value| options.tls.first() != Some(value)) {
            return Err(UriError::Value { name: "tls", allowed: "the same as ssl" });
        }

        let named = percent_decode_str(path).decode_utf8();
        let named = named.map_err(|_| UriError::Database(path.to_owned()))?.into_owned();
        let named = Some(named).filter(|name| !name.is_empty()).or(options.database);
        if let Some(name) = &named {
            check_name(name)?;
        }
        let userinfo = match userinfo {
            "" if address.contains('@') => "@".to_owned(),
            "" => String::new(),
            userinfo => format!("{userinfo}@"),
        };
        let path = named.as_deref().map(encoded).unwrap_or_default();
        let text = format!("{scheme}://{userinfo}{hosts}/{path}?{}", options.passed_on.join("&"));
        let text = text.trim_end_matches('?');
        let parsed =
            ConnectionString::parse(text).map_err(|error| UriError::Malformed(words(&error)))?;
        if parsed.direct_connection == Some(true) && hosts.contains(',') {
            let why = "is for one host, but the connection string has several";
            return Err(UriError::Refused { name: "directConnection", why });
        }
        Ok(Self {
            text: text.into(),
            names_database: named.is_some(),
            database: named.unwrap_or_else(|| DEFAULT_DATABASE.to_owned()),
            srv_name: (scheme == "mongodb+srv").then(|| hosts.to_owned()),
            passed_over: options.passed_over,
            pool_size: options.pool_size,
        })
    }
}

/// The options while they are being read.
#[derive(Default)]
struct Options {
    /// The names as they are written: the Node driver only counts a name in the same letter case as
    /// repeated.
    seen: HashSet<String>,
    named: HashSet<&'static str>,
    passed_on: Vec<String>,
    passed_over: Vec<&'static str>,
    tls: Vec<String>,
    database: Option<String>,
    pool_size: Option<u32>,
}

impl Options {
    fn take(&mut self, pair: &str) -> Result<(), UriError> {
        let decoded = form_urlencoded::parse(pair.as_bytes()).next();
        let (written, value) = decoded.ok_or_else(|| UriError::Unknown(String::new()))?;
        let known = OPTIONS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&written));
        let &(name, meaning) = known.ok_or_else(|| UriError::Unknown(written.to_string()))?;
        let may_repeat = name == "readPreferenceTags";
        if !may_repeat {
            if !self.seen.insert(written.into_owned()) {
                return Err(UriError::Repeated(name));
            }
            if value.is_empty() {
                return Err(UriError::Value { name, allowed: "followed by = and a value" });
            }
        }
        // A repetition in another letter case: the first one counts.
        if !self.named.insert(name) && !may_repeat {
            return Ok(());
        }
        match meaning {
            Text => self.pass_on(name, &value),
            Flag => {
                if !["true", "false"].contains(&&*value) {
                    return Err(UriError::Value { name, allowed: "true or false" });
                }
                if ["tls", "ssl"].contains(&name) {
                    self.tls.push(value.to_string());
                }
                self.pass_on(name, &value);
            }
            Number | Limit => {
                let number = whole_number(&value)
                    .filter(|number| *number > 0 || name != "maxConnecting")
                    .ok_or(UriError::Value {
                        name,
                        allowed: "a whole number that is not negative",
                    })?;
                match name {
                    _ if number == 0 && matches!(meaning, Limit) => self.ignore(name),
                    "heartbeatFrequencyMS" => self.pass_on(name, &number.max(MIN_HEARTBEAT)),
                    _ => self.pass_on(name, &number),
                }
                if name == "maxPoolSize" && number > 0 {
                    self.pool_size = Some(number);
                }
            }
            Database => self.database = Some(value.into_owned()),
            Mechanism => {
                let value = value.to_ascii_uppercase();
                if value != "DEFAULT" {
                    let known = MECHANISMS.contains(&value.as_str());
                    let why = "must be SCRAM-SHA-1, SCRAM-SHA-256, MONGODB-X509 or PLAIN here";
                    if !known {
                        return Err(UriError::Refused { name, why });
                    }
                    self.pass_on(name, &value);
                }
            }
            Decided(ours) => {
                if value != ours {
                    self.ignore(name);
                }
            }
            Ignored => self.ignore(name),
            Refused(_) if value == "false" => {}
            Refused(why) => return Err(UriError::Refused { name, why }),
            Code => return Err(UriError::Refused { name, why: "can only be set by code" }),
        }
        Ok(())
    }

    fn pass_on(&mut self, name: &str, value: &impl ToString) {
        self.passed_on.push(format!("{name}={}", encoded(&value.to_string())));
    }

    fn ignore(&mut self, name: &'static str) {
        if !self.passed_over.contains(&name) {
            self.passed_over.push(name);
        }
    }
}

/// The number at the beginning of a value, as `Number.parseInt` reads it, limited to what the
/// driver takes.
fn whole_number(value: &str) -> Option<u32> {
    let value = value.trim_start();
    let value = value.strip_prefix('+').unwrap_or(value);
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let digits = value.get(..end).filter(|digits| !digits.is_empty())?;
    Some(digits.parse().unwrap_or(u32::MAX))
}

fn check_name(name: &str) -> Result<(), UriError> {
    let refused = |c: char| c.is_control() || matches!(c, '/' | '\\' | '.' | ' ' | '"' | '$');
    if name.len() > MAX_NAME || name.contains(refused) {
        return Err(UriError::Database(name.to_owned()));
    }
    Ok(())
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The message of a driver's error without its kind and labels.
fn words(error: &mongodb::error::Error) -> String {
    match &*error.kind {
        mongodb::error::ErrorKind::InvalidArgument { message, .. } => message.clone(),
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use serde::Deserialize;

    use super::*;

    /// Results of Node's driver for connection strings; `tests/uris.js` recorded them.
    #[derive(Deserialize)]
    struct Table {
        uris: Vec<Recorded>,
        /// Each option, with a value that is taken, if there is one.
        options: Vec<(String, Option<String>)>,
    }

    #[derive(Deserialize)]
    struct Recorded {
        uri: String,
        database: Option<String>,
        /// The database that has the user.
        source: Option<String>,
        #[serde(default)]
        refused: bool,
    }

    fn table() -> Table {
        serde_json::from_str(include_str!("../../tests/uris.json")).unwrap()
    }

    fn driver(uri: &MongoUri) -> ConnectionString {
        ConnectionString::parse(uri.text.expose_secret()).unwrap()
    }

    fn error(uri: &str) -> String {
        match MongoUri::parse(uri) {
            Ok(_) => panic!("not refused: {uri}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_database_is_the_one_that_mongoose_would_use() {
        for case in table().uris.into_iter().filter(|case| !case.refused) {
            let uri = MongoUri::parse(&case.uri).unwrap_or_else(|e| panic!("{}: {e}", case.uri));
            assert_eq!(Some(&uri.database), case.database.as_ref(), "{}", case.uri);
            let options = driver(&uri);
            let source = options.credential.filter(|c| c.username.is_some()).map(|credential| {
                let unless_named = options.default_database.unwrap_or_else(|| "admin".to_owned());
                credential.source.unwrap_or(unless_named)
            });
            assert_eq!(source, case.source, "{}", case.uri);
        }
    }

    #[test]
    fn what_the_node_driver_refuses_is_refused() {
        let refused: Vec<_> = table().uris.into_iter().filter(|case| case.refused).collect();
        assert!(refused.len() > 20);
        for case in refused {
            assert!(MongoUri::parse(&case.uri).is_err(), "{}", case.uri);
        }
    }

    #[test]
    fn every_option_of_the_node_driver_is_taken_or_refused_with_a_reason_in_any_letter_case() {
        let table = table();
        assert_eq!(table.options.len(), OPTIONS.len());
        for (name, value) in table.options {
            for name in [name.clone(), name.to_uppercase(), name.to_lowercase()] {
                let Some(value) = &value else {
                    error(&format!("mongodb://u:p@h/?{name}=true"));
                    continue;
                };
                match MongoUri::parse(&format!("mongodb://u:p@h/?{name}={value}")) {
                    Ok(_) | Err(UriError::Refused { .. }) => {}
                    Err(error) => panic!("{name}={value}: {error}"),
                }
            }
        }
    }

    #[test]
    fn what_has_no_meaning_here_is_named_once() {
        let uri = "mongodb://h/chat?useNewUrlParser=true&FAMILY=4&family=6&maxPoolSize=0&w=1\
                   &readPreferenceTags=a:b&readPreferenceTags=";
        let uri = MongoUri::parse(uri).unwrap();
        let expected = ["useNewUrlParser", "family", "maxPoolSize", "w", "readPreferenceTags"];
        assert_eq!(uri.passed_over, expected);
        let atlas = "mongodb+srv://u:p@c.example.com/?retryWrites=true&w=majority&appName=Cluster0";
        assert!(MongoUri::parse(atlas).unwrap().passed_over.is_empty());
    }

    #[test]
    fn values_are_passed_on() {
        let uri = "mongodb://u:p@h:1/?maxpoolsize=7x&TLS=true&tlsCAFile=%2Ftmp%2Fa+b.pem\
                   &connectTimeoutMS=5&replicaSet=r%26s";
        let uri = MongoUri::parse(uri).unwrap();
        let options = driver(&uri);
        assert_eq!((options.max_pool_size, uri.pool_size), (Some(7), Some(7)));
        assert_eq!(options.replica_set.as_deref(), Some("r&s"));
        assert_eq!(options.connect_timeout, Some(std::time::Duration::from_millis(5)));
        let Some(mongodb::options::Tls::Enabled(tls)) = options.tls else { panic!("no TLS") };
        assert_eq!(tls.ca_file_path.as_deref(), Some(std::path::Path::new("/tmp/a b.pem")));
    }

    #[test]
    fn what_would_weaken_or_change_security_is_refused_with_a_sentence() {
        for (option, said) in [
            ("tlsAllowInvalidHostnames=true", "tlsAllowInvalidCertificates=true"),
            ("tlscrlfile=/x", "tlsCRLFile names a list of revoked certificates"),
            ("tlsCertificateKeyFilePassword=x", "openssl pkey"),
            ("ca=x", "tlsCAFile"),
            ("proxyHost=x", "SOCKS proxy"),
            ("authMechanism=MONGODB-AWS", "SCRAM-SHA-256"),
        ] {
            let error = error(&format!("mongodb://u:p@h/?{option}"));
            assert!(error.contains(said), "{option}: {error}");
        }
        assert!(MongoUri::parse("mongodb://h/?tlsAllowInvalidHostnames=false").is_ok());
    }

    #[test]
    fn an_unknown_option_is_named_and_a_password_never() {
        assert!(error("mongodb://h/?useCreateIndex=true").contains("\"useCreateIndex\""));
        for uri in [
            "mongodb://u:hunter2?x@h/chat",
            "mongodb://u:x?hunter2@h/chat",
            "mongodb://u:x?hunter2=1@h/chat",
            "mongodb://u:a?b@hunter2@h/?x=y",
            "mongodb://u:hunter2/x@h/chat",
            "mongodb://u:hunter2#x@h/chat",
            "mongodb://u:hunter2%zz@h/chat",
            "mongodb://u:@hunter2@h:x/chat",
        ] {
            let error = error(uri);
            assert!(!error.contains("hunter2"), "{uri}: {error}");
        }
    }

    #[test]
    fn a_name_that_no_database_can_have_is_refused() {
        for path in ["a%2Fb", "a.b", "a%20b", "%00", "a$b", "%22x%22", &"x".repeat(64)] {
            assert!(error(&format!("mongodb://h/{path}")).contains("name of a database"), "{path}");
        }
    }
}
