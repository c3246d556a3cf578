//! The whole route table.
//!
//! A new route needs a handler with its `#[utoipa::path]`, a row here, its bodies and refusals in
//! the file of its noun in `src/openapi`, a line in the README and a request in the Postman
//! collection. `tests/api/routes.rs` names what was forgotten.

mod document;

use std::sync::LazyLock;

use actix_web::guard::{Any, Get, Head};
use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, Payload, ServiceConfig, resource, route, scope};
use actix_web::{HttpRequest, HttpResponse, Resource, Route};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

use crate::config::ErrorMode;
use crate::controllers::{
    auth, client, demo, docs, health, messages, metrics, presence, rooms, users,
};
use crate::error::ApiError;
use crate::middleware::auth::require_auth;
use crate::middleware::deadline::deadline;
use crate::middleware::express::express;
use crate::middleware::measure::measure;
use crate::middleware::path::Paths;
use crate::middleware::precise::precise_with_members;
use crate::openapi::operations;
use crate::protocols::engine_io::Server;
use crate::protocols::socket_io::SocketIo;
use crate::protocols::socket_io::client::Bundles;
use crate::wires::socket_io::ChatIo;
use crate::wires::ws;

use document::DOCUMENT;

/// Declares the table: for each route who is served, how errors are answered, and the handler. The
/// `#[utoipa::path]` of the handler says the method and the path.
macro_rules! table {
    ($($access:ident $errors:ident $module:ident::$handler:ident;)+) => {
        /// Every route that is no socket.
        static TABLE: &[Row] = &[$({
            #[derive(utoipa::OpenApi)]
            #[openapi(paths($module::$handler))]
            struct Described;

            Row {
                access: Access::$access,
                errors: Errors::$errors,
                describe: Described::openapi,
                handle: |route| route.to($module::$handler),
            }
        }),+];
    };
}

table! {
    Open Configured auth::register;
    Open Configured auth::login;
    Open Precise auth::refresh_token;
    Guarded Precise auth::logout;
    Guarded Precise auth::logout_all;
    Guarded Precise auth::change_password;
    Guarded Precise users::search_users;
    Guarded Precise users::me;
    Guarded Precise users::get_user;
    Guarded ByRequest rooms::create_room;
    Guarded ByRequest rooms::get_all_rooms;
    Guarded Precise rooms::direct;
    Guarded Precise rooms::get_room;
    Guarded Precise rooms::change_room;
    Guarded Precise rooms::delete_room;
    Guarded Precise rooms::mark_as_read;
    Guarded Precise presence::online;
    Guarded Precise rooms::add_member;
    Guarded Precise rooms::remove_member;
    Guarded Configured messages::get_messages;
    Guarded Configured messages::send_message;
    Guarded Precise messages::edit_message;
    Guarded Precise messages::delete_message;
    Open Precise health::healthz;
    Open Precise health::readyz;
    Open Precise metrics::metrics;
    Open Precise client::client_module;
    Open Precise client::client_types;
    Open Precise demo::demo;
    Open Precise docs::openapi;
    Open Precise docs::page;
    Open Precise docs::file;
}

/// A row of the table.
struct Row {
    access: Access,
    errors: Errors,
    /// What the attribute of the handler says, as a part of the OpenAPI document.
    describe: fn() -> OpenApi,
    /// Gives the handler to a route.
    handle: fn(Route) -> Route,
}

/// Who is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Open,
    /// Users: requests with a valid token.
    Guarded,
}

/// How errors are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errors {
    /// As the variable `ERRORS` says.
    Configured,
    /// Precisely, always: the original did not have the route, so there is no answer to keep to.
    Precise,
    /// Precisely, if the request asks for rooms with members, which the original did not have;
    /// otherwise as the variable `ERRORS` says.
    ByRequest,
}

/// A method of a path, and what serves it.
pub struct Endpoint {
    /// The method. Where it is GET, HEAD is served, too.
    pub method: Method,
    /// The path, with `{name}` for a parameter.
    pub path: String,
    /// Who is served.
    pub access: Access,
    /// How errors are answered.
    pub errors: Errors,
    handle: fn(Route) -> Route,
}

/// A path with all its methods.
struct Place {
    path: &'static str,
    endpoints: Vec<&'static Endpoint>,
    /// For the header `Allow`.
    methods: String,
}

/// What the table says, in its order.
pub fn endpoints() -> &'static [Endpoint] {
    static ENDPOINTS: LazyLock<Vec<Endpoint>> =
        LazyLock::new(|| TABLE.iter().flat_map(Row::endpoints).collect());
    &ENDPOINTS
}

/// Every path. Those without a parameter stand first, since they are compared without a regular
/// expression. Where two match the same request, the one with a text in the place of a parameter
/// stands first.
static PLACES: LazyLock<Vec<Place>> = LazyLock::new(|| {
    let mut endpoints = Vec::from_iter(endpoints());
    endpoints.sort_by_key(|endpoint| precedence(&endpoint.path));
    let places = endpoints.chunk_by(|one, other| one.path == other.path);
    places.filter_map(Place::new).collect()
});

