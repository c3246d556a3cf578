//! What the log says when clients are hostile: no secret, no line of theirs, and not too much.

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::helpers::mongod::fresh_database;
use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::{Caller, Memory};
use crate::helpers::{SECRET, TestServer, client, eventually};

/// What would look like a line of the log.
const FORGED: &str =
    "x\r\n[2026-11-26T00:00:00Z ERROR realtime_chat_backend] forged\u{1b}[31m\u{2028}";

const PASSWORD: &str = "correct-horse-battery";
const METRICS: &str = "metrics-for-my-eyes";

/// Sends bytes as they are and reads what comes first.
async fn raw(server: &Program, text: &str) {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let _ = stream.read(&mut [0; 1_024]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_line_of_a_client_is_in_the_log() {
    let uri = fresh_database().await;
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let room = ada.create_room("lounge").await;
    for level in ["debug", "trace"] {
        let vars = [("RUST_LOG", level), ("METRICS_TOKEN", METRICS), ("LEGACY_TRUST", "true")];
        let server = Program::start_on(&uri, &vars);
        let url = |path: &str| format!("http://{}{path}", server.addr);
        let http = client();
        for (path, body) in [
            (
                "/api/auth/register",
                json!({ "username": format!("{level}{FORGED}"), "password": PASSWORD }),
            ),
            ("/api/auth/register", json!({ "username": "ada", "password": PASSWORD })),
            ("/api/auth/login", json!({ "username": FORGED, "password": PASSWORD })),
            ("/api/auth/login", json!({ "username": "ada", "password": PASSWORD })),
            ("/api/auth/login", json!({ "username": "ada", "password": [PASSWORD] })),
            ("/api/chat/room", json!({ "name": format!("{level}{FORGED}") })),
            ("/api/chat/room", json!({ "name": "lounge" })),
            ("/api/chat/message", json!({ "room": FORGED, "sender": FORGED, "content": FORGED })),
            ("/api/chat/message", json!({ "room": room, "sender": ada.id, "content": FORGED })),
        ] {
            let request = http.post(url(path)).bearer_auth(&ada.token).json(&body);
            request.send().await.unwrap();
        }
        for token in [METRICS, "another-than-mine"] {
            http.get(url("/metrics")).bearer_auth(token).send().await.unwrap();
        }
        for path in [
            format!("/socket.io/?EIO=4&transport=polling&token={}", ada.token),
            format!("/api/chat/messages/%0d%0a%1b[31mforged?token={}", ada.token),
            "/%0A[2026]%20ERROR%20forged".to_owned(),
        ] {
            http.request(Method::GET, url(&path)).send().await.unwrap();
        }
        for text in [
            "GET /\u{1b}[31mforged HTTP/1.1\r\nHost: x\r\nX-Request-Id: \u{1b}[31mforged\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \u{1b}[31m\r\nX-Request-Id: a\tforged\r\n\r\n",
            "FORGED\u{1b} / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /\n[2026 ERROR] forged HTTP/1.1\r\n\r\n",
        ] {
            raw(&server, text).await;
        }
        let mut socket = Socket::connect_at(server.addr, &ada.token).await;
        for event in ["joinRoom", "sendMessage", "authenticate", FORGED] {
            let data = json!({ "room": FORGED, "content": FORGED, "token": FORGED });
            socket.send(event, data).await;
        }
        assert_eq!(
            socket.ask("authenticate", json!({ "token": ada.token })).await["error"],
            json!(null)
        );
        let mut caller = Caller::connect(server.addr, &ada.token).await;
        caller.ask("joinRoom", json!(FORGED)).await;
        caller.join(&room).await;
        let memory = caller.cut();
        let forged = Memory { offset: Some(FORGED.to_owned()), ..memory.clone() };
        let pid = memory.pid.clone().unwrap();
        Caller::come_back(server.addr, &ada.token, forged).await.cut();
        let mut stranger = Socket::connect_at(server.addr, "a-token-that-is-none").await;
        stranger.ask("leaveRoom", json!(room)).await;
        // The last thing that was asked is there, so all before it is.
        http.get(url("/the-end")).send().await.unwrap();
        eventually("the log is written", async || {
            server.log().iter().any(|line| line.contains("/the-end"))
        })
        .await;

        let log = server.log();
        assert!(log.len() > 20, "{log:?}");
        let signature = ada.token.rsplit('.').next().unwrap();
        let secrets = [
            PASSWORD,
            METRICS,
            "another-than-mine",
            SECRET,
            signature,
            &pid,
            "a-token-that-is-none",
        ];
        for line in &log {
            for secret in secrets {
                assert!(!line.contains(secret), "{secret} in {line:?}");
            }
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{2028}'), "{line:?}");
            assert!(line.starts_with('['), "a line of its own: {line:?}");
            assert!(!line.contains("Z ERROR realtime_chat_backend] forged"), "{line:?}");
        }
    }
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_of_the_database_is_not_in_the_log_and_an_outage_does_not_fill_it() {
    let vars = [
        (
            "MONGO_URI",
            "mongodb://ada:hunter2-of-mongo@127.0.0.1:1/chat?serverSelectionTimeoutMS=20",
        ),
        ("JWT_SECRET", SECRET),
        ("RUST_LOG", "debug"),
    ];
    let server = tokio::task::block_in_place(|| Program::start(&vars));
    let url = format!("http://{}/api/auth/login", server.addr);
    let body = json!({ "username": "ada", "password": "x" });
    let begun = std::time::Instant::now();
    for _ in 0..200 {
        let answer = client().post(&url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let seconds = begun.elapsed().as_secs() as usize + 1;
    let log = server.log();
    assert!(log.iter().all(|line| !line.contains("hunter2")), "{log:?}");
    for line in &log {
        let is_dump = ["Topology", "server response", "labels: "].iter().any(|x| line.contains(x));
        assert!(!is_dump && line.len() < 400, "a sentence: {line:?}");
    }
    let failed =
        log.iter().filter(|line| line.contains("WARN") && line.contains("/api/auth/login"));
    let failed = failed.count();
    assert!((1..=10 * (seconds + 1)).contains(&failed), "{failed} lines in {seconds} s");
}
