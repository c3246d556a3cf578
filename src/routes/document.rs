//! The OpenAPI document of all routes.

use actix_web::http::Method;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{OpenApi, PathItem};
use utoipa::{Modify, OpenApi as _};

use super::{Access, Row, TABLE};
use crate::openapi::refusals::Refusal;
use crate::openapi::{BearerToken, Document, EntityTags, HeadRoutes};

/// The document, from the code.
pub(super) static DOCUMENT: Document = Document::new(|| {
    let mut document = Frame::openapi();
    for row in TABLE {
        document.merge(row.described());
    }
    let modifiers: [&dyn Modify; 3] = [&BearerToken, &EntityTags, &HeadRoutes];
    for modifier in modifiers {
        modifier.modify(&mut document);
    }
    document.to_json().expect("a document of texts and maps serialises").into()
});

/// The document without its routes.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "realtime-chat-backend", description = include_str!("../openapi/about.md")),
    servers((url = "/", description = "This server")),
    tags(
        (name = "Users", description = "Registration and login"),
        (name = "Chat", description = "Rooms and messages; every route asks for a token"),
        (name = "Operation", description = "For orchestrators and load balancers"),
        (name = "Documentation", description = "This document"),
    ),
    components(schemas(Refusal)),
)]
struct Frame;

impl Row {
    /// What the document says of this route.
    fn described(&self) -> OpenApi {
        let mut document = (self.describe)();
        if self.access == Access::Guarded {
            for (_, operation) in document.paths.paths.values_mut().flat_map(operations) {
                let token = SecurityRequirement::new("token", [""; 0]);
                operation.security = Some(vec![token]);
            }
        }
        document
    }
}

/// The operations of a path, with their methods.
pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let operations = [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::PATCH, &mut item.patch),
        (Method::DELETE, &mut item.delete),
    ];
    operations.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}
