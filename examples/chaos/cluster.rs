//! The instances, and the network between them, their clients and MongoDB.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::{Link, Proxy, Rewrite};
use crate::replica_set::ReplicaSet;

/// The database that all instances use.
pub const DATABASE: &str = "chaos";
/// The secret of the tokens.
pub const SECRET: &str = "the secret of a chaos that nobody needs to keep";

/// The number of instances.
const INSTANCES: usize = 3;
/// How long an instance may take to start or to end.
const TIMEOUT: Duration = Duration::from_secs(20);

/// One instance: a process, the proxies to MongoDB, and the proxy for its clients.
pub struct Instance {
    server: PathBuf,
    uri: String,
    process: Option<Child>,
    log: PathBuf,
    /// The proxy that clients connect to. The process behind it changes.
    pub client_proxy: Proxy,
    /// The proxies to MongoDB, one for each node.
    mongo_proxies: Vec<Proxy>,
}

/// All instances. They use one database.
pub struct Instances {
    all: Vec<Instance>,
    _folder: TempDir,
}

impl Instances {
    /// Starts all of them.
    pub async fn start(server: &Path, mongo: &ReplicaSet) -> Self {
        let folder = tempfile::Builder::new().prefix("chaos-").tempdir().unwrap();
        let mut all = Vec::new();
        for number in 0..INSTANCES {
            let log = folder.path().join(format!("instance-{number}.log"));
            all.push(Instance::start(server, mongo, log).await);
        }
        Self { all, _folder: folder }
    }

    /// The number of instances.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The addresses for clients.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().map(|instance| instance.client_proxy.addr).collect()
    }

    /// An instance.
    pub fn get_mut(&mut self, number: usize) -> &mut Instance {
        &mut self.all[number]
    }

    /// The log lines with panics and errors, with the number of the instance.
    pub fn errors(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, instance) in self.all.iter().enumerate() {
            let log = std::fs::read_to_string(&instance.log).unwrap_or_default();
            let bad =
                |line: &&str| line.contains("panicked at") || line.contains(" ERROR realtime_chat");
            found.extend(log.lines().filter(bad).map(|line| format!("instance {number}: {line}")));
        }
        found
    }

    /// Keeps the logs. Returns their folder.
    pub fn keep_logs(self) -> PathBuf {
        self._folder.keep()
    }
}

impl Instance {
    async fn start(server: &Path, mongo: &ReplicaSet, log: PathBuf) -> Self {
        let (mut mongo_proxies, mut rewrites) = (Vec::new(), Vec::<Rewrite>::new());
        for port in mongo.ports() {
            // The ports must have the same length to be rewritten.
            let proxy = loop {
                let proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
                if proxy.addr.port().to_string().len() == port.to_string().len() {
                    break proxy;
                }
            };
            rewrites.push((format!("127.0.0.1:{port}"), proxy.addr.to_string()));
            mongo_proxies.push(proxy);
        }
        mongo_proxies.iter().for_each(|proxy| proxy.rewrite(rewrites.clone()));
        let hosts: Vec<_> = mongo_proxies.iter().map(|proxy| proxy.addr.to_string()).collect();
        let uri = format!("mongodb://{}/{DATABASE}?replicaSet=embedded", hosts.join(","));
        // The real address is set when the process listens.
        let client_proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))).await;
        let server = server.to_owned();
        let mut instance = Self { server, uri, process: None, log, client_proxy, mongo_proxies };
        instance.run().await;
        instance
    }

    /// Starts the process.
    pub async fn run(&mut self) {
        let folder = self.log.parent().unwrap();
        let mut process = Command::new(&self.server)
            .env_clear()
            .envs(["PATH", "HOME"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs([("PORT", "0"), ("HOST", "127.0.0.1"), ("JWT_SECRET", SECRET)])
            .envs(["LOGIN", "LOGIN_NAME", "SEND", "CONNECT", "EVENTS", "ROOM"].map(|limit| {
                // All requests come from one address.
                (format!("RATE_LIMIT_{limit}"), "0")
            }))
            .env("MONGO_URI", &self.uri)
            .current_dir(folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.server.display()));
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let mut log = File::options().create(true).append(true).open(&self.log).unwrap();
        let (listens, listening) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, addr)) = line.split_once("Listening on http://") {
                    let _ = listens.send(addr.trim().parse().unwrap());
                }
                let _ = writeln!(log, "{line}");
            }
        });
        self.process = Some(process);
        let listening = tokio::task::spawn_blocking(move || listening.recv_timeout(TIMEOUT));
        let addr = listening.await.unwrap().expect("the server logs its address");
        self.client_proxy.set_upstream(addr);
    }

    /// Kills the process as a power failure would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends SIGTERM to the process and waits for its end. Returns whether it ended successfully in
    /// time.
    pub async fn terminate(&mut self) -> bool {
        let Some(mut process) = self.process.take() else { return true };
        signal(&process, Signal::SIGTERM);
        let begun = Instant::now();
        let ending = async {
            loop {
                if let Some(status) = process.try_wait().unwrap() {
                    return status.success();
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let ended = timeout(TIMEOUT, ending).await.unwrap_or(false);
        if !ended {
            println!("  it did not end successfully within {:?}", begun.elapsed());
            let _ = process.kill();
            let _ = process.wait();
        }
        ended
    }

    /// Pauses the process.
    pub fn pause(&self) {
        self.process.iter().for_each(|process| signal(process, Signal::SIGSTOP));
    }

    /// Resumes the process.
    pub fn resume(&self) {
        self.process.iter().for_each(|process| signal(process, Signal::SIGCONT));
    }

    /// Sets the state of the network between the instance and MongoDB.
    pub fn set_mongo_link(&self, link: Link) {
        self.mongo_proxies.iter().for_each(|proxy| proxy.set(link));
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id() as i32), signal).unwrap();
}
