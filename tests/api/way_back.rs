//! The way back to the Node server: users who registered here log in there.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bson::{Document, doc};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use crate::helpers::{SECRET, TestServer, client, eventually, mongod, tools};

const NODE: &str = "Node.js 20 with npm";

/// The Node server of the benches, as a process on a port of its own; dropping it kills it.
struct Peer {
    url: String,
    _process: Child,
}

impl Peer {
    async fn start(uri: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let process = Command::new("node")
            .arg("server.js")
            .current_dir(installed().await)
            .envs([("PORT", port.to_string().as_str()), ("MONGO_URI", uri), ("JWT_SECRET", SECRET)])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect(NODE);
        let peer = Self { url: format!("http://127.0.0.1:{port}"), _process: process };
        let answers = async || client().get(&peer.url).send().await.is_ok();
        eventually("the Node server answers", answers).await;
        peer
    }

    /// Logs in with the password that [`TestServer::register`] gives a user.
    async fn login(&self, name: &str) -> (StatusCode, Value) {
        let credentials = json!({ "username": name, "password": format!("password of {name}") });
        let url = format!("{}/api/auth/login", self.url);
        let answer = client().post(url).json(&credentials).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// What its guard says to a token.
    async fn rooms(&self, token: &str) -> StatusCode {
        let url = format!("{}/api/chat/rooms", self.url);
        client().get(url).bearer_auth(token).send().await.unwrap().status()
    }
}

/// Where that server and its packages are, after installing them if they are not there.
async fn installed() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async |folder: &Path| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/node");
        for file in ["package.json", "package-lock.json", "server.js"] {
            std::fs::copy(source.join(file), folder.join(file)).unwrap();
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--prefix"]).arg(folder);
        tools::succeed(npm, NODE, "npm installs the Node server's packages").await;
    };
    FOLDER.get_or_init(|| tools::installed("node-peer", install)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_with_argon2id_are_back_on_node_after_a_login_with_bcrypt_set() {
    let uri = mongod::fresh_database().await;
    let forgot = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    forgot.register("ann").await;
    let node = Peer::start(&uri).await;
    let (status, answer) = node.login("ann").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer, json!({ "error": "Invalid credentials" }));

    let vars = [("MONGO_URI", uri.as_str()), ("PASSWORD_HASH", "bcrypt")];
    let remembered = TestServer::start_with(&vars).await;
    let here = remembered.login("ann").await;
    assert_eq!(node.rooms(&here.token).await, StatusCode::OK, "Node takes the token of here");
    let (status, answer) = node.login("ann").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["userId"], json!(here.id));
    let users = mongod::connect(&uri).await.collection::<Document>("users");
    assert_eq!(users.count_documents(doc! {}).await.unwrap(), 1);
}
