//! The client bundles below the path of Socket.IO.

use reqwest::StatusCode;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::helpers::engine_io::{inflated, request};
use crate::helpers::{TestServer, client};

const ENDPOINT: &str = "/socket.io/";

/// The bundles of socket.io 4.8.1: name and SHA-256. Five of them were recorded of the original.
const BUNDLES: [(&str, &str); 8] = [
    ("socket.io.js", "238040837b5172381b31d5721c7ff8993bdb761be29547b503e3a9b4e14c0f13"),
    ("socket.io.js.map", "0656a912d96fe36d2aecb18e9b9bc678918468b61c21e8d5ae9661ee68b273e1"),
    ("socket.io.min.js", "b0e735814f8dcfecd6cdb8a7ce95a297a7e1e5f2727a29e6f5901801d52fa0c5"),
    ("socket.io.min.js.map", "4a708dc26393eb54c528a717bb2673f7dac47abf578dbf6b3b5e8ed96217d520"),
    ("socket.io.esm.min.js", "6e1fe90688a686dcd6baadc5a3bdc7aa741f8a01c147381af515a2ccca05f2fc"),
    (
        "socket.io.esm.min.js.map",
        "55053e267c50150a0565bc1b245fd32a620216bfb22c27ed955a2b4b65f2ae3a",
    ),
    (
        "socket.io.msgpack.min.js",
        "f0524c2523ebbf63d3d51cee565acad8d8b62a7ae0c517e116786d76ed6f40ad",
    ),
    (
        "socket.io.msgpack.min.js.map",
        "b997433e691501cb8593cfa3a2dd16e38c7891f017ee006e98b83e0e83e91b06",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_bundles_are_those_of_the_original() {
    let server = TestServer::start().await;
    for (name, digest) in BUNDLES {
        let target = format!("{ENDPOINT}{name}");
        let kind = if name.ends_with(".map") { "json" } else { "javascript" };
        for (headers, vary) in
            [(&[][..], vec![]), (&[("Accept-Encoding", "gzip")], vec!["Accept-Encoding"])]
        {
            let answer = request(server.addr, "GET", &target, headers, &[]).await;
            assert_eq!(answer.status, 200, "{name}");
            assert_eq!(
                answer.header("content-type"),
                [format!("application/{kind}; charset=utf-8")]
            );
            assert_eq!(answer.header("etag"), ["\"4.8.1\""]);
            assert_eq!(answer.header("cache-control"), ["public, max-age=0"]);
            assert_eq!(answer.header("vary"), vary);
            let plain =
                if headers.is_empty() { answer.body } else { inflated(&answer.body).into() };
            let hex: String =
                Sha256::digest(&plain).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, digest, "{name}");
        }
    }
    let known = [("If-None-Match", "\"4.8.1\"")];
    let answer = request(server.addr, "GET", "/socket.io/socket.io.js", &known, &[]).await;
    assert_eq!((answer.status, answer.body.len()), (304, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_has_other_bundles() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("socket.io.js"), "/* mine */").unwrap();
    let path = folder.path().to_str().unwrap();
    let server = TestServer::start_with(&[("SOCKET_IO_CLIENT_DIR", path)]).await;
    let url = server.url("/socket.io/socket.io.js");
    let answer = client().get(&url).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "/* mine */");
    let gzip = client().get(&url).header("Accept-Encoding", "gzip").send().await.unwrap();
    assert_eq!(inflated(&gzip.bytes().await.unwrap()), "/* mine */");
    let other = client().get(server.url("/socket.io/socket.io.min.js")).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::BAD_REQUEST);
    assert_eq!(other.json::<Value>().await.unwrap()["code"], 0);
    server.stop().await;
}
