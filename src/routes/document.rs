//! The OpenAPI document of all routes.

use utoipa::openapi::OpenApi;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::{Modify, OpenApi as _};

use super::{Access, Row, TABLE};
use crate::openapi::refusals::Refusals;
use crate::openapi::{BearerToken, Document, EntityTags, HeadRoutes, operations};

/// The document, from the code.
pub(super) static DOCUMENT: Document = Document::new(|| {
    let mut document = Frame::openapi();
    for row in TABLE {
        document.merge(row.described());
    }
    let modifiers: [&dyn Modify; 4] = [&BearerToken, &Refusals, &EntityTags, &HeadRoutes];
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
        (name = "Users", description = "Registration, login and its end, and the other users"),
        (name = "Rooms", description = "Places for messages; every route asks for a token"),
        (name = "Messages", description = "What is said in them; every route asks for a token"),
        (name = "Operation", description = "For orchestrators and load balancers"),
        (name = "Documentation", description = "This document"),
    ),
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
