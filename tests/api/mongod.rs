//! The embedded MongoDB: it keeps its data, ends with the server, and says what is wrong.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use realtime_chat_backend::config::original::{self, What};
use realtime_chat_backend::mongod::{Mongod, MongodError, Options};
use reqwest::StatusCode;
use serde_json::json;

use crate::helpers::mongod::{binary, connect, standalone};
use crate::helpers::program::Program;
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
fn start(data_dir: &Path) -> Program {
    let mongod = binary();
    let vars = [
        ("MONGOD", mongod.to_str().unwrap()),
        ("MONGO_URI", "embedded"),
        ("DATA_DIR", data_dir.to_str().unwrap()),
    ];
    Program::start(&vars)
}

async fn post(server: &Program, path: &str, body: &serde_json::Value) -> StatusCode {
    let url = format!("http://{}/api/auth/{path}", server.addr);
    client().post(url).json(body).send().await.unwrap().status()
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
    let server = start(folder.path());
    assert_eq!(post(&server, "register", &ann).await, StatusCode::CREATED);
    let log = server.log();
    assert!(!log.iter().any(|line| line.contains("WARN") || line.contains("ERROR")), "{log:?}");
    let pages = ["/demo", "/docs", "/chat.js"];
    let names_pages = |line: &String| pages.iter().all(|page| line.contains(page));
    assert!(log.iter().any(names_pages), "{log:?}");
    let mongod = mongod_of(folder.path()).expect("mongod writes its pid");
    assert!(is_running(mongod));
    drop(server);
    eventually("mongod has ended", async || !is_running(mongod)).await;

    let server = start(folder.path());
    assert_eq!(post(&server, "login", &ann).await, StatusCode::OK);
    assert_eq!(server.terminate().code(), Some(0));
    let mongod = mongod_of(folder.path());
    assert!(mongod.is_none_or(|mongod| !is_running(mongod)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_can_be_started_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let ann = json!({ "username": "ann", "password": "secret" });
    let server = start(folder.path());
    assert_eq!(post(&server, "register", &ann).await, StatusCode::CREATED);
    // The old mongod is still stopping.
    server.kill();
    let server = start(folder.path());
    assert_eq!(post(&server, "login", &ann).await, StatusCode::OK);
    let mongod = mongod_of(folder.path()).expect("mongod writes its pid");
    kill(Pid::from_raw(mongod as i32), Signal::SIGTERM).unwrap();
    eventually("it says why mongod has ended", async || {
        let log = server.log();
        let ended = log.iter().find(|line| line.contains("The embedded MongoDB has ended"));
        ended.is_some_and(|line| line.contains("Received signal") && line.contains("15"))
    })
    .await;
    assert_eq!(server.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mongod_that_ends_is_started_again_with_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let ann = json!({ "username": "ann", "password": "secret" });
    let server = start(folder.path());
    assert_eq!(post(&server, "register", &ann).await, StatusCode::CREATED);
    let mongod = mongod_of(folder.path()).expect("mongod writes its pid");
    kill(Pid::from_raw(mongod as i32), Signal::SIGKILL).unwrap();
    eventually("it runs again", async || {
        server.log().iter().any(|line| line.contains("The embedded MongoDB runs again"))
    })
    .await;
    let said = |line: &String| {
        line.contains("The embedded MongoDB has ended") && line.contains("killed by signal 9")
    };
    assert!(server.log().iter().any(said), "{:?}", server.log());
    eventually("users log in", async || post(&server, "login", &ann).await == StatusCode::OK).await;
    assert_eq!(server.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_during_the_start_is_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = std::process::Command::new(env!("CARGO_BIN_EXE_realtime-chat-backend"))
        .current_dir(folder.path())
        .envs([("MONGO_URI", "embedded"), ("PORT", "0"), ("DATA_DIR", "data")])
        .env("MONGOD", binary())
        .spawn()
        .unwrap();
    let data = folder.path().join("data");
    eventually("mongod is being started", async || mongod_of(&data).is_some()).await;
    let mongod = mongod_of(&data).unwrap();
    let asked = Instant::now();
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    let status = tokio::task::block_in_place(|| process.wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    eventually("mongod has ended", async || !is_running(mongod)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_listens_where_the_original_does_is_told() {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stranger = TcpListener::bind(local(0)).unwrap();
    let found = original::look(stranger.local_addr().unwrap()).await.unwrap();
    assert_eq!(found.what, What::Stranger);

    let mongod = standalone().await;
    let found = original::look(local(mongod.port())).await.unwrap();
    assert!(matches!(&found.what, What::Open { collections, .. } if collections.is_empty()));
    assert!(found.to_string().contains("none of the Node server's collections"), "{found}");
    let users = connect(&mongod.uri(original::DATABASE)).await.collection::<Document>("users");
    users.insert_many([doc! { "username": "ann" }, doc! { "username": "bob" }]).await.unwrap();
    let found = original::look(local(mongod.port())).await.unwrap().to_string();
    let addr = local(mongod.port()).to_string();
    assert!(found.contains("2 users") && found.contains(&addr), "{found}");
    let gone = local(mongod.port());
    mongod.stop().await;
    assert_eq!(original::look(gone).await, None);

    let folder = tempfile::tempdir().unwrap();
    let arguments = vec!["--auth".to_owned()];
    let locked = Options { replica_set: None, arguments, ..options(folder.path()) };
    let locked = Mongod::start(locked).await.unwrap();
    let found = original::look(local(locked.port())).await.unwrap();
    assert!(matches!(found.what, What::Locked { .. }), "{found}");
    locked.stop().await;
}
