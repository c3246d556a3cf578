//! The MongoDB of the tests: the embedded one of the server.
//!
//! One `mongod` serves the whole test run, with a database for each test. It ends with the test
//! process, and its data is removed. Tests that stop nodes start their own replica sets.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection, Database};
use realtime_chat_backend::models::own;
use realtime_chat_backend::mongod::{Mongod, Options};

use super::replica_set::options;
pub use super::replica_set::{ReplicaSet, binary};
use super::socket::SOON;

/// The `appName` of the instance whose change stream can be delayed.
pub const SLOW: &str = "slow";

/// The connection string of a new database on the shared `mongod`.
pub async fn fresh_database() -> String {
    static SHARED: OnceLock<Mongod> = OnceLock::new();
    static DATABASES: AtomicUsize = AtomicUsize::new(0);
    let start = || {
        // In its own thread and runtime, because the runtime of the first test ends with that test.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime.block_on(Mongod::start(options())))
            .join()
            .unwrap()
            .expect("the shared mongod starts")
    };
    let shared = tokio::task::block_in_place(|| SHARED.get_or_init(start));
    shared.uri(&format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed)))
}

/// A standalone MongoDB, without change streams. Dropping it stops it.
pub async fn standalone() -> Mongod {
    Mongod::start(Options { replica_set: None, ..options() }).await.expect("a standalone starts")
}

/// A replica set of one node with authentication.
pub struct Guarded {
    mongod: Mongod,
}

impl Guarded {
    /// Starts it with these users and their roles in the database `chat`. Each password is the
    /// user's name.
    pub async fn start(users: &[(&str, Document)]) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let first = Options { data_dir: folder.clone(), remove_data: false, ..options() };
        let open = Mongod::start(first.clone()).await.expect("it starts");
        let chat = connect(&open.uri("chat")).await;
        for (name, role) in users {
            let role = match role.get_str("role") {
                Ok(role) => doc! { "role": role, "db": "chat" },
                Err(_) => {
                    let mut definition = doc! { "createRole": format!("role of {name}") };
                    definition.extend(role.clone());
                    definition.insert("roles", Vec::<Document>::new());
                    chat.run_command(definition).await.unwrap();
                    doc! { "role": format!("role of {name}"), "db": "chat" }
                }
            };
            chat.run_command(doc! { "createUser": *name, "pwd": *name, "roles": [role] })
                .await
                .unwrap();
        }
        let port = open.port();
        open.stop().await;
        let key = folder.join("key");
        std::fs::write(&key, "akeyfortests").unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let arguments =
            vec!["--auth".to_owned(), "--keyFile".to_owned(), key.display().to_string()];
        let guarded = Options { port, arguments, remove_data: true, ..first };
        Self { mongod: Mongod::start(guarded).await.expect("it starts again") }
    }

    /// The connection string of the database `chat` for a user.
    pub fn uri(&self, name: &str, password: &str) -> String {
        let open = self.mongod.uri("chat");
        open.replacen("mongodb://", &format!("mongodb://{name}:{password}@"), 1)
    }
}

/// Connects to the database of a connection string.
pub async fn connect(uri: &str) -> Database {
    let options = ClientOptions::parse(uri).await.unwrap();
    let name = options.default_database.clone().expect("the URI names a database");
    Client::with_options(options).unwrap().database(&name)
}

/// Another program that writes to the database, like a Node server beside this one.
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

    /// Waits until the record of a disconnected socket is removed.
    pub async fn socket_is_gone(&self, pid: &str) {
        let database = self.messages.client().database(&self.messages.namespace().db);
        let sockets = database.collection::<Document>(own::SOCKETS.collection);
        let gone = async {
            while sockets.find_one(doc! { "_id": pid }).await.unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, gone).await.expect("the record is gone in time");
    }

    /// Stores many messages in one insert, in this order.
    pub async fn insert_all(&self, room: &str, contents: impl IntoIterator<Item = String>) {
        let documents: Vec<_> =
            contents.into_iter().map(|content| self.document(room, &content)).collect();
        self.messages.insert_many(documents).await.unwrap();
    }

    /// Delays the replies of the change stream of the slow instance of
    /// [`TestServer::quick_and_slow`](super::TestServer::quick_and_slow).
    pub async fn hold_slow_back(&self, by: Duration) {
        let hold = doc! {
            "configureFailPoint": "failCommand",
            "mode": "alwaysOn",
            "data": {
                "failCommands": ["getMore"],
                "appName": SLOW,
                "blockConnection": true,
                "blockTimeMS": by.as_millis() as i64,
            },
        };
        let held = self.admin().run_command(hold).await.unwrap();
        let entered = doc! {
            "waitForFailPoint": "failCommand",
            "timesEntered": held.get_i32("count").unwrap_or(0) + 1,
            "maxTimeMS": 10_000,
        };
        self.admin().run_command(entered).await.unwrap();
        // That may have been another cursor. A request of the stream that was under way is answered
        // within half a second, and would still bring what comes now.
        tokio::time::sleep(Duration::from_millis(600)).await;
    }

    /// The database `admin`.
    pub fn admin(&self) -> Database {
        self.messages.client().database("admin")
    }
}
