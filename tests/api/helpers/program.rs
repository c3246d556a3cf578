//! The server as a process of its own, which can be killed, paused and measured.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::SECRET;

/// Dropping it kills it.
pub struct Program {
    process: Child,
    pub addr: SocketAddr,
    /// Its working folder, where it finds no `.env`.
    _folder: TempDir,
}

impl Program {
    /// Starts with these variables and few others.
    pub fn start(vars: &[(&str, &str)]) -> Self {
        let kept = ["PATH", "HOME", "XDG_CACHE_HOME"];
        let kept = kept.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_realtime-chat-backend"))
            .env_clear()
            .envs(kept)
            .envs([("PORT", "0"), ("HOST", "127.0.0.1")])
            .envs(vars.iter().copied())
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut lines = log.lines().map_while(Result::ok).inspect(|line| println!("{line}"));
        let addr = lines
            .find_map(|line| line.split_once("http://").map(|(_, addr)| addr.trim().to_owned()))
            .expect("the server says where it listens");
        let addr = addr.parse().unwrap();
        // Somebody must read what it says, or it would wait for room in the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, addr, _folder: folder }
    }

    /// Starts as one more instance of the test servers' kind on this database.
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

    /// Asks it to end and waits until it has.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        tokio::task::block_in_place(|| self.process.wait().unwrap())
    }

    /// Stops it in its tracks.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on after a pause.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// The most memory that it has had so far, in MiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
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
