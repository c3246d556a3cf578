//! Real clients: every minor line of npm's socket.io-client that front ends use, on every
//! transport, what wraps it (RxJS, vue-socket.io), and python-socketio. And the client that the
//! server itself has for front ends.
//!
//! The script of a client asserts; this file starts and restarts the server. A script writes
//! `restart` to its output when it wants the server to be another process, and reads the answer.

mod module;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::helpers::{TestServer, mongod, tools};

pub const NODE: &str = "Node.js 20 with npm";
pub const PYTHON: &str = "Python 3.10 or later with venv and pip";

/// Name in the script, and what npm installs for it.
const VERSIONS: [(&str, &str); 6] = [
    ("client-2", "2.5.0"),
    ("client-3.1", "3.1.3"),
    ("client-4.0", "4.0.2"),
    ("client-4.4", "4.4.1"),
    ("client-4.6", "4.6.2"),
    ("client-4.8", "4.8.1"),
];

/// What gives events of socket.io-client to a front end: name and version.
const WRAPPERS: [(&str, &str); 3] =
    [("rxjs", "7.8.2"), ("vue", "2.7.16"), ("vue-socket.io", "3.0.10")];

/// What the scripts use beside clients: it drives the browser, looks for obstacles to assistive
/// technology, checks types, and is the WebSocket of Node 20.
const TOOLS: [(&str, &str); 4] = [
    ("puppeteer-core", "24.10.0"),
    ("axe-core", "4.10.3"),
    ("typescript", "5.9.2"),
    ("ws", "8.18.3"),
];

/// How long a client may take for everything.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn socket_io_client_3_1() {
    every_transport("client-3.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_io_client_4_0() {
    every_transport("client-4.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_io_client_4_4() {
    every_transport("client-4.4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_io_client_4_6() {
    every_transport("client-4.6").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_io_client_4_8() {
    every_transport("client-4.8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rxjs_and_vue_socket_io_hand_over_a_message_as_it_is() {
    let node = node("wrappers.js", &["client-4.8"]).await;
    converse(node, NODE, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_io_client_2_is_refused() {
    let node = node("refused.js", &["client-2", "polling"]).await;
    converse(node, NODE, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_with_two_tabs() {
    let mut node = node("browser.js", &[]).await;
    node.env("CHROMIUM", chromium());
    converse(node, NODE, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_a_chat_as_people_expect_one() {
    let screenshots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    std::fs::create_dir_all(&screenshots).unwrap();
    let mut node = node("demo.js", &[]).await;
    node.arg(screenshots).env("CHROMIUM", chromium());
    converse(node, NODE, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_one_also_without_presence() {
    let mut node = node("demo.js", &["", "without-presence"]).await;
    node.env("CHROMIUM", chromium());
    converse(node, NODE, &[("PRESENCE", "false")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_documentation_can_be_read_and_tried() {
    let screenshots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    std::fs::create_dir_all(&screenshots).unwrap();
    let mut node = node("docs.js", &[]).await;
    node.arg(screenshots).env("CHROMIUM", chromium());
    converse(node, NODE, &[]).await;
}

/// The browser of the system.
fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.is_file())
        .expect("this test needs Chromium on PATH: apt-get install chromium")
}

#[tokio::test(flavor = "multi_thread")]
async fn python_socketio() {
    let python = installed_python().await.join("bin/python");
    let mut command = Command::new(python);
    command.arg(script("client.py"));
    converse(command, PYTHON, &[]).await;
}

/// The same with each choice of transports, and with each of recovery.
async fn every_transport(client: &'static str) {
    for (transports, recovery) in [
        ("polling,websocket", "default"),
        ("polling", "default"),
        ("websocket", "default"),
        ("polling,websocket", "true"),
        ("polling,websocket", "false"),
    ] {
        let node = node("client.js", &[client, transports, recovery]).await;
        converse(node, NODE, &[]).await;
    }
}

async fn node(name: &str, arguments: &[&str]) -> Command {
    let mut node = Command::new("node");
    node.arg(script(name)).args(arguments);
    node.env("NODE_PATH", installed_node().await.join("node_modules"));
    node
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/clients").join(name)
}

/// Runs a client against a server with a user and a room, and restarts that when it asks for it.
pub async fn converse(mut client: Command, need: &str, vars: &[(&str, &str)]) {
    let given = vars.iter().find(|(name, _)| *name == "MONGO_URI");
    let uri = match given {
        Some((_, uri)) => (*uri).to_owned(),
        None => mongod::fresh_database().await,
    };
    let mut server = TestServer::start_with(&[vars, &[("MONGO_URI", uri.as_str())]].concat()).await;
    let port = server.addr.port().to_string();
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    client
        .env("URL", server.url(""))
        .env("TOKEN", &ada.token)
        .env("USER_ID", &ada.id)
        .env("ROOM", &room)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let described = format!("{:?}", client.as_std());
    let mut client = client.spawn().unwrap_or_else(|error| panic!("needs {need}: {error}"));
    let mut answers = client.stdin.take().unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    let conversation = async {
        let mut heard = Vec::new();
        while let Some(line) = said.next_line().await.unwrap() {
            if line == "restart" {
                server.stop().await;
                // Everybody must notice that it was away.
                tokio::time::sleep(Duration::from_millis(300)).await;
                let same = [("MONGO_URI", uri.as_str()), ("PORT", port.as_str())];
                server = TestServer::start_with(&[vars, &same].concat()).await;
                answers.write_all(b"restarted\n").await.unwrap();
            }
            heard.push(line);
        }
        (server, heard)
    };
    let (server, heard) =
        tokio::time::timeout(PATIENCE, conversation).await.expect("the client ends in time");
    let output = client.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{described}\n{}\n{errors}", heard.join("\n"));
    assert_eq!(heard.last().map(String::as_str), Some("done"), "{described}\n{errors}");
    server.stop().await;
}

/// Where the clients are, after installing them if they are not there.
async fn installed_node() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let install = async |folder: &Path| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(folder);
        npm.args(VERSIONS.map(|(name, version)| format!("{name}@npm:socket.io-client@{version}")));
        npm.args(WRAPPERS.map(|(name, version)| format!("{name}@{version}")));
        npm.args(TOOLS.map(|(name, version)| format!("{name}@{version}")));
        tools::succeed(npm, NODE, "npm installs the clients").await;
    };
    let packages = VERSIONS.iter().chain(&WRAPPERS).chain(&TOOLS);
    let versions = packages.map(|(_, version)| *version).collect::<Vec<_>>();
    let name = format!("clients-{}", versions.join("-"));
    FOLDER.get_or_init(|| tools::installed(&name, install)).await
}

/// Where python-socketio is, after installing it if it is not there.
pub async fn installed_python() -> &'static Path {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    FOLDER
        .get_or_init(|| async {
            // A virtual environment cannot be moved, so it is made in its place.
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-socketio-5.13");
            if !folder.join("whole").exists() {
                let mut venv = Command::new("python3");
                venv.args(["-m", "venv", "--clear"]).arg(&folder);
                tools::succeed(venv, PYTHON, "python3 makes a virtual environment").await;
                let mut pip = Command::new(folder.join("bin/pip"));
                pip.args(["install", "--quiet", "python-socketio[client]==5.13.0"]);
                pip.arg("websocket-client==1.8.0");
                tools::succeed(pip, PYTHON, "pip installs python-socketio").await;
                std::fs::write(folder.join("whole"), "").unwrap();
            }
            folder
        })
        .await
}
