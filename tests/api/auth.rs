//! Registration, login and the ways in which a database of the original is met.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::helpers::{TestServer, mongod};

async fn login(server: &TestServer, name: &str, password: &str) -> (StatusCode, Value) {
    let body = json!({ "username": name, "password": password });
    let answer = server.request(Method::POST, "/api/auth/login", None, Some(&body)).await;
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_the_original_logs_in_and_gets_a_better_hash() {
    let uri = mongod::fresh_database().await;
    let users = mongod::connect(&uri).await.collection::<Document>("users");
    let hash = "$2a$10$Hzb1Z0FN2muGi3gJTHpKke8r4lDYN3tlne6wfAaBdaYIAqbELPURO";
    users.insert_one(doc! { "username": "old", "password": hash, "__v": 0 }).await.unwrap();
    users.insert_one(doc! { "username": "broken", "password": 7 }).await.unwrap();

    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    assert_eq!(login(&server, "old", "wrong horse").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(login(&server, "old", "correct horse").await.0, StatusCode::OK);
    let user = users.find_one(doc! { "username": "old" }).await.unwrap().unwrap();
    assert!(user.get_str("password").unwrap().starts_with("$argon2id$"));
    assert_eq!(login(&server, "old", "correct horse").await.0, StatusCode::OK);
    let (status, body) = login(&server, "broken", "7").await;
    assert_eq!(
        (status, body["error"].as_str()),
        (StatusCode::BAD_REQUEST, Some("Invalid credentials"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_may_go_back_keeps_bcrypt() {
    let uri = mongod::fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("PASSWORD_HASH", "bcrypt")];
    let server = TestServer::start_with(&vars).await;
    server.register("ann").await;
    let users = mongod::connect(&uri).await.collection::<Document>("users");
    let user = users.find_one(doc! { "username": "ann" }).await.unwrap().unwrap();
    assert!(user.get_str("password").unwrap().starts_with("$2a$10$"));
    let keys: Vec<&String> = user.keys().collect();
    assert_eq!(keys, ["_id", "username", "password", "createdAt", "updatedAt", "__v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_bcrypt_set_makes_a_user_ready_for_the_way_back() {
    let uri = mongod::fresh_database().await;
    let users = mongod::connect(&uri).await.collection::<Document>("users");
    let stored = async || {
        let user = users.find_one(doc! { "username": "ann" }).await.unwrap().unwrap();
        user.get_str("password").unwrap().to_owned()
    };
    let forgot = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    forgot.register("ann").await;
    assert!(stored().await.starts_with("$argon2id$"));

    let vars = [("MONGO_URI", uri.as_str()), ("PASSWORD_HASH", "bcrypt")];
    let remembered = TestServer::start_with(&vars).await;
    assert_eq!(login(&remembered, "ann", "wrong").await.0, StatusCode::BAD_REQUEST);
    assert!(stored().await.starts_with("$argon2id$"));
    remembered.login("ann").await;
    let hash = stored().await;
    assert!(hash.starts_with("$2a$10$"), "{hash}");
    remembered.login("ann").await;
    assert_eq!(stored().await, hash, "replaced once");
}

#[tokio::test(flavor = "multi_thread")]
async fn precise_mode_tells_nothing_about_which_users_exist() {
    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    server.register("ann").await;
    let mut answers = Vec::new();
    for name in ["ann", "nobody"] {
        let started = Instant::now();
        answers.push(login(&server, name, "wrong").await);
        assert!(started.elapsed() >= Duration::from_millis(250), "{name}");
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
    assert_eq!(answers[0].1["code"], "invalid_credentials");
}
