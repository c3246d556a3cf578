//! The servers under test, each of them a process, with their logs and metrics.

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

/// The secret of the tokens.
const SECRET: &str = "the secret of a siege that nobody needs to keep";
/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A server. Dropping it kills it.
pub struct Server {
    process: Mutex<Child>,
    id: Pid,
    pub addr: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts a server with this database, without rate limits.
    pub fn start(binary: &Path, uri: &str, vars: &[(&str, &str)]) -> Self {
        let mut process = Command::new(binary)
            .env_clear()
            .envs(["PATH", "HOME"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs([("PORT", "0"), ("HOST", "127.0.0.1"), ("JWT_SECRET", SECRET)])
            .envs(["LOGIN", "LOGIN_NAME", "SEND", "CONNECT", "EVENTS", "ROOM", "SIGNALS"].map(
                |limit| {
                    // All requests come from one machine.
                    (format!("RATE_LIMIT_{limit}"), "0")
                },
            ))
            .env("MONGO_URI", uri)
            .envs(vars.iter().copied())
            .current_dir(std::env::temp_dir())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (listens, listening) = mpsc::channel();
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, addr)) = line.split_once("Listening on http://") {
                    let _ = listens.send(addr.trim().parse().unwrap());
                }
                written.lock().unwrap().push(line);
            }
        });
        let addr = listening.recv_timeout(START_TIMEOUT).expect("the server logs its address");
        let id = Pid::from_raw(process.id() as i32);
        Self { process: Mutex::new(process), id, addr, log }
    }

    /// Its log lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Its resident memory, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// The processor time that it has used.
    pub fn cpu(&self) -> Duration {
        // Fields 14 and 15 of proc_pid_stat(5); the name before them is in parentheses.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id)).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        kill(self.id, Signal::SIGTERM).unwrap();
    }

    /// Waits until it has ended. Returns whether it ended successfully in time.
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

    /// The status and the body of the answer to a GET request.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let answer = reqwest::get(format!("http://{}{path}", self.addr)).await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.ok()?))
    }

    /// The sum of these metrics. A missing metric counts as 0.
    pub async fn count(&self, names: &[&str]) -> u64 {
        let (_, text) = self.get("/metrics").await.expect("the metrics are there");
        let value = |name: &&str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        names.iter().filter_map(value).sum()
    }

    /// Creates a room with this name. Returns its id.
    pub async fn room(&self, name: &str) -> String {
        let answer = self.post("/api/chat/room", &token(), &json!({ "name": name })).await;
        let answer = answer.expect("the room is created");
        answer["room"]["_id"].as_str().unwrap().to_owned()
    }

    /// Sends a message to a room. Returns whether it was stored.
    pub async fn send(&self, http: &reqwest::Client, room: &str, content: &str) -> bool {
        let (user, token) = user();
        let body = json!({ "room": room, "sender": user, "content": content });
        let url = format!("http://{}/api/chat/message", self.addr);
        let answer = http.post(url).bearer_auth(token).json(&body).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// The answer to a POST request, if it succeeds.
    pub async fn post(&self, path: &str, token: &str, body: &Value) -> Option<Value> {
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

/// A user id, which is not registered, and its token.
pub fn user() -> (String, String) {
    let user = ObjectId::new().to_hex();
    let token = Tokens::new(&SECRET.into()).issue(user.parse().unwrap());
    (user, token)
}

/// The token of a new user.
pub fn token() -> String {
    user().1
}
