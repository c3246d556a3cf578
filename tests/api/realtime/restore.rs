//! A backup that is restored: what live rooms hear of it, and how it is done so that they hear
//! nothing. `docs/operations.md` has the procedure.

use std::time::Duration;

use bson::{Document, Timestamp, doc};
use futures::TryStreamExt;
use mongodb::{Collection, Database};
use serde_json::json;

use crate::helpers::socket::Socket;
use crate::helpers::{TestServer, eventually, mongod};

/// What `mongorestore --drop` does: the collection goes, and all documents of the dump are
/// inserted with the ids that they had.
async fn restore(messages: &Collection<Document>, dump: &[Document]) {
    messages.drop().await.unwrap();
    messages.insert_many(dump).await.unwrap();
}

/// Waits until the cluster's clock, by which the window of recovery is counted, is so much later.
async fn pass(database: &Database, seconds: u32) {
    let now = async || -> Timestamp {
        let write = doc! { "insert": "clock", "documents": [{}] };
        database.run_command(write).await.unwrap().get_timestamp("operationTime").unwrap()
    };
    let start = now().await;
    eventually("the window is over", async || now().await.time > start.time + seconds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_heard_unless_the_servers_are_stopped_until_the_window_is_over() {
    let uri = mongod::fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("RECOVERY_WINDOW", "1")];
    let server = TestServer::start_with(&vars).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("restored").await;
    let database = mongod::connect(&uri).await;
    let messages = database.collection::<Document>("messages");
    let mut socket = Socket::connect(&server, &ann.token).await;
    socket.join(&room).await;
    for content in ["one", "two"] {
        ann.send(&room, content).await;
        assert_eq!(socket.message().await.0, content);
    }
    let dump: Vec<Document> = messages.find(doc! {}).await.unwrap().try_collect().await.unwrap();

    // Into a live room: an insert is a message, whoever makes it.
    messages.delete_many(doc! {}).await.unwrap();
    for _ in &dump {
        assert_eq!(socket.next().await["event"], "messageDeleted");
    }
    messages.insert_many(&dump).await.unwrap();
    assert_eq!(socket.message().await.0, "one");
    let (content, position) = socket.message().await;
    assert_eq!(content, "two");
    // A collection that goes ends the change stream, too.
    restore(&messages, &dump).await;
    socket.resync(&room).await;
    drop(socket);

    ann.send(&room, "after the dump").await;
    server.stop().await;
    restore(&messages, &dump).await;
    pass(&database, 2).await;
    let server = TestServer::start_with(&vars).await;
    let ann = server.login("ann").await;
    let mut socket = Socket::connect(&server, &ann.token).await;
    let ack = socket.join_since(&room, &position).await;
    assert_eq!(ack["room"], json!(room), "{ack}");
    // The ids of the room's messages are about as old as the position: how far the clocks of their
    // makers may differ decides.
    if ack["recovered"] == json!(false) {
        socket.resync(&room).await;
    }
    ann.send(&room, "three").await;
    assert_eq!(socket.message().await.0, "three", "nothing old comes before it");
    socket.assert_silent(Duration::from_millis(100)).await;
    let history = ann.history(&room).await;
    let contents: Vec<_> = history.iter().map(|message| &message["content"]).collect();
    assert_eq!(contents, ["one", "two", "three"]);
}
