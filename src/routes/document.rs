//! The OpenAPI document of all routes.

use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::{Modify, OpenApi as _};

use super::{Access, Row, TABLE};
use crate::openapi::refusals::Refusals;
use crate::openapi::{BearerToken, Document, EntityTags, HeadRoutes, SHORT, operations};

/// The document, from the code. The page shows it without HEAD, which would double its list, and
/// begins with the operations, not with prose.
pub(super) static DOCUMENT: Document = Document::new(
    || {
        let mut document = described();
        HeadRoutes.modify(&mut document);
        json(&document)
    },
    || {
        let mut document = described();
        document.info.description = Some(SHORT.to_owned());
        json(&document)
    },
);

fn described() -> OpenApi {
    let mut document = Frame::openapi();
    for row in TABLE {
        document.merge(row.described());
    }
    let modifiers: [&dyn Modify; 3] = [&BearerToken, &Refusals, &EntityTags];
    for modifier in modifiers {
        modifier.modify(&mut document);
    }
    document
}

fn json(document: &OpenApi) -> Bytes {
    document.to_json().expect("a document of texts and maps serialises").into()
}

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
