//! How often one client may do what, and what it is told beyond that.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Error;

use crate::helpers::TestServer;
use crate::helpers::socket::Socket;

/// Asserts that an answer is a refusal for now.
async fn assert_too_many(answer: Response) {
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body, json!({ "error": "Too many requests, try again later" }));
}

async fn try_login(server: &TestServer, name: &str, password: &str) -> Response {
    let body = json!({ "username": name, "password": password });
    server.request(Method::POST, "/api/auth/login", None, Some(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_may_log_in_so_often() {
    let server = TestServer::start_with(&[("RATE_LIMIT_LOGIN", "4")]).await;
    let ada = server.register("ada").await;
    for _ in 0..2 {
        assert_eq!(try_login(&server, "nobody", "x").await.status(), StatusCode::NOT_FOUND);
    }
    assert_too_many(try_login(&server, "ada", "password of ada").await).await;
    // Who is in stays in.
    ada.get("/api/chat/rooms").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_failures_count_against_a_name() {
    let server = TestServer::start_with(&[("RATE_LIMIT_LOGIN_NAME", "2")]).await;
    server.register("ada").await;
    server.register("bob").await;
    for _ in 0..4 {
        server.login("ada").await;
    }
    for _ in 0..2 {
        assert_eq!(try_login(&server, "ada", "wrong").await.status(), StatusCode::BAD_REQUEST);
    }
    assert_too_many(try_login(&server, "ada", "wrong").await).await;
    assert_too_many(try_login(&server, "ada", "password of ada").await).await;
    server.login("bob").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_may_send_so_much_on_all_wires_together() {
    let server = TestServer::start_with(&[("RATE_LIMIT_SEND", "3")]).await;
    let ada = server.register("ada").await;
    let bob = server.register("bob").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    for content in ["one", "two"] {
        ada.send(&room, content).await;
    }
    let data = json!({ "room": room, "content": "three" });
    assert!(socket.ask("sendMessage", data.clone()).await["message"].is_object());
    let refused = socket.ask("sendMessage", data.clone()).await;
    assert_eq!(refused["code"], "rate_limited");
    let body = json!({ "room": room, "sender": ada.id, "content": "four" });
    assert_too_many(ada.request(Method::POST, "/api/chat/message", Some(&body)).await).await;
    bob.send(&room, "another user").await;
    assert_eq!(ada.history(&room).await.len(), 4);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_and_handshakes_are_bounded() {
    let server = TestServer::start_with(&[
        ("RATE_LIMIT_ROOM", "2"),
        ("RATE_LIMIT_CONNECT", "3"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "1"),
        ("MAX_ROOMS_PER_SESSION", "1"),
    ])
    .await;
    let ada = server.register("ada").await;
    let rooms = [ada.create_room("one").await, ada.create_room("two").await];
    let third = json!({ "name": "three" });
    assert_too_many(ada.request(Method::POST, "/api/chat/room", Some(&third)).await).await;

    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.join(&rooms[0]).await;
    socket.join(&rooms[0]).await;
    assert_eq!(socket.ask("joinRoom", json!(rooms[1])).await["code"], "too_many_rooms");
    socket.ask("leaveRoom", json!(rooms[0])).await;
    socket.join(&rooms[1]).await;

    let url = format!("ws://{}/ws?token={}", server.addr, ada.token);
    assert_eq!(refused(&url).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused(&url).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused(&url).await, StatusCode::TOO_MANY_REQUESTS);
    let polling = server.url("/socket.io/?EIO=4&transport=polling");
    let answer = crate::helpers::client().get(polling).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.headers().contains_key("retry-after"));
    server.stop().await;
}

/// The status with which an upgrade is refused.
async fn refused(url: &str) -> StatusCode {
    match connect_async(url).await {
        Err(Error::Http(answer)) => answer.status(),
        other => panic!("not refused: {:?}", other.map(|_| "let in")),
    }
}
