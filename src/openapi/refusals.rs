//! The refusals of each operation, as responses of the document.
//!
//! A list here says which errors an operation can meet; statuses, sentences and codes in both
//! modes of `ERRORS` are those of [`ApiError`] itself.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use crate::config::ErrorMode;
use crate::error::ApiError;
use crate::models::RefusingIndex;

/// Declares the refusals of operations, each a sum of lists.
macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident($modes:expr) = $($errors:expr),+;)+) => {
        $(
            $(#[$doc])*
            pub struct $name;

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Response>> {
                    responses($modes, [$(Vec::from($errors)),+].into_iter().flatten())
                }
            }
        )+

        /// Every error of every list.
        fn every() -> impl Iterator<Item = ApiError> {
            [$($(Vec::from($errors)),+),+].into_iter().flatten()
        }
    };
}

/// The routes of the original answer in the mode of `ERRORS`.
const BOTH: &[ErrorMode] = &[ErrorMode::Original, ErrorMode::Precise];
/// All other routes are precise in both.
const PRECISE: &[ErrorMode] = &[ErrorMode::Precise];

refusals! {
    /// `POST /api/auth/register`.
    Register(BOTH) = body(), database(), insertion(), [
        ApiError::UsernameTaken,
        field("username", "is required"),
        field("username", "must not be empty"),
        field("username", "must be a string"),
        field("password", "must be a string"),
        ApiError::Busy,
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `POST /api/auth/login`.
    Login(BOTH) = body(), database(), [
        ApiError::UserNotFound,
        ApiError::InvalidCredentials,
        ApiError::PasswordType("number", "string"),
        ApiError::Busy,
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `POST /api/chat/room`.
    CreateRoom(BOTH) = body(), token(), database(), insertion(), [
        ApiError::RoomExists,
        field("name", "is required"),
        field("name", "must not be empty"),
        field("name", "must be a string"),
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `GET /metrics`.
    Metrics(BOTH) = [ApiError::TokenMissing, ApiError::TokenInvalid("not METRICS_TOKEN")];
    /// `GET /api/chat/rooms`.
    GetAllRooms(BOTH) = token(), database();
    /// `GET /api/chat/messages/{room}`.
    GetMessages(BOTH) = token(), database(), [
        field("room", "must be an id of 24 hexadecimal digits"),
        field("limit", "must be a whole number from 1 to 1000"),
        field("before", "must be the id of a message"),
        field("after", "must be the id of a message"),
        field("deleted", "must be true or false"),
        ApiError::MalformedPath,
        ApiError::NotFound,
    ];
    /// `POST /api/chat/message`.
    SendMessage(BOTH) = body(), token(), database(), insertion(), [
        ApiError::RoomNotFound,
        field("room", "must be an id of 24 hexadecimal digits"),
        field("sender", "is required"),
        field("sender", "must be an id of 24 hexadecimal digits"),
        field("content", "is required"),
        field("content", "must not be empty"),
        field("content", "must be a string"),
        ApiError::SenderMismatch,
        ApiError::IdempotencyKey,
        ApiError::IdempotencyConflict,
        ApiError::NoIdempotency(String::new()),
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `PATCH /api/chat/message/{message}`.
    EditMessage(PRECISE) = body(), token(), change(), insertion(), [
        ApiError::MessageDeleted,
        ApiError::EditConflict,
        field("content", "is required"),
        field("content", "must not be empty"),
        field("content", "must be a string"),
        field("__v", "must be a whole number from 0 on"),
        ApiError::IdempotencyKey,
        ApiError::IdempotencyConflict,
        ApiError::NoIdempotency(String::new()),
    ];
    /// `DELETE /api/chat/message/{message}`.
    DeleteMessage(PRECISE) = body(), token(), change(), insertion();
    /// A file that is not there.
    Missing(BOTH) = [ApiError::NotFound];
}

/// What a change of a message can be refused for.
fn change() -> Vec<ApiError> {
    let mut errors = vec![
        ApiError::MessageNotFound,
        ApiError::NotTheSender,
        field("message", "must be an id of 24 hexadecimal digits"),
        ApiError::MalformedPath,
        ApiError::RateLimited { seconds: 60 },
    ];
    errors.extend(database());
    errors
}

/// What a body can be refused for, before the route is looked for.
fn body() -> [ApiError; 4] {
    [
        ApiError::MalformedBody(""),
        ApiError::BodyTooLarge,
        ApiError::UnsupportedBody,
        ApiError::BodyTimeout,
    ]
}

/// What a token can be refused for.
fn token() -> [ApiError; 3] {
    [ApiError::TokenMissing, ApiError::TokenFormat, ApiError::TokenInvalid("")]
}

/// What can happen behind every handler that asks the database.
fn database() -> [ApiError; 2] {
    [ApiError::Unavailable(String::new()), ApiError::Internal(String::new())]
}

/// What can happen to what is stored.
fn insertion() -> [ApiError; 1] {
    let (collection, index) = (String::new(), String::new());
    [ApiError::RefusedByIndex(RefusingIndex { collection, index })]
}

fn field(field: &'static str, problem: &'static str) -> ApiError {
    ApiError::InvalidField { field, problem }
}

/// The JSON of a refusal.
pub struct Refusal;

impl PartialSchema for Refusal {
    fn schema() -> RefOr<Schema> {
        let mut codes: Vec<&str> =
            every().map(|error| error.sentence(ErrorMode::Precise).1).collect();
        codes.sort_unstable();
        codes.dedup();
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let schema = ObjectBuilder::new()
            .description(Some("Why the request was refused."))
            .property("error", text().description(Some("A sentence for people.")))
            .required("error")
            .property(
                "code",
                text()
                    .description(Some(
                        "For programs; on routes of the original only with `ERRORS=precise`.",
                    ))
                    .enum_values(Some(codes)),
            );
        RefOr::T(schema.into())
    }
}

impl ToSchema for Refusal {}

/// A refusal as one of the modes shows it.
struct Shown {
    mode: ErrorMode,
    sentence: String,
    code: &'static str,
    is_page: bool,
    may_retry: bool,
}

/// Sorts errors into one response for each status that one of them has in one of the modes.
fn responses(
    modes: &[ErrorMode],
    errors: impl Iterator<Item = ApiError>,
) -> BTreeMap<String, RefOr<Response>> {
    let mut statuses: BTreeMap<u16, Vec<Shown>> = BTreeMap::new();
    for error in errors {
        for &mode in modes {
            let (sentence, code) = error.sentence(mode);
            let is_page = mode == ErrorMode::Original && error.is_page();
            let shown =
                Shown { mode, sentence, code, is_page, may_retry: error.retry_after().is_some() };
            statuses.entry(error.status(mode).as_u16()).or_default().push(shown);
        }
    }
    let statuses = statuses.into_iter();
    statuses.map(|(status, shown)| (status.to_string(), RefOr::T(response(&shown)))).collect()
}

fn response(refusals: &[Shown]) -> Response {
    let mut examples = BTreeMap::new();
    let mut sentences = [Vec::new(), Vec::new()];
    let [original, precise] = &mut sentences;
    for Shown { mode, sentence, code, is_page, .. } in refusals {
        let (said, name, value) = match mode {
            ErrorMode::Original if *is_page => {
                original.push("a page of HTML");
                continue;
            }
            ErrorMode::Original => (&mut *original, "original", json!({ "error": sentence })),
            ErrorMode::Precise => {
                (&mut *precise, "precise", json!({ "error": sentence, "code": code }))
            }
        };
        said.push(sentence);
        let example = ExampleBuilder::new().value(Some(value)).build();
        examples.insert(format!("{name}: {sentence}"), example);
    }
    let description =
        ["original", "precise"].iter().zip(&mut sentences).filter_map(|(mode, said)| {
            said.sort_unstable();
            said.dedup();
            (!said.is_empty()).then(|| format!("`ERRORS={mode}`: {}.", said.join("; ")))
        });

    let mut response =
        ResponseBuilder::new().description(description.collect::<Vec<_>>().join("\n\n"));
    if !examples.is_empty() {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(Refusal::name())))
            .examples_from_iter(examples);
        response = response.content("application/json", content.build());
    }
    if refusals.iter().any(|shown| shown.is_page) {
        let page = ObjectBuilder::new().schema_type(Type::String);
        let page = ContentBuilder::new().schema(Some(page));
        response = response.content("text/html", page.build());
    }
    if refusals.iter().any(|shown| shown.may_retry) {
        let header = HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::Integer)))
            .description(Some("Seconds to wait before another attempt"));
        response = response.header("Retry-After", header.build());
    }
    response.build()
}
