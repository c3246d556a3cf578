//! Subprotocols of WebSockets.

use crate::helpers::engine_io::{Poller, Ws};
use crate::helpers::{TestServer, open_websocket};
use crate::socketio::echo::Echo;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_subprotocol_is_agreed_to_on_both_carriers_and_in_an_upgrade() {
    let server = TestServer::start().await;
    let echoes = Echo::of_each_kind().await;
    let offered = [("Sec-WebSocket-Protocol", "chat.v1, chat.v0")];
    let chat = [(server.addr, "/ws"), (server.addr, "/socket.io/?EIO=4&transport=websocket")];
    let engines =
        echoes.each_ref().map(|echo| (echo.addr, "/engine.io/?EIO=4&transport=websocket"));
    for (addr, path) in chat.into_iter().chain(engines) {
        let (_, agreed) = open_websocket(addr, path, &offered).await.unwrap();
        assert_eq!(agreed.as_deref(), Some("chat.v1"), "{path}");
        let (_, agreed) = open_websocket(addr, path, &[]).await.unwrap();
        assert_eq!(agreed, None, "{path}");
        for odd in ["a/b", "json,", "json,json", "\"json\"", "<b>"] {
            let refused = open_websocket(addr, path, &[("Sec-WebSocket-Protocol", odd)]).await;
            assert_eq!(refused.map(|_| ()), Err(400), "{odd} at {path}");
        }
    }
    for echo in &echoes {
        let mut upgraded = Err(0);
        // On a busy machine, a session of half a second may end before its upgrade.
        for _ in 0..5 {
            let poller = Poller::open(echo.addr, "/engine.io/").await;
            upgraded = open_websocket(echo.addr, &poller.target("websocket"), &offered).await;
            if upgraded.is_ok() {
                break;
            }
        }
        let (stream, agreed) = upgraded.unwrap();
        assert_eq!(agreed.as_deref(), Some("chat.v1"));
        let mut ws = Ws::of(stream);
        ws.send("2probe").await;
        assert_eq!(ws.text().await, "3probe");
    }
    server.stop().await;
}
