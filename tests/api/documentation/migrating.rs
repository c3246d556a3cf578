//! The rehearsal of a move from a Node server and back, as `docs/migrating.md` has it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use tokio::process::Command;

use super::{markdown, page, root};
use crate::helpers::{SECRET, mongod, tools};

const NODE: &str = "Node.js 20 with npm";

#[tokio::test(flavor = "multi_thread")]
async fn the_rehearsal_of_a_move_and_back_runs_as_it_is_written() {
    let blocks = markdown::blocks(&page("docs/migrating.md"));
    let script = &blocks.iter().find(|block| block.language == "sh").unwrap().code;
    let uri = mongod::fresh_database().await;
    // Free when it was asked for; nobody else here listens on a number of its own choice.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let node = node_server(root()).await;
    let mut rehearsal = Command::new("bash");
    rehearsal
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder.path())
        .env("NODE_SERVER", format!("node {}", node.join("server.js").display()))
        .env("CHAT_SERVER", env!("CARGO_BIN_EXE_realtime-chat-backend"))
        .env("HOST", "127.0.0.1")
        .env("PORT", port.to_string())
        .env("MONGO_URI", uri)
        .env("JWT_SECRET", SECRET);
    tools::succeed(rehearsal, NODE, "the move and the way back").await;
}

/// The Node server of the benchmark, with its packages.
async fn node_server(root: &Path) -> std::path::PathBuf {
    let source = root.join("benches/node");
    tools::installed("node-server", async |folder| {
        for name in ["package.json", "package-lock.json", "server.js"] {
            fs::copy(source.join(name), folder.join(name)).unwrap();
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund"]).current_dir(folder);
        tools::succeed(npm, NODE, "npm installs the packages of the Node server").await;
    })
    .await
}
