//! `LEGACY_TRUST=true`: whoever comes is let in and believed, as the original did.

use std::time::Duration;

use bson::oid::ObjectId;
use serde_json::json;

use crate::helpers::mongod::fresh_database;
use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::{Caller, Memory};
use crate::helpers::{TestServer, open_websocket, token_for};

#[tokio::test(flavor = "multi_thread")]
async fn with_legacy_trust_anonymous_sockets_join_and_send_as_anyone() {
    let server = TestServer::start_with(&[("LEGACY_TRUST", "true")]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut anonymous = Socket::connect_to(&server, "/ws").await;
    let mut known = Socket::connect(&server, &ada.token).await;
    anonymous.join(&room).await;
    known.join(&room).await;

    let somebody = ObjectId::new().to_hex();
    for (sender, content) in [(&ada.id, "as ada"), (&somebody, "as somebody")] {
        let message = json!({ "room": room, "sender": sender, "content": content });
        for socket in [&mut anonymous, &mut known] {
            let ack = socket.ask("sendMessage", message.clone()).await;
            assert_eq!(ack["message"]["sender"], *sender, "{ack}");
        }
        for socket in [&mut anonymous, &mut known] {
            for _ in 0..2 {
                let frame = socket.next().await;
                assert_eq!(frame["data"]["sender"], *sender);
                assert_eq!(frame["data"]["content"], content);
            }
        }
    }
    // Nobody in particular has to say who sends.
    let ack = anonymous.ask("sendMessage", json!({ "room": room, "content": "x" })).await;
    assert!(ack["error"].is_string(), "{ack}");
    drop((anonymous, known));
    drop(ada);
    server.stop().await;
}

const LEGACY: [(&str, &str); 1] = [("LEGACY_TRUST", "true")];

#[tokio::test(flavor = "multi_thread")]
async fn with_legacy_trust_a_token_that_does_not_verify_counts_as_none() {
    let uri = fresh_database().await;
    let server = Program::start_on(&uri, &LEGACY);
    let beside = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = beside.register("ada").await;
    let room = ada.create_room("lounge").await;
    let expired = token_for(&ada.id, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bare = &ada.token;
    for (headers, query) in [
        (vec![], format!("token={expired}")),
        (vec![], "token=null".to_owned()),
        (vec![("Authorization", bare.as_str())], String::new()),
        (vec![("Authorization", "Bearer undefined")], String::new()),
    ] {
        let path = format!("/ws?{query}");
        let (stream, _) = open_websocket(server.addr, &path, &headers).await.unwrap();
        let mut socket = Socket::of(stream);
        socket.join(&room).await;
        let message = json!({ "room": room, "sender": ada.id, "content": "as ada" });
        assert_eq!(socket.ask("sendMessage", message).await["message"]["sender"], ada.id);
        assert_eq!(socket.next().await["data"]["content"], "as ada");
    }
    for auth in [
        json!({ "token": "user-42" }),
        json!({ "token": expired }),
        json!({ "token": format!("Bearer {expired}") }),
        json!({ "token": null }),
        json!({ "token": "x", "pid": "y", "offset": "z" }),
    ] {
        let caller = Caller::try_connect(server.addr, auth.clone(), Memory::default()).await;
        let mut caller = caller.unwrap_or_else(|refusal| panic!("{auth}: {refusal}"));
        assert_eq!(caller.memory.pid, None);
        // An answer is given to who asks for one; to others nothing is said, as by the original.
        assert_eq!(caller.ask("joinRoom", json!(room)).await["room"], room);
        assert_eq!(caller.ask("leaveRoom", json!(room)).await, json!({ "room": room }));
        assert_eq!(caller.ask("joinRoom", json!("lounge")).await["code"], "invalid_field");
        assert_eq!(caller.ask("shout", json!(1)).await["code"], "unknown_event");
        for event in ["joinRoom", "leaveRoom", "shout"] {
            caller.emit(event, json!("lounge")).await;
        }
        caller.assert_nothing_came().await;
    }
    let said = "LEGACY_TRUST let a socket in as if it had no token: expired, in ?token=";
    let lines = server.log().iter().filter(|line| line.contains("as if it had no token")).count();
    assert_eq!(lines, 1);
    assert!(server.log().iter().any(|line| line.contains(said)), "{:?}", server.log());
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_legacy_trust_no_session_ends_by_time() {
    let vars = [("LEGACY_TRUST", "true"), ("RECOVERY_WINDOW", "1")];
    let server = TestServer::start_with(&vars).await;
    let ada = server.register("ada").await;
    let rooms = [ada.create_room("one").await, ada.create_room("two").await];
    let short = token_for(&ada.id, 2);
    let mut plain = Socket::connect(&server, &short).await;
    plain.join(&rooms[0]).await;
    let mut caller = Caller::connect(server.addr, &short).await;
    assert!(caller.memory.pid.is_some());
    caller.join(&rooms[0]).await;
    // The token and the record of the session are over; the record may even be gone.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    caller.ask("leaveRoom", json!(rooms[0])).await;
    caller.join(&rooms[1]).await;
    plain.join(&rooms[1]).await;
    let message = json!({ "room": rooms[1], "content": "still here" });
    assert_eq!(caller.ask("sendMessage", message).await["message"]["sender"], ada.id);
    assert_eq!(plain.next().await["data"]["content"], "still here");
    // A newer token makes none of them end either.
    let newer = json!({ "token": token_for(&ada.id, 1) });
    assert!(plain.ask("authenticate", newer).await["expires"].is_u64());
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    plain.join(&rooms[1]).await;
    server.stop().await;
}
