//! Members that never read, in a busy room.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::time::sleep;

use crate::clients::LatencyProbe;
use crate::server::token;
use crate::{Checks, Target};

/// Messages a second.
const RATE: u64 = 200;
/// The bytes that may be queued for one socket, in KiB.
const MAX_QUEUED: u64 = 2 * 1_024;

pub async fn run(target: &Target, sockets: usize, time: Duration) -> Checks {
    let mut checks = Checks::default();
    let server = &target.server;
    let room = server.room("without them").await;
    let (p50, p99, complete) = LatencyProbe::start(server, &room, RATE, time).await.finish().await;
    println!("without them: p50 {p50:.1} ms, p99 {p99:.1} ms");
    checks.expect("all messages are received without them", complete);

    let room = server.room("with them").await;
    let mut not_reading = Vec::new();
    for _ in 0..sockets {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut stream = socket.connect(server.addr).await.unwrap();
        let upgrade = format!(
            "GET /ws?token={} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            token()
        );
        let join = json!({ "event": "joinRoom", "data": room }).to_string();
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        stream.write_all(&crate::grammar::text_frame(&join)).await.unwrap();
        not_reading.push(stream);
    }
    sleep(Duration::from_secs(2)).await;
    let before = server.memory();
    let watching = Arc::clone(server);
    let watcher = tokio::spawn(async move {
        let mut most = 0;
        loop {
            most = most.max(watching.memory());
            if watching.get("/healthz").await.is_none() {
                return most;
            }
            sleep(Duration::from_millis(200)).await;
            if watching.count(&["chat_sessions"]).await <= 1 {
                return most;
            }
        }
    });
    let (_, with, complete) = LatencyProbe::start(server, &room, RATE, time).await.finish().await;
    println!("with them: p99 {with:.1} ms");
    checks.expect("all messages are received with them", complete);
    drop(not_reading);
    let empty = target.emptied(Duration::from_secs(60)).await;
    checks.check("no session is left", empty, String::new());
    let grown = watcher.await.unwrap().saturating_sub(before);
    let bounded = grown < MAX_QUEUED * sockets as u64;
    checks.check("memory stays within the queues", bounded, format!("{grown} KiB more"));
    let room = server.room("after them").await;
    let (_, after, _) = LatencyProbe::start(server, &room, RATE, time).await.finish().await;
    checks.check_delays(p99, with, after);
    checks
}
