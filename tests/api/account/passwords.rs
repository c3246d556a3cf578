//! New passwords.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Tokens, log_in, next_second, post, refresh, refreshed, refusal};
use crate::helpers::mongod::{connect, fresh_database};
use crate::helpers::{TestServer, eventually};

fn change(old: &str, new: &str) -> Value {
    json!({ "password": old, "newPassword": new })
}

async fn log_in_with(server: &TestServer, name: &str, password: &str) -> (u16, Value) {
    post(server, "auth/login", "", json!({ "username": name, "password": password })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_ends_everything_else() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let bob = one.register("bob").await;
    let device = log_in(&other, "ada").await;
    let (status, answer) = post(
        &other,
        "auth/change-password",
        &ada.token,
        change("password of ada", "another password"),
    )
    .await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.get("refreshToken").is_none());
    let new = Tokens::of(&answer);
    for server in [&one, &other] {
        // The new token is valid everywhere at once, and the old ones are refused.
        assert_eq!(refusal(server, &new.token).await, "");
        eventually("the old tokens are refused", async || {
            refusal(server, &ada.token).await == "token_revoked"
                && refusal(server, &device.token).await == "token_revoked"
        })
        .await;
        assert_eq!(refusal(server, &bob.token).await, "");
        assert_eq!(refresh(server, &device.refresh).await.1["code"], "refresh_invalid");
        assert_eq!(log_in_with(server, "ada", "password of ada").await.0, 400);
        let (status, answer) = log_in_with(server, "ada", "another password").await;
        assert_eq!(status, 200);
        assert_eq!(refusal(server, answer["token"].as_str().unwrap()).await, "");
    }
    let users = connect(&uri).await.collection::<bson::Document>("users");
    let user = users.find_one(bson::doc! { "username": "ada" }).await.unwrap().unwrap();
    let keys: Vec<&String> = user.keys().collect();
    assert_eq!(keys, ["_id", "username", "password", "createdAt", "updatedAt", "__v"]);
    assert!(user.get_datetime("updatedAt").unwrap() > user.get_datetime("createdAt").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_a_refresh_token_gets_a_new_one() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let device = log_in(&server, "ada").await;
    let body = change("password of ada", "second");
    let (status, answer) = post(&server, "auth/change-password", &device.token, body).await;
    assert_eq!(status, 200, "{answer}");
    let new = Tokens::of(&answer);
    assert_eq!(refresh(&server, &device.refresh).await.1["code"], "refresh_invalid");
    let new = refreshed(&server, &new.refresh).await;
    assert_eq!(refusal(&server, &new.token).await, "");
    // Also if only the request says that it has one.
    let (_, plain) = log_in_with(&server, "ada", "second").await;
    let mut body = change("second", "third");
    body["refreshToken"] = json!(new.refresh);
    let token = plain["token"].as_str().unwrap();
    let (status, answer) = post(&server, "auth/change-password", token, body).await;
    assert_eq!((status, &answer["userId"]), (200, &json!(ada.id)));
    refreshed(&server, &Tokens::of(&answer).refresh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_password_is_guarded_like_a_login() {
    let server = TestServer::start_with(&[("RATE_LIMIT_LOGIN_NAME", "3")]).await;
    let ada = server.register("ada").await;
    let path = "auth/change-password";
    for (body, field) in [
        (json!({}), "password"),
        (json!({ "password": 5, "newPassword": "x" }), "password"),
        (json!({ "password": "password of ada" }), "newPassword"),
        (json!({ "password": "password of ada", "newPassword": { "$ne": 1 } }), "newPassword"),
    ] {
        let (status, answer) = post(&server, path, &ada.token, body).await;
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_field")));
        assert!(answer["error"].as_str().unwrap().starts_with(field), "{answer}");
    }
    for _ in 0..3 {
        let (status, answer) = post(&server, path, &ada.token, change("wrong", "x")).await;
        assert_eq!((status, &answer["code"]), (401, &json!("invalid_credentials")));
    }
    let right = change("password of ada", "x");
    assert_eq!(post(&server, path, &ada.token, right).await.0, 429);
    // It is the same limit as that of logins.
    assert_eq!(log_in_with(&server, "ada", "password of ada").await.0, 429);
    assert_eq!(refusal(&server, &ada.token).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_may_go_back_changes_to_bcrypt() {
    let uri = fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("PASSWORD_HASH", "bcrypt")];
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let body = change("password of ada", "new");
    assert_eq!(post(&server, "auth/change-password", &ada.token, body).await.0, 200);
    let users = connect(&uri).await.collection::<bson::Document>("users");
    let user = users.find_one(bson::doc! { "username": "ada" }).await.unwrap().unwrap();
    assert!(user.get_str("password").unwrap().starts_with("$2a$10$"));
    assert_eq!(log_in_with(&server, "ada", "new").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_logins_during_a_change_none_survives_with_the_old_password() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let ada = one.register("ada").await;
    let mut token = ada.token.clone();
    let mut password = "password of ada".to_owned();
    for round in 0..4 {
        let body = json!({ "username": "ada", "password": password, "refresh": true });
        let logins = (0..6).map(|n| {
            let (server, body) = (if n % 2 == 0 { &one } else { &other }, body.clone());
            async move {
                tokio::time::sleep(std::time::Duration::from_millis(15 * n)).await;
                let request = server.request(Method::POST, "/api/auth/login", None, Some(&body));
                request.await.json::<Value>().await.unwrap()
            }
        });
        let next = format!("password {round}");
        let changing = post(&other, "auth/change-password", &token, change(&password, &next));
        let (logins, (status, answer)) = tokio::join!(futures::future::join_all(logins), changing);
        assert_eq!(status, 200, "{answer}");
        let survives = async |login: &Value| {
            let tokens = Tokens::of(login);
            !tokens.token.is_empty()
                && (refusal(&one, &tokens.token).await.is_empty()
                    || refresh(&one, &tokens.refresh).await.0 == 200)
        };
        eventually("the old tokens are refused", async || {
            refusal(&one, &token).await == "token_revoked"
        })
        .await;
        for login in &logins {
            assert!(!survives(login).await, "round {round}: {login}");
        }
        (token, password) = (Tokens::of(&answer).token, next);
    }
    next_second().await;
    assert_eq!(refusal(&one, &token).await, "");
}
