//! Handshakes and bodies that begin and do not end, and their effect on other clients.

use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::clients::{LatencyProbe, connect_from};
use crate::{Checks, Target};

/// Messages a second to other clients.
const RATE: u64 = 50;
/// The longest deadline of the server: for a Socket.IO client that enters no namespace.
const LONGEST_DEADLINE: Duration = Duration::from_secs(60);

/// The time between two bytes of a slow client.
const BYTE_INTERVAL: Duration = Duration::from_secs(3);

const BEGINNINGS: [&str; 6] = [
    "",
    "GET /ws HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
     Content-Length: 5000\r\n\r\n{\"username\":\"",
    "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
     Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
];

pub async fn run(target: &Target, connections: usize, time: Duration) -> Checks {
    let mut checks = Checks::default();
    let server = &target.server;
    let room = server.room("others").await;
    let (p50, p99, complete) = LatencyProbe::start(server, &room, RATE, time).await.finish().await;
    println!("without them: p50 {p50:.1} ms, p99 {p99:.1} ms");
    checks.expect("all messages are received without them", complete);

    let addr = server.addr;
    let slow_clients: Vec<_> = (0..connections)
        .map(|number| {
            tokio::spawn(async move {
                sleep(Duration::from_millis(number as u64 / 4)).await;
                let Ok(mut stream) = connect_from(number, addr).await else { return None };
                let begun = Instant::now();
                let text = BEGINNINGS[number % BEGINNINGS.len()];
                stream.write_all(text.as_bytes()).await.ok()?;
                // A WebSocket sends nothing more; the others send a byte now and then.
                let silent = text.contains("Sec-WebSocket");
                let mut answer = [0; 1_024];
                while begun.elapsed() < LONGEST_DEADLINE * 2 {
                    let read = timeout(BYTE_INTERVAL, stream.read(&mut answer)).await;
                    match read {
                        Ok(Ok(0) | Err(_)) => return Some(begun.elapsed()),
                        Ok(Ok(_)) => {}
                        Err(_) if silent => {}
                        Err(_) if stream.write_all(b"x").await.is_err() => {
                            return Some(begun.elapsed());
                        }
                        Err(_) => {}
                    }
                }
                None
            })
        })
        .collect();
    sleep(Duration::from_secs(2)).await;
    let open = server.count(&["chat_connections"]).await;
    println!("{open} connections are open");
    let (_, with, complete) = LatencyProbe::start(server, &room, RATE, time).await.finish().await;
    println!("with them: p99 {with:.1} ms");
    checks.expect("all messages are received with them", complete);
    let ended = join_all(slow_clients).await;
    let times: Vec<_> = ended.into_iter().filter_map(Result::unwrap).collect();
    let longest = times.iter().max().copied().unwrap_or_default();
    let in_time = times.len() == connections && longest <= LONGEST_DEADLINE;
    let figures = format!("{} of {connections}, the last after {longest:.1?}", times.len());
    checks.check("all are closed in time", in_time, figures);
    let empty = target.emptied(LONGEST_DEADLINE).await;
    checks.check("no session is left", empty, String::new());
    let (_, after, _) = LatencyProbe::start(server, &room, RATE, time).await.finish().await;
    checks.check_delays(p99, with, after);
    checks
}
