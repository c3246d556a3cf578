//! Describes the errors of the driver in our own sentences.
//!
//! The driver prints whole replies, pipelines and topologies with an error, and the server's
//! messages contain values of documents. Neither the log nor a client may show those, so every text
//! about a failed operation is made here.

use std::fmt;

use mongodb::error::{Error, ErrorKind, WriteFailure};

/// The kinds of failure that an operator can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No member can be connected to.
    Unreachable,
    /// A host name of the connection string cannot be resolved.
    UnknownHost,
    /// MongoDB was connected, but did not answer in time, or no majority confirmed a write.
    Timeout,
    /// The replica set was never initiated.
    NotInitiated,
    /// Members of the set can be reached, but none of them is the primary.
    NoPrimary,
    /// The connected member is not the primary.
    NotPrimary,
    /// The user name or the password is wrong.
    Credentials,
    /// The user lacks a privilege.
    Privilege,
    /// Anything else: the same operation will fail again.
    Other,
}

/// The server's code for a duplicate key.
pub(super) const DUPLICATE_KEY: i32 = 11000;
/// `NamespaceNotFound`: there is no such collection.
pub(super) const NO_COLLECTION: i32 = 26;
/// `IndexOptionsConflict` and `IndexKeySpecsConflict`: another index has these keys or this name.
pub(super) const INDEX_CONFLICTS: [i32; 2] = [85, 86];
/// `Unauthorized`.
const UNAUTHORIZED: i32 = 13;
/// `AuthenticationFailed`, and the code of Atlas for the same.
const CREDENTIALS: [i32; 2] = [18, 8000];
/// `NotYetInitialized`.
const NOT_INITIATED: i32 = 94;
/// `NotWritablePrimary`, `NotPrimaryNoSecondaryOk`, `NotPrimaryOrSecondary`.
const NOT_PRIMARY: [i32; 3] = [10107, 13435, 13436];
/// `MaxTimeMSExpired`, `WriteConcernFailed`, `NetworkTimeout`, `UnsatisfiableWriteConcern`,
/// `ExceededTimeLimit`.
const TIMEOUT: [i32; 5] = [50, 64, 89, 100, 262];
/// `HostUnreachable`, `HostNotFound`, `ShutdownInProgress`, `PrimarySteppedDown`, `SocketException`
/// and the interruptions by a shutdown or a change of the set's state.
const INTERRUPTED: [i32; 8] = [6, 7, 91, 189, 9001, 11600, 11601, 11602];

impl Failure {
    /// The kind of an error of the driver.
    pub fn of(error: &Error) -> Self {
        match error.kind.as_ref() {
            ErrorKind::Authentication { .. } => Self::Credentials,
            ErrorKind::ServerSelection { message, .. } => Self::of_selection(message),
            ErrorKind::DnsResolve { .. } => Self::UnknownHost,
            ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } | ErrorKind::Shutdown => {
                Self::Unreachable
            }
            ErrorKind::Command(command) => Self::of_code(command.code),
            ErrorKind::Write(WriteFailure::WriteConcernError(_)) => Self::Timeout,
            ErrorKind::Write(WriteFailure::WriteError(write)) => Self::of_code(write.code),
            ErrorKind::InsertMany(failed) if failed.write_concern_error.is_some() => Self::Timeout,
            _ if is_transient(error) => Self::Unreachable,
            _ => Self::Other,
        }
    }

    /// The kind of an error code of the server.
    pub(super) fn of_code(code: i32) -> Self {
        match code {
            UNAUTHORIZED => Self::Privilege,
            NOT_INITIATED => Self::NotInitiated,
            code if CREDENTIALS.contains(&code) => Self::Credentials,
            code if NOT_PRIMARY.contains(&code) => Self::NotPrimary,
            code if TIMEOUT.contains(&code) => Self::Timeout,
            code if INTERRUPTED.contains(&code) => Self::Unreachable,
            _ => Self::Other,
        }
    }

    /// The driver gives the types of the members only in the text of its error.
    fn of_selection(message: &str) -> Self {
        let has_member = |kind: &str| message.contains(&format!(", Type: {kind},"));
        if has_member("RsGhost") {
            Self::NotInitiated
        } else if ["RsSecondary", "RsOther", "RsArbiter"].into_iter().any(has_member) {
            Self::NoPrimary
        } else {
            Self::Unreachable
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "MongoDB cannot be reached",
            Self::UnknownHost => "the host name of MongoDB cannot be resolved",
            Self::Timeout => "MongoDB has not confirmed the operation in time",
            Self::NotInitiated => "the replica set is not initiated: run rs.initiate()",
            Self::NoPrimary => "the replica set has no primary",
            Self::NotPrimary => {
                "the MongoDB member that is connected is not the primary and takes no writes: \
                 MONGO_URI must name the whole replica set"
            }
            Self::Credentials => "MongoDB refuses the user name or the password",
            Self::Privilege => "the user of MONGO_URI lacks a privilege of the role readWrite",
            Self::Other => "MongoDB refuses the operation",
        })
    }
}

