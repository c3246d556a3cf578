//! Every way by which a message, or the existence of a private room, could get out:
//!
//! | way | test |
//! |---|---|
//! | join, with and without `since`; send, edit, delete by REST; history, pages, `?deleted=true`; room, members | `rooms`: `a_private_room_exists_for_its_members_only` |
//! | send, edit, delete, leave by sockets on both wires; `since` of any form; anonymous sockets | [`sockets_get_the_answers_for_an_unknown_room`] |
//! | texts of errors, headers, `ETag`, `If-None-Match`, HEAD, in both modes of `ERRORS` | [`an_answer_for_a_private_room_is_that_for_an_unknown_one_byte_for_byte`] |
//! | the time of an answer | [`an_answer_takes_as_long_as_for_an_unknown_room`] |
//! | a removal while a history is read | [`a_history_that_is_read_during_a_removal_has_nothing_after_it`] |
//! | live events and inboxes that wait | `removal`: `nobody_hears_anything_behind_a_removal`; [`an_inbox_that_waits_ends_with_the_removal`] |
//! | a replay in progress | [`a_replay_ends_with_the_removal`] |
//! | a join that was checked before a removal | `hub::tests`: `a_join_that_was_checked_before_a_removal_is_refused` |
//! | connection state recovery, on another instance, and offsets that name a room of before | `removal`: `a_session_that_comes_back_…`; [`an_offset_of_before_opens_no_room`] |
//! | a recovery whose removal is not in the ring any more | [`a_session_that_cannot_be_told_of_its_removal_is_not_recovered`] |
//! | a retry with an idempotency key | `removal`: `a_retry_of_a_refused_message_…`; [`a_key_of_another_user_opens_nothing`] |
//! | what was stored around the removal of its sender | `removal`: `what_is_…` |
//! | `resync` | [`a_resync_of_a_room_is_for_its_members`] |
//! | the names of rooms; list of rooms; metrics | [`lists_names_and_metrics_say_nothing`] |
//! | the stream without members, dropped collections | `collections` |

use std::time::Duration;

use bson::doc;
use bson::oid::ObjectId;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::id_of;
use crate::helpers::mongod::{Neighbour, SLOW, fresh_database};
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::{Caller, Memory};
use crate::helpers::{TestServer, User, client};

/// The id of a private room that does not exist.
const UNKNOWN: &str = "6b0bd1279c726f6f6d000001";

