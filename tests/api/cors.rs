//! Which pages may talk to the server: `CORS_ORIGINS` and `CORS_CREDENTIALS`, on every path.

use crate::helpers::engine_io::{Poller, request};
use crate::helpers::program::Program;
use crate::helpers::wire::Response;
use crate::helpers::{TestServer, eventually, labelled, mongod, open_websocket};

const LIST: &str = "HTTPS://Chat.Example:443, https://*.example.com,http://localhost:3000";

/// Origins as browsers write them, and whether they are in [`LIST`].
const ORIGINS: [(&str, bool); 8] = [
    ("https://chat.example", true),
    ("https://a.example.com", true),
    ("https://a.b.example.com", true),
    ("http://localhost:3000", true),
    ("https://example.com", false),
    ("https://evilexample.com", false),
    ("http://chat.example", false),
    ("null", false),
];

#[track_caller]
fn assert_allowed(answer: &Response, origin: &str, allowed: bool, credentials: bool) {
    let expected = if allowed { vec![origin] } else { vec![] };
    assert_eq!(answer.header("access-control-allow-origin"), expected, "{answer:?}");
    let expected = if allowed && credentials { vec!["true"] } else { vec![] };
    assert_eq!(answer.header("access-control-allow-credentials"), expected, "{answer:?}");
    assert!(answer.header("vary").contains(&"Origin"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_origins_are_echoed_on_every_kind_of_answer() {
    for credentials in ["false", "true"] {
        let vars = [("CORS_ORIGINS", LIST), ("CORS_CREDENTIALS", credentials)];
        let server = TestServer::start_with(&vars).await;
        let poller = Poller::open(server.addr, "/socket.io/").await;
        let polled = poller.target("polling");
        let unknown = "/socket.io/?EIO=4&transport=polling&sid=AAAAAAAAAAAAAAAAAAAA";
        for (origin, allowed) in ORIGINS {
            for (method, target, body, status) in [
                ("GET", "/healthz", "", 200),
                ("GET", "/nowhere", "", 404),
                ("GET", "/api/chat/rooms", "", 401),
                ("POST", "/api/auth/login", "{", 400),
                ("OPTIONS", "/api/chat/message", "", 204),
                ("GET", "/socket.io/?EIO=4&transport=polling", "", 200),
                ("OPTIONS", "/socket.io/?EIO=4&transport=polling", "", 204),
                ("POST", polled.as_str(), "3", 200),
                ("GET", unknown, "", 400),
                ("GET", "/socket.io/socket.io.js", "", 200),
            ] {
                let headers = [
                    ("Origin", origin),
                    ("Access-Control-Request-Method", "POST"),
                    ("Content-Type", "application/json"),
                ];
                let answer = request(server.addr, method, target, &headers, body.as_bytes()).await;
                assert_eq!(answer.status, status, "{method} {target}");
                assert_allowed(&answer, origin, allowed, credentials == "true");
            }
            for path in ["/ws", "/socket.io/?EIO=4&transport=websocket"] {
                let opened = open_websocket(&server, path, &[("Origin", origin)]).await;
                assert_eq!(opened.map(|_| ()), if allowed { Ok(()) } else { Err(403) }, "{origin}");
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_star_never_has_credentials() {
    let server = TestServer::start().await;
    let answer =
        request(server.addr, "GET", "/healthz", &[("Origin", "https://a.example")], &[]).await;
    assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
    assert!(answer.header("access-control-allow-credentials").is_empty());
    assert!(answer.header("vary").is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sees_once_who_is_refused_and_in_metrics_how_often() {
    let uri = mongod::fresh_database().await;
    let vars = [
        ("CORS_ORIGINS", LIST),
        ("RATE_LIMIT_CONNECT", "12"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "1"),
    ];
    let server = Program::start_on(&uri, &vars);
    let addr = server.addr;
    let foreign = [("Origin", "https://evil.example")];
    let token = crate::helpers::token_for("0123456789abcdef01234567", 600);
    for _ in 0..3 {
        assert_eq!(open_websocket(addr, "/ws", &foreign).await.map(|_| ()), Err(403));
        request(addr, "OPTIONS", "/api/chat/rooms", &foreign, &[]).await;
        let old = "/socket.io/?EIO=3&transport=polling";
        request(addr, "GET", old, &[], &[]).await.assert_refused(5, "Unsupported protocol version");
        open_websocket(addr, "/ws?token=null", &[]).await.unwrap();
    }
    let path = format!("/ws?token={token}");
    let kept = open_websocket(addr, &path, &[]).await;
    // The place of one that was refused is given back a moment later.
    let kept = match kept {
        Ok(kept) => kept,
        Err(_) => open_websocket(addr, &path, &[]).await.unwrap(),
    };
    while open_websocket(addr, &path, &[]).await.map(|_| ()) != Err(429) {}
    drop(kept);

    let count =
        |reason: &'static str| labelled(addr, "chat_sockets_refused_total", "reason", reason);
    for (reason, least) in [
        ("origin", 6),
        ("protocol_version", 3),
        ("token_invalid", 3),
        ("connect", 1),
        ("sockets_of_address", 1),
    ] {
        eventually(reason, async || count(reason).await >= least).await;
    }
    for said in [
        "its origin \"https://evil.example\" is not in CORS_ORIGINS",
        "another revision of Engine.IO",
        "because of its token: not a JSON Web Token, in ?token=",
        "RATE_LIMIT_CONNECT=12 was reached",
        "MAX_CONNECTIONS_PER_ADDRESS=1 was reached",
    ] {
        let lines = server.log().iter().filter(|line| line.contains(said)).count();
        assert_eq!(lines, 1, "{said}: {:?}", server.log());
    }
}
