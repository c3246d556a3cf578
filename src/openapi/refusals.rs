//! The refusals of each operation, as responses of the document.
//!
//! A list here says which errors an operation can meet; statuses, sentences and codes in both
//! modes of `ERRORS` are those of [`ApiError`] itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use utoipa::Modify;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};

use super::operations;
use crate::config::ErrorMode;
use crate::error::ApiError;
use crate::models::RefusingIndex;

/// Declares the refusals of operations, each a sum of lists.
macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident($modes:expr) = $($errors:expr),+;)+) => {$(
        $(#[$doc])*
        pub struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> $crate::openapi::refusals::Responses {
                $crate::openapi::refusals::responses(
                    $modes,
                    [$(Vec::from($errors)),+].into_iter().flatten(),
                )
            }
        }
    )+};
}
pub(super) use refusals;

/// Responses by status.
pub(super) type Responses = BTreeMap<String, RefOr<Response>>;

/// The routes of the original answer in the mode of `ERRORS`.
pub(super) const BOTH: &[ErrorMode] = &[ErrorMode::Original, ErrorMode::Precise];
/// All other routes are precise in both.
pub(super) const PRECISE: &[ErrorMode] = &[ErrorMode::Precise];

/// What a body can be refused for, before the route is looked for.
pub(super) fn body() -> [ApiError; 4] {
    [
        ApiError::MalformedBody(""),
        ApiError::BodyTooLarge,
        ApiError::UnsupportedBody,
        ApiError::BodyTimeout,
    ]
}

/// What a token can be refused for.
pub(super) fn token() -> [ApiError; 4] {
    [
        ApiError::TokenMissing,
        ApiError::TokenFormat,
        ApiError::TokenInvalid(""),
        ApiError::TokenRevoked,
    ]
}

/// What a path with a parameter can be refused for, before the route is found.
pub(super) fn parameter() -> [ApiError; 2] {
    [ApiError::MalformedPath, ApiError::NotFound]
}

/// What can happen behind every handler that asks the database.
pub(super) fn database() -> [ApiError; 2] {
    [ApiError::Unavailable(String::new()), ApiError::Internal(String::new())]
}

/// What can happen to what is stored.
pub(super) fn insertion() -> [ApiError; 1] {
    let (collection, index) = (String::new(), String::new());
    [ApiError::RefusedByIndex(RefusingIndex { collection, index })]
}

pub(super) fn field(field: &'static str, problem: &'static str) -> ApiError {
    ApiError::InvalidField { field, problem }
}

/// The name of the schema of all refusals.
const REFUSAL: &str = "Refusal";

/// Describes the JSON of a refusal, with the codes of all refusals that the document shows.
pub struct Refusals;

impl Modify for Refusals {
    fn modify(&self, document: &mut OpenApi) {
        let operations = document.paths.paths.values_mut().flat_map(operations);
        let codes: BTreeSet<_> =
            operations.flat_map(|(_, operation)| codes(operation).collect::<Vec<_>>()).collect();
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
        let components = document.components.get_or_insert_default();
        components.schemas.insert(REFUSAL.to_owned(), RefOr::T(schema.into()));
    }
}

/// The codes of the refusals of an operation.
fn codes(operation: &Operation) -> impl Iterator<Item = String> {
    let responses = operation.responses.responses.values().filter_map(inline);
    let contents = responses.filter_map(|response| response.content.get("application/json"));
    let examples = contents.filter_map(inline).flat_map(|content| content.examples.values());
    examples.filter_map(inline).filter_map(|example| {
        let code = example.value.as_ref()?.get("code")?;
        code.as_str().map(str::to_owned)
    })
}

fn inline<T>(item: &RefOr<T>) -> Option<&T> {
    match item {
        RefOr::T(item) => Some(item),
        RefOr::Ref(_) => None,
    }
}

/// A refusal as one of the modes shows it.
struct Shown {
    mode: ErrorMode,
    sentence: String,
    code: &'static str,
    is_page: bool,
    may_retry: bool,
}

/// Sorts errors into one response for each status that one of them has in one of the modes.
pub(super) fn responses(modes: &[ErrorMode], errors: impl Iterator<Item = ApiError>) -> Responses {
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
            .schema(Some(Ref::from_schema_name(REFUSAL)))
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
