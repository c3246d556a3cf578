//! The servers under siege, each a process of its own, and what they say of themselves.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bson::oid::ObjectId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use realtime_chat_backend::auth::Tokens;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// What signs the tokens.
const SECRET: &str = "the secret of a siege that nobody needs to keep";
/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

/// A server. Dropping it kills it.
pub struct Server {
    process: Mutex<Child>,
    id: Pid,
    pub addr: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts one on this database, on all loopback addresses, without limits by address.
    pub fn start(binary: &Path, uri: &str, vars: &[(&str, &str)]) -> Self {
        let mut process = Command::new(binary)
            .env_clear()
            .envs(["PATH", "HOME"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs([("PORT", "0"), ("HOST", "127.0.0.1"), ("JWT_SECRET", SECRET)])
            .envs(["LOGIN", "LOGIN_NAME", "SEND", "CONNECT", "EVENTS", "ROOM"].map(|limit| {
                // A siege comes from one machine.
                (format!("RATE_LIMIT_{limit}"), "0")
            }))
            .env("MONGO_URI", uri)
            .envs(vars.iter().copied())
            .current_dir(std::env::temp_dir())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let said = BufReader::new(process.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (listens, listening) = mpsc::channel();
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if let Some((_, addr)) = line.split_once("Listening on http://") {
                    let _ = listens.send(addr.trim().parse().unwrap());
                }
                written.lock().unwrap().push(line);
            }
        });
        let addr = listening.recv_timeout(START).expect("the server says where it listens");
        let id = Pid::from_raw(process.id() as i32);
        Self { process: Mutex::new(process), id, addr, log }
    }

    /// What it has logged.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Its memory, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        kill(self.id, Signal::SIGTERM).unwrap();
    }

    /// Waits until it has ended; whether it did so in time and well.
    pub async fn ended(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            let ended = self.process.lock().unwrap().try_wait().unwrap();
            match ended {
                Some(status) => return status.success(),
                None if Instant::now() > deadline => return false,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The status of a path, and its body.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let answer = reqwest::get(format!("http://{}{path}", self.addr)).await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.ok()?))
    }

    /// Numbers that it counts, together; 0 where there is none.
    pub async fn count(&self, names: &[&str]) -> u64 {
        let (_, text) = self.get("/metrics").await.expect("it counts");
        let value = |name: &&str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        names.iter().filter_map(value).sum()
    }

    /// A room of this name.
    pub async fn room(&self, name: &str) -> String {
        let answer = self.post("/api/chat/room", &token(), &json!({ "name": name })).await;
        let answer = answer.expect("a room is made");
        answer["room"]["_id"].as_str().unwrap().to_owned()
    }

    /// Sends a message to a room; whether it is stored.
    pub async fn send(&self, http: &reqwest::Client, room: &str, content: &str) -> bool {
        let (user, token) = user();
        let body = json!({ "room": room, "sender": user, "content": content });
        let url = format!("http://{}/api/chat/message", self.addr);
        let answer = http.post(url).bearer_auth(token).json(&body).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    async fn post(&self, path: &str, token: &str, body: &Value) -> Option<Value> {
        let url = format!("http://{}{path}", self.addr);
        let request = reqwest::Client::new().post(url).bearer_auth(token).json(body);
        let answer = request.send().await.ok()?.error_for_status().ok()?;
        answer.json().await.ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A user who need not be registered, with a token.
pub fn user() -> (String, String) {
    let user = ObjectId::new().to_hex();
    let token = Tokens::new(&SECRET.into()).issue(user.parse().unwrap());
    (user, token)
}

/// The token of somebody.
pub fn token() -> String {
    user().1
}
