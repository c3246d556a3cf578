//! `LEGACY_TRUST=true`: whoever comes is let in and believed, as the original did.

use bson::oid::ObjectId;
use serde_json::json;

use crate::helpers::TestServer;
use crate::helpers::socket::Socket;

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
    // A token that is none is no anonymous client.
    let closed = Socket::connect_to(&server, "/ws?token=wrong").await.closed().await;
    assert_eq!(closed, Some((4401, "Invalid token".to_owned())));
    drop((anonymous, known));
    drop(ada);
    server.stop().await;
}
