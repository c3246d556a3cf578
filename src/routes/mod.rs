//! The whole route table.

mod document;

use std::future::ready;

use actix_web::dev::HttpServiceFactory;
use actix_web::guard::{Any, Get, Head};
use actix_web::middleware::from_fn;
use actix_web::web::{
    self, Data, Payload, ServiceConfig, delete, patch, post, resource, route, scope,
};
use actix_web::{HttpRequest, HttpResponse, Resource, Route, Scope};
use indexmap::IndexMap;

use crate::controllers::{auth, chat, demo, docs, health, metrics, not_found};
use crate::error::ApiError;
use crate::middleware::auth::require_auth;
use crate::middleware::deadline::deadline;
use crate::middleware::express::{express, precise};
use crate::middleware::measure::measure;
use crate::protocols::engine_io::Server;
use crate::protocols::socket_io::SocketIo;
use crate::protocols::socket_io::client::Bundles;
use crate::wires::socket_io::ChatIo;
use crate::wires::ws;

use document::DOCUMENT;

/// Every path that this server answers.
pub fn configure(cfg: &mut ServiceConfig) {
    cfg.app_data(Data::new(&DOCUMENT))
        .service(resource("/ws").to(ws::connect))
        .service(resource("/socket.io/{tail}*").to(socket_io))
        .service(rest());
}

/// The same paths before it is known where MongoDB is: the process is up, and everything else is
/// refused for now.
pub fn configure_waiting(cfg: &mut ServiceConfig) {
    let unavailable =
        async || Err::<String, _>(ApiError::Unavailable("its name is not resolved".to_owned()));
    let scope = scope("").wrap(from_fn(express)).default_service(web::to(unavailable));
    let rows = [
        ("GET, HEAD", "/healthz", get().to(health::healthz)),
        ("GET, HEAD", "/readyz", get().to(health::unresolved)),
    ];
    cfg.service(resources(rows.into()).into_iter().fold(scope, Scope::service));
}

/// Every method and every path below, as in the original, where Socket.IO came before Express.
async fn socket_io(
    req: HttpRequest,
    payload: Payload,
    server: Data<Server<SocketIo<ChatIo>>>,
    bundles: Data<Bundles>,
) -> HttpResponse {
    match bundles.respond(&req) {
        Some(bundle) => bundle,
        None => server.handle(req, payload).await,
    }
}

/// What Express served: everything that is no socket.
fn rest() -> impl HttpServiceFactory {
    let scope =
        scope("").wrap(from_fn(express)).wrap(from_fn(measure)).default_service(web::to(not_found));
    resources(table()).into_iter().fold(scope, Scope::service)
}

/// The path of one message.
const MESSAGE: &str = "/api/chat/message/{message}";

/// A row of the table: the methods that the route serves, its path, and what serves it.
pub type Row = (&'static str, &'static str, Route);

/// Every path that is no socket. The OpenAPI document has the same rows.
pub fn table() -> Vec<Row> {
    vec![
        ("POST", "/api/auth/register", open(post().to(auth::register))),
        ("POST", "/api/auth/login", open(post().to(auth::login))),
        ("POST", "/api/chat/room", guarded(post().to(chat::create_room))),
        ("GET, HEAD", "/api/chat/rooms", guarded(get().to(chat::get_all_rooms))),
        ("GET, HEAD", "/api/chat/messages/{room}", guarded(get().to(chat::get_messages))),
        ("POST", "/api/chat/message", guarded(post().to(chat::send_message))),
        ("PATCH", MESSAGE, precisely(guarded(patch().to(chat::edit_message)))),
        ("DELETE", MESSAGE, precisely(guarded(delete().to(chat::delete_message)))),
        ("GET, HEAD", "/healthz", get().to(health::healthz)),
        ("GET, HEAD", "/readyz", get().to(health::readyz)),
        ("GET, HEAD", "/metrics", get().to(metrics::metrics)),
        ("GET, HEAD", "/demo", get().to(demo::demo)),
        ("GET, HEAD", "/openapi.json", get().to(docs::openapi)),
        ("GET, HEAD", "/docs", get().to(docs::page)),
        ("GET, HEAD", "/docs/{file}", get().to(docs::file)),
    ]
}

/// The resources of these rows, one for each path. Other methods are an unknown route to Express;
/// those that the path has are what `ERRORS=precise` names in `Allow`.
fn resources(rows: Vec<Row>) -> Vec<Resource> {
    let mut paths: IndexMap<&str, (Vec<&str>, Vec<Route>)> = IndexMap::new();
    for (methods, path, route) in rows {
        let (all, routes) = paths.entry(path).or_default();
        all.push(methods);
        routes.push(route);
    }
    let resource_of = |(path, (methods, routes)): (_, (Vec<_>, Vec<_>))| {
        let methods = methods.join(", ");
        let refuse = move || ready(Err::<String, _>(ApiError::MethodNotAllowed(methods.clone())));
        let with_route = |resource: Resource, route| resource.route(route);
        routes.into_iter().fold(resource(path), with_route).default_service(web::to(refuse))
    };
    paths.into_iter().map(resource_of).collect()
}

/// A GET route, which Express also serves to HEAD.
fn get() -> Route {
    route().guard(Any(Get()).or(Head()))
}

/// A route for everyone.
fn open(route: Route) -> Route {
    route.wrap(from_fn(deadline))
}

/// A route behind the guard.
fn guarded(route: Route) -> Route {
    route.wrap(from_fn(deadline)).wrap(from_fn(require_auth))
}

/// A route that the original did not have.
fn precisely(route: Route) -> Route {
    route.wrap(from_fn(precise))
}
