//! Engine.IO, protocol revision 4: <https://github.com/socketio/engine.io-protocol>.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::helpers::engine_io::{Poller, SEPARATOR, Ws, request};
use crate::helpers::eventually;
use crate::socketio::echo::{Echo, MAX_PAYLOAD, PING_INTERVAL, PING_TIMEOUT};

const ENDPOINT: &str = "/engine.io/";
const UPGRADE: [(&str, &str); 4] = [
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

async fn poller(echo: &Echo) -> Poller {
    Poller::open(echo.addr, ENDPOINT).await
}

async fn ws(echo: &Echo) -> Ws {
    Ws::open(echo.addr, ENDPOINT).await
}

fn assert_open_packet(text: &str, upgrades: &str) {
    let json = text.strip_prefix('0').expect("an open packet");
    let open: serde_json::Value = serde_json::from_str(json).unwrap();
    let sid = open["sid"].as_str().unwrap();
    assert_eq!(sid.len(), 20);
    assert!(sid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{sid}");
    let rest = r#""pingInterval":300,"pingTimeout":200,"maxPayload":1000000"#;
    assert_eq!(json, format!(r#"{{"sid":"{sid}","upgrades":{upgrades},{rest}}}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_opens_a_session() {
    let echo = Echo::start().await;
    for query in ["EIO=4&transport=polling", "t=x1&transport=polling&b64=1&token=a%20b&EIO=4"] {
        let target = format!("{ENDPOINT}?{query}");
        let answer = request(echo.addr, "GET", &target, &[], &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), ["text/plain; charset=UTF-8"]);
        assert_eq!(answer.header("cache-control"), ["no-store"]);
        assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
        assert_eq!(answer.header("set-cookie"), Vec::<&str>::new());
        assert_open_packet(answer.text(), r#"["websocket"]"#);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_opens_a_session() {
    let echo = Echo::start().await;
    let target = format!("{ENDPOINT}?EIO=4&transport=websocket");
    let mut ws = Ws::connect(echo.addr, &target).await;
    assert_open_packet(&ws.text().await, "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_below_the_path_is_the_same_endpoint() {
    let echo = Echo::start().await;
    let session = Poller::open(echo.addr, "/engine.io/x/y").await;
    session.post("4hello").await.assert_ok();
    assert_eq!(session.packets().await, ["4hello"]);
    let target = "/engine.io?EIO=4&transport=polling";
    assert_eq!(request(echo.addr, "GET", target, &[], &[]).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_in_the_order_of_the_original() {
    const TRANSPORT: (u8, &str) = (0, "Transport unknown");
    const SESSION: (u8, &str) = (1, "Session ID unknown");
    const METHOD: (u8, &str) = (2, "Bad handshake method");
    const REQUEST: (u8, &str) = (3, "Bad request");
    const REVISION: (u8, &str) = (5, "Unsupported protocol version");

    let echo = Echo::start().await;
    for (method, query, (code, message)) in [
        ("GET", "", TRANSPORT),
        ("GET", "EIO=4", TRANSPORT),
        ("GET", "EIO=4&transport=abc", TRANSPORT),
        ("GET", "EIO=4&transport=", TRANSPORT),
        ("GET", "EIO=4&transport=webtransport", TRANSPORT),
        ("POST", "transport=flashsocket&sid=x", TRANSPORT),
        ("GET", "EIO=4&transport=polling&sid=unknown", SESSION),
        ("POST", "EIO=4&transport=polling&sid=", METHOD),
        ("POST", "EIO=3&transport=polling&sid=unknown", SESSION),
        ("PUT", "EIO=4&transport=polling&sid=unknown", SESSION),
        ("GET", "EIO=4&transport=websocket&sid=unknown", SESSION),
        ("POST", "EIO=4&transport=polling", METHOD),
        ("PUT", "EIO=4&transport=polling", METHOD),
        ("DELETE", "EIO=4&transport=polling", METHOD),
        ("PATCH", "EIO=3&transport=polling", METHOD),
        ("POST", "EIO=4&transport=websocket", METHOD),
        ("GET", "EIO=4&transport=websocket", REQUEST),
        ("GET", "transport=polling", REVISION),
        ("GET", "EIO=3&transport=polling", REVISION),
        ("GET", "EIO=5&transport=polling", REVISION),
        ("GET", "EIO=abc&transport=polling", REVISION),
        ("GET", "EIO=&transport=polling", REVISION),
    ] {
        let target = format!("{ENDPOINT}?{query}");
        let answer = request(echo.addr, method, &target, &[("Origin", "https://a.b")], &[]).await;
        assert_eq!(answer.header("cache-control"), Vec::<&str>::new(), "{method} {query}");
        assert_eq!(answer.header("access-control-allow-origin"), ["*"], "{method} {query}");
        answer.assert_refused(code, message);
    }
    let target = format!("{ENDPOINT}?EIO=4&transport=polling");
    assert_eq!(request(echo.addr, "HEAD", &target, &[], &[]).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_refused_by_its_status() {
    let echo = Echo::start().await;
    for query in [
        "transport=websocket",
        "EIO=abc&transport=websocket",
        "EIO=3&transport=websocket",
        "EIO=4",
        "EIO=4&transport=abc",
        "EIO=4&transport=polling",
        "EIO=4&transport=websocket&sid=unknown",
    ] {
        let refused = Ws::try_connect(echo.addr, &format!("{ENDPOINT}?{query}")).await;
        assert_eq!(refused.err(), Some(400), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_answered() {
    let echo = Echo::start().await;
    let headers = [
        ("Origin", "https://a.b"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "x-one"),
    ];
    let target = format!("{ENDPOINT}?EIO=4&transport=polling");
    let answer = request(echo.addr, "OPTIONS", &target, &headers, &[]).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
    assert_eq!(answer.header("access-control-allow-headers"), ["x-one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_come_back_in_order() {
    let echo = Echo::start().await;
    for payload in [
        "4hello",
        "4",
        "4€ 𝄞 \u{1f}",
        "4test1\x1e4test2\x1e4test3",
        "4hello\x1ebAQIDBA==",
        "bAQIDBA==\x1e4hello\x1eb",
    ] {
        let session = poller(&echo).await;
        let taken = session.post(payload).await;
        taken.assert_ok();
        assert_eq!(taken.header("content-type"), ["text/html"]);
        assert_eq!(taken.header("cache-control"), ["no-store"]);
        assert_eq!(taken.header("access-control-allow-origin"), ["*"]);
        let count = payload.split(SEPARATOR).count();
        assert_eq!(session.collect(count).await.join("\x1e"), payload);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_waits_until_there_is_something() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let pending = session.polling();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!pending.is_finished());
    session.post("4a\x1e4b").await.assert_ok();
    let answer = pending.await.unwrap();
    assert_eq!(answer.header("content-type"), ["text/plain; charset=UTF-8"]);
    assert_eq!(answer.header("cache-control"), ["no-store"]);
    assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
    // The first may have been answered alone.
    let first = answer.text().to_owned();
    let rest = if first == "4a" { session.packets().await.join("\x1e") } else { String::new() };
    assert!(first == "4a\x1e4b" || (first == "4a" && rest == "4b"), "{first:?} {rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_payload_ends_the_session() {
    let echo = Echo::start().await;
    let not_utf8: &[u8] = b"4\xff";
    for body in [b"abc".as_slice(), b"", b"4a\x1e", b"\x1e", b"7", b"b%%", b"bAQIDBA", not_utf8] {
        let session = poller(&echo).await;
        session.request("POST", &[], body).await.assert_refused(3, "Bad request");
        session.poll().await.assert_unknown();
    }
    let session = poller(&echo).await;
    let binary = [("Content-Type", "application/octet-stream")];
    session.request("POST", &binary, b"4hello").await.assert_refused(3, "Bad request");
    session.post("4hello").await.assert_unknown();
    // A poll that is pending is told.
    let session = poller(&echo).await;
    let pending = session.polling();
    tokio::time::sleep(Duration::from_millis(20)).await;
    session.post("abc").await.assert_refused(3, "Bad request");
    pending.await.unwrap().assert_packets("1");
    session.poll().await.assert_unknown();
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_a_client_has_no_use_for_are_ignored() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    session.post("0\x1e3\x1e3probe\x1e5\x1e6\x1e0{}\x1e4here").await.assert_ok();
    assert_eq!(session.packets().await, ["4here"]);
    let mut ws = ws(&echo).await;
    for packet in ["0", "3", "5", "6", "4here"] {
        ws.send(packet).await;
    }
    assert_eq!(ws.packet().await, "4here");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_server_pings() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    session.post("2").await.assert_refused(3, "Bad request");
    session.poll().await.assert_unknown();
    let mut ws = ws(&echo).await;
    ws.send("2").await;
    ws.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_a_limit() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let too_long = session.post(&format!("4{}", "x".repeat(MAX_PAYLOAD))).await;
    assert_eq!(too_long.status, 413);
    assert_eq!(too_long.header("access-control-allow-origin"), ["*"]);
    // The session does not suffer.
    let longest = format!("4{}", "x".repeat(MAX_PAYLOAD - 1));
    session.post(&longest).await.assert_ok();
    assert_eq!(session.packets().await, [longest]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_do_not_disturb() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    for method in ["PUT", "DELETE", "PATCH"] {
        assert_eq!(session.request(method, &[], &[]).await.status, 400, "{method}");
    }
    session.request("HEAD", &[], &[]).await;
    assert_eq!(session.request("OPTIONS", &[], &[]).await.status, 204);
    session.post("4hello").await.assert_ok();
    assert_eq!(session.packets().await, ["4hello"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_poll_ends_the_session() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let first = session.polling();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let second = session.poll().await;
    second.assert_refused(3, "Bad request");
    first.await.unwrap().assert_packets("1");
    session.poll().await.assert_unknown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_post_ends_the_session() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let pending = session.polling();
    let mut first = session.begin("POST", "4hello", 3).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    session.post("4other").await.assert_refused(3, "Bad request");
    pending.await.unwrap().assert_packets("1");
    session.poll().await.assert_unknown();
    // The first is told at once, whether or not the rest of it comes.
    let mut answer = String::new();
    first.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_request_ends_the_session() {
    let echo = Echo::start().await;
    for (method, body, missing) in [("GET", "", 0), ("POST", "4hello", 10)] {
        let session = poller(&echo).await;
        let aborted = session.begin(method, body, missing).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(aborted);
        session.gone().await;
        session.poll().await.assert_unknown();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_back_in_order() {
    for echo in Echo::of_each_kind().await {
        let mut ws = ws(&echo).await;
        ws.send("4hello").await;
        ws.send_binary(vec![1, 2, 3, 4]).await;
        ws.send("4").await;
        ws.send_binary(Bytes::new()).await;
        // A client without binary frames.
        ws.send("bAQIDBA==").await;
        ws.send("4€ 𝄞").await;
        assert_eq!(ws.message().await, Message::text("4hello"));
        assert_eq!(ws.message().await, Message::binary(vec![1, 2, 3, 4]));
        assert_eq!(ws.message().await, Message::text("4"));
        assert_eq!(ws.message().await, Message::binary(Bytes::new()));
        assert_eq!(ws.message().await, Message::binary(vec![1, 2, 3, 4]));
        assert_eq!(ws.message().await, Message::text("4€ 𝄞"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_no_packet_closes() {
    for echo in Echo::of_each_kind().await {
        for frame in ["abc", "", "7", "b%%", "1"] {
            let mut ws = ws(&echo).await;
            ws.send(frame).await;
            ws.closed().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_has_a_limit() {
    for echo in Echo::of_each_kind().await {
        let mut largest = ws(&echo).await;
        let text = format!("4{}", "x".repeat(MAX_PAYLOAD - 1));
        largest.send(text.as_str()).await;
        assert_eq!(largest.packet().await, text);
        // The same in pieces.
        let (head, tail) = text.split_at(MAX_PAYLOAD / 2);
        for (part, kind, last) in [(head, Data::Text, false), (tail, Data::Continue, true)] {
            let part = Frame::message(part.to_owned(), OpCode::Data(kind), last);
            largest.stream().send(Message::Frame(part)).await.unwrap();
        }
        assert_eq!(largest.packet().await, text);

        let mut too_large = ws(&echo).await;
        // It may close before all of it is sent.
        let _ = too_large.stream().send(Message::text(format!("{text}x"))).await;
        let code = too_large.closed().await;
        assert!(matches!(code, Some(1009) | None), "{code:?}");
        let mut too_large = ws(&echo).await;
        for (part, kind, last) in [(head, Data::Text, false), (&*text, Data::Continue, true)] {
            let part = Frame::message(part.to_owned(), OpCode::Data(kind), last);
            let _ = too_large.stream().send(Message::Frame(part)).await;
        }
        let code = too_large.closed().await;
        assert!(matches!(code, Some(1009) | None), "{code:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed() {
    let echo = Echo::start().await;
    // More packets than may wait, then more bytes.
    let many = vec!["4x"; 1_500].join("\x1e");
    let large = format!("4{}", "x".repeat(MAX_PAYLOAD - 1));
    for payload in [many, large] {
        let session = poller(&echo).await;
        let mut posts = 0;
        while session.post(&payload).await.status == 200 {
            posts += 1;
            assert!(posts < 9, "nothing is closed");
        }
        assert!((2..6).contains(&posts), "{posts}");
        session.post("4x").await.assert_unknown();
        session.poll().await.assert_unknown();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_come_an_interval_after_each_pong() {
    let echo = Echo::start().await;
    let begun = Instant::now();
    let session = poller(&echo).await;
    let mut last = begun;
    for _ in 0..3 {
        session.poll().await.assert_packets("2");
        assert!(last.elapsed() >= PING_INTERVAL, "{:?}", last.elapsed());
        // A pong may come a little late; the next ping counts from there.
        tokio::time::sleep(PING_TIMEOUT / 4).await;
        last = Instant::now();
        session.post("3").await.assert_ok();
    }
    let begun = Instant::now();
    let mut ws = ws(&echo).await;
    let mut last = begun;
    for _ in 0..3 {
        assert_eq!(ws.text().await, "2");
        assert!(last.elapsed() >= PING_INTERVAL, "{:?}", last.elapsed());
        tokio::time::sleep(PING_TIMEOUT / 4).await;
        last = Instant::now();
        ws.send("3").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_pong_ends_the_session() {
    let echo = Echo::start().await;
    for _ in 0..3 {
        let session = poller(&echo).await;
        // Exactly then, as the official suites do.
        tokio::time::sleep(PING_INTERVAL + PING_TIMEOUT).await;
        session.poll().await.assert_unknown();
        let session = poller(&echo).await;
        tokio::time::sleep(PING_INTERVAL + PING_TIMEOUT).await;
        session.post("3").await.assert_unknown();
    }
    let session = poller(&echo).await;
    session.poll().await.assert_packets("2");
    session.poll().await.assert_unknown();

    let begun = Instant::now();
    assert_eq!(ws(&echo).await.closed_on_silence().await, ["2"]);
    assert!(begun.elapsed() >= PING_INTERVAL + PING_TIMEOUT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_that_is_a_millisecond_early_finds_the_session_gone() {
    let echo = Echo::start().await;
    // Timers of JavaScript count whole milliseconds, so the last one may be cut short.
    for early in [200, 500, 900] {
        let session = poller(&echo).await;
        let at = Instant::now() + PING_INTERVAL + PING_TIMEOUT - Duration::from_micros(early);
        while Instant::now() < at {
            tokio::task::yield_now().await;
        }
        session.poll().await.assert_unknown();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_no_pong() {
    let echo = Echo::start().await;
    let begun = Instant::now();
    let session = poller(&echo).await;
    while session.post("4x").await.status == 200 {
        session.poll().await;
    }
    // The server allows for timers that are a millisecond early.
    assert!(begun.elapsed() > PING_INTERVAL + PING_TIMEOUT - Duration::from_millis(2));
    session.post("4x").await.assert_unknown();

    let begun = Instant::now();
    let mut ws = ws(&echo).await;
    while let Ok(()) = ws.stream().send(Message::text("4x")).await {
        if let Some(Err(_)) | None = ws.stream().next().await {
            break;
        }
    }
    assert!(begun.elapsed() >= PING_INTERVAL + PING_TIMEOUT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_goes_out_in_the_midst_of_data() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    // Nobody polls until the ping is due.
    session.post("4a").await.assert_ok();
    tokio::time::sleep(PING_INTERVAL + PING_TIMEOUT / 4).await;
    session.poll().await.assert_packets("4a\x1e2");
    session.post("3\x1e4b").await.assert_ok();
    session.poll().await.assert_packets("4b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_closes_its_session() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let pending = session.polling();
    tokio::time::sleep(Duration::from_millis(20)).await;
    session.post("1").await.assert_ok();
    pending.await.unwrap().assert_packets("6");
    session.poll().await.assert_unknown();

    // What comes before the close in one payload still counts.
    let session = poller(&echo).await;
    session.post("4a\x1e1").await.assert_ok();
    session.post("4b").await.assert_unknown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_and_a_poll_may_come_at_the_same_time() {
    let echo = Echo::start().await;
    for _ in 0..20 {
        let session = poller(&echo).await;
        let (polled, closed) = tokio::join!(session.poll(), session.post("1"));
        closed.assert_ok();
        polled.assert_packets("6");
        session.poll().await.assert_unknown();
    }
    // Even when the poll is the later one; but only one.
    let session = poller(&echo).await;
    session.post("1").await.assert_ok();
    session.poll().await.assert_packets("6");
    session.poll().await.assert_unknown();
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_becomes_a_websocket() {
    for echo in Echo::of_each_kind().await {
        let session = poller(&echo).await;
        let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
        ws.send("2probe").await;
        assert_eq!(ws.text().await, "3probe");
        // The client waits for its poll, so that has to end.
        session.poll().await.assert_packets("6");
        ws.send("5").await;
        ws.send("4hello").await;
        assert_eq!(ws.text().await, "4hello");
        assert_eq!(ws.text().await, "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_poll_ends_while_an_upgrade_is_tried() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let pending = session.polling();
    let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
    pending.await.unwrap().assert_packets("6");
    session.poll().await.assert_packets("6");
    ws.send("2probe").await;
    assert_eq!(ws.text().await, "3probe");
    // What is queued now goes out by polling.
    session.post("4now").await.assert_ok();
    assert_eq!(session.packets().await, ["4now"]);
    ws.send("5").await;
    ws.send("4then").await;
    assert_eq!(ws.packet().await, "4then");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_after_an_upgrade() {
    for echo in Echo::of_each_kind().await {
        for _ in 0..10 {
            let session = poller(&echo).await;
            let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
            ws.send("2probe").await;
            ws.send("5").await;
            // Nobody waited until the server had seen that.
            session.poll().await.assert_refused(3, "Bad request");
            session.post("4x").await.assert_refused(3, "Bad request");
            let answer = session.request("PUT", &[], &[]).await;
            answer.assert_refused(3, "Bad request");
            let target = session.target("websocket");
            Ws::connect(echo.addr, &target).await.closed().await;
            ws.send("4hello").await;
            assert_eq!(ws.text().await, "3probe");
            assert_eq!(ws.packet().await, "4hello");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_began_on_a_websocket_does_not_poll() {
    let echo = Echo::start().await;
    let mut ws = Ws::connect(echo.addr, &format!("{ENDPOINT}?EIO=4&transport=websocket")).await;
    let open: serde_json::Value = serde_json::from_str(&ws.text().await[1..]).unwrap();
    let sid = open["sid"].as_str().unwrap();
    let target = format!("{ENDPOINT}?EIO=4&transport=polling&sid={sid}");
    for method in ["GET", "POST"] {
        let answer = request(echo.addr, method, &target, &[], b"4x").await;
        answer.assert_refused(3, "Bad request");
    }
    let target = target.replace("polling", "websocket");
    request(echo.addr, "GET", &target, &[], &[]).await.assert_refused(3, "Bad request");
    Ws::connect(echo.addr, &target).await.closed().await;
    ws.send("4hello").await;
    assert_eq!(ws.packet().await, "4hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upgrade_is_tried_at_a_time() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let mut first = Ws::connect(echo.addr, &session.target("websocket")).await;
    let mut second = Ws::connect(echo.addr, &session.target("websocket")).await;
    second.closed().await;
    first.send("2probe").await;
    assert_eq!(first.text().await, "3probe");
    first.send("5").await;
    first.send("4hello").await;
    assert_eq!(first.packet().await, "4hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_fails_leaves_polling_alone() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    for wrong in ["abc", "4hello", "2", "3probe", "2other", ""] {
        let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
        ws.send(wrong).await;
        ws.closed().await;
    }
    let mut lost = Ws::connect(echo.addr, &session.target("websocket")).await;
    lost.send("2probe").await;
    assert_eq!(lost.text().await, "3probe");
    drop(lost);
    session.post("4hello").await.assert_ok();
    assert_eq!(session.packets().await, ["4hello"]);
    // And it can be tried again, also without a probe.
    let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
    ws.send("5").await;
    ws.send("4again").await;
    assert_eq!(ws.packet().await, "4again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_is_pending_at_the_upgrade_is_released() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let pending = session.polling();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
    ws.send("5").await;
    pending.await.unwrap().assert_packets("6");
    ws.send("4hello").await;
    assert_eq!(ws.packet().await, "4hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heart_beats_while_an_upgrade_is_tried() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
    ws.send("2probe").await;
    assert_eq!(ws.text().await, "3probe");
    // The ping is for the transport that still is one.
    let ping = loop {
        let answer = session.poll().await;
        if answer.text() != "6" {
            break answer;
        }
    };
    ping.assert_packets("2");
    // Nobody answers, and with the session its WebSocket goes.
    ws.closed_on_silence().await;
    session.poll().await.assert_unknown();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_ends_its_upgrade() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
    ws.send("2probe").await;
    assert_eq!(ws.text().await, "3probe");
    session.post("1").await.assert_ok();
    ws.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_survives_an_upgrade() {
    let echo = Echo::start().await;
    for round in 0..5 {
        let session = poller(&echo).await;
        let numbers: Vec<String> = (0..300).map(|number| format!("4{number}")).collect();
        let (before, after) = numbers.split_at(100 + 20 * round);
        session.post(&before.join("\x1e")).await.assert_ok();
        let mut found = session.packets().await;
        let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
        ws.send("2probe").await;
        assert_eq!(ws.text().await, "3probe");
        ws.send("5").await;
        for packet in after {
            ws.send(packet.as_str()).await;
        }
        found.extend(ws.collect(numbers.len() - found.len()).await);
        assert_eq!(found, numbers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_websocket_ends_the_session() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    let mut ws = Ws::upgrade(&session).await;
    ws.send("4hello").await;
    assert_eq!(ws.packet().await, "4hello");
    drop(ws);
    eventually("the session is gone", async || {
        let answer = session.post("4x").await;
        answer.text().contains("Session ID unknown")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_open_packet_says_what_it_must() {
    let echo = Echo::start().await;
    let session = poller(&echo).await;
    assert_eq!(session.open["upgrades"], json!(["websocket"]));
    // A WebSocket handshake on the polling transport is no poll.
    let target = session.target("polling");
    request(echo.addr, "GET", &target, &UPGRADE, &[]).await.assert_refused(3, "Bad request");
    session.post("4hello").await.assert_ok();
    assert_eq!(session.packets().await, ["4hello"]);
}
