//! The examples for front ends: those of `docs/realtime.md`, and the JavaScript of the other pages.
//!
//! The scripts beside this file read the pages, run each example against a server as a client
//! would, and assert what the page says. An example that no script runs is an error there.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::sync::OnceCell;

use super::root;
use crate::clients::{NODE, PYTHON, converse, installed_python};
use crate::helpers::tools;

/// What the examples import: name, and what npm installs for it.
const PACKAGES: [(&str, &str); 9] = [
    ("socket.io-client", "4.8.1"),
    ("older-client", "npm:socket.io-client@3.1.3"),
    ("react", "19.1.1"),
    ("react-test-renderer", "19.1.1"),
    ("rxjs", "7.8.2"),
    ("vue", "3.5.22"),
    ("argon2", "0.44.0"),
    ("bcryptjs", "2.4.3"),
    ("ws", "8.18.3"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_example_in_javascript_does_what_its_page_says() {
    let mut node = Command::new("node");
    // Node 20 has no WebSocket without it.
    node.args(["--experimental-websocket", "--no-warnings"]);
    node.arg(script("snippets.mjs")).arg(root()).arg(installed().await);
    converse(node, NODE, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_python_does_what_its_page_says() {
    let mut python = Command::new(installed_python().await.join("bin/python"));
    python.arg(script("snippet.py")).arg(root());
    converse(python, PYTHON, &[]).await;
}

fn script(name: &str) -> PathBuf {
    root().join("tests/api/documentation").join(name)
}

/// A folder from which the packages can be imported.
async fn installed() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async |folder: &Path| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(folder);
        npm.args(PACKAGES.map(|(name, version)| format!("{name}@{version}")));
        tools::succeed(npm, NODE, "npm installs what the examples import").await;
    };
    let versions: Vec<_> =
        PACKAGES.iter().map(|(_, version)| version.replace([':', '@'], "-")).collect();
    let name = format!("examples-{}", versions.join("-"));
    FOLDER.get_or_init(|| tools::installed(&name, install)).await
}
