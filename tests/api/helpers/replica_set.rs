//! A replica set whose nodes can be stopped, paused and killed. It uses no other helper, because
//! `examples/chaos` and `examples/siege` use it, too.

#![allow(dead_code, reason = "the tests, the chaos and the siege each use a part of it")]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use realtime_chat_backend::mongod::{Installer, Mongod, Options};
use tokio::time::{sleep, timeout};

/// The timeout of a wait for a state of the set.
const SOON: Duration = Duration::from_secs(60);
/// The timeout of a `hello`. A paused node does not answer.
const ANSWER: Duration = Duration::from_secs(1);
/// The interval of the polls.
const POLL: Duration = Duration::from_millis(50);

/// The path of `mongod`, found or installed once.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let configured = std::env::var_os("MONGOD").map(PathBuf::from);
        Installer::from_env(configured).binary().expect("a mongod for the tests")
    };
    BINARY.get_or_init(find).clone()
}

/// A folder that the supervisor of its `mongod` removes.
fn temporary_folder() -> PathBuf {
    tempfile::Builder::new().prefix("chat-test-").tempdir().unwrap().keep()
}

/// Options for a single-node set with small caches. Its data is removed when it ends.
pub fn options() -> Options {
    Options { remove_data: true, ..Options::new(binary(), temporary_folder()) }
}

/// A replica set whose nodes can be stopped, paused and killed.
pub struct ReplicaSet {
    nodes: Vec<Node>,
}

struct Node {
    options: Options,
    port: u16,
    running: Option<Mongod>,
}

impl ReplicaSet {
    /// Starts a set with `nodes` nodes and waits for its primary.
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, &[]).await
    }

    /// Starts a set whose nodes get these arguments, too.
    pub async fn start_with(nodes: usize, arguments: &[&str]) -> Self {
        // A third of the default, because the tests wait for elections.
        Self::launch(nodes, arguments, Duration::from_secs(3)).await
    }

    /// Starts a set with the default election timeout.
    pub async fn start_patient(nodes: usize) -> Self {
        Self::launch(nodes, &[], Duration::from_secs(10)).await
    }

    async fn launch(nodes: usize, arguments: &[&str], election: Duration) -> Self {
        let mut set = Self { nodes: Vec::new() };
        for _ in 0..nodes {
            let options = Options {
                initiate: nodes == 1,
                // Keep the data while a node is down. It is removed when the set is dropped.
                remove_data: false,
                arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
                ..options()
            };
            let mongod = Mongod::start(options.clone()).await.expect("a node starts");
            set.nodes.push(Node { options, port: mongod.port(), running: Some(mongod) });
        }
        if nodes > 1 {
            let members: Vec<_> = set
                .nodes
                .iter()
                .enumerate()
                .map(|(id, node)| doc! { "_id": id as i32, "host": format!("127.0.0.1:{}", node.port) })
                .collect();
            let settings = doc! { "electionTimeoutMillis": election.as_millis() as i32 };
            let config = doc! { "_id": "embedded", "members": members, "settings": settings };
            let admin = set.admin(0).await;
            admin.run_command(doc! { "replSetInitiate": config }).await.unwrap();
            set.primary().await;
        }
        set
    }

    /// The connection string of a database.
    pub fn uri(&self, database: &str) -> String {
        let hosts: Vec<_> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("mongodb://{}/{database}?replicaSet=embedded", hosts.join(","))
    }

    /// The ports of all nodes.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    /// Waits for a primary. Returns its index.
    pub async fn primary(&self) -> usize {
        let looking = async {
            loop {
                for (index, _) in self.nodes.iter().enumerate() {
                    if let Some(hello) = self.hello(index).await
                        && hello.get_bool("isWritablePrimary").unwrap_or(false)
                    {
                        return index;
                    }
                }
                sleep(POLL).await;
            }
        };
        timeout(SOON, looking).await.expect("a primary is there")
    }

    /// Waits until every node is primary or secondary.
    pub async fn whole(&self) {
        let serves = |hello: Document| {
            let is = |role| hello.get_bool(role).unwrap_or(false);
            is("isWritablePrimary") || is("secondary")
        };
        let looking = async {
            for (index, _) in self.nodes.iter().enumerate() {
                while !self.hello(index).await.is_some_and(serves) {
                    sleep(POLL).await;
                }
            }
        };
        timeout(SOON, looking).await.expect("all nodes serve");
    }

    /// Stops a node cleanly.
    pub async fn stop_node(&mut self, index: usize) {
        if let Some(mongod) = self.nodes[index].running.take() {
            mongod.stop().await;
        }
    }

    /// Kills a node as a power failure would.
    pub async fn kill(&mut self, index: usize) {
        self.signal(index, Signal::SIGKILL);
        // Waits for the supervisor, which notices it at once.
        self.stop_node(index).await;
    }

    /// Starts a stopped or killed node again, with its data and port.
    pub async fn restart(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let options = Options { port: node.port, ..node.options.clone() };
        node.running = Some(Mongod::start(options).await.expect("the node starts again"));
    }

    /// Pauses a node: it keeps its connections and answers nothing.
    pub fn pause(&self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
    }

    /// Resumes a paused node.
    pub fn resume(&self, index: usize) {
        self.signal(index, Signal::SIGCONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        let mongod = self.nodes[index].running.as_ref().expect("the node runs");
        kill(Pid::from_raw(mongod.pid() as i32), signal).unwrap();
    }

    /// The answer of a running node to `hello`.
    async fn hello(&self, index: usize) -> Option<Document> {
        self.nodes[index].running.as_ref()?;
        let admin = self.admin(index).await;
        let asked = timeout(ANSWER, async { admin.run_command(doc! { "hello": 1 }).await }).await;
        asked.ok()?.ok()
    }

    /// The database `admin` of one node, by a direct connection.
    async fn admin(&self, index: usize) -> Database {
        let uri = format!("mongodb://127.0.0.1:{}/?directConnection=true", self.nodes[index].port);
        let mut options = ClientOptions::parse(uri).await.unwrap();
        options.server_selection_timeout = Some(Duration::from_secs(1));
        Client::with_options(options).unwrap().database("admin")
    }
}

impl Drop for ReplicaSet {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // A paused node cannot end.
            if let Some(mongod) = node.running.take() {
                let _ = kill(Pid::from_raw(mongod.pid() as i32), Signal::SIGKILL);
            }
            let _ = std::fs::remove_dir_all(&node.options.data_dir);
        }
    }
}
