//! The OpenAPI document of all routes.

use utoipa::OpenApi;

use crate::controllers::{auth, chat, demo, docs, health, metrics};
use crate::openapi::refusals::Refusal;
use crate::openapi::{BearerToken, Document, EntityTags, HeadRoutes};

/// The document, from the code.
pub(super) static DOCUMENT: Document = Document::new(|| {
    let json = Collected::openapi().to_json();
    json.expect("a document of texts and maps serialises").into()
});

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
    paths(
        auth::register,
        auth::login,
        chat::create_room,
        chat::get_all_rooms,
        chat::get_messages,
        chat::send_message,
        chat::edit_message,
        chat::delete_message,
        health::healthz,
        health::readyz,
        metrics::metrics,
        demo::demo,
        docs::openapi,
        docs::page,
        docs::file,
    ),
    components(schemas(Refusal)),
    modifiers(&BearerToken, &EntityTags, &HeadRoutes),
)]
struct Collected;
