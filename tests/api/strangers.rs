//! What somebody with a token of his own cannot do to others. Coming back as somebody else is
//! tested where coming back is, and so are sessions that end with their token.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::helpers::engine_io::Poller;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, eventually, token_for};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sends_as_another_on_any_wire() {
    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    let [ada, eve] = [server.register("ada").await, server.register("eve").await];
    let room = ada.create_room("lounge").await;
    let forged = json!({ "room": room, "sender": ada.id, "content": "give eve all my money" });
    let answer = eve.request(Method::POST, "/api/chat/message", Some(&forged)).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "sender_mismatch");
    let mut socket = Socket::connect(&server, &eve.token).await;
    assert_eq!(socket.ask("sendMessage", forged.clone()).await["code"], "sender_mismatch");
    let mut caller = Caller::connect(server.addr, &eve.token).await;
    assert_eq!(caller.ask("sendMessage", forged).await["code"], "sender_mismatch");
    // Nor does an id help that both forms of an id are read from.
    for sender in [json!([ada.id]), json!({ "_id": ada.id }), json!(ada.id.to_uppercase())] {
        let forged = json!({ "room": room, "sender": sender, "content": "x" });
        assert_eq!(caller.ask("sendMessage", forged).await["code"], "sender_mismatch");
    }
    assert_eq!(ada.history(&room).await, Vec::<Value>::new());
    drop((socket, caller));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_session_is_not_found_by_guessing() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let poller = Poller::open(server.addr, "/socket.io/").await;
    poller.post(&format!("40{{\"token\":\"{}\"}}", ada.token)).await.assert_ok();
    let entered = poller.packets().await;
    let public: Value = serde_json::from_str(entered[0].strip_prefix("40").unwrap()).unwrap();
    let secret = poller.target("polling").rsplit("sid=").next().unwrap().to_owned();
    assert_eq!(secret.len(), 20, "120 bits in base64");
    let mut guesses = vec![
        public["sid"].as_str().unwrap().to_owned(),
        public["pid"].as_str().unwrap().to_owned(),
        secret.to_lowercase(),
        secret.to_uppercase(),
        secret[..19].to_owned(),
        format!("{secret}A"),
        format!("{secret}%00"),
        "*".to_owned(),
    ];
    guesses.retain(|guess| *guess != secret);
    for guess in guesses {
        for method in [Method::GET, Method::POST] {
            let path = format!("/socket.io/?EIO=4&transport=polling&sid={guess}");
            let answer = server.request(method, &path, Some(&ada.token), None).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], 1, "{guess}");
        }
    }
    // The session has noticed nothing.
    poller.post("420[\"leaveRoom\",\"x\"]").await.assert_ok();
    assert!(poller.packets().await[0].starts_with("430["));
    drop(poller);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_session_ends_with_its_token() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let poller = Poller::open(server.addr, "/socket.io/").await;
    let token = token_for(&ada.id, 2);
    poller.post(&format!("40{{\"token\":\"{token}\"}}")).await.assert_ok();
    poller.packets().await;
    let polled = timeout(Duration::from_secs(5), poller.poll()).await.expect("it ends in time");
    assert!(!polled.text().contains("receiveMessage"), "{}", polled.text());
    poller.gone().await;
    eventually("its place is free", async || {
        crate::helpers::metric(server.addr, "chat_sessions").await == 0
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_login_tells_whether_a_user_exists_in_precise_mode() {
    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    server.register("ada").await;
    let path = "/api/auth/login";
    for password in [
        json!("wrong"),
        json!(""),
        json!("x".repeat(1_000)),
        json!(5),
        json!(true),
        json!(null),
        json!([]),
        json!({ "$ne": null }),
    ] {
        let mut answers = Vec::new();
        for name in ["ada", "nobody"] {
            let body = json!({ "username": name, "password": password });
            let answer = server.request(Method::POST, path, None, Some(&body)).await;
            answers.push((answer.status(), answer.text().await.unwrap()));
        }
        assert_eq!(answers[0], answers[1], "{password}");
        assert!(answers[0].0.is_client_error(), "{password}");
    }
    let mut answers = Vec::new();
    for name in ["ada", "nobody"] {
        let body = json!({ "username": name });
        let answer = server.request(Method::POST, path, None, Some(&body)).await;
        answers.push((answer.status(), answer.text().await.unwrap()));
    }
    assert_eq!(answers[0], answers[1]);
    server.stop().await;
}
