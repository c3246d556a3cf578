//! Messages that share a cluster time, because one transaction stored them.

use bson::doc;
use bson::oid::ObjectId;
use futures::future::join_all;
use mongodb::ClientSession;
use serde_json::json;

use super::members::id_of;
use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::socket::{Heard, Socket};
use crate::helpers::{TestServer, User};

async fn insert_in_one_transaction(neighbour: &Neighbour, room: &str, contents: [&str; 3]) {
    let client = neighbour.messages.client();
    let mut session: ClientSession = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for content in contents {
        let document = neighbour.document(room, content);
        neighbour.messages.insert_one(document).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
}

/// Comes back behind `cut` and hears exactly what came after it.
async fn goes_on(server: &TestServer, user: &User<'_>, all: &[Heard], cut: usize) {
    let mut socket = Socket::connect(server, &user.token).await;
    socket.recover(&all[0].room, all[cut - 1].position).await;
    for expected in &all[cut..] {
        assert_eq!(socket.heard().await, *expected, "cut after {cut}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_between_messages_of_one_cluster_time_loses_and_repeats_nothing() {
    let uri = fresh_database().await;
    let [here, there] = TestServer::instances(&uri).await;
    let ada = here.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;

    let mut sockets = Vec::new();
    for server in [&here, &there] {
        let mut socket = Socket::connect(server, &ada.token).await;
        socket.join(&room).await;
        sockets.push(socket);
    }
    insert_in_one_transaction(&neighbour, &room, ["first", "second", "third"]).await;
    neighbour.insert(&room, "fourth").await;
    let mut transcripts = join_all(sockets.iter_mut().map(async |socket| {
        let mut heard = Vec::new();
        for _ in 0..4 {
            heard.push(socket.heard().await);
        }
        heard
    }))
    .await;
    transcripts.dedup();
    let [all] = &transcripts[..] else { panic!("the instances disagree: {transcripts:?}") };
    let contents: Vec<_> = all.iter().map(|heard| heard.content.as_str()).collect();
    assert_eq!(contents, ["first", "second", "third", "fourth"]);
    let time = all[0].position.to_string();
    assert_eq!(all[1].position.to_string(), format!("{time}.1"));
    assert_eq!(all[2].position.to_string(), format!("{time}.2"));

    // An instance that was not there at the time counts the same.
    let later = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    for cut in 1..=4 {
        for server in [&here, &there, &later] {
            goes_on(server, &ada, all, cut).await;
        }
    }
    drop(ada);
    for server in [here, there, later] {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_within_a_transaction_goes_on_within_it() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let neighbour = Neighbour::connect(&uri).await;
    for cut in 1..=3 {
        let mut socket = Socket::connect(&server, &ada.token).await;
        socket.join(&room).await;
        let contents = ["first", "second", "third"];
        insert_in_one_transaction(&neighbour, &room, contents).await;
        let mut heard = Vec::new();
        for _ in 0..cut {
            heard.push(socket.heard().await);
        }
        drop(socket);
        let mut socket = Socket::connect(&server, &ada.token).await;
        socket.recover(&room, heard[cut - 1].position).await;
        for _ in cut..3 {
            heard.push(socket.heard().await);
        }
        neighbour.insert(&room, "live").await;
        heard.push(socket.heard().await);
        let all: Vec<_> = heard.iter().map(|heard| heard.content.as_str()).collect();
        assert_eq!(all, ["first", "second", "third", "live"], "cut after {cut}");
    }
    server.stop().await;
}

/// The server is told of both updates when the message is small again.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_in_a_private_room_with_too_large_a_text_is_a_resync() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = id_of(&ada.private_room("cellar", &[]).await);
    let message = id_of(&ada.send(&room, "small").await);
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&room).await;
    let neighbour = Neighbour::connect(&uri).await;
    let mut session = neighbour.messages.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for content in ["x".repeat(300 * 1024), "small again".to_owned()] {
        let message = doc! { "_id": ObjectId::parse_str(&message).unwrap() };
        let update = doc! { "$set": { "content": content } };
        neighbour.messages.update_one(message, update).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
    socket.resync(&room).await;
    let edited = socket.next().await;
    assert_eq!(
        (&edited["event"], &edited["data"]["content"]),
        (&json!("messageEdited"), &json!("small again"))
    );
}
