//! The server as a separate process, which can be killed, paused and measured.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::SECRET;

const BINARY: &str = env!("CARGO_BIN_EXE_realtime-chat-backend");

/// A server process. Dropping this kills it.
pub struct Program {
    process: Child,
    pub addr: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    /// Its working folder, without a `.env`.
    _folder: TempDir,
}

impl Program {
    /// Starts with these variables and a few from the environment.
    pub fn start(vars: &[(&str, &str)]) -> Self {
        Self::run(Command::new(BINARY), vars)
    }

    /// Starts with `files` as the hard limit of open files, and half of it as the soft limit.
    pub fn start_with_files(files: usize, uri: &str, vars: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -Sn {} && ulimit -Hn {files} && exec {BINARY}", files / 2);
        command.args(["-c", &script]);
        let mut all = vec![("MONGO_URI", uri), ("JWT_SECRET", SECRET), ("RATE_LIMIT_CONNECT", "0")];
        all.extend(vars);
        tokio::task::block_in_place(|| Self::run(command, &all))
    }

    fn run(mut command: Command, vars: &[(&str, &str)]) -> Self {
        let kept = ["PATH", "HOME", "XDG_CACHE_HOME"];
        let kept = kept.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let folder = tempfile::tempdir().unwrap();
        let mut process = command
            .env_clear()
            .envs(kept)
            .envs([("PORT", "0"), ("HOST", "127.0.0.1")])
            .envs(vars.iter().copied())
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&log);
        // Read bytes, because invalid UTF-8 must not end the loop.
        let mut lines = said.split(b'\n').map_while(Result::ok).map(move |line| {
            let line = String::from_utf8_lossy(&line).into_owned();
            println!("{line}");
            written.lock().unwrap().push(line.clone());
            line
        });
        let addr = lines
            .find_map(|line| line.split_once("Listening on http://").map(|(_, at)| at.to_owned()))
            .expect("the server says where it listens");
        // If it listens on all addresses, the line has `localhost` and more text.
        let addr = addr.split_whitespace().next().unwrap().replace("localhost", "127.0.0.1");
        let addr = addr.parse().unwrap();
        // Read its log all the time, or it would block when the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, addr, log, _folder: folder }
    }

    /// Its log lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Starts one more instance on this database, with the secret of the test servers.
    pub fn start_on(uri: &str, vars: &[(&str, &str)]) -> Self {
        let mut all = vec![("MONGO_URI", uri), ("JWT_SECRET", SECRET), ("RATE_LIMIT_CONNECT", "0")];
        all.extend(vars);
        tokio::task::block_in_place(|| Self::start(&all))
    }

    /// Kills it as a power failure would.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends SIGTERM and waits until it has ended.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        tokio::task::block_in_place(|| self.process.wait().unwrap())
    }

    /// Pauses it with SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Resumes it.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Its peak resident memory, in MiB.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Its resident memory, in MiB.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
