//! MongoDB goes and comes: 503 in time, then service again without a restart.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::helpers::mongod::ReplicaSet;
use crate::helpers::{TestServer, User, eventually};

/// The longest that a request may take while MongoDB does not answer; the contract says 5 s, the
/// rest is for a busy machine.
const PROMISED: Duration = Duration::from_millis(5_500);

async fn refused_in_time(user: &User<'_>, room: &str) {
    let message = json!({ "room": room, "sender": user.id, "content": "x" });
    let requests = [
        (Method::GET, "/api/chat/rooms".to_owned(), None),
        (Method::GET, format!("/api/chat/messages/{room}"), None),
        (Method::POST, "/api/chat/message".to_owned(), Some(message)),
        (
            Method::POST,
            "/api/auth/login".to_owned(),
            Some(json!({"username": "a", "password": "b"})),
        ),
    ];
    let requests = requests.iter().map(|(method, path, body)| async move {
        let started = Instant::now();
        let answer = user.request(method.clone(), path, body.as_ref()).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(answer.headers().contains_key("retry-after"), "{path}");
        assert_eq!(answer.text().await.unwrap(), r#"{"error":"Server error"}"#);
        assert!(started.elapsed() < PROMISED, "{path} took {:?}", started.elapsed());
    });
    futures::future::join_all(requests).await;
}

async fn serves_again(user: &User<'_>) {
    eventually("requests succeed again", async || {
        user.request(Method::GET, "/api/chat/rooms", None).await.status() == StatusCode::OK
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_and_starts_is_an_outage_and_no_restart() {
    let mut mongo = ReplicaSet::start(1).await;
    let uri = mongo.uri("outage");
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ann = server.register("ann").await;
    let room = ann.create_room("outage").await;

    mongo.stop_node(0).await;
    refused_in_time(&ann, &room).await;
    let unready = server.request(Method::GET, "/readyz", None, None).await;
    assert_eq!(unready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let alive = server.request(Method::GET, "/healthz", None, None).await;
    assert_eq!(alive.status(), StatusCode::OK);
    mongo.restart(0).await;
    serves_again(&ann).await;

    mongo.pause(0);
    refused_in_time(&ann, &room).await;
    mongo.resume(0);
    serves_again(&ann).await;
    ann.send(&room, "after").await;
    assert_eq!(ann.history(&room).await.last().unwrap()["content"], "after");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_before_its_database_serves_when_it_comes() {
    let mut mongo = ReplicaSet::start(1).await;
    let uri = mongo.uri("late");
    mongo.stop_node(0).await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let rooms = server.request(Method::GET, "/api/chat/rooms", None, None).await;
    assert_eq!(rooms.status(), StatusCode::UNAUTHORIZED);
    let credentials = json!({ "username": "ann", "password": "x" });
    let register = async || {
        let path = "/api/auth/register";
        server.request(Method::POST, path, None, Some(&credentials)).await.status()
    };
    assert_eq!(register().await, StatusCode::SERVICE_UNAVAILABLE);
    mongo.restart(0).await;
    eventually("registration succeeds", async || register().await == StatusCode::CREATED).await;
}
