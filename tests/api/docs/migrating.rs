//! The rehearsal of a move from a Node server and back, as `docs/migrating.md` has it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use tokio::process::Command;

use crate::helpers::{SECRET, mongod, tools};

const NODE: &str = "Node.js 20 with npm";

/// The commands of a document: its block of this language.
fn block(document: &str, language: &str) -> String {
    let (_, rest) = document.split_once(&format!("\n```{language}\n")).expect("there is a block");
    rest.split_once("\n```").expect("it ends").0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rehearsal_of_a_move_and_back_runs_as_it_is_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = block(&fs::read_to_string(root.join("docs/migrating.md")).unwrap(), "sh");
    let uri = mongod::fresh_database().await;
    // Free when it was asked for; nobody else here listens on a number of its own choice.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let node = node_server(root).await;
    let mut rehearsal = Command::new("bash");
    rehearsal
        .args(["-euo", "pipefail", "-c", &script])
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
