//! Commands of the README and of the page about operations, run as they stand there.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::Command;
use tokio::time::sleep;

use super::markdown::{self, Block};
use super::{page, root};
use crate::helpers::socket::Socket;
use crate::helpers::{SECRET, TestServer, client, eventually, labelled, mongod, tools};

const NGINX: &str = "nginx: apt-get install nginx-light";

/// The only block of a language below a heading.
fn block(path: &str, heading: &str, language: &str) -> String {
    let is_it = |block: &Block| block.heading == heading && block.language == language;
    let mut found = markdown::blocks(&page(path)).into_iter().filter(is_it);
    let block = found.next().unwrap_or_else(|| panic!("{path} has no {language} below {heading}"));
    assert_eq!(found.next(), None, "{path}: {heading}");
    block.code
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_can_be_run_again_and_by_whom_the_demo_knows() {
    let server = TestServer::start().await;
    server.register("ann").await.create_room("general").await;
    let script = block("README.md", "On the command line", "sh");
    let script = script.replace("http://localhost:5000", &server.url(""));
    for _ in 0..2 {
        let mut sh = Command::new("sh");
        sh.args(["-euc", &script]);
        let output = tools::run(sh, "a POSIX shell with curl, sed and openssl").await;
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        let said = said.replace("}{", "}\n{").replace("}[", "}\n[");
        let answers: Vec<serde_json::Value> =
            said.lines().map(|line| serde_json::from_str(line).expect(&said)).collect();
        let [registered, sent, history] = &answers[..] else { panic!("{said}") };
        assert_eq!(*registered, json!({ "message": "User registered successfully" }));
        assert_eq!(sent["message"]["content"], "hello");
        assert_eq!(history[0]["_id"], sent["message"]["_id"]);
        assert_eq!(history.as_array().map(Vec::len), Some(1));
    }
}

/// Processes that a script has started; dropping this ends them.
struct Started {
    folder: PathBuf,
}

impl Drop for Started {
    fn drop(&mut self) {
        for file in ["nginx.pid", "servers.pid"] {
            let pids = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_instances_behind_nginx_are_one_chat() {
    let folder = tempfile::tempdir().unwrap();
    // Free when they were asked for; nobody else here listens on numbers of his own choice.
    let listeners = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addrs: [SocketAddr; 4] = listeners.map(|listener| listener.local_addr().unwrap());
    let with_ports = |text: String| {
        let documented = ["5001", "5002", "5003", "8080"].into_iter().zip(addrs);
        documented.fold(text, |text, (port, addr)| text.replace(port, &addr.port().to_string()))
    };
    fs::create_dir(folder.path().join("deploy")).unwrap();
    let conf = with_ports(page("deploy/nginx.conf"));
    let pid = format!("pid {};\nerror_log stderr;\n", folder.path().join("nginx.pid").display());
    fs::write(folder.path().join("deploy/nginx.conf"), pid + &conf).unwrap();
    let script = block("docs/operations.md", "Three instances behind nginx", "sh");
    let script = with_ports(script) + "\njobs -p > servers.pid\n";

    let started = Started { folder: folder.path().to_owned() };
    let output = folder.path().join("output");
    let mut bash = Command::new("bash");
    // Not pipes, which the servers would keep open.
    bash.args(["-euo", "pipefail", "-c", &script])
        .current_dir(folder.path())
        .env("CHAT_SERVER", env!("CARGO_BIN_EXE_realtime-chat-backend"))
        .env("MONGO_URI", mongod::fresh_database().await)
        .env("JWT_SECRET", SECRET)
        .env("HOST", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(File::create(&output).unwrap())
        .stderr(File::options().append(true).open(&output).unwrap());
    let status = bash.status().await.expect("bash");
    let said = fs::read_to_string(&output).unwrap();
    assert!(status.success(), "needs {NGINX}\n{said}");
    assert!(said.contains(r#"{"status":"ready","realtime":"cluster"}"#), "{said}");

    let [.., proxy] = addrs;
    let url = |path: &str| format!("http://{proxy}/api{path}");
    let ann = json!({ "username": "ann", "password": "correct horse" });
    client().post(url("/auth/register")).json(&ann).send().await.unwrap();
    let login = client().post(url("/auth/login")).json(&ann).send().await.unwrap();
    let login: serde_json::Value = login.json().await.unwrap();
    let token = login["token"].as_str().unwrap();
    let post = async |path: &str, body: serde_json::Value| {
        let request = client().post(url(path)).bearer_auth(token).json(&body);
        request.send().await.unwrap().json::<serde_json::Value>().await.unwrap()
    };
    let created = post("/chat/room", json!({ "name": "general" })).await;
    let room = created["room"]["_id"].as_str().unwrap();
    // An instance that did not listen yet when nginx tried it is tried again after `fail_timeout`.
    for instance in &addrs[..3] {
        let ready = async || {
            let asked = client().get(format!("http://{instance}/readyz")).send().await;
            asked.is_ok_and(|answer| answer.status().is_success())
        };
        eventually("every instance is ready", ready).await;
    }
    sleep(Duration::from_secs(3)).await;
    let mut sockets = join_all((0..6).map(|_| Socket::connect_at(proxy, token))).await;
    for socket in &mut sockets {
        socket.join(room).await;
    }
    for instance in &addrs[..3] {
        assert!(labelled(*instance, "chat_sockets", "wire", "ws").await > 0, "{instance}");
    }
    let message = json!({ "room": room, "sender": login["userId"], "content": "hello" });
    post("/chat/message", message).await;
    for socket in &mut sockets {
        assert_eq!(socket.next().await["data"]["content"], "hello");
    }
    drop(started);
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_takes_the_lines_that_send_only_logins_here() {
    let folder = tempfile::tempdir().unwrap();
    let lines = block("docs/migrating.md", "Back to Node when bcrypt was forgotten", "nginx");
    let pid = folder.path().join("nginx.pid");
    let conf = format!("pid {};\nevents {{}}\nhttp {{ server {{\n{lines} }} }}\n", pid.display());
    let path = folder.path().join("nginx.conf");
    fs::write(&path, conf).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.args(["-t", "-c"]).arg(&path);
    tools::succeed(nginx, NGINX, "nginx takes the configuration").await;
}

/// Blocks that no test runs, each with the reason. `docs/realtime.md` has none.
const NOT_RUN: [(&str, &str, &str, &str); 7] = [
    ("README.md", "Start", "sh", "it would run the tests"),
    ("docs/architecture.md", "The way of a message", "text", "a drawing"),
    (
        "docs/migrating.md",
        "What is added to the database",
        "js",
        "for mongosh; its names are tested",
    ),
    ("docs/operations.md", "With Docker", "sh", "needs Docker"),
    ("docs/operations.md", "Versions of MongoDB", "sh", "it would run the tests"),
    ("docs/operations.md", "Backup and restore", "sh", "needs mongodump"),
    ("docs/migrating.md", "When a message appears twice", "js", "a part of realtime.md's follow"),
];

/// Blocks outside of `docs/realtime.md` that a test runs.
const RUN: [(&str, &str, &str); 9] = [
    ("README.md", "On the command line", "sh"),
    ("README.md", "A chat page in ten lines", "html"),
    ("docs/client.md", "A front end in ten lines", "html"),
    ("docs/client.md", "In Node, with a bundler, with types", "js"),
    ("docs/client.md", "React", "js"),
    ("docs/migrating.md", "A rehearsal of the move and the way back", "sh"),
    ("docs/migrating.md", "Back to Node when bcrypt was forgotten", "nginx"),
    ("docs/migrating.md", "Back to Node when bcrypt was forgotten", "js"),
    ("docs/operations.md", "Three instances behind nginx", "sh"),
];

#[test]
fn every_block_is_run_or_there_is_a_reason() {
    let mut listed: Vec<(&str, &str, &str)> = RUN.to_vec();
    listed.extend(NOT_RUN.map(|(page, heading, language, _)| (page, heading, language)));
    let mut found = Vec::new();
    for (path, text) in super::pages() {
        let path = path.strip_prefix(root()).unwrap().to_owned();
        if path == Path::new("docs/realtime.md") {
            continue;
        }
        for block in markdown::blocks(&text) {
            found.push((path.display().to_string(), block.heading, block.language));
        }
    }
    let mut found: Vec<(&str, &str, &str)> =
        found.iter().map(|(path, heading, language)| (&**path, &**heading, &**language)).collect();
    found.sort_unstable();
    listed.sort_unstable();
    assert_eq!(found, listed);
}
