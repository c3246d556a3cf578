//! `/metrics`, and the id of each request.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::helpers::socket::Socket;
use crate::helpers::{TestServer, client, eventually};

/// The value of a sample, by its name and labels.
async fn sample(server: &TestServer, name: &str) -> Option<f64> {
    let answer = client().get(server.url("/metrics")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    let text = answer.text().await.unwrap();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let position = socket.join(&room).await;
    ada.send(&room, "hello").await;
    socket.message().await;

    assert_eq!(sample(&server, "chat_sockets{wire=\"ws\"}").await, Some(1.0));
    assert_eq!(sample(&server, "chat_deliveries_total{wire=\"ws\"}").await, Some(1.0));
    assert_eq!(sample(&server, "chat_feed_live").await, Some(1.0));
    assert_eq!(sample(&server, "chat_feed_events_total").await, Some(1.0));
    assert_eq!(sample(&server, "chat_sessions").await, Some(1.0));
    let route = r#"route="/api/chat/message",status="201""#;
    let requests = format!("chat_http_request_duration_seconds_count{{method=\"POST\",{route}}}");
    assert_eq!(sample(&server, &requests).await, Some(1.0));

    socket.ask("leaveRoom", json!(room)).await;
    assert_eq!(socket.join_since(&room, &position).await["recovered"], true);
    let recovered = "chat_recoveries_total{outcome=\"recovered\"}";
    assert_eq!(sample(&server, recovered).await, Some(1.0));
    drop(socket);
    let closed = "chat_disconnects_total{reason=\"client\",wire=\"ws\"}";
    eventually("the socket is counted as closed", async || {
        sample(&server, closed).await == Some(1.0)
            && sample(&server, "chat_sockets{wire=\"ws\"}").await == Some(0.0)
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_and_deletions_are_counted_by_their_outcome() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let message = ada.send(&room, "hello").await["_id"].as_str().unwrap().to_owned();
    let path = format!("/api/chat/message/{message}");
    let edit = json!({ "content": "hello!", "__v": 0 });
    for (method, body, status) in [
        (Method::PATCH, Some(&edit), 200),
        (Method::PATCH, Some(&edit), 409),
        (Method::DELETE, None, 200),
        (Method::DELETE, None, 200),
        (Method::PATCH, Some(&edit), 410),
    ] {
        assert_eq!(ada.request(method, &path, body).await.status(), status);
    }
    let mut socket = Socket::connect(&server, &server.register("bob").await.token).await;
    socket.ask("deleteMessage", json!(message)).await;
    for (change, outcome, count) in [
        ("edit", "stored", Some(1.0)),
        ("edit", "repeated", None),
        ("edit", "refused", Some(2.0)),
        ("deletion", "stored", Some(1.0)),
        ("deletion", "repeated", Some(1.0)),
        ("deletion", "refused", Some(1.0)),
    ] {
        let name =
            format!("chat_message_changes_total{{change=\"{change}\",outcome=\"{outcome}\"}}");
        assert_eq!(sample(&server, &name).await, count, "{name}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_share_one_label() {
    let server = TestServer::start().await;
    for path in ["/a", "/b/c", "/api/chat/nothing"] {
        server.request(Method::GET, path, None, None).await;
    }
    let none =
        r#"chat_http_request_duration_seconds_count{method="GET",route="none",status="404"}"#;
    assert_eq!(sample(&server, none).await, Some(3.0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_keeps_them_private() {
    let server = TestServer::start_with(&[("METRICS_TOKEN", "let me see")]).await;
    for (token, status) in [(None, 401), (Some("let me"), 401), (Some("let me see"), 200)] {
        let answer = server.request(Method::GET, "/metrics", token, None).await;
        assert_eq!(answer.status(), status, "{token:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_an_id() {
    let server = TestServer::start().await;
    let id = async |given: Option<&str>| {
        let mut request = client().get(server.url("/healthz"));
        if let Some(given) = given {
            request = request.header("X-Request-Id", given);
        }
        let answer = request.send().await.unwrap();
        answer.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_ne!(id(None).await, id(None).await);
    assert_eq!(id(Some("from-a-proxy-7")).await, "from-a-proxy-7");
    for forged in ["two words", &"x".repeat(65)] {
        assert_ne!(id(Some(forged)).await, forged);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_metrics_that_exist_and_all_of_them() {
    let server = TestServer::start_with(&[("RATE_LIMIT_CONNECT", "1")]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    // A series is there once it has counted something.
    ada.request(Method::DELETE, "/api/chat/message/none", None).await;
    ada.request(Method::POST, "/api/chat/room/none/read", None).await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&room).await;
    let since = json!({ "room": room, "since": "nonsense" });
    socket.ask("leaveRoom", json!(room)).await;
    socket.ask("joinRoom", since).await;
    socket.next().await;
    drop(socket);
    let refresh = json!({ "refreshToken": "x" });
    server.request(Method::POST, "/api/auth/refresh-token", None, Some(&refresh)).await;
    ada.request(Method::POST, "/api/auth/logout", None).await;
    eventually("the disconnect is counted", async || {
        sample(&server, "chat_sockets{wire=\"ws\"}").await == Some(0.0)
    })
    .await;
    let text = client().get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let served: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();

    let dashboard: Value = serde_json::from_str(include_str!("../../deploy/grafana.json")).unwrap();
    let mut shown = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let words = target["expr"].as_str().unwrap().split(|c: char| !is_name(c));
            shown.extend(words.filter(|word| word.starts_with("chat_")).map(|name| {
                let name = name.strip_suffix("_bucket").unwrap_or(name);
                name.strip_suffix("_count").unwrap_or(name).to_owned()
            }));
        }
    }
    assert_eq!(shown.iter().map(String::as_str).collect::<BTreeSet<_>>(), served);
    server.stop().await;
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
