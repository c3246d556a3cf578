//! Requests that schemathesis makes up from the OpenAPI document: what the document allows is
//! served, what it forbids is refused, and every answer is one that it describes.
//!
//! The seed is fixed, so that a failure is a change of ours. `tests/schemathesis/README.md` says
//! how to search for longer.

use std::path::Path;

use tokio::process::Command;

use crate::helpers::{TestServer, tools};

/// The tool, pinned.
const SCHEMATHESIS: &str = "4.32.5";
const PYTHON: &str = "Python 3.10 or later with pip";

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_one_of_the_document() {
    let name = format!("schemathesis-{SCHEMATHESIS}");
    let library = tools::installed(&name, async |folder: &Path| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(folder)
            .arg(format!("schemathesis=={SCHEMATHESIS}"));
        tools::succeed(pip, PYTHON, "pip installs schemathesis").await;
    })
    .await;

    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("made up").await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis");
    let mut schemathesis = Command::new("python3");
    schemathesis
        .env("PYTHONPATH", std::env::join_paths([&library, &folder]).unwrap())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("ROOM", &room)
        .env("SENDER", &ann.id)
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(folder.join("schemathesis.toml"))
        .args(["run", &server.url("/openapi.json")])
        .args(["--header", &format!("Authorization: Bearer {}", ann.token)])
        .args(["--checks", "all", "--max-examples", "20", "--seed", "1", "--no-color"])
        .args(["--generation-database", "none"]);
    tools::succeed(schemathesis, PYTHON, "schemathesis finds nothing").await;
    server.stop().await;
}
