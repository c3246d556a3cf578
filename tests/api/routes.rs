//! What is said of a route in several places, and what the server does with it.
//!
//! A route stands in the attribute of its handler, in the route table, in the OpenAPI document with
//! its refusals, in the README, and in the Postman collection. One test names each route of which
//! something was forgotten, what it is, and the file to change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use realtime_chat_backend::routes::{Access, Endpoint, Errors, endpoints};
use reqwest::StatusCode;
use serde_json::Value;

use crate::helpers::{TestServer, client};

const TABLE: &str = "src/routes/mod.rs";
const COLLECTION: &str = "postman/realtime-chat-backend.postman_collection.json";
/// The folder of the collection whose requests need no route.
const AROUND: &str = "What Express does around the routes";

/// What a route behind the guard answers to a request without a token.
const NO_TOKEN: &str = "Access denied. No token provided.";

/// An id that nothing has.
const ID: &str = "676d2c41b1e8a27d9c0f4a15";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_route_is_forgotten() {
    let mut forgotten = handlers_without_row();
    forgotten.extend(routes_without_a_line_in_the_readme());
    forgotten.extend(differences_to_the_collection());
    forgotten.extend(differences_to_the_server().await);
    assert!(forgotten.is_empty(), "\n\n{}\n", forgotten.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_is_refused_as_the_table_says() {
    let large = "x".repeat(102_401);
    let bodies = [
        ("{", "application/json", 400, "malformed_json"),
        (large.as_str(), "application/json", 413, "body_too_large"),
        ("{}", "application/json; charset=latin1", 415, "unsupported_media_type"),
    ];
    for mode in ["original", "precise"] {
        let server = TestServer::start_with(&[("ERRORS", mode)]).await;
        for endpoint in endpoints() {
            let url = server.url(&with_parameter(&endpoint.path, ID));
            for (body, content_type, status, code) in bodies {
                let method = endpoint.method.as_str().parse().unwrap();
                let request = client().request(method, &url);
                let request = request.header("Content-Type", content_type).body(body.to_owned());
                let answer = request.send().await.unwrap();
                let claim = format!("{}, ERRORS={mode}, {code}", name(endpoint));
                assert_eq!(answer.status(), status, "{claim}");
                let is_precise = mode == "precise" || endpoint.errors == Errors::Precise;
                match answer.json::<Value>().await {
                    Ok(answer) if is_precise => assert_eq!(answer["code"], code, "{claim}"),
                    // A page.
                    answer => assert!(!is_precise && answer.is_err(), "{claim}: {answer:?}"),
                }
            }
        }
        server.stop().await;
    }
}

/// Handlers whose attribute says a route that the table does not have.
fn handlers_without_row() -> Vec<String> {
    let table = endpoints().iter().map(name).collect::<BTreeSet<_>>();
    let mut forgotten = Vec::new();
    for file in root("src/controllers").read_dir().unwrap() {
        let file = file.unwrap();
        let source = std::fs::read_to_string(file.path()).unwrap();
        for attribute in source.split("#[utoipa::path(").skip(1) {
            let method = attribute.split(',').next().unwrap().trim().to_uppercase();
            let (_, path) = attribute.split_once("path = \"").unwrap();
            let route = format!("{method} {}", path.split('"').next().unwrap());
            if !table.contains(&route) {
                let file = file.file_name().display().to_string();
                forgotten.push(format!(
                    "{route}: its handler in src/controllers/{file} has no row in {TABLE}"
                ));
            }
        }
    }
    forgotten
}

fn routes_without_a_line_in_the_readme() -> Vec<String> {
    let readme = std::fs::read_to_string(root("README.md")).unwrap();
    let is_missing = |endpoint: &&Endpoint| {
        let route = name(endpoint).replace('{', ":").replace('}', "");
        endpoint.path.starts_with("/api/") && !readme.contains(&format!("`{route}`"))
    };
    let missing = endpoints().iter().filter(is_missing);
    missing.map(|endpoint| format!("{}: has no line in README.md", name(endpoint))).collect()
}

/// A request of the collection.
struct Item {
    name: String,
    method: String,
    path: String,
    sends_token: bool,
    needs_route: bool,
}

/// Routes without a request in the collection, or with one that sends a token where the table asks
/// for none, or the other way round; and requests without a route.
fn differences_to_the_collection() -> Vec<String> {
    let collection = std::fs::read_to_string(root(COLLECTION)).unwrap();
    let collection: Value = serde_json::from_str(&collection).unwrap();
    let mut items = Vec::new();
    collect(&collection, false, true, &mut items);

    let mut forgotten = Vec::new();
    for item in items.iter().filter(|item| item.needs_route && item.endpoint().is_none()) {
        let Item { name, method, path, .. } = item;
        forgotten.push(format!(
            "{method} {path}: {TABLE} has no row for the request {name:?} of {COLLECTION} (what \
             needs none belongs into its folder {AROUND:?})"
        ));
    }
    for endpoint in endpoints() {
        let is_its = |item: &&Item| item.endpoint().is_some_and(|its| name(its) == name(endpoint));
        let requests = items.iter().filter(is_its).collect::<Vec<_>>();
        let problem = match endpoint.access {
            _ if requests.is_empty() => "has no request".to_owned(),
            Access::Open => match requests.iter().find(|item| item.sends_token) {
                Some(item) => format!("is Open in {TABLE}, but {:?} sends a token", item.name),
                None => continue,
            },
            Access::Guarded if requests.iter().any(|item| item.sends_token) => continue,
            Access::Guarded => format!("is Guarded in {TABLE}, but no request sends a token"),
        };
        forgotten.push(format!("{}: {problem} in {COLLECTION}", name(endpoint)));
    }
    forgotten
}

/// Adds the requests of a folder and of those below it.
fn collect(folder: &Value, sends_token: bool, needs_route: bool, items: &mut Vec<Item>) {
    for item in folder["item"].as_array().unwrap() {
        let name = item["name"].as_str().unwrap();
        let request = &item["request"];
        let sends_token = match request["auth"]["type"].as_str().or(item["auth"]["type"].as_str()) {
            Some(auth) => auth == "bearer",
            None => sends_token,
        };
        let needs_route = needs_route && name != AROUND;
        if item["item"].is_array() {
            collect(item, sends_token, needs_route, items);
            continue;
        }
        let path = request["url"]["path"].as_array().unwrap().iter();
        let path = path.map(|segment| format!("/{}", segment.as_str().unwrap())).collect();
        let method = request["method"].as_str().unwrap().to_owned();
        items.push(Item { name: name.to_owned(), method, path, sends_token, needs_route });
    }
}

impl Item {
    /// The route that it asks: the one with the fewest parameters of those that match.
    fn endpoint(&self) -> Option<&'static Endpoint> {
        let matches = |endpoint: &&Endpoint| {
            let mut segments = self.path.trim_end_matches('/').split('/');
            let is_matched = endpoint.path.split('/').all(|segment| {
                let is_parameter = segment.starts_with('{');
                segments.next().is_some_and(|text| {
                    text.eq_ignore_ascii_case(segment) || (is_parameter && !text.is_empty())
                })
            });
            is_matched
                && segments.next().is_none()
                && endpoint.methods().any(|method| method == self.method)
        };
        endpoints().iter().filter(matches).min_by_key(|endpoint| endpoint.path.matches('{').count())
    }
}

/// What the server does otherwise than the table and the document say.
async fn differences_to_the_server() -> Vec<String> {
    let mut forgotten = Vec::new();
    for mode in ["original", "precise"] {
        let server = TestServer::start_with(&[("ERRORS", mode)]).await;
        let document = server.document().await;
        for endpoint in endpoints() {
            let operation = &document["paths"][&endpoint.path];
            let operation = &operation[endpoint.method.as_str().to_lowercase()];
            let mut problems = Vec::new();
            if mode == "precise" {
                problems.extend(contradictions(operation, endpoint));
            }
            // The mode makes no difference to the others.
            if mode == "original" || endpoint.errors != Errors::Precise {
                problems.extend(undocumented_answers(&server, operation, endpoint).await);
            }
            forgotten.extend(problems.iter().map(|it| format!("{}: {it}", name(endpoint))));
        }
        if mode == "precise" {
            forgotten.extend(wrong_methods(&server).await);
        }
        server.stop().await;
    }
    forgotten
}

/// Answers to a route that the document does not show.
async fn undocumented_answers(
    server: &TestServer,
    operation: &Value,
    endpoint: &Endpoint,
) -> Vec<String> {
    let Endpoint { method, path, access, .. } = endpoint;
    let mut problems = Vec::new();
    let mut answers = vec![ask(server, method.as_str(), path, ID, "").await];
    if *access == Access::Open && answers[0].body["error"] == NO_TOKEN {
        problems.push(format!("its handler asks for a token, but it is Open in {TABLE}"));
    }
    if path.contains('{') {
        answers.push(ask(server, method.as_str(), path, "%FF", "").await);
    }
    if operation.get("requestBody").is_some() {
        answers.push(ask(server, method.as_str(), path, ID, "{").await);
    }
    for Answer { status, body, .. } in answers {
        let response = &operation["responses"][status.as_str()];
        let json = response["content"]["application/json"]["examples"].as_object();
        let is_documented = match status.is_client_error() {
            true if body.is_null() => response["content"]["text/html"].is_object(),
            true => json.is_some_and(|json| json.values().any(|shown| shown["value"] == body)),
            false => response.is_object(),
        };
        if !is_documented {
            let body = if body.is_null() { "a page".to_owned() } else { body.to_string() };
            problems.push(format!(
                "the server answers {status} {body}, which the document does not show. Add it to \
                 the refusals of the route in src/openapi/, perhaps by token(), parameter() or \
                 body()"
            ));
        }
    }
    problems
}

/// Where the row and the refusals of a route contradict each other, or what holds for all routes.
fn contradictions(operation: &Value, endpoint: &Endpoint) -> impl Iterator<Item = String> {
    let Endpoint { path, access, errors, .. } = endpoint;
    let is_api = path.starts_with("/api/");
    let responses = operation["responses"].as_object().unwrap();
    let shows_original = || {
        let mut texts = responses.values().filter_map(|response| response["description"].as_str());
        texts.any(|text| text.contains("`ERRORS=original`"))
    };
    let found = [
        (*access == Access::Open && is_api && !path.starts_with("/api/auth/"))
            .then(|| format!("is Open in {TABLE}, which below /api only /api/auth may be")),
        (*errors == Errors::Precise && shows_original())
            .then(|| format!("is Precise in {TABLE}, but its refusals in src/openapi/ are not")),
        (is_api && !responses.contains_key("503"))
            .then(|| "its refusals in src/openapi/ have no database()".to_owned()),
    ];
    found.into_iter().flatten()
}

/// Methods that are served otherwise than the table says.
async fn wrong_methods(server: &TestServer) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in endpoints().iter().map(|endpoint| &endpoint.path).collect::<BTreeSet<_>>() {
        let here = endpoints().iter().filter(|endpoint| endpoint.path == *path);
        let served = here.flat_map(Endpoint::methods).collect::<BTreeSet<_>>();
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = ask(server, method, path, ID, "").await;
            let expected = if served.contains(method) { None } else { Some(served.clone()) };
            if answer.allowed() != expected {
                let Answer { status, allow, .. } = answer;
                wrong.push(format!(
                    "{method} {path}: {TABLE} has {served:?} for this path, but the server answers \
                     {status}, Allow: {allow:?}"
                ));
            }
        }
    }
    wrong
}

