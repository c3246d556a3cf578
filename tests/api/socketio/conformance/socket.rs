//! Socket.IO, protocol revision 5: <https://github.com/socketio/socket.io-protocol>.

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

use crate::helpers::engine_io::{Poller, SEPARATOR, Ws};
use crate::socketio::echo::Echo;

const ENDPOINT: &str = "/socket.io/";

/// A WebSocket without a namespace.
async fn fresh(echo: &Echo) -> Ws {
    Ws::open(echo.addr, ENDPOINT).await
}

/// A WebSocket in the main namespace.
async fn connected(echo: &Echo) -> Ws {
    let mut ws = fresh(echo).await;
    ws.send("40").await;
    assert_connected(&mut ws, "", "{}").await;
    ws
}

/// Asserts that the client was let in and greeted.
async fn assert_connected(ws: &mut Ws, namespace: &str, auth: &str) {
    let answer = ws.packet().await;
    let json = answer.strip_prefix(&format!("40{namespace}")).expect("a CONNECT packet");
    let answer: serde_json::Value = serde_json::from_str(json).unwrap();
    let sid = answer["sid"].as_str().unwrap();
    assert_eq!(json, format!("{{\"sid\":\"{sid}\"}}"), "only this key");
    assert_eq!(sid.len(), 20);
    assert_eq!(ws.packet().await, format!("42{namespace}[\"auth\",{auth}]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_enter_namespaces() {
    let echo = Echo::start().await;
    for (connect, namespace, auth) in [
        ("40", "", "{}"),
        ("40{}", "", "{}"),
        ("40/,", "", "{}"),
        ("40{\"token\":\"123\"}", "", "{\"token\":\"123\"}"),
        ("40/custom,", "/custom,", "{}"),
        ("40/custom", "/custom,", "{}"),
        ("40/custom,{\"token\":\"a,b\"}", "/custom,", "{\"token\":\"a,b\"}"),
    ] {
        let mut ws = fresh(&echo).await;
        ws.send(connect).await;
        assert_connected(&mut ws, namespace, auth).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_id_is_not_the_secret_one() {
    let echo = Echo::start().await;
    let session = Poller::open(echo.addr, ENDPOINT).await;
    session.post("40").await.assert_ok();
    let packets = session.collect(2).await;
    assert!(!packets[0].contains(session.open["sid"].as_str().unwrap()), "{packets:?}");
    assert_eq!(packets[1], "42[\"auth\",{}]");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_namespace_is_refused_and_the_connection_lives() {
    let echo = Echo::start().await;
    let mut ws = fresh(&echo).await;
    for (connect, namespace) in [
        ("40/random", "/random"),
        ("40/random,{\"a\":1}", "/random"),
        ("40/custom?a=b,", "/custom?a=b"),
        ("40/Custom", "/Custom"),
    ] {
        ws.send(connect).await;
        let refused = format!("44{namespace},{{\"message\":\"Invalid namespace\"}}");
        assert_eq!(ws.packet().await, refused);
    }
    ws.send("40").await;
    assert_connected(&mut ws, "", "{}").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_enters_no_namespace_is_closed() {
    let echo = Echo::start().await;
    fresh(&echo).await.closed().await;
    // Knocking at doors that are not there does not count.
    let mut ws = fresh(&echo).await;
    ws.send("40/random").await;
    ws.closed().await;
    let session = Poller::open(echo.addr, ENDPOINT).await;
    session.gone().await;
    // Who left has been in one.
    let mut ws = connected(&echo).await;
    ws.send("41").await;
    for _ in 0..5 {
        assert_eq!(ws.text().await, "2");
        ws.send("3").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_packet_closes() {
    let echo = Echo::start().await;
    for packet in ["4", "4abc", "47", "40[]", "40\"x\"", "40{", "41", "42[\"message\"]"] {
        let mut ws = fresh(&echo).await;
        ws.send(packet).await;
        ws.closed().await;
    }
    for packet in [
        "4abc",
        "42{}",
        "42[]",
        "42",
        "42[null]",
        "42abc[\"message-with-ack\",1,\"2\",{\"3\":[false]}]",
        "42[\"message\"",
        "42[\"connect\"]",
        "42[\"connect_error\"]",
        "42[\"disconnect\"]",
        "42[\"disconnecting\"]",
        "42[\"newListener\"]",
        "42[\"removeListener\"]",
        "42/custom,[\"message\"]",
        "42/random,[\"message\"]",
        "41/custom",
        "41/random,",
        "45[\"message\"]",
        "451-[\"message\",{\"_placeholder\":true,\"num\":1}]",
        "4511-[\"message\"]",
    ] {
        let mut ws = connected(&echo).await;
        ws.send(packet).await;
        ws.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_packet_closes_over_polling_too() {
    let echo = Echo::start().await;
    let session = Poller::open(echo.addr, ENDPOINT).await;
    session.post("40").await.assert_ok();
    session.collect(2).await;
    let pending = session.polling();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    session.post("42{}").await;
    pending.await.unwrap().assert_packets("1");
    session.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connect_changes_nothing() {
    let echo = Echo::start().await;
    let mut ws = connected(&echo).await;
    ws.send("40").await;
    ws.send("42[\"message\",1]").await;
    assert_eq!(ws.packet().await, "42[\"message-back\",1]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_leaves_a_namespace_and_not_the_connection() {
    let echo = Echo::start().await;
    let mut ws = connected(&echo).await;
    ws.send("41").await;
    assert_eq!(ws.text().await, "2");
    ws.send("3").await;
    ws.send("40").await;
    assert_connected(&mut ws, "", "{}").await;

    ws.send("40/custom").await;
    assert_connected(&mut ws, "/custom,", "{}").await;
    ws.send("41/custom").await;
    ws.send("42[\"message\",\"to the main one\"]").await;
    assert_eq!(ws.packet().await, "42[\"message-back\",\"to the main one\"]");
    ws.send("41").await;
    ws.send("41").await;
    ws.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_acks_come_back() {
    let echo = Echo::start().await;
    let mut ws = connected(&echo).await;
    ws.send("40/custom,").await;
    assert_connected(&mut ws, "/custom,", "{}").await;
    for (sent, answer) in [
        ("42[\"message\",1,\"2\",{\"3\":[true]}]", "42[\"message-back\",1,\"2\",{\"3\":[true]}]"),
        ("42[\"message\"]", "42[\"message-back\"]"),
        ("42[\"message\",\"€ 𝄞 \\u001e\",1e400]", "42[\"message-back\",\"€ 𝄞 \\u001e\",1e400]"),
        ("42/,[\"message\",null]", "42[\"message-back\",null]"),
        ("42/custom,[\"message\",[]]", "42/custom,[\"message-back\",[]]"),
        ("42456[\"message-with-ack\",1,\"2\",{\"3\":[false]}]", "43456[1,\"2\",{\"3\":[false]}]"),
        ("420[\"message-with-ack\"]", "430[]"),
        ("42/custom,7[\"message-with-ack\",\"a,b\"]", "43/custom,7[\"a,b\"]"),
    ] {
        // Events that nobody knows and acks that nobody waits for are no reason to close.
        ws.send("42[\"unknown\"]").await;
        ws.send("42[5,6]").await;
        ws.send("4399[1]").await;
        ws.send(sent).await;
        assert_eq!(ws.packet().await, answer, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_comes_back() {
    const TWO: &str = "{\"_placeholder\":true,\"num\":0},{\"_placeholder\":true,\"num\":1}";

    let echo = Echo::start().await;
    let mut ws = connected(&echo).await;
    ws.send("40/custom,").await;
    assert_connected(&mut ws, "/custom,", "{}").await;
    for (sent, answer) in [
        (format!("452-[\"message\",{TWO}]"), format!("452-[\"message-back\",{TWO}]")),
        (format!("452-789[\"message-with-ack\",{TWO}]"), format!("462-789[{TWO}]")),
        (format!("452-/custom,7[\"message-with-ack\",{TWO}]"), format!("462-/custom,7[{TWO}]")),
        (
            format!("452-[\"message\",{{\"deep\":[{TWO}]}}]"),
            format!("452-[\"message-back\",{{\"deep\":[{TWO}]}}]"),
        ),
    ] {
        ws.send(sent).await;
        ws.send_binary(vec![1, 2, 3]).await;
        ws.send_binary(vec![4, 5, 6]).await;
        assert_eq!(ws.message().await, Message::text(answer));
        assert_eq!(ws.message().await, Message::binary(vec![1, 2, 3]));
        assert_eq!(ws.message().await, Message::binary(vec![4, 5, 6]));
    }
    // A binary packet without binary waits for nothing.
    ws.send("450-[\"message\",1]").await;
    assert_eq!(ws.packet().await, "42[\"message-back\",1]");
    // The most that may come with one packet.
    ws.send("4510-[\"message\"]").await;
    for _ in 0..10 {
        ws.send_binary(vec![0; 100_000]).await;
    }
    assert_eq!(ws.packet().await, "4510-[\"message-back\"]");
    for _ in 0..10 {
        assert_eq!(ws.message().await, Message::binary(vec![0; 100_000]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_comes_back_over_polling() {
    let echo = Echo::start().await;
    let session = Poller::open(echo.addr, ENDPOINT).await;
    session.post("40").await.assert_ok();
    session.collect(2).await;
    let packets =
        ["451-[\"message\",{\"_placeholder\":true,\"num\":0}]", "bAQID", "42[\"message\"]"];
    session.post(&packets.join("\x1e")).await.assert_ok();
    let back = session.collect(3).await;
    let expected = [
        "451-[\"message-back\",{\"_placeholder\":true,\"num\":0}]",
        "bAQID",
        "42[\"message-back\"]",
    ];
    assert_eq!(back, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_is_taken_only_where_it_belongs() {
    let echo = Echo::start().await;
    let header = "452-[\"message\",{\"_placeholder\":true,\"num\":0}]";
    let mut unexpected = connected(&echo).await;
    unexpected.send_binary(vec![1]).await;
    unexpected.closed().await;
    let mut too_early = fresh(&echo).await;
    too_early.send_binary(Bytes::new()).await;
    too_early.closed().await;
    let mut text_between = connected(&echo).await;
    text_between.send(header).await;
    text_between.send_binary(vec![1]).await;
    text_between.send("42[\"message\"]").await;
    text_between.closed().await;
    let mut too_much = connected(&echo).await;
    too_much.send(header).await;
    too_much.send_binary(vec![1; 600_000]).await;
    too_much.send_binary(vec![1; 600_000]).await;
    too_much.closed().await;
    // A heartbeat may come in between.
    let mut ping_between = connected(&echo).await;
    ping_between.send(header).await;
    assert_eq!(ping_between.text().await, "2");
    ping_between.send("3").await;
    ping_between.send_binary(vec![1]).await;
    ping_between.send_binary(vec![2]).await;
    assert_eq!(ping_between.packet().await, header.replace("message", "message-back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_comes_back_whole_and_in_order() {
    let echo = Echo::start().await;
    let events: Vec<String> = (0..1_000).map(|n| format!("42[\"message\",{n}]")).collect();
    let answers: Vec<String> = (0..1_000).map(|n| format!("42[\"message-back\",{n}]")).collect();

    let mut ws = connected(&echo).await;
    for event in &events {
        ws.send(event.as_str()).await;
    }
    assert_eq!(ws.collect(answers.len()).await, answers);

    let session = Poller::open(echo.addr, ENDPOINT).await;
    session.post("40").await.assert_ok();
    session.collect(2).await;
    let posting = session.clone();
    let posting = tokio::spawn(async move {
        for events in events.chunks(100) {
            posting.post(&events.join(&SEPARATOR.to_string())).await.assert_ok();
        }
    });
    assert_eq!(session.collect(answers.len()).await, answers);
    posting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_upgrades_as_socket_io_client_does() {
    let echo = Echo::start().await;
    let session = Poller::open(echo.addr, ENDPOINT).await;
    session.post("40{\"token\":\"x\"}").await.assert_ok();
    let packets = session.collect(2).await;
    assert_eq!(packets[1], "42[\"auth\",{\"token\":\"x\"}]");
    let pending = session.polling();
    let mut ws = Ws::connect(echo.addr, &session.target("websocket")).await;
    ws.send("2probe").await;
    assert_eq!(ws.text().await, "3probe");
    // It pauses, and waits for its poll.
    assert_eq!(pending.await.unwrap().status, 200);
    ws.send("5").await;
    ws.send("42[\"message\",1]").await;
    assert_eq!(ws.packet().await, "42[\"message-back\",1]");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_let_in_may_be_silent() {
    let echo = Echo::start().await;
    let mut ws = connected(&echo).await;
    // For longer than entering may take.
    for _ in 0..5 {
        assert_eq!(ws.text().await, "2");
        ws.send("3").await;
    }
}