/// Whether a label of the error says that the same operation may succeed later.
pub(super) fn is_transient(error: &Error) -> bool {
    ["RetryableWriteError", "TransientTransactionError", "SystemOverloadedError"]
        .iter()
        .any(|label| error.contains_label(label))
}

/// Whether an operation may succeed if it is repeated at once: the connection broke, or the member
/// is not the primary any more. The driver repeats only its own operations, not commands.
pub(super) fn is_worth_repeating(error: &Error) -> bool {
    match Failure::of(error) {
        // The driver has waited long enough for a server already.
        Failure::Unreachable => !matches!(*error.kind, ErrorKind::ServerSelection { .. }),
        Failure::NotPrimary => true,
        _ => is_transient(error),
    }
}

/// Describes an error of the driver in one sentence of a few hundred bytes at most, without values
/// of documents.
pub fn describe(error: &Error) -> String {
    let failure = Failure::of(error);
    match detail(error) {
        Some(detail) => format!("{failure}: {}", shortened(&detail)),
        None => failure.to_string(),
    }
}

fn detail(error: &Error) -> Option<String> {
    match error.kind.as_ref() {
        ErrorKind::Io(cause) => Some(cause.to_string()),
        ErrorKind::DnsResolve { message, .. } => Some(message.clone()),
        ErrorKind::ServerSelection { message, .. } => first_cause(message).map(str::to_owned),
        ErrorKind::Command(command) => Some(coded(command.code, &command.message)),
        ErrorKind::Write(WriteFailure::WriteError(write)) => {
            Some(coded(write.code, &write.message))
        }
        ErrorKind::InsertMany(failed) => {
            let refused = failed.write_errors.iter().flatten().next()?;
            Some(coded(refused.code, &refused.message))
        }
        ErrorKind::Custom(_) => error.get_custom::<String>().cloned(),
        ErrorKind::Authentication { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::Shutdown
        | ErrorKind::Write(_) => None,
        kind => Some(kind.to_string()),
    }
}

/// The server's message and code, without the parts of the command that the message repeats: those
/// follow a brace.
fn coded(code: i32, message: &str) -> String {
    let message = message.split(" { ").next().unwrap_or_default();
    if message.is_empty() { format!("code {code}") } else { format!("{message} (code {code})") }
}

/// The error of the first member that cannot be connected to.
fn first_cause(selection: &str) -> Option<&str> {
    let (_, cause) = selection.split_once("Error: Kind: ")?;
    Some(cause.split_once(", labels: ").map_or(cause, |(cause, _)| cause))
}

fn shortened(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (kept, rest) = text.split_at(end);
    if rest.is_empty() { kept.to_owned() } else { format!("{kept}…") }
}

/// A unique index that refused a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusingIndex {
    /// The collection.
    pub collection: String,
    /// The name of the index.
    pub index: String,
}

impl RefusingIndex {
    /// The index that an error about a duplicate key names; `None` for other errors.
    pub(super) fn of(error: &Error) -> Option<Self> {
        let (code, message) = match error.kind.as_ref() {
            ErrorKind::Write(WriteFailure::WriteError(write)) => (write.code, &write.message),
            ErrorKind::Command(command) => (command.code, &command.message),
            _ => return None,
        };
        (code == DUPLICATE_KEY).then(|| Self::of_message(message))
    }