/// An answer of the server.
struct Answer {
    status: StatusCode,
    allow: Option<String>,
    body: Value,
}

impl Answer {
    /// The methods of the path, when the method of the request is none of them.
    fn allowed(&self) -> Option<BTreeSet<&str>> {
        let is_refused = self.status == StatusCode::METHOD_NOT_ALLOWED;
        is_refused.then(|| self.allow.iter().flat_map(|methods| methods.split(", ")).collect())
    }
}

/// Sends a request without a token, with one value for all parameters of its path.
async fn ask(
    server: &TestServer,
    method: &str,
    path: &str,
    parameter: &str,
    body: &'static str,
) -> Answer {
    let url = server.url(&with_parameter(path, parameter));
    let request = client().request(method.parse().unwrap(), url);
    let request = request.header("Content-Type", "application/json").body(body);
    let answer = request.send().await.unwrap();
    let allow = answer.headers().get("allow").map(|allow| allow.to_str().unwrap().to_owned());
    Answer { status: answer.status(), allow, body: answer.json().await.unwrap_or_default() }
}

/// A path of the table with one value for all its parameters.
fn with_parameter(path: &str, parameter: &str) -> String {
    let segments = path.split('/');
    let segments = segments.map(|text| if text.starts_with('{') { parameter } else { text });
    segments.collect::<Vec<_>>().join("/")
}

fn name(endpoint: &Endpoint) -> String {
    format!("{} {}", endpoint.method, endpoint.path)
}

/// A file or folder of the repository.
fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
