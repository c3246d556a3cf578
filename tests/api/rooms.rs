//! Rooms, whose names are unique.

use bson::{Document, doc};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::helpers::{TestServer, eventually, mongod};

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_is_created_twice_at_once_exists_once() {
    let uri = mongod::fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = server.register("ann").await;
    let rooms = mongod::connect(&uri).await.collection::<Document>("rooms");
    eventually("the index is built", async || {
        rooms.list_index_names().await.is_ok_and(|names| names.contains(&"name_1".to_owned()))
    })
    .await;
    let body = json!({ "name": "race" });
    let creations = (0..10).map(|_| ann.request(Method::POST, "/api/chat/room", Some(&body)));
    let answers = join_all(creations).await;
    let created = answers.iter().filter(|a| a.status() == StatusCode::CREATED).count();
    let refused = answers.iter().filter(|a| a.status() == StatusCode::BAD_REQUEST).count();
    assert_eq!((created, refused), (1, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_that_block_an_index_are_guarded_by_a_look() {
    let uri = mongod::fresh_database().await;
    let database = mongod::connect(&uri).await;
    let rooms = database.collection::<Document>("rooms");
    rooms.insert_many([doc! { "name": "twice" }, doc! { "name": "twice" }]).await.unwrap();
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = server.register("ann").await;
    for (name, status) in [("twice", 400), ("new", 201), ("new", 400)] {
        let body = json!({ "name": name });
        let answer = ann.request(Method::POST, "/api/chat/room", Some(&body)).await;
        assert_eq!(answer.status().as_u16(), status, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_many_ask_for_has_what_each_of_them_has_stored_before() {
    let server = TestServer::start_with(&[("RATE_LIMIT_ROOM", "0")]).await;
    let ann = server.register("ann").await;
    let writers = (0..20).map(async |writer| {
        for round in 0..10 {
            let room = ann.create_room(&format!("{writer} {round}")).await;
            let rooms = ann.get("/api/chat/rooms").await;
            let has_room = rooms.as_array().unwrap().iter().any(|found| found["_id"] == *room);
            assert!(has_room, "{writer} {round}");
            ann.send(&room, "stored").await;
            assert_eq!(ann.history(&room).await.len(), 1, "{writer} {round}");
        }
    });
    join_all(writers).await;
}
