//! Handshakes that are begun, bodies that do not come, and what others notice of it.

use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::crowd::{Witnesses, connect_from};
use crate::{Besieged, Verdict};

/// Messages a second that others hear.
const RATE: u64 = 50;
/// The longest deadline there is: of a Socket.IO client that enters no namespace.
const LONGEST: Duration = Duration::from_secs(60);

/// Between two bytes of a slow one.
const PACE: Duration = Duration::from_secs(3);

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

pub async fn run(besieged: &Besieged, connections: usize, time: Duration) -> Verdict {
    let mut verdict = Verdict::default();
    let server = &besieged.server;
    let room = server.room("others").await;
    let (p50, p99, whole) = Witnesses::start(server, &room, RATE, time).await.verdict().await;
    println!("without them: p50 {p50:.1} ms, p99 {p99:.1} ms");
    verdict.expect("all is heard without them", whole);

    let addr = server.addr;
    let dripping: Vec<_> = (0..connections)
        .map(|number| {
            tokio::spawn(async move {
                sleep(Duration::from_millis(number as u64 / 4)).await;
                let Ok(mut stream) = connect_from(number, addr).await else { return None };
                let begun = Instant::now();
                let text = BEGINNINGS[number % BEGINNINGS.len()];
                stream.write_all(text.as_bytes()).await.ok()?;
                // On WebSockets silence is enough; elsewhere a byte comes now and then.
                let silent = text.contains("Sec-WebSocket");
                let mut answer = [0; 1_024];
                while begun.elapsed() < LONGEST * 2 {
                    let read = timeout(PACE, stream.read(&mut answer)).await;
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
    let (_, with, whole) = Witnesses::start(server, &room, RATE, time).await.verdict().await;
    println!("with them: p99 {with:.1} ms");
    verdict.expect("all is heard with them", whole);
    let ended = join_all(dripping).await;
    let times: Vec<_> = ended.into_iter().filter_map(Result::unwrap).collect();
    let longest = times.iter().max().copied().unwrap_or_default();
    let in_time = times.len() == connections && longest <= LONGEST;
    let told = format!("{} of {connections}, the last after {longest:.1?}", times.len());
    verdict.check("all are closed in time", in_time, told);
    let empty = besieged.emptied(LONGEST).await;
    verdict.check("no session is left", empty, String::new());
    let (_, after, _) = Witnesses::start(server, &room, RATE, time).await.verdict().await;
    verdict.check_delays(p99, with, after);
    verdict
}