    /// The index that the server's message names:
    /// `E11000 duplicate key error collection: <database>.<collection> index: <name> dup key: {…}`,
    /// since 4.2 with ` collation: {…}` after the name if the index has one. The reply has
    /// `keyPattern`, too, but the driver does not pass it on for write errors.
    ///
    /// For a message of another form, the name is one that no index has, so that it never matches
    /// ours.
    pub(super) fn of_message(message: &str) -> Self {
        Self::parse(message).unwrap_or_else(|| Self {
            collection: "a collection".to_owned(),
            index: "(unknown)".to_owned(),
        })
    }

    fn parse(message: &str) -> Option<Self> {
        let (_, named) = message.split_once("E11000 duplicate key error collection: ")?;
        // The values after the name can contain any text.
        let (named, _) = named.split_once(" dup key: {")?;
        let (namespace, index) = named.split_once(" index: ")?;
        let index = index.split_once(" collation: {").map_or(index, |(index, _)| index);
        let (_, collection) = namespace.split_once('.')?;
        let is_whole = !collection.is_empty() && !index.is_empty();
        is_whole.then(|| Self { collection: collection.to_owned(), index: index.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(message: &str) -> (String, String) {
        let RefusingIndex { collection, index } = RefusingIndex::of_message(message);
        (collection, index)
    }

    #[test]
    fn the_index_of_a_duplicate_is_read_from_the_servers_message() {
        let error = "E11000 duplicate key error collection: chat.messages index: ";
        for (rest, index) in [
            ("_id_ dup key: { _id: ObjectId('676d2c41b1e8a27d9c0f4a15') }", "_id_"),
            ("clientMsgId_1 dup key: { clientMsgId: null }", "clientMsgId_1"),
            ("a name dup key: { a: 1, b: 2 }", "a name"),
            (
                "name_1 collation: { locale: \"en\", strength: 2 } dup key: { name: \"0x2b\" }",
                "name_1",
            ),
            // Values are text that clients sent.
            ("x_1 dup key: { x: \" index: _id_ dup key: { _id: 1 }\" }", "x_1"),
            ("x_1 dup key: { x: \"\u{1f600} } index: _id_ collation: { \" }", "x_1"),
        ] {
            let (collection, found) = parsed(&format!("{error}{rest}"));
            assert_eq!((collection.as_str(), found.as_str()), ("messages", index), "{rest}");
        }
        let dotted = "E11000 duplicate key error collection: chat.a.b index: c_1 dup key: { c: 1 }";
        assert_eq!(parsed(dotted), ("a.b".to_owned(), "c_1".to_owned()));
    }

    #[test]
    fn a_message_of_another_form_names_no_index_of_ours() {
        for message in [
            "",
            "E11000",
            "duplicate key: { _id: 1 } index: _id_",
            "E11000 duplicate key error collection: chat.messages",
            "E11000 duplicate key error collection: chat.messages index: _id_",
            "E11000 duplicate key error collection: chat.messages index:  dup key: { _id: 1 }",
            "E11000 duplicate key error collection: messages index: _id_ dup key: { _id: 1 }",
            "E11000 duplicate key error index: chat.messages.$_id_ dup key: { : 1 }",
        ] {
            assert_eq!(parsed(message).1, "(unknown)", "{message:?}");
        }
    }

    #[test]
    fn a_text_about_a_failure_is_short_and_has_nothing_of_the_command() {
        let refused = "not authorized on chat to execute command { insert: \"messages\", \
                       documents: [ { content: \"private\" } ] }";
        assert_eq!(coded(13, refused), "not authorized on chat to execute command (code 13)");
        assert_eq!(coded(1, ""), "code 1");
        assert_eq!(shortened(&"ü".repeat(400)).chars().count(), 151);
        let selection = "Server selection timeout: No available servers. Topology: { Type: Unknown, \
                         Servers: [ { Address: a:1, Type: Unknown, Error: Kind: I/O error: \
                         Connection refused (os error 111), labels: {}, source: None, server \
                         response: None } ] }";
        assert_eq!(first_cause(selection), Some("I/O error: Connection refused (os error 111)"));
        assert_eq!(Failure::of_selection(selection), Failure::Unreachable);
    }
}
