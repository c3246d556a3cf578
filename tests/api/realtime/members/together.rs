//! Changes of one room at the same time: each is made with the rights and the members of its moment.

use std::time::Duration;

use bson::{Document, doc};
use futures::future::join_all;
use realtime_chat_backend::models::own;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::id_of;
use crate::helpers::mongod::{Neighbour, SLOW, fresh_database, standalone};
use crate::helpers::{TestServer, User};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The same user at another instance.
fn at<'a>(server: &'a TestServer, user: &User<'_>) -> User<'a> {
    User { server, id: user.id.clone(), token: user.token.clone() }
}

/// Lets the next command of the slow instance on a collection of `own` fail or wait.
async fn next_of_slow(neighbour: &Neighbour, command: &str, collection: &str, what: Document) {
    let mut data = doc! {
        "failCommands": [command],
        "appName": SLOW,
        "namespace": format!("uneven.{collection}"),
    };
    data.extend(what);
    let fail = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
    neighbour.admin().run_command(fail).await.unwrap();
}

/// How long a command of the slow instance waits.
const WAIT: Duration = ms(800);

fn wait() -> Document {
    doc! { "blockConnection": true, "blockTimeMS": WAIT.as_millis() as i32 }
}

fn members(room: &Value) -> Vec<&str> {
    let members = room["members"].as_array().unwrap();
    members.iter().map(|member| member["_id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_the_owner_of_a_room_that_he_has_just_left() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let (ada, bob) = (quick.register("ada").await, quick.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let path = format!("/api/chat/room/{room}");
    next_of_slow(&neighbour, "update", own::ROOMS.collection, wait()).await;
    let body = json!({ "owner": bob.id });
    let began = Instant::now();
    let slow_ada = at(&slow, &ada);
    let handing_over = slow_ada.ask(Method::PATCH, &path, body);
    let leaving = async {
        sleep(ms(200)).await;
        bob.remove(&room, &bob).await
    };
    let ((status, answer), (left, _)) = tokio::join!(handing_over, leaving);
    assert!(began.elapsed() >= WAIT, "it did not wait");
    assert_eq!((status, left), (400, 200), "{answer}");
    let room = ada.get(&path).await;
    assert_eq!(room["room"]["owner"], json!(ada.id), "{room}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_has_handed_over_adds_nobody_any_more() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let (ada, bob) = (quick.register("ada").await, quick.register("bob").await);
    let carol = quick.register("carol").await;
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let path = format!("/api/chat/room/{room}");
    next_of_slow(&neighbour, "insert", own::MEMBERS.collection, wait()).await;
    let began = Instant::now();
    let slow_ada = at(&slow, &ada);
    let adding = slow_ada.add(&room, &carol);
    let handing_over = async {
        sleep(ms(200)).await;
        let (status, _) = ada.ask(Method::PATCH, &path, json!({ "owner": bob.id })).await;
        assert_eq!(status, 200);
        let room = bob.get(&path).await;
        members(&room["room"]).contains(&carol.id.as_str())
    };
    let ((status, answer), was_in) = tokio::join!(adding, handing_over);
    assert!(began.elapsed() >= WAIT, "it did not wait");
    assert_eq!(status == 200, was_in, "added after the other one was the owner: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_whose_end_fails_goes_on_as_a_whole() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let (ada, bob) = (quick.register("ada").await, quick.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let path = format!("/api/chat/room/{room}");
    next_of_slow(&neighbour, "delete", own::MEMBERS.collection, doc! { "errorCode": 8000 }).await;
    let (status, answer) = at(&slow, &ada).ask(Method::DELETE, &path, json!({})).await;
    assert!(status >= 500, "{status} {answer}");
    assert_eq!(members(&bob.get(&path).await["room"]).len(), 2);
    assert_eq!(bob.say(&room, "still here").await.0, 201);
    assert_eq!(ada.ask(Method::DELETE, &path, json!({})).await.0, 200);
    assert_eq!(bob.ask(Method::GET, &path, json!({})).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_additions_and_removals_at_the_same_time_are_made() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let standalone = standalone().await;
    let alone = TestServer::start_with(&[("MONGO_URI", &standalone.uri("chat"))]).await;
    for servers in [[&one, &other], [&alone, &alone]] {
        let ada = servers[0].register("ada").await;
        let mut others = Vec::new();
        for number in 0..20 {
            others.push(servers[number % 2].register(&format!("user {number}")).await);
        }
        let (first, later) = others.split_at(10);
        let room = id_of(&ada.private_room("cellar", &first.iter().collect::<Vec<_>>()).await);
        let adas = [at(servers[0], &ada), at(servers[1], &ada)];
        let adding =
            later.iter().enumerate().map(|(number, user)| adas[number % 2].add(&room, user));
        let leaving = first.iter().map(|user| user.remove(&room, user));
        let (added, left) = tokio::join!(join_all(adding), join_all(leaving));
        for (status, answer) in added.into_iter().chain(left) {
            assert_eq!(status, 200, "{answer}");
        }
        let room = ada.get(&format!("/api/chat/room/{room}")).await;
        let mut expected: Vec<_> =
            later.iter().chain([&ada]).map(|user| user.id.as_str()).collect();
        let mut found = members(&room["room"]);
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}
