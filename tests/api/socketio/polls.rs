//! Polls as clients and proxies send them.

use serde_json::json;

use crate::helpers::engine_io::{Poller, inflated, request};
use crate::helpers::{TestServer, client};

const ENDPOINT: &str = "/socket.io/";

#[tokio::test(flavor = "multi_thread")]
async fn of_parameters_with_one_name_the_last_counts() {
    let server = TestServer::start().await;
    for (query, status) in [
        ("EIO=4&transport=polling&EIO=4&transport=polling", 200),
        ("EIO=3&EIO=4&transport=websocket&transport=polling", 200),
        ("EIO=4&EIO=3&transport=polling", 400),
        ("EIO=4&transport=polling&transport=foo", 400),
    ] {
        let target = format!("{ENDPOINT}?{query}");
        let answer = request(server.addr, "GET", &target, &[], &[]).await;
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_is_in_gzip_for_who_reads_it() {
    let server = TestServer::start().await;
    let ada = server.register("ada").await;
    let room = ada.create_room("lounge").await;
    let poller = Poller::open(server.addr, ENDPOINT).await;
    let connect = json!({ "token": ada.token });
    poller.post(&format!("40{connect}")).await.assert_ok();
    poller.packets().await;
    let join = json!(["joinRoom", room]);
    poller.post(&format!("420{join}")).await.assert_ok();
    poller.packets().await;

    let gzip = [("Accept-Encoding", "gzip, deflate, br")];
    let cases: [(&[_], usize, bool); 5] = [
        (&[], 5_000, false),
        (&gzip, 200, false),
        (&gzip, 1_000, true),
        (&gzip, 100_000, true),
        (&[("Accept-Encoding", "gzip;q=0, br")], 5_000, false),
    ];
    for (headers, length, is_compressed) in cases {
        let content = "chat ".repeat(length / 5);
        ada.send(&room, &content).await;
        let answer = poller.request("GET", headers, &[]).await;
        assert_eq!(answer.status, 200);
        let encoding = answer.header("content-encoding");
        assert_eq!(encoding, if is_compressed { vec!["gzip"] } else { vec![] }, "{length}");
        let size = answer.header("content-length")[0].parse::<usize>().unwrap();
        assert_eq!(size, answer.body.len());
        let text = if is_compressed {
            assert!(size < 1_000, "{size}");
            inflated(&answer.body)
        } else {
            answer.text().to_owned()
        };
        assert!(text.starts_with("42[\"receiveMessage\",{") && text.contains(&content), "{text}");
    }
    // Lists of REST are as the original had them.
    let path = format!("/api/chat/messages/{room}");
    let list = client().get(server.url(&path)).bearer_auth(&ada.token);
    let list = list.header("Accept-Encoding", "gzip").send().await.unwrap();
    assert!(
        !list.headers().contains_key("content-encoding") && list.headers().contains_key("etag")
    );
    server.stop().await;
}