static PATHS: LazyLock<Paths> =
    LazyLock::new(|| Paths::new(PLACES.iter().map(|place| (place.path, place.errors()))));

/// Sorts paths without a parameter first, then a text before a parameter in the same place:
/// `/users/me` before `/users/{user}`.
fn precedence(path: &str) -> (bool, Vec<(bool, &str)>) {
    let segments = path.split('/').map(|segment| (segment.starts_with('{'), segment));
    (path.contains('{'), segments.collect())
}

/// Every path that this server answers.
pub fn configure(cfg: &mut ServiceConfig) {
    let rest = scope("").wrap(from_fn(express)).wrap(from_fn(measure));
    cfg.app_data(Data::new(&DOCUMENT))
        .app_data(Data::new(&*PATHS))
        .app_data(Data::new(rooms::Lists::default()))
        .app_data(Data::new(messages::Histories::default()))
        .service(resource("/ws").to(ws::connect))
        .service(resource("/socket.io/{tail}*").to(socket_io))
        .service(PLACES.iter().fold(rest, |scope, place| scope.service(place.resource())));
}

/// The same paths before it is known where MongoDB is: the process is up, and everything else is
/// refused for now.
pub fn configure_waiting(cfg: &mut ServiceConfig) {
    let unavailable =
        async || Err::<String, _>(ApiError::Unavailable("its name is not resolved".to_owned()));
    let get = || for_method(&Method::GET);
    cfg.app_data(Data::new(&*PATHS)).service(
        scope("")
            .wrap(from_fn(express))
            .service(only("GET, HEAD", "/healthz").route(get().to(health::healthz)))
            .service(only("GET, HEAD", "/readyz").route(get().to(health::unresolved)))
            .default_service(web::to(unavailable)),
    );
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

impl Row {
    fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        let Self { access, errors, describe, handle } = *self;
        describe().paths.paths.into_iter().flat_map(move |(path, mut item)| {
            let methods = operations(&mut item).map(|(method, _)| method);
            let methods = Vec::from_iter(methods).into_iter();
            methods.map(move |method| Endpoint {
                method,
                path: path.clone(),
                access,
                errors,
                handle,
            })
        })
    }
}

impl Endpoint {
    /// The methods that it serves.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        let head = (self.method == Method::GET).then_some("HEAD");
        [self.method.as_str()].into_iter().chain(head)
    }

    fn route(&self) -> Route {
        let route = (self.handle)(for_method(&self.method));
        let route = match self.access {
            Access::Open => route,
            Access::Guarded => route.wrap(from_fn(require_auth)),
        };
        // The guard may ask the database, too.
        let route = route.wrap(from_fn(deadline));
        match self.errors {
            Errors::ByRequest => route.wrap(from_fn(precise_with_members)),
            Errors::Configured | Errors::Precise => route,
        }
    }
}

impl Place {
    fn new(endpoints: &[&'static Endpoint]) -> Option<Self> {
        let path = &endpoints.first()?.path;
        let methods = Vec::from_iter(endpoints.iter().flat_map(|endpoint| endpoint.methods()));
        Some(Self { path, methods: methods.join(", "), endpoints: endpoints.to_vec() })
    }

    /// The mode of `ERRORS` whatever is configured. It is that of the path, since a request can be
    /// refused before its method is looked at.
    fn errors(&self) -> Option<ErrorMode> {
        let is_precise = |endpoint: &&Endpoint| endpoint.errors == Errors::Precise;
        self.endpoints.iter().all(is_precise).then_some(ErrorMode::Precise)
    }

    fn resource(&'static self) -> Resource {
        let resource = only(&self.methods, self.path);
        self.endpoints.iter().fold(resource, |resource, endpoint| resource.route(endpoint.route()))
    }
}

/// A path that refuses every method to which no route is added. To Express such a request has an
/// unknown route; `methods` is what `ERRORS=precise` names in `Allow`.
fn only(methods: &'static str, path: &str) -> Resource {
    resource(path).default_service(web::to(move || async move {
        Err::<String, _>(ApiError::MethodNotAllowed(methods.to_owned()))
    }))
}

/// A route for a method. Express serves HEAD, too, where it serves GET.
fn for_method(method: &Method) -> Route {
    match *method {
        Method::GET => route().guard(Any(Get()).or(Head())),
        _ => route().method(method.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_before_a_parameter() {
        let mut paths =
            ["/users/{user}", "/{any}", "/rooms/{room}/me", "/users/me", "/rooms/{room}/{user}"];
        paths.sort_by_key(|path| precedence(path));
        let sorted =
            ["/users/me", "/rooms/{room}/me", "/rooms/{room}/{user}", "/users/{user}", "/{any}"];
        assert_eq!(paths, sorted);
    }
}
