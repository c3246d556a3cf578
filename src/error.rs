//! Every error that a client can get, and how it is written in both modes of `ERRORS`.
//!
//! A variant is a fact, not a status. The table in `ApiError::answers` has one row for each: the
//! status and text of the Node server, and those of `ERRORS=precise`. The cause of an error is
//! logged and not sent.

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpResponse, ResponseError};

use crate::config::ErrorMode;
use crate::logging;
use crate::models::{RefusingIndex, StoreError};
use crate::views;

/// The problem of a field that is not an id.
pub const NO_ID: &str = "must be an id of 24 hexadecimal digits";

/// An error that answers a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// Registration with a name that is taken.
    #[error("the username is taken")]
    UsernameTaken,
    /// A room of this name exists.
    #[error("a room of this name exists")]
    RoomExists,
    /// A field that is missing, empty or of a type that cannot be cast.
    #[error("the field {field} {problem}")]
    InvalidField {
        /// The field's name in the request.
        field: &'static str,
        /// What is wrong with it, as the end of a sentence: "is required".
        problem: &'static str,
    },
    /// Login: no user has this name.
    #[error("no user has this name")]
    UserNotFound,
    /// Login: wrong password, or a name that is an object.
    #[error("the password does not match")]
    InvalidCredentials,
    /// An event of a socket with an unknown name.
    #[error("no such event")]
    UnknownEvent,
    /// Login: the password or the stored hash is not a string. bcryptjs sends the JavaScript types
    /// of both to the client.
    #[error("the password is of the type {0}, the stored hash of the type {1}")]
    PasswordType(&'static str, &'static str),
    /// The room of a message does not exist.
    #[error("the room does not exist")]
    RoomNotFound,
    /// The message to change does not exist, or the user may not see its room.
    #[error("the message does not exist")]
    MessageNotFound,
    /// A change of another user's message.
    #[error("the message was sent by another user")]
    NotTheSender,
    /// The change stream does not bring the changes of members here, so rooms with members are off.
    #[error("the user of MONGO_URI may not open a change stream on the database")]
    NoMembers,
    /// The server has `PRESENCE=false`.
    #[error("PRESENCE is false")]
    NoPresence,
    /// A signal for a room that the socket has not joined.
    #[error("the socket has not joined the room")]
    NotJoined,
    /// A change of a room by a member who does not own it.
    #[error("the room is owned by another user, or by nobody")]
    NotTheOwner,
    /// An edit of a message that was deleted.
    #[error("the message was deleted")]
    MessageDeleted,
    /// An edit with a version that the message no longer has.
    #[error("the message has another version")]
    EditConflict,
    /// No `Authorization` header.
    #[error("the request has no token")]
    TokenMissing,
    /// An `Authorization` header that is not `Bearer <token>`.
    #[error("the Authorization header is not `Bearer <token>`")]
    TokenFormat,
    /// A token that is malformed, expired, or signed by another secret or algorithm.
    #[error("the token is invalid: {0}")]
    TokenInvalid(&'static str),
    /// A token that was revoked before it expired.
    #[error("the token was revoked")]
    TokenRevoked,
    /// A refresh token that is malformed, has expired, or whose family has ended.
    #[error("the refresh token is not valid")]
    RefreshInvalid,
    /// A refresh token that was used before.
    #[error("the refresh token was used before")]
    RefreshReused,
    /// No user has this id.
    #[error("no user has this id")]
    NoSuchUser,
    /// A message in another user's name.
    #[error("the sender is not the authenticated user")]
    SenderMismatch,
    /// An idempotency key that this user used for another request.
    #[error("the idempotency key was used for another request")]
    IdempotencyConflict,
    /// An `Idempotency-Key` that is empty, too long or not text.
    #[error("the idempotency key is not 1 to 255 characters of visible ASCII")]
    IdempotencyKey,
    /// No route has this path.
    #[error("no such route")]
    NotFound,
    /// The route does not have this method; the methods that it has.
    #[error("no such method on this route, only {0}")]
    MethodNotAllowed(String),
    /// A path parameter whose percent-encoding is broken.
    #[error("the path is not valid percent-encoded UTF-8")]
    MalformedPath,
    /// A body that does not match its headers: broken JSON, gzip or length.
    #[error("the body is malformed: {0}")]
    MalformedBody(&'static str),
    /// A body over the limit, as sent or after inflation.
    #[error("the body is larger than 100 KiB")]
    BodyTooLarge,
    /// A charset or content encoding that is not supported.
    #[error("the body's charset or encoding is not supported")]
    UnsupportedBody,
    /// A body that did not arrive in time.
    #[error("the body did not arrive in time")]
    BodyTimeout,
    /// Too many passwords wait to be hashed.
    #[error("too many passwords wait to be hashed")]
    Busy,
    /// A rate limit was reached.
    #[error("a rate limit was reached")]
    RateLimited {
        /// The seconds after which the client may try again.
        seconds: u64,
    },
    /// The socket is in the maximum number of rooms.
    #[error("too many rooms for one socket")]
    TooManyRooms,
    /// MongoDB cannot be reached or did not answer in time. A write may have happened or not.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// A request has an idempotency key, but the server cannot store keys at the moment.
    #[error("{0}")]
    NoIdempotency(String),
    /// A unique index that is not from this server refuses the document.
    #[error("{}", StoreError::Refused(.0.clone()))]
    RefusedByIndex(RefusingIndex),
    /// Any other error. The client gets no details.
    #[error("{0}")]
    Internal(String),
}

/// An answer: a status, a text and the code of `ERRORS=precise`.
struct Answer {
    status: u16,
    text: &'static str,
    code: &'static str,
}

impl ApiError {
    /// The table of errors: the answer of the Node server, and the precise one.
    fn answers(&self) -> (Answer, Answer) {
        /// One row: the status and text of the Node server, then the precise status, code and text.
        const fn row(
            status: u16,
            text: &'static str,
            precise: u16,
            code: &'static str,
            sentence: &'static str,
        ) -> (Answer, Answer) {
            (Answer { status, text, code }, Answer { status: precise, text: sentence, code })
        }
        const SERVER: &str = "Server error";

        match self {
            Self::UsernameTaken => row(500, SERVER, 409, "username_taken", "Username is taken"),
            Self::RoomExists => {
                row(400, "Room already exists", 409, "room_exists", "Room already exists")
            }
            Self::InvalidField { .. } => row(500, SERVER, 400, "invalid_field", "Invalid field"),
            Self::UserNotFound => {
                row(404, "User not found", 401, "invalid_credentials", "Invalid credentials")
            }
            Self::InvalidCredentials => {
                row(400, "Invalid credentials", 401, "invalid_credentials", "Invalid credentials")
            }
            Self::UnknownEvent => {
                let text = "No such event";
                row(400, text, 400, "unknown_event", text)
            }
            Self::PasswordType(..) => row(500, "", 400, "invalid_field", "Invalid field"),
            Self::RoomNotFound => {
                row(400, "Room not found", 404, "room_not_found", "Room not found")
            }
            Self::MessageNotFound => {
                let text = "Message not found";
                row(404, text, 404, "message_not_found", text)
            }
            Self::NotTheSender => {
                let text = "Only the sender of a message may change it";
                row(403, text, 403, "not_the_sender", text)
            }
            Self::NoMembers => {
                let text = "Private rooms are off: the server may not follow their members";
                row(503, text, 503, "private_rooms_unavailable", text)
            }
            Self::NoPresence => {
                let text = "The server does not say who is online";
                row(503, text, 503, "presence_unavailable", text)
            }
            Self::NotJoined => {
                let text = "Join the room first";
                row(409, text, 409, "not_joined", text)
            }
            Self::NotTheOwner => {
                let text = "Only the owner of the room may do this";
                row(403, text, 403, "not_the_owner", text)
            }
            Self::MessageDeleted => {
                let text = "The message was deleted";
                row(410, text, 410, "message_deleted", text)
            }
            Self::EditConflict => {
                let text = "The message has changed and has another __v";
                row(409, text, 409, "edit_conflict", text)
            }
            Self::TokenMissing => {
                let text = "Access denied. No token provided.";
                row(401, text, 401, "token_missing", text)
            }
            Self::TokenFormat => {
                row(401, "Invalid token format", 401, "token_invalid", "Invalid token format")
            }
            Self::TokenInvalid(_) => {
                row(401, "Invalid token", 401, "token_invalid", "Invalid token")
            }
            Self::TokenRevoked => {
                row(401, "Invalid token", 401, "token_revoked", "The token was revoked")
            }
            Self::RefreshInvalid => {
                let text = "The refresh token is not valid, log in again";
                row(401, text, 401, "refresh_invalid", text)
            }
            Self::RefreshReused => {
                let text = "The refresh token was used before, so its session was ended";
                row(401, text, 401, "refresh_reused", text)
            }
            Self::NoSuchUser => {
                let text = "User not found";
                row(404, text, 404, "user_not_found", text)
            }
            Self::SenderMismatch => {
                let text = "Sender does not match the authenticated user";
                row(403, text, 403, "sender_mismatch", text)
            }
            Self::IdempotencyConflict => {
                let text = "Idempotency key was used for another message";
                row(422, text, 422, "idempotency_conflict", text)
            }
            Self::IdempotencyKey => {
                let text = "Idempotency-Key must be 1 to 255 characters of visible ASCII";
                row(400, text, 400, "invalid_field", text)
            }
            Self::NotFound => row(404, "", 404, "not_found", "No such route"),
            Self::MethodNotAllowed(_) => {
                row(404, "", 405, "method_not_allowed", "No such method here")
            }
            Self::MalformedPath => {
                row(400, "Bad Request", 400, "malformed_path", "The path is not valid UTF-8")
            }
            Self::MalformedBody(_) => {
                row(400, "Bad Request", 400, "malformed_json", "The body is not valid JSON")
            }
            Self::BodyTooLarge => {
                let text = "Payload Too Large";
                row(413, text, 413, "body_too_large", "The body is larger than 100 KiB")
            }
            Self::UnsupportedBody => row(
                415,
                "Unsupported Media Type",
                415,
                "unsupported_media_type",
                "The body's charset or encoding is not supported",
            ),
            Self::BodyTimeout => row(
                408,
                "Request Timeout",
                408,
                "request_timeout",
                "The body did not arrive in time",
            ),
            Self::RateLimited { .. } => {
                let text = "Too many requests, try again later";
                row(429, text, 429, "rate_limited", text)
            }
            Self::TooManyRooms => {
                let text = "Too many rooms for one socket";
                row(429, text, 429, "too_many_rooms", text)
            }
            Self::Busy => row(503, SERVER, 503, "busy", "Too many logins at once, try again"),
            Self::Unavailable(_) => {
                row(503, SERVER, 503, "unavailable", "The database does not answer, try again")
            }
            Self::NoIdempotency(_) => {
                let text = "Idempotency keys cannot be kept at the moment, so nothing was stored";
                row(503, text, 503, "idempotency_unavailable", text)
            }
            Self::RefusedByIndex(_) => {
                let text = "A unique index of the database refuses this document, which the \
                            server's operator must fix";
                row(500, SERVER, 500, "refused_by_index", text)
            }
            Self::Internal(_) => row(500, SERVER, 500, "internal", SERVER),
        }
    }

    /// Whether Express itself answers this error, outside of any handler, with an HTML page.
    pub(crate) fn is_page(&self) -> bool {
        matches!(
            self,
            Self::NotFound
                | Self::MethodNotAllowed(_)
                | Self::MalformedPath
                | Self::MalformedBody(_)
                | Self::BodyTooLarge
                | Self::UnsupportedBody
                | Self::BodyTimeout
        )
    }

    /// The seconds after which the same request may succeed.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Unavailable(_) | Self::Busy => Some(1),
            // A person must solve this.
            Self::NoIdempotency(_) | Self::NoMembers | Self::NoPresence => Some(60),
            Self::RateLimited { seconds } => Some(*seconds),
            _ => None,
        }
    }

    /// The status in the given mode.
    pub(crate) fn status(&self, mode: ErrorMode) -> StatusCode {
        let (original, precise) = self.answers();
        let status = match mode {
            ErrorMode::Original => original.status,
            ErrorMode::Precise => precise.status,
        };
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The text and the code in the given mode.
    ///
    /// It is the body over HTTP, and the reason for a refused socket.
    pub fn sentence(&self, mode: ErrorMode) -> (String, &'static str) {
        let (original, precise) = self.answers();
        let text = match (self, mode) {
            (Self::PasswordType(name, hash), ErrorMode::Original) => {
                format!("Illegal arguments: {name}, {hash}")
            }
            (Self::PasswordType(name, _), ErrorMode::Precise) => {
                format!("password must be a string, not {name}")
            }
            (Self::InvalidField { field, problem }, ErrorMode::Precise) => {
                format!("{field} {problem}")
            }
            (_, ErrorMode::Original) => original.text.to_owned(),
            (_, ErrorMode::Precise) => precise.text.to_owned(),
        };
        (text, precise.code)
    }

    /// The text and the code for an event on a socket. The text names the field and the expected
    /// value in both modes, because the Node server did not answer events.
    fn sentence_on_socket(&self, mode: ErrorMode) -> (String, &'static str) {
        let (text, code) = self.sentence(mode);
        let text = match self {
            // The most frequent mistake.
            Self::InvalidField { field: "room", problem: NO_ID } => {
                format!("room: {NO_ID}; it is the room's _id, not its name")
            }
            Self::InvalidField { field, problem } => format!("{field}: {problem}"),
            Self::UnknownEvent => {
                "event: must be joinRoom, leaveRoom, sendMessage, editMessage, deleteMessage, \
                 markAsRead, typing, stopTyping, watchUsers, unwatchUsers or authenticate"
                    .to_owned()
            }
            Self::TokenMissing => "token: is required".to_owned(),
            Self::TokenInvalid(reason) => format!("token: is not valid: {reason}"),
            Self::TokenRevoked => "token: was revoked".to_owned(),
            Self::MalformedBody(problem) => format!("the frame is {problem}"),
            Self::BodyTooLarge => {
                "content: is too long, a message must fit into 100 KiB of JSON".to_owned()
            }
            _ => text,
        };
        (text, code)
    }

    /// The data of an error on sockets: `{error,code}`, and `event` for an error that is not an
    /// ack. `event` is JSON: the name of the request's event.
    pub fn to_json(&self, mode: ErrorMode, event: Option<&str>) -> String {
        let (text, code) = self.sentence_on_socket(mode);
        let mut json = br#"{"error":"#.to_vec();
        views::push_string(&mut json, &text);
        json.extend_from_slice(b",\"code\":\"");
        json.extend_from_slice(code.as_bytes());
        json.push(b'"');
        if let Some(event) = event {
            json.extend_from_slice(b",\"event\":");
            json.extend_from_slice(event.as_bytes());
        }
        json.push(b'}');
        String::from_utf8(json).expect("views write UTF-8")
    }

    /// Logs an error: a client's mistake at debug level, a failure of the server as a warning or an
    /// error.
    pub fn log(&self, requested: &dyn std::fmt::Display) {
        match self {
            // Every request causes it until the operator fixes the index.
            Self::RefusedByIndex(RefusingIndex { collection, index }) => {
                if logging::once_a_minute(&format!("{collection} {index}")) {
                    log::error!("{requested}: {self}");
                }
            }
            Self::Internal(_) => log::error!("{requested}: {self}"),
            Self::Unavailable(_) | Self::Busy | Self::NoIdempotency(_) | Self::NoMembers => {
                log::warn!("{requested}: {self}")
            }
            _ => log::debug!("{requested}: {self}"),
        }
    }

    /// The answer in the given mode. Also logs the error. `requested` is the method and path, which
    /// a 404 page names.
    pub fn respond(&self, mode: ErrorMode, requested: &dyn std::fmt::Display) -> HttpResponse {
        let status = self.status(mode);
        self.log(requested);
        let (text, code) = self.sentence(mode);
        let mut answer = HttpResponse::build(status);
        if let Some(seconds) = self.retry_after() {
            answer.insert_header((header::RETRY_AFTER, seconds));
        }
        if matches!(self, Self::BodyTimeout) {
            answer.force_close();
        }
        match mode {
            ErrorMode::Original if self.is_page() => {
                let line = match self {
                    Self::NotFound | Self::MethodNotAllowed(_) => format!("Cannot {requested}"),
                    _ => text,
                };
                answer
                    .insert_header(("Content-Security-Policy", "default-src 'none'"))
                    .insert_header(("X-Content-Type-Options", "nosniff"))
                    .insert_header((header::CONTENT_TYPE, "text/html; charset=utf-8"))
                    .body(page(&line))
            }
            ErrorMode::Original => {
                answer.content_type(views::CONTENT_TYPE).json(serde_json::json!({ "error": text }))
            }
            ErrorMode::Precise => {
                if let Self::MethodNotAllowed(methods) = self {
                    answer.insert_header((header::ALLOW, methods.as_str()));
                }
                answer.content_type(views::CONTENT_TYPE).json(Precise { error: &text, code })
            }
        }
    }
}

/// The body of an error in `ERRORS=precise`. A struct keeps the order of the keys.
#[derive(serde::Serialize)]
struct Precise<'a> {
    error: &'a str,
    code: &'a str,
}

/// The page that Express's final handler sends in production.
fn page(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <title>Error</title>\n</head>\n<body>\n<pre>{escaped}</pre>\n</body>\n</html>\n"
    )
}

/// Handlers return the error itself, and the express middleware writes the answer, because the mode
/// of `ERRORS` is not known here. A client would get this answer only without that middleware.
impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        HttpResponse::new(self.status_code())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            error @ (StoreError::Unavailable(_) | StoreError::Off(_)) => {
                Self::Unavailable(error.to_string())
            }
            StoreError::Refused(refusing) => Self::RefusedByIndex(refusing),
            error => Self::Internal(error.to_string()),
        }
    }
}
