//! The OpenAPI document of `GET /openapi.json`, which [`routes`](crate::routes) collects from the
//! handlers.
//!
//! A handler's attribute says what it is asked and what it answers when all is well. Its refusals
//! come from the table in [`crate::error`], so that the document cannot know another status or
//! text than the server sends. Each noun has a file with its bodies and refusals, for the document
//! only: the server reads requests as JavaScript would ([`crate::js`]) and writes answers by hand
//! ([`crate::views`]). `about.md` has the conventions of all operations; `guide` shows it as a
//! page, and the realtime events, which OpenAPI cannot describe, as another.

pub mod auth;
pub mod docs;
pub mod guide;
pub mod health;
pub mod messages;
pub mod metrics;
pub mod presence;
pub mod refusals;
pub mod rooms;
pub mod users;
pub mod values;

use std::sync::LazyLock;

use actix_web::http::Method;
use bytes::Bytes;
use utoipa::Modify;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi, RefOr, ResponseBuilder};

/// What the page of the operations begins with, in place of `about.md`.
pub const SHORT: &str = "To try an operation, execute `POST /api/auth/login` and paste the `token` \
                         of its answer under *Authorize*. Other pages: [the events of Socket.IO \
                         and WebSocket](/docs/realtime), [events to try](/docs/events), [the \
                         client for front ends](/docs/client), [the conventions of all \
                         operations](/docs/conventions).";

/// The user and the room of the examples.
const EXAMPLE_NAMES: [&str; 2] = ["ann", "general"];

/// The document as JSON, made when it is first asked for.
pub struct Document {
    whole: LazyLock<Bytes>,
    shown: LazyLock<Bytes>,
}

impl Document {
    /// What these make: the whole document, and the one that the page shows.
    pub const fn new(whole: fn() -> Bytes, shown: fn() -> Bytes) -> Self {
        Self { whole: LazyLock::new(whole), shown: LazyLock::new(shown) }
    }

    /// The document. It does not change while the process runs.
    pub fn json(&self) -> Bytes {
        self.whole.clone()
    }

    /// The document as its page shows it. Its examples have other names each time, so that they can
    /// be tried again and again.
    pub fn for_page(&self) -> Bytes {
        // Without randomness they are the names of a fresh database.
        let suffix = getrandom::u32().unwrap_or_default();
        let mut text = String::from_utf8_lossy(&self.shown).into_owned();
        for name in EXAMPLE_NAMES {
            text = text.replace(&format!("\"{name}\""), &format!("\"{name}-{suffix:08x}\""));
        }
        text.into()
    }
}

/// The operations of a path, with their methods.
pub fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let operations = [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::PATCH, &mut item.patch),
        (Method::DELETE, &mut item.delete),
    ];
    operations.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Names the scheme that the guarded routes refer to.
pub struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some(
                "The `token` of a login: HS256, `{id, iat, exp}`, valid for one hour, or until it is \
                 revoked.",
            ))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// Every JSON answer to GET has a tag, and the request that knows it is answered 304.
pub struct EntityTags;

impl Modify for EntityTags {
    fn modify(&self, document: &mut OpenApi) {
        let text = || Some(ObjectBuilder::new().schema_type(Type::String));
        for get in document.paths.paths.values_mut().filter_map(|item| item.get.as_mut()) {
            let Some(RefOr::T(answer)) = get.responses.responses.get_mut("200") else { continue };
            if !answer.content.contains_key("application/json") {
                continue;
            }
            let tag = HeaderBuilder::new().schema(text());
            let tag = tag.description(Some("Of exactly this answer")).build();
            answer.headers.insert("ETag".to_owned(), RefOr::T(tag));
            let not_modified =
                ResponseBuilder::new().description("The copy of the client is current");
            get.responses.responses.insert("304".to_owned(), RefOr::T(not_modified.build()));
            let known = ParameterBuilder::new()
                .name("If-None-Match")
                .parameter_in(ParameterIn::Header)
                .description(Some("The `ETag` of a copy"))
                .schema(text());
            get.parameters.get_or_insert_default().push(RefOr::T(known.build()));
        }
    }
}

/// Express answers HEAD wherever it answers GET, and so do we: the same without its body.
pub struct HeadRoutes;

impl Modify for HeadRoutes {
    fn modify(&self, document: &mut OpenApi) {
        for item in document.paths.paths.values_mut() {
            let Some(mut head) = item.get.clone() else { continue };
            head.operation_id = head.operation_id.map(|id| format!("{id}_head"));
            head.summary = Some("The headers of GET.".to_owned());
            head.description = None;
            for response in head.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    response.content.clear();
                }
            }
            item.head = Some(head);
        }
    }
}
