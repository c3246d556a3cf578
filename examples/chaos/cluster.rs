//! What is broken and mended: the nodes of MongoDB, the instances, and the network between them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::{Link, Proxy, Rewrite};
use crate::replica_set::ReplicaSet;

/// The database that all instances use.
pub const DATABASE: &str = "chaos";
/// What signs the tokens.
pub const SECRET: &str = "the secret of a chaos that nobody needs to keep";

/// How many instances there are.
const INSTANCES: usize = 3;
/// What the last of them remembers of what was said: about half a second, so that who comes to it
/// has often missed something.
const SHORT_MEMORY: &str = "16KiB";
/// How long an instance may take to start or to end.
const SOON: Duration = Duration::from_secs(20);

/// One instance: a process, what it reaches MongoDB by, and what clients reach it by.
pub struct Instance {
    server: PathBuf,
    uri: String,
    /// How many bytes it remembers of what was said, if not as many as by default.
    memory: Option<&'static str>,
    process: Option<Child>,
    /// How often it was started.
    generation: Arc<AtomicUsize>,
    log: PathBuf,
    /// What clients connect to; the instance behind it may be another process each time.
    pub front: Proxy,
    /// One for each node.
    back: Vec<Proxy>,
}

/// The instances, on one database.
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
            let memory = (number == INSTANCES - 1).then_some(SHORT_MEMORY);
            all.push(Instance::start(server, mongo, log, memory).await);
        }
        Self { all, _folder: folder }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// What clients connect to.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().map(|instance| instance.front.addr).collect()
    }

    /// How often each was started, as it changes.
    pub fn generations(&self) -> Vec<Arc<AtomicUsize>> {
        self.all.iter().map(|instance| Arc::clone(&instance.generation)).collect()
    }

    /// One of them.
    pub fn get_mut(&mut self, number: usize) -> &mut Instance {
        &mut self.all[number]
    }

    /// What was logged of panics and of our own errors, with the number of the instance.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, instance) in self.all.iter().enumerate() {
            let log = std::fs::read_to_string(&instance.log).unwrap_or_default();
            let bad =
                |line: &&str| line.contains("panicked at") || line.contains(" ERROR realtime_chat");
            found.extend(log.lines().filter(bad).map(|line| format!("instance {number}: {line}")));
        }
        found
    }

    /// Keeps the logs, and says where.
    pub fn keep_logs(self) -> PathBuf {
        self._folder.keep()
    }
}

impl Instance {
    async fn start(
        server: &Path,
        mongo: &ReplicaSet,
        log: PathBuf,
        memory: Option<&'static str>,
    ) -> Self {
        let (mut back, mut rewrites) = (Vec::new(), Vec::<Rewrite>::new());
        for port in mongo.ports() {
            // Ports of the same length, so that one can be said for the other.
            let proxy = loop {
                let proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
                if proxy.addr.port().to_string().len() == port.to_string().len() {
                    break proxy;
                }
            };
            rewrites.push((format!("127.0.0.1:{port}"), proxy.addr.to_string()));
            back.push(proxy);
        }
        back.iter().for_each(|proxy| proxy.rewrite(rewrites.clone()));
        let hosts: Vec<_> = back.iter().map(|proxy| proxy.addr.to_string()).collect();
        let uri = format!("mongodb://{}/{DATABASE}?replicaSet=embedded", hosts.join(","));
        // Where it leads is known when the process is there.
        let front = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))).await;
        let server = server.to_owned();
        let generation = Arc::default();
        let mut instance =
            Self { server, uri, memory, process: None, generation, log, front, back };
        instance.run().await;
        instance
    }

    /// Starts the process.
    pub async fn run(&mut self) {
        // Before anybody can connect to it.
        self.generation.fetch_add(1, Ordering::SeqCst);
        let folder = self.log.parent().unwrap();
        let mut process = Command::new(&self.server)
            .env_clear()
            .envs(["PATH", "HOME"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs([("PORT", "0"), ("HOST", "127.0.0.1"), ("JWT_SECRET", SECRET)])
            .envs(["LOGIN", "LOGIN_NAME", "SEND", "CONNECT", "EVENTS", "ROOM"].map(|limit| {
                // Chaos comes from one address, and much of it.
                (format!("RATE_LIMIT_{limit}"), "0")
            }))
            // Hashing anew at a login would take long in a debug build.
            .envs([("MONGO_URI", &*self.uri), ("PASSWORD_HASH", "bcrypt")])
            .envs(self.memory.map(|memory| ("RECOVERY_BYTES", memory)))
            .current_dir(folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.server.display()));
        let said = BufReader::new(process.stderr.take().unwrap());
        let mut log = File::options().create(true).append(true).open(&self.log).unwrap();
        let (listens, listening) = mpsc::channel();
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if let Some((_, addr)) = line.split_once("Listening on http://") {
                    let _ = listens.send(addr.trim().parse().unwrap());
                }
                let _ = writeln!(log, "{line}");
            }
        });
        self.process = Some(process);
        let listening = tokio::task::spawn_blocking(move || listening.recv_timeout(SOON));
        let addr = listening.await.unwrap().expect("the server says where it listens");
        self.front.lead_to(addr);
    }

    /// Kills the process as a power failure would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Asks the process to end and waits for it; answers whether it ended as it should.
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
        let ended = timeout(SOON, ending).await.unwrap_or(false);
        if !ended {
            println!("  it did not end as it should within {:?}", begun.elapsed());
            let _ = process.kill();
            let _ = process.wait();
        }
        ended
    }

    /// Stops the process in its tracks.
    pub fn pause(&self) {
        self.process.iter().for_each(|process| signal(process, Signal::SIGSTOP));
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.iter().for_each(|process| signal(process, Signal::SIGCONT));
    }

    /// Breaks or mends the network between it and MongoDB.
    pub fn set_back(&self, link: Link) {
        self.back.iter().for_each(|proxy| proxy.set(link));
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
