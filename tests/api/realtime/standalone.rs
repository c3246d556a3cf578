//! A MongoDB without change streams: everything works within this process, and nothing is
//! promised beyond it.

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::TestServer;
use crate::helpers::mongod::standalone;
use crate::helpers::socket::{END, Socket};

/// The frames of one room to its end, in the form that has no position.
async fn frames(socket: &mut Socket) -> Vec<Value> {
    let mut frames = Vec::new();
    loop {
        let frame = socket.next().await;
        assert_eq!(frame["event"], "receiveMessage");
        assert_eq!(frame.get("position"), None);
        let is_last = frame["data"]["content"] == END;
        frames.push(frame);
        if is_last {
            return frames;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_delivers_within_the_process_in_the_order_of_the_acks() {
    let mongod = standalone().await;
    let uri = mongod.uri("chat");
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ready = server.request(Method::GET, "/readyz", None, None).await;
    assert_eq!(ready.status(), 200);
    let ready: Value = ready.json().await.unwrap();
    assert_eq!(ready, json!({ "status": "ready", "realtime": "local" }));

    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let mut socket = Socket::connect(&server, &ada.token).await;
        let ack = socket.ask("joinRoom", json!(room)).await;
        assert_eq!(ack, json!({ "room": room, "position": null, "recovered": false }));
        sockets.push(socket);
    }
    // Two at a time, by REST and by socket; what is sent after an ack comes after it.
    let mut sender = Socket::connect(&server, &ada.token).await;
    let mut rounds = Vec::new();
    for round in 0..20 {
        let message = json!({ "room": room, "content": format!("{round} by socket") });
        let text = format!("{round} by REST");
        let (by_socket, by_rest) =
            futures::join!(sender.ask("sendMessage", message), ada.send(&room, &text));
        rounds.push([by_socket["message"].clone(), by_rest]);
    }
    ada.send(&room, END).await;
    let mut transcripts = join_all(sockets.iter_mut().map(frames)).await;
    transcripts.dedup();
    let [transcript] = &transcripts[..] else { panic!("they disagree: {transcripts:?}") };
    assert_eq!(transcript.len(), 2 * rounds.len() + 1);
    for (heard, sent) in transcript.chunks(2).zip(&rounds) {
        let heard = [&heard[0]["data"], &heard[1]["data"]];
        let [one, other] = sent;
        assert!(heard == [one, other] || heard == [other, one], "{heard:?} for {sent:?}");
    }
    assert_eq!(ada.history(&room).await.len(), transcript.len());

    // There is no recovery, and that is said.
    let mut back = Socket::connect(&server, &ada.token).await;
    for since in ["1.1", "nonsense"] {
        let ack = back.join_since(&room, since).await;
        assert_eq!(ack, json!({ "room": room, "position": null, "recovered": false }));
        let resync = json!({ "event": "resync", "data": { "room": room, "position": null } });
        assert_eq!(back.next().await, resync);
        back.ask("leaveRoom", json!(room)).await;
    }
    drop((sockets, sender, back));
    drop(ada);
    server.stop().await;
    mongod.stop().await;
}
