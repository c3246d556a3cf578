//! Revoked tokens are refused, and their sockets are closed, on every instance and wire.

use std::time::{Duration, Instant};

use bson::doc;
use serde_json::json;

use super::{log_in, next_second, post, refresh, refreshed, refusal};
use crate::helpers::engine_io::Poller;
use crate::helpers::mongod::{Guarded, connect, fresh_database, standalone};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::{Caller, Memory};
use crate::helpers::{TestServer, eventually, eventually_within, metric, token_for};

/// What the contract allows, and what a loaded machine may take longer.
const IN_TIME: Duration = Duration::from_secs(3);

async fn log_out(server: &TestServer, token: &str) {
    let (status, answer) = post(server, "auth/logout", token, json!({})).await;
    assert_eq!(status, 200, "{answer}");
}

async fn log_out_everywhere(server: &TestServer, token: &str) {
    let (status, answer) = post(server, "auth/logout-all", token, json!({})).await;
    assert_eq!(status, 200, "{answer}");
}

fn revoked() -> Option<(u16, String)> {
    Some((4401, "token_revoked".to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_revocations_in_a_second_ends_what_was_issued_before() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let mut tokens = vec![ada.token.clone()];
    for logouts in [0, 0, 1, 3, 0] {
        for _ in 0..logouts {
            let token = server.login("ada").await.token;
            log_out(&server, &token).await;
            tokens.push(token);
        }
        let token = server.login("ada").await.token;
        let family = log_in(&server, "ada").await;
        assert_eq!(refusal(&server, &token).await, "");
        log_out_everywhere(&server, &token).await;
        tokens.extend([token, family.token]);
        assert_eq!(refresh(&server, &family.refresh).await.0, 401);
        for token in &tokens {
            assert_eq!(refusal(&server, token).await, "token_revoked", "{logouts}");
        }
    }
    let token = server.login("ada").await.token;
    assert_eq!(refusal(&server, &token).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_one_token() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let first = one.register("ada").await;
    next_second().await;
    let second = one.login("ada").await;
    assert_ne!(first.token, second.token);
    log_out(&other, &first.token).await;
    assert_eq!(refusal(&other, &first.token).await, "token_revoked", "at once where it was asked");
    eventually_within(IN_TIME, "it is refused elsewhere", async || {
        refusal(&one, &first.token).await == "token_revoked"
    })
    .await;
    for server in [&one, &other] {
        assert_eq!(refusal(server, &second.token).await, "");
        // Twice is refused, like everything else with this token.
        let (status, answer) = post(server, "auth/logout", &first.token, json!({})).await;
        assert_eq!((status, &answer["code"]), (401, &json!("token_revoked")));
        // The routes of the original have their text.
        let answer = super::get(server, "chat/rooms", &first.token).await;
        assert_eq!(answer, (401, json!({ "error": "Invalid token" })));
    }
    // A token of the same second would be the same token: the next login is not refused.
    for server in [&one, &other, &one, &other] {
        let again = server.login("ada").await;
        log_out(server, &again.token).await;
        let again = server.login("ada").await;
        assert_eq!(refusal(&one, &again.token).await, "");
        assert_eq!(refusal(&other, &again.token).await, "");
    }
    assert_eq!(super::count(&other, "chat_revocations_total{scope=\"token\"}").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_a_login_with_all_its_tokens() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    one.register("ada").await;
    let (gone, spared) = (log_in(&one, "ada").await, log_in(&one, "ada").await);
    let next = refreshed(&other, &gone.refresh).await;
    log_out(&other, &next.token).await;
    for server in [&one, &other] {
        for token in [&gone.token, &next.token] {
            eventually_within(IN_TIME, "it is refused", async || {
                refusal(server, token).await == "token_revoked"
            })
            .await;
        }
        assert_eq!(refresh(server, &next.refresh).await.1["code"], "refresh_invalid");
        assert_eq!(refusal(server, &spared.token).await, "");
    }
    // A token without a refresh token ends the one in the body, if it is of the same user.
    let plain = one.login("ada").await;
    let bob = one.register("bob").await;
    let body = json!({ "refreshToken": spared.refresh });
    assert_eq!(post(&one, "auth/logout", &bob.token, body.clone()).await.0, 200);
    let spared = refreshed(&one, &spared.refresh).await;
    let body = json!({ "refreshToken": spared.refresh });
    assert_eq!(post(&one, "auth/logout", &plain.token, body).await.0, 200);
    assert_eq!(refusal(&one, &spared.token).await, "token_revoked");
    assert_eq!(refusal(&one, &plain.token).await, "token_revoked");
    assert_eq!(refresh(&other, &spared.refresh).await.1["code"], "refresh_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_everywhere_ends_all_tokens_and_the_next_login_is_valid() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let device = log_in(&other, "ada").await;
    // A token of the original, which is valid for longer than those of this server.
    let long = token_for(&ada.id, 1_000_000);
    log_out_everywhere(&one, &ada.token).await;
    for server in [&one, &other] {
        for token in [&ada.token, &device.token, &long] {
            eventually_within(IN_TIME, "it is refused", async || {
                refusal(server, token).await == "token_revoked"
            })
            .await;
        }
        assert_eq!(refresh(server, &device.refresh).await.1["code"], "refresh_invalid");
        assert_eq!(refusal(server, &bob.token).await, "");
        // Logged in again in the same second.
        let again = log_in(server, "ada").await;
        let again = refreshed(server, &again.refresh).await;
        assert_eq!(refusal(&one, &again.token).await, "");
        assert_eq!(refusal(&other, &again.token).await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_tokens_stay_revoked_after_a_restart() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let (ada_token, bob_token) = (ada.token.clone(), bob.token.clone());
    let eve_token = server.register("eve").await.token.clone();
    let old = token_for(&ada.id, 1_000_000);
    log_out_everywhere(&server, &ada_token).await;
    log_out(&server, &bob_token).await;
    server.stop().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    // From the first request on, and without a query, since the set was read before.
    assert_eq!(refusal(&server, &eve_token).await, "");
    for token in [&ada_token, &bob_token, &old] {
        assert_eq!(refusal(&server, token).await, "token_revoked");
        let mut socket = Socket::connect(&server, token).await;
        assert_eq!(socket.closed().await, revoked());
    }
    assert_eq!(metric(server.addr, "chat_revocation_queries_total").await, 0);
    assert_eq!(metric(server.addr, "chat_revocations_known").await, 2);
    let again = server.login("ada").await;
    // A token that is not revoked costs no query either, while the stream is heard.
    eventually("the stream is heard", async || {
        let before = metric(server.addr, "chat_revocation_queries_total").await;
        for _ in 0..10 {
            assert_eq!(refusal(&server, &again.token).await, "");
            assert_eq!(refusal(&server, &ada_token).await, "token_revoked");
        }
        metric(server.addr, "chat_revocation_queries_total").await == before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_of_a_revoked_token_are_closed_and_hear_nothing_behind_it() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = bob.create_room("lounge").await;
    let mut plain =
        [Socket::connect(&one, &ada.token).await, Socket::connect(&other, &ada.token).await];
    let mut callers = [
        Caller::connect(one.addr, &ada.token).await,
        Caller::connect(other.addr, &ada.token).await,
    ];
    let (mut witness, mut caller) =
        (Socket::connect(&other, &bob.token).await, Caller::connect(one.addr, &bob.token).await);
    for socket in &mut plain {
        socket.join(&room).await;
    }
    for caller in &mut callers {
        caller.join(&room).await;
    }
    witness.join(&room).await;
    caller.join(&room).await;

    bob.send(&room, "before").await;
    for socket in &mut plain {
        assert_eq!(socket.heard().await.content, "before");
    }
    for caller in &mut callers {
        assert_eq!(caller.heard().await.1, "before");
    }
    let asked = Instant::now();
    log_out_everywhere(&one, &ada.token).await;
    bob.send(&room, "behind").await;
    for socket in &mut plain {
        assert_eq!(socket.next_or_closed().await, Err(revoked()));
    }
    let memories = callers.map(|caller| caller.cut());
    assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
    assert_eq!((witness.heard().await.content, caller.heard().await.1).0, "before");
    assert_eq!((witness.heard().await.content, caller.heard().await.1).0, "behind");

    // Neither wire lets the token in again, and a recovery does not, either.
    for server in [&one, &other] {
        let mut socket = Socket::connect(server, &ada.token).await;
        assert_eq!(socket.closed().await, revoked());
        let first = json!({ "event": "authenticate", "data": { "token": ada.token }, "id": 1 });
        let mut socket = Socket::connect_to(server, "/ws").await;
        socket.send_text(first.to_string()).await;
        assert_eq!(socket.next_or_closed().await, Err(revoked()));
        for memory in memories.iter().chain([&Memory::default()]) {
            let auth = json!({ "token": ada.token, "recovery": true });
            let refused = Caller::try_connect(server.addr, auth, memory.clone()).await;
            assert_eq!(refused.err().unwrap()["data"]["code"], "token_revoked");
        }
    }
    let closed = "chat_disconnects_total{reason=\"revoked\",wire=\"ws\"}";
    assert_eq!(super::count(&one, closed).await, 1);
    assert_eq!(super::count(&other, closed).await, 1);
    assert!(super::count(&one, "chat_sockets_refused_total{reason=\"token_revoked\"}").await >= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_ends_with_the_revocation() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = ada.create_room("lounge").await;
    let since = Socket::connect(&one, &bob.token).await.join(&room).await;
    // More than the system buffers for a client that reads slowly.
    let text = "x".repeat(50_000);
    for _ in 0..200 {
        assert_eq!(ada.say(&room, &text).await.0, 201);
    }
    let mut witness = Socket::connect(&other, &ada.token).await;
    witness.recover(&room, &since).await;
    for _ in 0..200 {
        witness.heard().await;
    }
    let mut socket = Socket::connect_narrow(other.addr, &bob.token).await;
    let ack = socket.join_since(&room, &since).await;
    assert_eq!(ack["recovered"], true);
    log_out(&one, &bob.token).await;
    assert_eq!(ada.say(&room, "secret").await.0, 201);
    assert_eq!(witness.heard().await.content, "secret");
    let mut heard = 0;
    let closed = loop {
        match socket.next_or_closed().await {
            Ok(frame) => {
                assert_ne!(frame["data"]["content"], "secret");
                heard += 1;
            }
            Err(closed) => break closed,
        }
    };
    assert_eq!(closed, revoked());
    assert!(heard < 200, "the replay was not under way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_io_client_is_closed_and_its_record_is_removed() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = bob.create_room("lounge").await;
    let mut caller = Caller::connect(one.addr, &ada.token).await;
    caller.join(&room).await;
    let poller = Poller::open(other.addr, "/socket.io/").await;
    poller.post(&format!("40{{\"token\":\"{}\"}}", ada.token)).await.assert_ok();
    poller.packets().await;
    let poll = poller.polling();
    let asked = Instant::now();
    log_out(&other, &ada.token).await;
    bob.send(&room, "behind").await;
    // The transport is closed, so socket.io-client comes back by itself.
    caller.closed().await;
    let polled = poll.await.unwrap();
    assert!(!polled.text().contains("receiveMessage"), "{}", polled.text());
    poller.gone().await;
    assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
    let memory = caller.cut();
    let sockets = connect(&uri).await.collection::<bson::Document>("realtime_chat_backend_sockets");
    eventually("the record is removed", async || {
        let pid = memory.pid.as_deref().unwrap();
        sockets.find_one(doc! { "_id": pid }).await.unwrap().is_none()
    })
    .await;
    // With a new token the client begins anew.
    next_second().await;
    let again = one.login("ada").await;
    let back = Caller::come_back(other.addr, &again.token, memory).await;
    assert!(!back.recovered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_belongs_to_the_newest_token_it_was_given() {
    let server = TestServer::start().await;
    let first = server.register("ada").await;
    next_second().await;
    let second = server.login("ada").await;
    let mut socket = Socket::connect(&server, &first.token).await;
    let expires = socket.ask("authenticate", json!({ "token": second.token })).await;
    assert!(expires["expires"].is_u64(), "{expires}");
    log_out(&server, &first.token).await;
    assert!(socket.ask("leaveRoom", json!("0123456789abcdef01234567")).await["room"].is_string());
    // A revoked token extends nothing.
    let refused = socket.ask("authenticate", json!({ "token": first.token })).await;
    assert_eq!(refused["code"], "token_revoked");
    socket.assert_silent(Duration::from_millis(300)).await;
    log_out(&server, &second.token).await;
    assert_eq!(socket.next_or_closed().await, Err(revoked()));

    // Of a login with refresh tokens, every token is ended by any other.
    let device = log_in(&server, "ada").await;
    let mut socket = Socket::connect(&server, &device.token).await;
    let next = refreshed(&server, &device.refresh).await;
    socket.assert_silent(Duration::from_millis(300)).await;
    log_out(&server, &next.token).await;
    assert_eq!(socket.next_or_closed().await, Err(revoked()));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_stream_is_silent_the_database_is_asked() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let ada = quick.register("ada").await;
    assert_eq!(refusal(&slow, &ada.token).await, "");
    let asked = async || metric(slow.addr, "chat_revocation_queries_total").await;
    let before = asked().await;
    neighbour.hold_slow_back(Duration::from_secs(8)).await;
    log_out_everywhere(&quick, &ada.token).await;
    eventually_within(IN_TIME, "it is refused where nothing was heard", async || {
        refusal(&slow, &ada.token).await == "token_revoked"
    })
    .await;
    assert!(asked().await > before);
    let mut socket = Socket::connect(&slow, &ada.token).await;
    assert_eq!(socket.closed().await, revoked());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standalone_sessions_end_within_the_process_and_others_hear_of_it() {
    let mongod = standalone().await;
    let uri = mongod.uri("chat");
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let mut sockets =
        [Socket::connect(&one, &ada.token).await, Socket::connect(&other, &ada.token).await];
    let mut spared = Socket::connect(&other, &bob.token).await;
    log_out_everywhere(&one, &ada.token).await;
    for socket in &mut sockets {
        assert_eq!(socket.next_or_closed().await, Err(revoked()));
    }
    for server in [&one, &other] {
        assert_eq!(refusal(server, &ada.token).await, "token_revoked");
        assert_eq!(refusal(server, &bob.token).await, "");
    }
    spared.assert_silent(Duration::from_millis(200)).await;
    let again = other.login("ada").await;
    assert_eq!(refusal(&one, &again.token).await, "");
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_follow_messages_only_reads_the_collection() {
    let on = |collection: &str, actions: &[&str]| {
        doc! { "resource": { "db": "chat", "collection": collection }, "actions": actions }
    };
    let all = ["find", "insert", "update", "remove", "createIndex", "listIndexes", "changeStream"];
    let names = realtime_chat_backend::models::own::ALL.iter().map(|own| own.collection);
    let privileges = ["users", "rooms", "messages"].into_iter().chain(names);
    let privileges: Vec<_> = privileges.map(|name| on(name, &all)).collect();
    let narrow = doc! { "privileges": privileges };
    let mongo = Guarded::start(&[("narrow", narrow)]).await;
    let uri = mongo.uri("narrow", "narrow");
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let mut sockets =
        [Socket::connect(&one, &ada.token).await, Socket::connect(&other, &ada.token).await];
    let mut spared = Socket::connect(&other, &bob.token).await;
    log_out(&other, &ada.token).await;
    for socket in &mut sockets {
        assert_eq!(socket.next_or_closed().await, Err(revoked()));
    }
    for server in [&one, &other] {
        assert_eq!(refusal(server, &ada.token).await, "token_revoked");
        assert_eq!(refusal(server, &bob.token).await, "");
    }
    spared.assert_silent(Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_legacy_trust_a_revoked_token_counts_as_none() {
    let server = TestServer::start_with(&[("LEGACY_TRUST", "true")]).await;
    let ada = server.register("ada").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    log_out(&server, &ada.token).await;
    assert_eq!(socket.next_or_closed().await, Err(revoked()));
    assert_eq!(refusal(&server, &ada.token).await, "token_revoked");
    let mut anonymous = Socket::connect(&server, &ada.token).await;
    let refused = anonymous.ask("editMessage", json!({ "message": ada.id, "content": "x" })).await;
    assert_eq!(refused["code"], "token_missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_requests_of_a_revoked_session_are_dropped() {
    let server = TestServer::start().await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = bob.create_room("lounge").await;
    let mut socket = Socket::connect(&server, &ada.token).await;
    for n in 0..400 {
        // A key makes each a request of its own.
        let message =
            json!({ "room": room, "content": format!("{n}"), "clientId": format!("{n}") });
        socket.send("sendMessage", message).await;
    }
    log_out(&server, &ada.token).await;
    let stored = async || bob.history(&room).await.len();
    let mut acked = 0;
    loop {
        match socket.next_or_closed().await {
            Ok(frame) => acked += usize::from(frame["data"].get("message").is_some()),
            Err(closed) => {
                assert_eq!(closed, revoked());
                break;
            }
        }
    }
    let mut last = stored().await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = stored().await;
        // The one that was being stored may be there.
        assert!(now <= last + 1, "{last} and then {now}");
        last = now;
    }
    assert!(acked <= last && last < 400, "{acked} were acknowledged, {last} are stored");
}
