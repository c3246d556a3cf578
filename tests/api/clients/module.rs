//! `/chat.js`: the client for front ends, in Node and in a browser.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use tokio::process::Command;

use super::{NODE, chromium, converse, installed_node, node, script};
use crate::helpers::{TestServer, client, mongod, tools};

/// What a front end loads for it.
const MAX_COMPRESSED: usize = 12 * 1024;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/client")
}

async fn run_in_node(scenarios: &[&str]) {
    run_in_node_with(scenarios, &[]).await;
}

async fn run_in_node_with(scenarios: &[&str], vars: &[(&str, &str)]) {
    let mut node = Command::new("node");
    node.arg(script("chat.mjs")).arg(folder().join("chat.js")).arg(installed_node().await);
    node.args(scenarios);
    converse(node, NODE, vars).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_with_the_module_is_stored_and_shown_once() {
    let scenarios = [
        "history",
        "whileReading",
        "changes",
        "oldWhileReading",
        "changedFromAfar",
        "recovery",
        "nothingIsDoubled",
        "reload",
        "refusedMessages",
        "tooMany",
    ];
    run_in_node(&scenarios).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_module_reads_the_history_until_it_is_whole_or_shows_a_gap() {
    run_in_node(&["resync", "gap"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_positions_the_module_misses_nothing_either() {
    let mongod = mongod::standalone().await;
    run_in_node_with(&["standalone"], &[("MONGO_URI", &mongod.uri("chat"))]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_module_keeps_the_login_and_comes_back() {
    run_in_node(&["account", "otherUsers", "renewal", "signals", "deadConnection", "restart"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_module_gets_on_with_an_older_and_a_newer_server() {
    run_in_node(&["newer", "older"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chat_pages_of_the_documentation_work_as_they_stand_there() {
    let mut node = node("front_end.js", &[env!("CARGO_MANIFEST_DIR")]).await;
    node.env("CHROMIUM", chromium());
    converse(node, NODE, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_module_and_its_types_are_served() {
    let server = TestServer::start().await;
    for (path, content_type) in
        [("/chat.js", "text/javascript"), ("/chat.d.ts", "application/typescript")]
    {
        let file = std::fs::read(folder().join(path.trim_start_matches('/'))).unwrap();
        let get = async |headers: HeaderMap| {
            client().get(server.url(path)).headers(headers).send().await.unwrap()
        };
        let answer = get(HeaderMap::new()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let headers = answer.headers().clone();
        assert_eq!(headers["content-type"], format!("{content_type}; charset=utf-8"));
        assert_eq!(headers["access-control-allow-origin"], "*", "pages of other origins import it");
        assert_eq!(headers["cache-control"], "public, max-age=0");
        let types = headers.get("x-typescript-types").map(|value| value.to_str().unwrap());
        assert_eq!(types, (path == "/chat.js").then_some("./chat.d.ts"));
        assert_eq!(answer.bytes().await.unwrap(), file);

        let known =
            HeaderMap::from_iter([("if-none-match".parse().unwrap(), headers["etag"].clone())]);
        assert_eq!(get(known).await.status(), StatusCode::NOT_MODIFIED);
        let gzip =
            HeaderMap::from_iter([("accept-encoding".parse().unwrap(), "gzip".parse().unwrap())]);
        let answer = get(gzip).await;
        assert_eq!(answer.headers()["content-encoding"], "gzip");
        let compressed = answer.bytes().await.unwrap();
        let mut expected = GzEncoder::new(Vec::new(), Compression::best());
        expected.write_all(&file).unwrap();
        assert_eq!(compressed, expected.finish().unwrap());
        assert!(compressed.len() < MAX_COMPRESSED, "{path}: {} bytes", compressed.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_is_a_package_with_types() {
    let folder_of_user = tempfile::tempdir().unwrap();
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--offline", "--prefix"]);
    npm.arg(folder_of_user.path()).arg(folder());
    tools::succeed(npm, NODE, "npm installs the folder").await;
    std::fs::copy(script("types.ts"), folder_of_user.path().join("types.mts")).unwrap();
    let mut tsc = Command::new("node");
    tsc.arg(installed_node().await.join("node_modules/typescript/bin/tsc"));
    tsc.args(["--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom"]);
    tsc.arg("types.mts").current_dir(folder_of_user.path());
    tools::succeed(tsc, NODE, "a program with the types compiles").await;
    let mut node = Command::new("node");
    node.arg("types.mjs").current_dir(folder_of_user.path()).stdin(Stdio::null());
    tools::succeed(node, NODE, "and runs").await;
}
