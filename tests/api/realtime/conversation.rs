//! What one client and the server say to each other.

use std::time::{Duration, Instant};

use realtime_chat_backend::feed::position::Position;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::helpers::socket::Socket;
use crate::helpers::{TestServer, open_websocket, token_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_members_however_it_was_sent() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let joined = socket.join(&room).await;

    let by_rest = ada.send(&room, "by REST").await;
    let frame = socket.next().await;
    assert_eq!(frame["event"], "receiveMessage");
    assert_eq!(frame["data"], by_rest);
    let position: Position = frame["position"].as_str().unwrap().parse().unwrap();
    assert!(position > joined.parse().unwrap());

    let ack = socket.ask("sendMessage", json!({ "room": room, "content": "by socket" })).await;
    assert_eq!(ack["message"]["sender"], ada.id);
    let frame = socket.next().await;
    assert_eq!(frame["data"], ack["message"]);

    let left = socket.ask("leaveRoom", json!(room)).await;
    assert_eq!(left, json!({ "room": room }));
    ada.send(&room, "to nobody").await;
    socket.assert_silent(Duration::from_millis(300)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_a_client_id_is_the_same_message() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let data = json!({ "room": room, "content": "once", "clientId": "c-1" });
    let first = socket.ask("sendMessage", data.clone()).await;
    let again = socket.ask("sendMessage", data).await;
    assert_eq!(first, again);
    let other = json!({ "room": room, "content": "twice", "clientId": "c-1" });
    assert_eq!(socket.ask("sendMessage", other).await["code"], "idempotency_conflict");
    assert_eq!(ada.history(&room).await.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_answered_and_life_goes_on() {
    let server = TestServer::start_with(&[("ERRORS", "precise")]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let nowhere = "0123456789abcdef01234567";
    let mut socket = Socket::connect(&server, &ada.token).await;
    for (event, data, code) in [
        ("joinRoom", json!(nowhere), "room_not_found"),
        ("joinRoom", json!("lounge"), "invalid_field"),
        ("joinRoom", json!(null), "invalid_field"),
        ("joinRoom", json!({ "since": "1.1" }), "invalid_field"),
        ("leaveRoom", json!(5), "invalid_field"),
        ("sendMessage", json!({ "room": nowhere, "content": "x" }), "room_not_found"),
        ("sendMessage", json!({ "room": room }), "invalid_field"),
        ("sendMessage", json!("x"), "room_not_found"),
        (
            "sendMessage",
            json!({ "room": room, "content": "x", "sender": nowhere }),
            "sender_mismatch",
        ),
        ("sendMessage", json!({ "room": room, "content": "x", "clientId": "" }), "invalid_field"),
        ("sendMessage", json!({ "room": room, "content": "x".repeat(102_400) }), "body_too_large"),
        ("shout", json!("x"), "unknown_event"),
        ("authenticate", json!({}), "token_missing"),
        ("authenticate", json!({ "token": "x" }), "token_invalid"),
    ] {
        let ack = socket.ask(event, data.clone()).await;
        assert_eq!(ack["code"], code, "{event} {data}: {ack}");
        assert!(ack["error"].is_string(), "{ack}");
    }
    for text in ["", "{", "[]", "5", r#"{"data":1}"#, r#"{"event":"nonsense"}"#] {
        socket.send_text(text).await;
        let frame = socket.next().await;
        assert_eq!((&frame["event"], &frame["data"]["event"]), (&json!("error"), &json!(null)));
    }
    // Without an id there is no ack, but errors are told.
    socket.send_text(json!({ "event": "joinRoom", "data": nowhere }).to_string()).await;
    let frame = socket.next().await;
    assert_eq!(frame["event"], "error");
    assert_eq!(frame["data"]["event"], "joinRoom");
    let largest = "x".repeat(102_400 - r#"{"room":"","sender":"","content":""}"#.len() - 48);
    let sent = socket.ask("sendMessage", json!({ "room": room, "content": largest })).await;
    assert_eq!(sent["message"]["content"], largest);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_by_header_query_or_first_frame() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;

    let mut request = format!("ws://{}/ws", server.addr).into_client_request().unwrap();
    let bearer = HeaderValue::from_str(&format!("Bearer {}", ada.token)).unwrap();
    request.headers_mut().insert("Authorization", bearer);
    connect_async(request).await.expect("let in by the header");

    let mut socket = Socket::connect_to(&server, "/ws").await;
    let ack = socket.ask("authenticate", json!({ "token": ada.token })).await;
    assert!(ack["expires"].as_u64().unwrap() > 1_700_000_000);
    socket.join(&room).await;

    for path in ["/ws?token=wrong", "/ws?token=a.b.c", "/ws?token=null"] {
        let closed = Socket::connect_to(&server, path).await.closed().await;
        let reason = "Invalid token (not a JSON Web Token, in ?token=)".to_owned();
        assert_eq!(closed, Some((4401, reason)));
    }
    // A proxy's own header is nobody's token, here and below.
    let basic = [("Authorization", "Basic YWRhOng=")];
    let path = format!("/ws?token=Bearer%20{}", ada.token);
    open_websocket(&server, &path, &basic).await.expect("let in by the query");
    let (stream, _) = open_websocket(&server, "/ws", &basic).await.unwrap();
    let mut proxied = Socket::of(stream);
    let bearer = json!({ "token": format!("Bearer {}", ada.token) });
    assert!(proxied.ask("authenticate", bearer).await["expires"].is_u64());
    proxied.join(&room).await;
    let mut wrong = Socket::connect_to(&server, "/ws").await;
    wrong.send("authenticate", json!({ "token": "wrong" })).await;
    assert_eq!(wrong.closed().await.unwrap().0, 4401);
    let mut impatient = Socket::connect_to(&server, "/ws").await;
    impatient.send("joinRoom", json!(room)).await;
    let missing = "Access denied. No token provided. (the first frame must be `authenticate` with \
                   a token)";
    assert_eq!(impatient.closed().await, Some((4401, missing.to_owned())));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_authenticates_is_closed() {
    let server = TestServer::start().await;
    let begun = std::time::Instant::now();
    let closed = Socket::connect_to(&server, "/ws").await.closed().await;
    let reason = "Access denied. No token provided. (looked in the Authorization header, ?token= \
                  and a first frame)";
    assert_eq!(closed, Some((4401, reason.to_owned())));
    assert!((9..13).contains(&begun.elapsed().as_secs()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_token_unless_it_brings_a_newer_one() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let bob = server.register("bob").await;
    let room = ada.create_room("lounge").await;
    let begun = std::time::Instant::now();
    let mut ends = Socket::connect(&server, &token_for(&ada.id, 3)).await;
    let mut stays = Socket::connect(&server, &token_for(&ada.id, 3)).await;
    ends.join(&room).await;
    let others = json!({ "token": bob.token });
    assert_eq!(stays.ask("authenticate", others).await["code"], "token_invalid");
    let extended = stays.ask("authenticate", json!({ "token": ada.token })).await;
    assert!(extended["expires"].is_u64());

    assert_eq!(ends.closed().await, Some((4401, "the token expired".to_owned())));
    let lasted = begun.elapsed();
    assert!(lasted > Duration::from_millis(1_900) && lasted < Duration::from_secs(4), "{lasted:?}");
    stays.join(&room).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_silent_is_closed_and_one_that_answers_pings_is_not() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut polite = Socket::connect(&server, &ada.token).await;
    // The other one reads, but as what it reads it does not understand.
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    let request = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n",
        ada.token
    );
    silent.write_all(request.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let mut heard = Vec::new();
    tokio::select! {
        read = silent.read_to_end(&mut heard) => { read.unwrap(); }
        closed = polite.closed() => panic!("it answers pings: {closed:?}"),
    }
    let lasted = begun.elapsed();
    assert!(lasted > Duration::from_secs(44) && lasted < Duration::from_secs(55), "{lasted:?}");
    let reason = "nothing heard from the client";
    let ping = [0x89, 0];
    let close = [&[0x88, 2 + reason.len() as u8][..], &1008_u16.to_be_bytes(), reason.as_bytes()];
    let frames = [&b"\r\n\r\n"[..], &ping, &close.concat()].concat();
    assert!(heard.ends_with(&frames), "{:?}", String::from_utf8_lossy(&heard));
    polite.join(&room).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_bounded() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    socket.send_text(" ".repeat(129 * 1024)).await;
    assert_eq!(socket.closed().await.map(|(code, _)| code), Some(1009));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_tells_the_sockets() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let stopping = tokio::spawn(server_stop(server));
    assert_eq!(socket.closed().await, Some((1001, "the server stops".to_owned())));
    stopping.await.unwrap();
}

async fn server_stop(server: TestServer) {
    let begun = std::time::Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_pages_are_refused() {
    let server = TestServer::start_with(&[("CORS_ORIGINS", "https://chat.example")]).await;
    for (origin, allowed) in [("https://chat.example", true), ("https://evil.example", false)] {
        let mut request = format!("ws://{}/ws", server.addr).into_client_request().unwrap();
        request.headers_mut().insert("Origin", HeaderValue::from_static(origin));
        assert_eq!(connect_async(request).await.is_ok(), allowed, "{origin}");
    }
    server.stop().await;
}