/// Replaces what differs between two answers by right: the ids in the request, and the date.
async fn shape(answer: Response, room: &str) -> (StatusCode, Vec<(String, String)>, String) {
    let status = answer.status();
    let own = |name: &str| name == "date" || name == "x-request-id";
    let headers = answer.headers().iter().filter(|(name, _)| !own(name.as_str()));
    let mut headers: Vec<_> = headers
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    headers.sort();
    (status, headers, answer.text().await.unwrap().replace(room, "<room>"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_for_a_private_room_is_that_for_an_unknown_one_byte_for_byte() {
    let uri = fresh_database().await;
    let [original, precise] = ["original", "precise"];
    for errors in [original, precise] {
        let vars = [("MONGO_URI", uri.as_str()), ("ERRORS", errors)];
        let server = TestServer::start_with(&vars).await;
        let name = |who: &str| format!("{who} {errors}");
        let ada = server.register(&name("ada")).await;
        let eve = server.register(&name("eve")).await;
        let room = id_of(&ada.private_room("cellar", &[]).await);
        let (_, said) = ada.say(&room, "secret").await;
        let message = said["message"]["_id"].as_str().unwrap();
        let unknown_message = ObjectId::new().to_hex();
        let eve_id = &eve.id;
        let requests = |room: &str, message: &str| {
            let send = json!({ "room": room, "sender": eve_id, "content": "x" });
            let several = json!({ "room": [room], "sender": eve_id, "content": "x" });
            let send_path = "/api/chat/message".to_owned();
            vec![
                (Method::GET, format!("/api/chat/room/{room}"), None),
                (Method::HEAD, format!("/api/chat/room/{room}"), None),
                (Method::PATCH, format!("/api/chat/room/{room}"), Some(json!({ "name": 5 }))),
                (Method::PATCH, format!("/api/chat/room/{room}"), Some(json!({ "owner": "x" }))),
                (Method::DELETE, format!("/api/chat/room/{room}"), None),
                (Method::POST, format!("/api/chat/room/{room}/members"), Some(json!({}))),
                (Method::DELETE, format!("/api/chat/room/{room}/members/{eve_id}"), None),
                (Method::GET, format!("/api/chat/messages/{room}"), None),
                (Method::HEAD, format!("/api/chat/messages/{room}"), None),
                (Method::GET, format!("/api/chat/messages/{room}?limit=1"), None),
                (Method::GET, format!("/api/chat/messages/{room}?deleted=true"), None),
                (Method::GET, format!("/api/chat/messages/{room}?before={message}"), None),
                (Method::POST, send_path.clone(), Some(send)),
                (Method::POST, send_path, Some(several)),
                (Method::PATCH, format!("/api/chat/message/{message}"), Some(json!({}))),
                (
                    Method::PATCH,
                    format!("/api/chat/message/{message}"),
                    Some(json!({ "content": "x", "__v": 0 })),
                ),
                (Method::DELETE, format!("/api/chat/message/{message}"), None),
            ]
        };
        let pairs = requests(&room, message).into_iter().zip(requests(UNKNOWN, &unknown_message));
        for ((method, path, body), (_, other_path, other_body)) in pairs {
            let private = eve.request(method.clone(), &path, body.as_ref()).await;
            let unknown = eve.request(method.clone(), &other_path, other_body.as_ref()).await;
            let private = shape(private, &room).await;
            assert_eq!(private, shape(unknown, UNKNOWN).await, "{method} {path}");
            assert!(!private.2.contains("secret"), "{method} {path}");
        }
        // A tag that a member had is of no use to somebody else.
        let url = server.url(&format!("/api/chat/messages/{room}"));
        let get = async |user: &User<'_>, tag: Option<&str>| {
            let request = client().get(&url).bearer_auth(&user.token);
            let request =
                tag.into_iter().fold(request, |request, tag| request.header("If-None-Match", tag));
            request.send().await.unwrap()
        };
        let tag = get(&ada, None).await.headers()["etag"].to_str().unwrap().to_owned();
        assert_eq!(get(&ada, Some(&tag)).await.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(get(&eve, Some(&tag)).await.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_get_the_answers_for_an_unknown_room() {
    let uri = fresh_database().await;
    let vars = [("MONGO_URI", uri.as_str()), ("LEGACY_TRUST", "true")];
    let server = TestServer::start_with(&vars).await;
    let (ada, eve) = (server.register("ada").await, server.register("eve").await);
    let room = id_of(&ada.private_room("cellar", &[]).await);
    let (_, said) = ada.say(&room, "secret").await;
    let message = &said["message"]["_id"];
    let position = "1.1";
    let requests = |room: &str, message: Value| {
        vec![
            ("joinRoom", json!(room)),
            ("joinRoom", json!({ "room": room, "since": position })),
            ("joinRoom", json!({ "room": room, "since": "4000000000.1" })),
            ("joinRoom", json!({ "room": room, "since": 5 })),
            ("joinRoom", json!({ "room": room, "since": format!("1.1;1.1={room}") })),
            ("leaveRoom", json!(room)),
            ("sendMessage", json!({ "room": room, "content": "x" })),
            ("sendMessage", json!({ "room": room, "content": "x", "clientId": "k" })),
            // LEGACY_TRUST believes any sender, but not in a room with members.
            ("sendMessage", json!({ "room": room, "content": "x", "sender": ada.id })),
            ("editMessage", json!({ "message": message, "content": "x" })),
            ("deleteMessage", json!({ "message": message })),
        ]
    };
    let unknown_message = json!(ObjectId::new().to_hex());
    let pairs = || {
        requests(&room, message.clone()).into_iter().zip(requests(UNKNOWN, unknown_message.clone()))
    };
    let plain = |answer: Value, room: &str| answer.to_string().replace(room, "<room>");
    for token in [Some(&eve.token), None] {
        let path = token.map_or("/ws".to_owned(), |token| format!("/ws?token={token}"));
        let mut socket = Socket::connect_to(&server, &path).await;
        for ((event, data), (_, other)) in pairs() {
            let private = plain(socket.ask(event, data.clone()).await, &room);
            assert_eq!(private, plain(socket.ask(event, other).await, UNKNOWN), "{event} {data}");
        }
        ada.say(&room, "secret").await;
        socket.assert_silent(Duration::from_millis(200)).await;
    }
    let mut caller = Caller::connect(server.addr, &eve.token).await;
    for ((event, data), (_, other)) in pairs() {
        let private = plain(caller.ask(event, data.clone()).await, &room);
        assert_eq!(private, plain(caller.ask(event, other).await, UNKNOWN), "{event} {data}");
    }
    ada.say(&room, "secret").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    caller.assert_nothing_came().await;
    // A member does not speak for another one either.
    let mut socket = Socket::connect(&server, &ada.token).await;
    let message = json!({ "room": room, "content": "x", "sender": eve.id });
    assert_eq!(socket.ask("sendMessage", message).await["code"], "sender_mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_takes_as_long_as_for_an_unknown_room() {
    const ROUNDS: usize = 60;
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, eve) = (server.register("ada").await, server.register("eve").await);
    let room = id_of(&ada.private_room("cellar", &[]).await);
    let neighbour = Neighbour::connect(&uri).await;
    neighbour.insert_all(&room, (0..5_000).map(|n| format!("message {n}"))).await;
    let (_, said) = ada.say(&room, "secret").await;
    let message = said["message"]["_id"].as_str().unwrap();
    let pairs = [
        (Method::GET, "room", room.as_str()),
        (Method::GET, "messages", room.as_str()),
        (Method::DELETE, "message", message),
    ];
    let http = client();
    // The fastest of many, since whatever else happens only makes an answer slower.
    let mut fastest = [[Duration::MAX; 2]; 3];
    for _ in 0..ROUNDS {
        for (kind, (method, path, known)) in pairs.iter().enumerate() {
            for (number, id) in [*known, UNKNOWN].into_iter().enumerate() {
                let url = server.url(&format!("/api/chat/{path}/{id}"));
                let begun = Instant::now();
                let asking = http.request(method.clone(), url).bearer_auth(&eve.token);
                asking.send().await.unwrap().bytes().await.unwrap();
                fastest[kind][number] = fastest[kind][number].min(begun.elapsed());
            }
        }
    }
    for [private, unknown] in fastest {
        let [private, unknown] = [private, unknown].map(|time| time.as_secs_f64());
        assert!(private < 1.5 * unknown && unknown < 1.5 * private, "{private} and {unknown} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_read_during_a_removal_has_nothing_after_it() {
    let (_mongo, [quick, slow], neighbour) = TestServer::quick_and_slow().await;
    let ada = quick.register("ada").await;
    let bob = quick.register("bob").await;
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    ada.say(&room, "before").await;
    let namespace = neighbour.messages.namespace().to_string();
    for path in ["", "?limit=5", "?deleted=true"] {
        ada.add(&room, &bob).await;
        // Between the check and the read.
        let hold = doc! {
            "configureFailPoint": "failCommand",
            "mode": { "times": 1 },
            "data": {
                "failCommands": ["find"], "namespace": &namespace, "appName": SLOW,
                "blockConnection": true, "blockTimeMS": 1_500,
            },
        };
        neighbour.admin().run_command(hold).await.unwrap();
        let url = slow.url(&format!("/api/chat/messages/{room}{path}"));
        let reading = client().get(url).bearer_auth(&bob.token).send();
        let removing = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(ada.remove(&room, &bob).await.0, 200);
            assert_eq!(ada.say(&room, "secret").await.0, 201);
        };
        let (answer, ()) = tokio::join!(reading, removing);
        let answer: Value = answer.unwrap().json().await.unwrap();
        assert_eq!(answer, json!([]), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_that_waits_ends_with_the_removal() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut socket = Socket::connect_narrow(server.addr, &bob.token).await;
    socket.join(&room).await;
    // More than the system buffers for a client that does not read.
    let text = "x".repeat(50_000);
    for n in 0..100 {
        assert_eq!(ada.say(&room, &format!("{n} {text}")).await.0, 201);
    }
    ada.remove(&room, &bob).await;
    for n in 0..10 {
        ada.say(&room, &format!("secret {n}")).await;
    }
    let mut heard = 0;
    loop {
        // A client that is too slow is disconnected, and then it has nothing more either.
        let Ok(frame) = socket.next_or_closed().await else { break };
        match frame["event"].as_str().unwrap() {
            "receiveMessage" => {
                let content = frame["data"]["content"].as_str().unwrap();
                assert!(!content.starts_with("secret"));
                heard += 1;
            }
            "memberRemoved" => assert_eq!(heard, 100),
            "roomRemoved" => break,
            other => panic!("{other}"),
        }
    }
    assert!(heard > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_ends_with_the_removal() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let mut first = Socket::connect(&one, &bob.token).await;
    let since = first.join(&room).await;
    let text = "x".repeat(50_000);
    for n in 0..60 {
        assert_eq!(ada.say(&room, &format!("{n} {text}")).await.0, 201);
    }
    let mut owner = Socket::connect(&other, &ada.token).await;
    owner.recover(&room, &since).await;
    for _ in 0..60 {
        owner.heard().await;
    }
    // It reads slowly, so the replay is not at its end when the removal comes.
    let mut socket = Socket::connect_narrow(other.addr, &bob.token).await;
    socket.send("joinRoom", json!({ "room": room, "since": since })).await;
    let ack = socket.next().await;
    assert_eq!(ack["data"]["recovered"], true);
    ada.remove(&room, &bob).await;
    ada.say(&room, "secret").await;
    let mut heard = 0;
    loop {
        let frame = socket.next().await;
        match frame["event"].as_str().unwrap() {
            "receiveMessage" => {
                assert_ne!(frame["data"]["content"], "secret");
                heard += 1;
            }
            "memberRemoved" => assert_eq!(heard, 60),
            // That of all sessions may come before the replay gets there.
            "roomRemoved" if heard == 60 => break,
            "roomRemoved" => {}
            other => panic!("{other}"),
        }
        if heard == 60 {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left = socket.ask("leaveRoom", json!(room)).await;
    assert_eq!(left, json!({ "room": room }));
    while socket.kept() > 0 {
        let frame = socket.next().await;
        assert_ne!(frame["event"], "receiveMessage", "{frame}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_of_before_opens_no_room() {
    let uri = fresh_database().await;
    let [one, other] = TestServer::instances(&uri).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let eve = one.register("eve").await;
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let lounge = ada.create_room("lounge").await;
    let mut caller = Caller::connect(one.addr, &bob.token).await;
    caller.join(&room).await;
    caller.join(&lounge).await;
    ada.say(&room, "one").await;
    caller.heard().await;
    let memory = caller.cut();
    let base = memory.offset.clone().unwrap();
    ada.remove(&room, &bob).await;
    ada.say(&room, "secret").await;
    // An offset that names the room, as one during a replay does.
    let named = Memory { offset: Some(format!("{base};{base}={room}")), ..memory.clone() };
    let mut back = Caller::come_back(other.addr, &bob.token, named).await;
    assert!(back.recovered);
    assert_eq!(back.event().await[0], "roomRemoved");
    ada.say(&room, "secret").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    back.assert_nothing_came().await;
    let memory = back.cut();
    // The session of another user is nobody else's.
    let stolen = Caller::come_back(other.addr, &eve.token, memory).await;
    assert!(!stolen.recovered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_be_told_of_its_removal_is_not_recovered() {
    let uri = fresh_database().await;
    let one = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let short = [("MONGO_URI", uri.as_str()), ("RECOVERY_BYTES", "16KiB")];
    let other = TestServer::start_with(&short).await;
    let (ada, bob) = (one.register("ada").await, one.register("bob").await);
    let (lounge, noise) = (ada.create_room("lounge").await, ada.create_room("noise").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    for (removed, joined) in [(true, true), (true, false), (false, true)] {
        ada.add(&room, &bob).await;
        let mut caller = Caller::connect(one.addr, &bob.token).await;
        caller.join(&lounge).await;
        if joined {
            caller.join(&room).await;
        }
        ada.say(&lounge, "an offset").await;
        caller.heard().await;
        let memory = caller.cut();
        if removed {
            ada.remove(&room, &bob).await;
        }
        // More than the ring of the other instance holds.
        for n in 0..100 {
            ada.say(&noise, &format!("{n} {}", "x".repeat(1_000))).await;
        }
        let mut noisy = Socket::connect(&other, &ada.token).await;
        noisy.join(&noise).await;
        ada.say(&noise, "done").await;
        noisy.heard().await;
        let back = Caller::come_back(other.addr, &bob.token, memory).await;
        assert_eq!(back.recovered, !removed, "joined: {joined}");
    }
    // A user without such rooms has nothing to be told.
    let eve = one.register("eve").await;
    let mut caller = Caller::connect(one.addr, &eve.token).await;
    caller.join(&lounge).await;
    ada.say(&lounge, "an offset").await;
    caller.heard().await;
    let memory = caller.cut();
    for n in 0..100 {
        ada.say(&noise, &format!("{n} {}", "x".repeat(1_000))).await;
    }
    Caller::recover(other.addr, &eve.token, &memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_have_been_removed_before_the_server_began_is_not_recovered() {
    for has_members in [false, true] {
        let uri = fresh_database().await;
        let vars = [("MONGO_URI", uri.as_str()), ("RECOVERY_WINDOW", "1")];
        let one = TestServer::start_with(&vars).await;
        let (ada, bob) = (one.register("ada").await, one.register("bob").await);
        let (lounge, noise) = (ada.create_room("lounge").await, ada.create_room("noise").await);
        if has_members {
            ada.private_room("cellar", &[]).await;
        }
        let mut caller = Caller::connect(one.addr, &bob.token).await;
        caller.join(&lounge).await;
        // An offset, and nothing in the room that was joined.
        let message = id_of(&ada.send(&noise, "earlier").await);
        let path = format!("/api/chat/room/{noise}/read");
        assert_eq!(bob.ask(Method::POST, &path, json!({ "message": message })).await.0, 200);
        assert_eq!(caller.event().await[0], "messageRead");
        let memory = caller.cut();
        // So that this is longer ago than what a new server reads, by MongoDB's clock.
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            ada.say(&noise, "later").await;
        }
        let other = TestServer::start_with(&vars).await;
        let back = Caller::come_back(other.addr, &bob.token, memory).await;
        assert_eq!(back.recovered, !has_members);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_user_opens_nothing() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, eve) = (server.register("ada").await, server.register("eve").await);
    let room = id_of(&ada.private_room("cellar", &[]).await);
    let send = async |user: &User<'_>, room: &str, content: &str| {
        let body = json!({ "room": room, "sender": user.id, "content": content });
        let url = server.url("/api/chat/message");
        let request = client().post(url).bearer_auth(&user.token).header("Idempotency-Key", "k");
        let answer = request.json(&body).send().await.unwrap();
        (answer.status(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(send(&ada, &room, "secret").await.0, StatusCode::CREATED);
    let private = send(&eve, &room, "secret").await;
    assert_eq!(private, send(&eve, UNKNOWN, "secret").await);
    assert_eq!(private.0, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_of_a_room_is_for_its_members() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, bob) = (server.register("ada").await, server.register("bob").await);
    let room = id_of(&ada.private_room("cellar", &[&bob]).await);
    let neighbour = Neighbour::connect(&uri).await;
    let mut owner = Socket::connect(&server, &ada.token).await;
    let mut socket = Socket::connect(&server, &bob.token).await;
    owner.join(&room).await;
    socket.join(&room).await;
    let large = "x".repeat(300 * 1024);
    neighbour.insert(&room, &large).await;
    owner.resync(&room).await;
    socket.resync(&room).await;
    ada.remove(&room, &bob).await;
    assert_eq!(socket.next().await["event"], "memberRemoved");
    assert_eq!(socket.next().await["event"], "roomRemoved");
    assert_eq!(owner.next().await["event"], "memberRemoved");
    neighbour.insert(&room, &large).await;
    owner.resync(&room).await;
    socket.assert_silent(Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_names_and_metrics_say_nothing() {
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let (ada, eve) = (server.register("ada").await, server.register("eve").await);
    let room = id_of(&ada.private_room("hush-hush", &[]).await);
    ada.say(&room, "secret").await;
    // The name is not taken, neither for a public room nor for a private one.
    eve.private_room("hush-hush", &[]).await;
    eve.create_room("hush-hush").await;
    for path in ["/api/chat/rooms", "/api/chat/rooms?mine=true", "/api/chat/rooms?mine=false"] {
        let answer = eve.request(Method::GET, path, None).await.text().await.unwrap();
        assert!(!answer.contains(&room), "{path}: {answer}");
    }
    for path in ["/metrics", "/readyz", "/healthz"] {
        let answer = server.request(Method::GET, path, None, None).await.text().await.unwrap();
        for word in [room.as_str(), "hush-hush", "secret", &ada.id] {
            assert!(!answer.contains(word), "{path} has {word}");
        }
    }
}
