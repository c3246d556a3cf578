//! The MongoDB of the tests: the program's own embedded one.
//!
//! One `mongod` serves the whole test run, with a database for each test; it ends with the test
//! process, and its data with it. Tests that stop nodes have replica sets of their own.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection, Database};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use realtime_chat_backend::mongod::{Installer, Mongod, Options};

use super::eventually;

/// The binary, found or installed once.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let configured = std::env::var_os("MONGOD").map(PathBuf::from);
        Installer::from_env(configured).binary().expect("a mongod for the tests")
    };
    BINARY.get_or_init(find).clone()
}

/// A folder that the guard of its `mongod` removes.
fn temporary_folder() -> PathBuf {
    tempfile::Builder::new().prefix("chat-test-").tempdir().unwrap().keep()
}

fn options() -> Options {
    Options { remove_data: true, ..Options::new(binary(), temporary_folder()) }
}

/// The connection string of a database that nobody else uses, on the shared `mongod`.
pub async fn fresh_database() -> String {
    static SHARED: OnceLock<Mongod> = OnceLock::new();
    static DATABASES: AtomicUsize = AtomicUsize::new(0);
    let start = || {
        // On a thread and runtime of its own, since that of the test that comes first will end.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime.block_on(Mongod::start(options())))
            .join()
            .unwrap()
            .expect("the shared mongod starts")
    };
    let shared = tokio::task::block_in_place(|| SHARED.get_or_init(start));
    shared.uri(&format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed)))
}

/// A standalone, which has no change streams; it ends when the value is dropped.
pub async fn standalone() -> Mongod {
    Mongod::start(Options { replica_set: None, ..options() }).await.expect("a standalone starts")
}

/// The database of a connection string.
pub async fn connect(uri: &str) -> Database {
    let options = ClientOptions::parse(uri).await.unwrap();
    let name = options.default_database.clone().expect("the URI names a database");
    Client::with_options(options).unwrap().database(&name)
}

/// Another program that writes messages into a database, as the Node server beside us does.
#[derive(Clone)]
pub struct Neighbour {
    pub messages: Collection<Document>,
    sender: ObjectId,
}

impl Neighbour {
    /// Connects to the database of a connection string.
    pub async fn connect(uri: &str) -> Self {
        let messages = connect(uri).await.collection("messages");
        Self { messages, sender: ObjectId::new() }
    }

    /// A message as Mongoose stores it.
    pub fn document(&self, room: &str, content: &str) -> Document {
        let now = DateTime::now();
        doc! {
            "_id": ObjectId::new(),
            "room": ObjectId::parse_str(room).unwrap(),
            "sender": self.sender,
            "content": content,
            "createdAt": now,
            "updatedAt": now,
            "__v": 0,
        }
    }

    /// Stores a message.
    pub async fn insert(&self, room: &str, content: &str) {
        self.messages.insert_one(self.document(room, content)).await.unwrap();
    }

    /// Stores many messages at once, in this order.
    pub async fn insert_all(&self, room: &str, contents: impl IntoIterator<Item = String>) {
        let documents: Vec<_> =
            contents.into_iter().map(|content| self.document(room, &content)).collect();
        self.messages.insert_many(documents).await.unwrap();
    }

    /// The commands of administrators.
    pub fn admin(&self) -> Database {
        self.messages.client().database("admin")
    }
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
    /// Starts a set of this many nodes and waits for its primary.
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, &[]).await
    }

    /// Starts a set whose nodes have more arguments.
    pub async fn start_with(nodes: usize, arguments: &[&str]) -> Self {
        let mut set = Self { nodes: Vec::new() };
        for _ in 0..nodes {
            let options = Options {
                initiate: nodes == 1,
                // Kept while a node is down; removed when the set is dropped.
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
            // A third of the default: the tests wait for elections.
            let settings = doc! { "electionTimeoutMillis": 3_000 };
            let config = doc! { "_id": "embedded", "members": members, "settings": settings };
            let admin = set.direct(0).await.database("admin");
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

    /// The node that is primary now, or soon.
    pub async fn primary(&self) -> usize {
        let mut primary = None;
        eventually("a primary is there", async || {
            for (index, node) in self.nodes.iter().enumerate() {
                if node.running.is_none() {
                    continue;
                }
                let admin = self.direct(index).await.database("admin");
                let hello = admin.run_command(doc! { "hello": 1 }).await;
                if hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or(false)) {
                    primary = Some(index);
                    return true;
                }
            }
            false
        })
        .await;
        primary.expect("there is one")
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
        // Waits for the guard, which notices at once.
        self.stop_node(index).await;
    }

    /// Starts a stopped or killed node again, on its data and port.
    pub async fn restart(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let options = Options { port: node.port, ..node.options.clone() };
        node.running = Some(Mongod::start(options).await.expect("the node starts again"));
    }

    /// Stops a node in its tracks: it holds its connections and answers nothing.
    pub fn pause(&self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
    }

    /// Lets a paused node go on.
    pub fn resume(&self, index: usize) {
        self.signal(index, Signal::SIGCONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        let mongod = self.nodes[index].running.as_ref().expect("the node runs");
        kill(Pid::from_raw(mongod.pid() as i32), signal).unwrap();
    }

    async fn direct(&self, index: usize) -> Client {
        let uri = format!("mongodb://127.0.0.1:{}/?directConnection=true", self.nodes[index].port);
        let mut options = ClientOptions::parse(uri).await.unwrap();
        options.server_selection_timeout = Some(Duration::from_secs(1));
        Client::with_options(options).unwrap()
    }
}

impl Drop for ReplicaSet {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // A paused node could not end.
            if let Some(mongod) = node.running.take() {
                let _ = kill(Pid::from_raw(mongod.pid() as i32), Signal::SIGKILL);
            }
            let _ = std::fs::remove_dir_all(&node.options.data_dir);
        }
    }
}
