//! The Postman collection, run from top to bottom as its users run it.
//!
//! Node.js and npm are prerequisites of the tests; newman is installed once, below `target`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::helpers::{SECRET, TestServer};

/// The command line runner of Postman collections, pinned.
const NEWMAN: &str = "6.2.2";

/// Runs the collection twice on one database, first fresh and then used.
async fn run_twice(errors: &str) {
    let server = TestServer::start_with(&[("ERRORS", errors)]).await;
    for round in ["a fresh", "a used"] {
        let output = newman(&server, errors).await;
        assert!(
            output.status.success(),
            "on {round} database with ERRORS={errors}:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collection_passes_with_the_originals_errors() {
    run_twice("original").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collection_passes_with_precise_errors() {
    run_twice("precise").await;
}

async fn newman(server: &TestServer, errors: &str) -> Output {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("postman");
    let mut newman = Command::new("node");
    newman
        .arg(installed().await)
        .arg("run")
        .arg(folder.join("realtime-chat-backend.postman_collection.json"))
        .arg("--environment")
        .arg(folder.join("local.postman_environment.json"))
        .args(["--env-var", &format!("baseUrl={}", server.url(""))])
        .args(["--env-var", &format!("errors={errors}")])
        .args(["--env-var", &format!("jwtSecret={SECRET}")])
        .args(["--color", "off", "--reporter-cli-no-success-assertions"]);
    run(newman).await
}

/// The script of newman, after installing it if it is not there.
async fn installed() -> &'static Path {
    static SCRIPT: OnceCell<PathBuf> = OnceCell::const_new();
    SCRIPT.get_or_init(install).await
}

async fn install() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = cache.join(format!("newman-{NEWMAN}"));
    if !folder.exists() {
        // Moved into its place when it is whole, so that an interrupted test leaves no half of it.
        let whole = tempfile::tempdir_in(cache).unwrap();
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--prefix"])
            .arg(whole.path())
            .arg(format!("newman@{NEWMAN}"));
        let output = run(npm).await;
        assert!(
            output.status.success(),
            "npm cannot install newman {NEWMAN}, which the tests of the Postman collection need: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::rename(whole.path(), &folder).unwrap();
    }
    folder.join("node_modules/newman/bin/newman.js")
}

async fn run(mut command: Command) -> Output {
    match command.kill_on_drop(true).output().await {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "{:?} is not on PATH: the tests of the Postman collection need Node.js 16 or later \
             with npm",
            command.as_std().get_program()
        ),
        Err(error) => panic!("{:?} cannot be started: {error}", command.as_std()),
    }
}
