//! How often one client may do what, and what it is told beyond that.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use realtime_chat_backend::server::capacity::raise_open_files;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Error;

use crate::helpers::mongod::fresh_database;
use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, client, eventually, metric};

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

async fn try_register(server: &TestServer, name: &str) -> Response {
    let body = json!({ "username": name, "password": "x" });
    server.request(Method::POST, "/api/auth/register", None, Some(&body)).await
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
    let answer = client().get(polling).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(answer.headers().contains_key("retry-after"));
    let counts = [("room", 1), ("sockets_of_address", 2), ("connect", 2), ("rooms_of_socket", 1)];
    for (limit, count) in counts {
        assert_eq!(reached(server.addr, limit).await, count, "{limit}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_be_so_long_on_every_wire() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    let long = json!({ "room": room, "sender": ada.id, "content": "x".repeat(102_400) });
    let answer = ada.request(Method::POST, "/api/chat/message", Some(&long)).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(socket.ask("sendMessage", long.clone()).await["code"], "body_too_large");
    assert_eq!(caller.ask("sendMessage", long).await["code"], "body_too_large");
    assert_eq!(reached(server.addr, "body").await, 3);
    assert!(ada.history(&room).await.is_empty());
    drop((socket, caller));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_passwords_wait_to_be_hashed() {
    let vars = [("RATE_LIMIT_LOGIN", "0"), ("ERRORS", "precise")];
    let server = TestServer::start_with(&vars).await;
    // More than may wait on a machine with so many processors.
    let count = 100 * std::thread::available_parallelism().unwrap().get();
    let names: Vec<_> = (0..count).map(|n| format!("user {n}")).collect();
    let answers = join_all(names.iter().map(|name| try_register(&server, name))).await;
    let (mut busy, mut registered, mut late) = (0, 0, 0);
    for answer in answers {
        if answer.status() == StatusCode::CREATED {
            registered += 1;
            continue;
        }
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"));
        // On a loaded machine, what waits may wait until the deadline of its request.
        match answer.json::<Value>().await.unwrap()["code"].as_str() {
            Some("busy") => busy += 1,
            Some("unavailable") => late += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0 && registered > 0, "{busy} busy, {registered} registered, {late} late");
    assert_eq!(reached(server.addr, "passwords").await, busy as u64);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_locks_nobody_out() {
    let vars = [("RATE_LIMIT_LOGIN_NAME", "2"), ("TRUST_PROXY", "1")];
    let server = TestServer::start_with(&vars).await;
    server.register("ada").await;
    let log_in_from = async |address: &str, password: &str| {
        let body = json!({ "username": "ada", "password": password });
        let request = client().post(server.url("/api/auth/login")).json(&body);
        request.header("X-Forwarded-For", address).send().await.unwrap()
    };
    for _ in 0..2 {
        let answer = log_in_from("203.0.113.9", "guessed").await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
    assert_too_many(log_in_from("203.0.113.9", "guessed").await).await;
    let answer = log_in_from("198.51.100.7", "password of ada").await;
    assert_eq!(answer.status(), StatusCode::OK, "she is let in from where she is");
    assert_eq!(reached(server.addr, "login_name").await, 1);
    server.stop().await;
}

/// HAProxy's `option forwardfor` adds a line of its own behind those that a client sends.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_chooses_an_address_by_a_header_of_ones_own() {
    let vars = [("RATE_LIMIT_LOGIN", "2"), ("RATE_LIMIT_CONNECT", "2"), ("TRUST_PROXY", "1")];
    let server = TestServer::start_with(&vars).await;
    let through_proxy = async |method: Method, path: &str, attempt: usize| {
        let request = client().request(method, server.url(path)).json(&json!({}));
        let request = request.header("X-Forwarded-For", format!("203.0.113.{attempt}"));
        let request = request.header("Forwarded", format!("for=203.0.113.{attempt}"));
        let request = request.header("X-Forwarded-For", format!("198.51.100.7:{attempt}"));
        request.send().await.unwrap().status()
    };
    for (method, path) in [
        (Method::POST, "/api/auth/login"),
        (Method::GET, "/socket.io/?EIO=4&transport=polling"),
        (Method::GET, "/ws"),
    ] {
        let mut statuses = Vec::new();
        for attempt in 1..=3 {
            statuses.push(through_proxy(method.clone(), path, attempt).await);
        }
        assert_eq!(statuses[2], StatusCode::TOO_MANY_REQUESTS, "{path}: {statuses:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_is_not_believed_is_said_once() {
    let server = Program::start_on(&fresh_database().await, &[]);
    for _ in 0..3 {
        let request = client().post(format!("http://{}/api/auth/login", server.addr));
        let request = request.header("X-Forwarded-For", "203.0.113.9").json(&json!({}));
        request.send().await.unwrap();
    }
    let said = |line: &&String| line.contains("X-Forwarded-For") && line.contains("TRUST_PROXY");
    assert_eq!(server.log().iter().filter(said).count(), 1, "{:?}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_may_ask_so_much() {
    let server = TestServer::start_with(&[("RATE_LIMIT_EVENTS", "3")]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    let mut caller = Caller::connect(server.addr, &ada.token).await;
    for _ in 0..3 {
        assert_eq!(socket.ask("joinRoom", json!(room)).await["room"], room);
        assert_eq!(caller.ask("leaveRoom", json!(room)).await["room"], room);
    }
    assert_eq!(socket.ask("leaveRoom", json!(room)).await["code"], "rate_limited");
    assert_eq!(caller.ask("joinRoom", json!(room)).await["code"], "rate_limited");
    assert_eq!(reached(server.addr, "events").await, 2);
    // Who asks too much still hears what others say.
    ada.send(&room, "hello").await;
    assert_eq!(socket.heard().await.content, "hello");
    drop((socket, caller));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_fit_into_the_files_that_may_be_open() {
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    // A quarter is its own, and a quarter is for requests.
    let server =
        Program::start_with_files(256, &uri, &[("WORKERS", "1"), ("MAX_CONNECTIONS", "50000")]);
    let told = |line: &String| {
        line.contains("MAX_CONNECTIONS is 50000, but only 256 files may be open, so 128 sockets")
    };
    assert_eq!(server.log().iter().filter(|line| told(line)).count(), 1);

    let mut sockets = Vec::new();
    while let Some(socket) = Socket::try_connect(server.addr, &ada.token).await {
        sockets.push(socket);
    }
    assert_eq!(sockets.len(), 128);
    let url = format!("ws://{}/ws?token={}", server.addr, ada.token);
    assert_eq!(refused(&url).await, StatusCode::SERVICE_UNAVAILABLE);
    let handshake = format!("http://{}/socket.io/?EIO=4&transport=polling", server.addr);
    let answer = client().get(handshake).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));

    // Whoever opens more connections and says nothing is told that there is no room.
    let idle = (0..100)
        .map(async |_| told_there_is_no_room(TcpStream::connect(server.addr).await.unwrap()).await);
    let idle = join_all(idle).await;
    let told = idle.iter().filter(|(_, told)| *told).count();
    assert!((36..=40).contains(&told), "{told}");
    assert!(!server.log().iter().any(|line| line.contains("ERROR")), "{:?}", server.log());
    drop(idle);
    let url = format!("http://{}/api/chat/rooms", server.addr);
    eventually("requests are served beside as many sockets", async || {
        let request = client().get(&url).bearer_auth(&ada.token);
        request.send().await.is_ok_and(|answer| answer.status() == StatusCode::OK)
    })
    .await;
    assert_eq!(reached(server.addr, "connections").await, told as u64);
    drop(sockets.pop());
    eventually("there is room for another", async || {
        let socket = Socket::try_connect(server.addr, &ada.token).await;
        socket.is_some()
    })
    .await;
    drop(sockets);
    beside.stop().await;
}

/// A worker that is busy counts nobody, and the system goes on to accept.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_connections_leaves_files_for_others() {
    raise_open_files();
    let uri = fresh_database().await;
    let server = Program::start_with_files(256, &uri, &[("WORKERS", "1")]);
    for _ in 0..3 {
        // What connects meanwhile is accepted all at once.
        server.pause();
        let burst = (0..800).map(async |_| TcpStream::connect(server.addr).await.unwrap());
        let burst = join_all(burst).await;
        server.resume();
        let told = burst.into_iter().map(told_there_is_no_room);
        let told = join_all(told).await.iter().filter(|(_, told)| *told).count();
        assert!(told > 500, "{told}");
    }
    let url = format!("http://{}/readyz", server.addr);
    eventually("requests are served afterwards", async || {
        client().get(&url).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK)
    })
    .await;
    assert!(!server.log().iter().any(|line| line.contains("ERROR")), "{:?}", server.log());
    let of_files: Vec<_> = server.log().into_iter().filter(|line| line.contains("files")).collect();
    assert!(
        matches!(&of_files[..], [line] if line.contains("INFO")),
        "nobody asked for more connections: {of_files:?}"
    );
}

/// Whether a connection is answered 503 although nothing was asked; keeps it open.
async fn told_there_is_no_room(mut idler: TcpStream) -> (TcpStream, bool) {
    let mut answer = [0; 12];
    let answered = timeout(Duration::from_secs(3), idler.read_exact(&mut answer)).await;
    (idler, answered.is_ok_and(|read| read.is_ok() && &answer == b"HTTP/1.1 503"))
}

/// How often a limit was reached.
async fn reached(addr: SocketAddr, limit: &str) -> u64 {
    metric(addr, &format!("chat_limits_reached_total{{limit=\"{limit}\"}}")).await
}

/// The status with which an upgrade is refused.
async fn refused(url: &str) -> StatusCode {
    match connect_async(url).await {
        Err(Error::Http(answer)) => answer.status(),
        other => panic!("not refused: {:?}", other.map(|_| "let in")),
    }
}
