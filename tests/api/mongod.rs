//! The embedded MongoDB: it keeps its data, ends with the server, and says what is wrong.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use realtime_chat_backend::mongod::{Mongod, MongodError, Options};
use reqwest::StatusCode;
use serde_json::json;

use crate::helpers::mongod::{binary, connect};
use crate::helpers::{client, eventually};

fn options(folder: &Path) -> Options {
    Options::new(binary(), folder.to_owned())
}

/// Whether a process is there and no zombie.
fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn data_outlives_a_stop_and_a_kill_on_whatever_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut ports = Vec::new();
    for start in 0..3_i64 {
        let mongod = Mongod::start(options(folder.path())).await.unwrap();
        ports.push(mongod.port());
        let numbers = connect(&mongod.uri("kept")).await.collection("numbers");
        assert_eq!(numbers.count_documents(bson::doc! {}).await.unwrap(), start as u64);
        numbers.insert_one(bson::doc! { "start": start }).await.unwrap();
        if start == 0 {
            let pid = Pid::from_raw(mongod.pid() as i32);
            kill(pid, Signal::SIGKILL).unwrap();
        }
        mongod.stop().await;
    }
    ports.dedup();
    assert!(ports.len() > 1, "each start takes a free port: {ports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = Mongod::start(options(folder.path())).await.unwrap();
    let second = Mongod::start(options(folder.path())).await.unwrap_err();
    assert!(matches!(second, MongodError::Locked(_)), "{second}");
    assert!(second.to_string().contains("DATA_DIR"), "{second}");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_data_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    Mongod::start(options(folder.path())).await.unwrap().stop().await;
    for file in ["WiredTiger.wt", "WiredTiger.turtle"] {
        fs::write(folder.path().join("db").join(file), "garbage".repeat(1000)).unwrap();
    }
    let error = Mongod::start(options(folder.path())).await.unwrap_err();
    assert!(matches!(error, MongodError::Damaged { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Mongod::start(Options { port, ..options(folder.path()) }).await.unwrap_err();
    assert!(matches!(error, MongodError::PortInUse(named) if named == port), "{error}");
}

/// The server as a user starts it, with nothing configured but where its data is.
struct Program {
    process: Child,
    addr: SocketAddr,
}

impl Program {
    fn start(data_dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_realtime-chat-backend"))
            .env_clear()
            .envs(
                ["PATH", "HOME", "XDG_CACHE_HOME"]
                    .iter()
                    .filter_map(|name| std::env::var_os(name).map(|value| (*name, value))),
            )
            .env("MONGOD", binary())
            .env("MONGO_URI", "embedded")
            .env("PORT", "0")
            .env("HOST", "127.0.0.1")
            .env("DATA_DIR", data_dir)
            .current_dir(data_dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut lines = log.lines().map(Result::unwrap).inspect(|line| println!("{line}"));
        let addr = lines
            .find_map(|line| line.split_once("http://").map(|(_, addr)| addr.trim().to_owned()))
            .expect("the server says where it listens");
        let addr = addr.parse().unwrap();
        // Somebody must read what it says, or it would wait for room in the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, addr }
    }

    async fn post(&self, path: &str, body: &serde_json::Value) -> StatusCode {
        let url = format!("http://{}/api/auth/{path}", self.addr);
        client().post(url).json(body).send().await.unwrap().status()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The `mongod` of a data folder.
fn mongod_of(data_dir: &Path) -> Option<u32> {
    let lock = fs::read_to_string(data_dir.join("db").join("mongod.lock")).ok()?;
    lock.trim().parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_takes_its_mongod_along_and_keeps_its_users() {
    let folder = tempfile::tempdir().unwrap();
    let ann = json!({ "username": "ann", "password": "secret" });
    let server = Program::start(folder.path());
    assert_eq!(server.post("register", &ann).await, StatusCode::CREATED);
    let mongod = mongod_of(folder.path()).expect("mongod writes its pid");
    assert!(is_running(mongod));
    drop(server);
    eventually("mongod has ended", async || !is_running(mongod)).await;

    let server = Program::start(folder.path());
    assert_eq!(server.post("login", &ann).await, StatusCode::OK);
    let pid = Pid::from_raw(server.process.id() as i32);
    kill(pid, Signal::SIGTERM).unwrap();
    let mut server = server;
    let status = tokio::task::block_in_place(|| server.process.wait().unwrap());
    assert_eq!(status.code(), Some(0));
    let mongod = mongod_of(folder.path());
    assert!(mongod.is_none_or(|mongod| !is_running(mongod)));
}
