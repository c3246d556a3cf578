//! What clients send along when a session of Socket.IO begins, and what they are refused for.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::helpers::engine_io::Ws;
use crate::helpers::socket_io::{Caller, Memory};
use crate::helpers::{TestServer, labelled, open_websocket, token_for};

const ENDPOINT: &str = "/socket.io/";
const NOBODY: &str = "0123456789abcdef01234567";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_have_bearer_in_front_and_other_schemes_are_passed_over() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let token = &ada.token;
    let bearer = format!("Bearer {token}");
    let basic = "Basic YWRhOng=";
    for (auth, header, query) in [
        (Some(token), None, String::new()),
        (Some(&bearer), None, String::new()),
        (Some(&bearer), Some(basic), "&token=null".to_owned()),
        (None, Some(bearer.as_str()), "&token=null".to_owned()),
        (None, Some(basic), format!("&token={token}")),
        (None, None, format!("&token=Bearer%20{token}")),
        (None, None, format!("&token=null&token={token}")),
    ] {
        let headers: Vec<_> = header.map(|value| ("Authorization", value)).into_iter().collect();
        let path = format!("{ENDPOINT}?EIO=4&transport=websocket{query}");
        let (stream, _) = open_websocket(&server, &path, &headers).await.unwrap();
        let mut ws = Ws::of(stream);
        assert!(ws.text().await.starts_with("0{"));
        let auth = auth.map(|token| json!({ "token": token }).to_string()).unwrap_or_default();
        ws.send(format!("40{auth}")).await;
        let answer = ws.packet().await;
        assert!(answer.starts_with("40{\"sid\""), "{auth} {header:?} {query}: {answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_was_wrong_and_where() {
    let server = TestServer::start().await;
    let other = realtime_chat_backend::auth::Tokens::new(&"another secret".into());
    let foreign = other.issue(NOBODY.parse().unwrap());
    let late = token_for(NOBODY, 1);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let invalid = ("Invalid token", "token_invalid");
    for (auth, (message, code), reason) in [
        (
            json!({}),
            ("Access denied. No token provided.", "token_missing"),
            "looked for it in auth.token, the Authorization header and ?token=",
        ),
        (json!({ "token": "user-42" }), invalid, "not a JSON Web Token, in auth.token"),
        (json!({ "token": "Bearer null" }), invalid, "not a JSON Web Token, in auth.token"),
        (
            json!({ "token": foreign }),
            invalid,
            "not signed with HS256 and the secret of this server, in auth.token",
        ),
        (json!({ "token": late }), invalid, "expired, in auth.token"),
    ] {
        let refused = Caller::try_connect(server.addr, auth, Memory::default()).await;
        let expected = json!({ "message": message, "data": { "code": code, "reason": reason } });
        assert_eq!(refused.map(|_| ()), Err(expected));
    }
    for (reason, count) in [("token_missing", 1), ("token_invalid", 3), ("token_expired", 1)] {
        assert_eq!(refused(&server, reason).await, count, "{reason}");
    }
    server.stop().await;
}

/// How many sockets were refused for this reason.
async fn refused(server: &TestServer, reason: &str) -> u64 {
    labelled(server.addr, "chat_sockets_refused_total", "reason", reason).await
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_field_whatever_the_mode_of_errors() {
    for mode in ["original", "precise"] {
        let server = TestServer::start_with(&[("ERRORS", mode)]).await;
        let ada = server.register("ada").await;
        let room = ada.create_room("lounge").await;
        let mut caller = Caller::connect(server.addr, &ada.token).await;
        for (event, data, error, code) in [
            (
                "joinRoom",
                json!("lounge"),
                "room: must be an id of 24 hexadecimal digits; it is the room's _id, not its name",
                "invalid_field",
            ),
            ("joinRoom", json!({}), "room: is required", "invalid_field"),
            ("sendMessage", json!({ "room": room }), "content: is required", "invalid_field"),
            (
                "sendMessage",
                json!({ "room": room, "content": "x", "clientId": "" }),
                "clientId: must be a string of 1 to 255 bytes",
                "invalid_field",
            ),
            ("authenticate", json!({}), "token: is required", "token_missing"),
            (
                "authenticate",
                json!({ "token": "x" }),
                "token: is not valid: not a JSON Web Token",
                "token_invalid",
            ),
            (
                "shout",
                json!("x"),
                "event: must be joinRoom, leaveRoom, sendMessage, editMessage, deleteMessage, \
                 markAsRead, typing, stopTyping, watchUsers, unwatchUsers or authenticate",
                "unknown_event",
            ),
        ] {
            let ack = caller.ask(event, data).await;
            assert_eq!(ack, json!({ "error": error, "code": code }), "{event} in {mode}");
        }
        let bearer = json!({ "token": format!("Bearer {}", ada.token) });
        assert!(caller.ask("authenticate", bearer).await["expires"].is_u64());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_an_upgrade_and_the_open_packet_are_one_write() {
    let server = TestServer::start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let request = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: localhost\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = [0; 4096];
    let count = stream.read(&mut bytes).await.unwrap();
    let text = String::from_utf8_lossy(&bytes[..count]);
    assert!(text.starts_with("HTTP/1.1 101 ") && text.contains(r#"0{"sid":""#), "{text}");
    server.stop().await;
}
