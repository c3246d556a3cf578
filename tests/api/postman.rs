//! The Postman collection, run from top to bottom as its users run it.

use std::path::{Path, PathBuf};

use bson::{Document, doc};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::helpers::{SECRET, TestServer, mongod, tools};

/// The command line runner of Postman collections, pinned.
const NEWMAN: &str = "6.2.2";
const NODE: &str = "Node.js 16 or later with npm";

#[tokio::test(flavor = "multi_thread")]
async fn the_collection_passes_with_the_originals_errors() {
    run_twice("original").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collection_passes_with_precise_errors() {
    run_twice("precise").await;
}

/// What a run leaves in the database: users, rooms and messages, as the README says.
const LEFT: [u64; 3] = [7, 4, 12];

/// Runs the collection on one database, first fresh and then used, also by the demo's people.
async fn run_twice(errors: &str) {
    let uri = mongod::fresh_database().await;
    let server = TestServer::start_with(&[("ERRORS", errors), ("MONGO_URI", &uri)]).await;
    server.register("ann").await.create_room("general").await;
    let database = mongod::connect(&uri).await;
    for (round, used) in ["a fresh", "a used"].into_iter().zip(0..) {
        let claim = format!("the collection passes on {round} database with ERRORS={errors}");
        tools::succeed(newman(&server, errors).await, NODE, &claim).await;
        let mut left = [0; 3];
        for (count, name) in left.iter_mut().zip(["users", "rooms", "messages"]) {
            let collection = database.collection::<Document>(name);
            *count = collection.count_documents(doc! {}).await.unwrap();
        }
        let before = [1, 1, 0];
        let expected = [0, 1, 2].map(|index| before[index] + (used + 1) * LEFT[index]);
        assert_eq!(left, expected, "{round}");
    }
    server.stop().await;
}

async fn newman(server: &TestServer, errors: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("postman");
    let mut newman = Command::new("node");
    newman
        .arg(installed().await.join("node_modules/newman/bin/newman.js"))
        .arg("run")
        .arg(folder.join("realtime-chat-backend.postman_collection.json"))
        .arg("--environment")
        .arg(folder.join("local.postman_environment.json"))
        .args(["--env-var", &format!("baseUrl={}", server.url(""))])
        .args(["--env-var", &format!("errors={errors}")])
        .args(["--env-var", &format!("jwtSecret={SECRET}")])
        .args(["--color", "off", "--reporter-cli-no-success-assertions"]);
    newman
}

/// Where newman is, after installing it if it is not there.
async fn installed() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async |folder: &Path| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--prefix"])
            .arg(folder)
            .arg(format!("newman@{NEWMAN}"));
        tools::succeed(npm, NODE, "npm installs newman").await;
    };
    let name = format!("newman-{NEWMAN}");
    FOLDER.get_or_init(|| tools::installed(&name, install)).await
}
