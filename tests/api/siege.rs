//! Clients that take their time, which are ended, and a server that stops, which takes nobody's.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::helpers::mongod::{Neighbour, fresh_database};
use crate::helpers::program::Program;
use crate::helpers::socket::Socket;
use crate::helpers::socket_io::Caller;
use crate::helpers::{TestServer, alone, client, metric};

/// How long the head of a request, or a part of its answer, may take at most.
const PATIENCE: Duration = Duration::from_secs(16);
/// What a loaded machine may take longer.
const SLACK: Duration = Duration::from_secs(8);

/// Counts those that took longer.
const SLOW: &str = "chat_limits_reached_total{limit=\"slow_request\"}";

/// A whole request, and the beginning of another.
const WHOLE: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
const BEGUN: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ";

/// Sends a beginning and then a byte every half second; how long it is until the server has ended
/// the connection.
async fn drip(addr: SocketAddr, beginning: String) -> Duration {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(beginning.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let dripping = async {
        while writer.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(500)).await;
        }
    };
    let ended = async {
        let mut said = Vec::new();
        // With an error when the last bytes came too late.
        let _ = reader.read_to_end(&mut said).await;
    };
    let racing = async {
        tokio::select! {
            () = dripping => {}
            () = ended => {}
        }
    };
    timeout(PATIENCE * 3, racing).await.expect("it is ended at all");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_by_bytes_is_not_waited_for() {
    let _alone = alone().await;
    let server = TestServer::start().await;
    let before = metric(server.addr, "chat_connections").await;
    let beginnings = [
        String::new(),
        BEGUN.to_owned(),
        // The first request on a connection is not the only one that can be slow.
        format!("{WHOLE}{BEGUN}"),
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: webso".to_owned(),
        // Nobody reads the body of an unknown path.
        "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".to_owned(),
    ];
    let slow = (0..250).map(|n| drip(server.addr, beginnings[n % beginnings.len()].clone()));
    let others = async {
        for _ in 0..20 {
            let asked = server.request(Method::GET, "/healthz", None, None);
            let answer = timeout(Duration::from_secs(5), asked).await.expect("in time");
            assert_eq!(answer.status(), StatusCode::OK);
            sleep(Duration::from_millis(100)).await;
        }
    };
    let (ended, ()) = tokio::join!(join_all(slow), others);
    let longest = ended.into_iter().max().unwrap();
    assert!(longest < PATIENCE + SLACK, "{longest:?}");
    assert!(metric(server.addr, "chat_connections").await <= before + 1);
    assert!(metric(server.addr, SLOW).await >= 50);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_is_not_kept() {
    let _alone = alone().await;
    let uri = fresh_database().await;
    let server = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = server.register("ada").await;
    let room = ada.create_room("large").await;
    let neighbour = Neighbour::connect(&uri).await;
    neighbour.insert_all(&room, (0..300).map(|_| "x".repeat(100_000))).await;
    let request = format!(
        "GET /api/chat/messages/{room} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
        ada.token
    );
    let mut deaf = Vec::new();
    for _ in 0..10 {
        let narrow = TcpSocket::new_v4().unwrap();
        narrow.set_recv_buffer_size(16 * 1024).unwrap();
        let mut stream = narrow.connect(server.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        deaf.push(stream);
    }
    // One takes its time, longer than one that takes nothing may, and has it all.
    let reading = async {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let request = request.replace("Host: x", "Host: x\r\nConnection: close");
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut read, mut part) = (0, vec![0; 500_000]);
        loop {
            let count = stream.read(&mut part).await.unwrap();
            if count == 0 {
                return read;
            }
            read += count;
            sleep(Duration::from_millis(if read < 20_000_000 { 250 } else { 0 })).await;
        }
    };
    let ended = async {
        // The one that reads, and the one that asks.
        while metric(server.addr, "chat_connections").await > 2 {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let both = async { tokio::join!(reading, timeout(PATIENCE * 2 + SLACK, ended)) };
    let (read, ended) = timeout(Duration::from_secs(120), both).await.unwrap();
    ended.expect("those who read nothing are gone");
    assert!(read > 300 * 100_000, "{read}");
    assert!(metric(server.addr, SLOW).await >= 1);
    drop(deaf);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_kept_as_long_as_was_asked_for() {
    for (keep_alive, least, most) in [("0", 0, 1_500), ("2s", 1_500, 5_500)] {
        let server = TestServer::start_with(&[("KEEP_ALIVE", keep_alive)]).await;
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(WHOLE.as_bytes()).await.unwrap();
        let asked = Instant::now();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        ended.expect("it is ended before a default would end it").unwrap();
        let kept = asked.elapsed().as_millis();
        assert!((least..most).contains(&kept), "{keep_alive}: {kept} ms");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_kept_alive_do_not_hold_a_stop_up() {
    let uri = fresh_database().await;
    let server = Program::start_on(&uri, &[("SHUTDOWN_TIMEOUT", "60")]);
    let addr = server.addr;
    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(WHOLE.as_bytes()).await.unwrap();
    idle.read_exact(&mut [0; 12]).await.unwrap();
    let (asked, answered) = tokio::sync::oneshot::channel();
    let busy = tokio::spawn(async move {
        let mut asked = Some(asked);
        let client = client();
        while client.get(format!("http://{addr}/healthz")).send().await.is_ok() {
            if let Some(asked) = asked.take() {
                let _ = asked.send(());
            }
        }
    });
    answered.await.unwrap();
    let begun = Instant::now();
    let ended = tokio::spawn(async move { server.terminate() });
    let ended = timeout(Duration::from_secs(30), ended).await.expect("it ends long before that");
    assert!(ended.unwrap().success());
    // An idle connection would be kept for six.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    busy.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_sockets_are_told_of_a_stop_and_go_on_elsewhere() {
    const OF_EACH: usize = 150;
    let _alone = alone().await;
    let uri = fresh_database().await;
    let other = TestServer::start_with(&[("MONGO_URI", &uri)]).await;
    let ada = other.register("ada").await;
    let room = ada.create_room("busy").await;
    let server = Program::start_on(&uri, &[]);
    let (mut sockets, mut callers) = (Vec::new(), Vec::new());
    for _ in 0..OF_EACH {
        let mut socket = Socket::connect_at(server.addr, &ada.token).await;
        let since = socket.join(&room).await;
        sockets.push((socket, since));
        let mut caller = Caller::connect(server.addr, &ada.token).await;
        caller.join(&room).await;
        callers.push(caller);
    }
    let addr = server.addr;
    let begun = Instant::now();
    let stopping = tokio::spawn(async move { server.terminate() });
    let unready = async {
        let ready = || client().get(format!("http://{addr}/readyz")).send();
        while ready().await.expect("it answers while it drains").status() == StatusCode::OK {}
    };
    let moved = sockets.iter_mut().map(async |(socket, since)| {
        let closed = socket.closed().await;
        let at = begun.elapsed();
        assert_eq!(closed, Some((1001, "the server stops".to_owned())));
        *socket = Socket::connect(&other, &ada.token).await;
        socket.recover(&room, &*since).await;
        at
    });
    let called = callers.into_iter().map(async |mut caller| {
        caller.closed().await;
        Caller::recover(other.addr, &ada.token, &caller.cut()).await
    });
    let ((), mut closed, mut callers) = tokio::join!(unready, join_all(moved), join_all(called));
    closed.sort();
    // One millisecond each, at moments that nobody knows.
    let spread = closed[OF_EACH - 1] - closed[0];
    assert!(spread > Duration::from_millis(100), "{spread:?}");
    assert!(stopping.await.unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    ada.send(&room, "go on").await;
    for (socket, _) in &mut sockets {
        assert_eq!(socket.heard().await.content, "go on");
    }
    for caller in &mut callers {
        assert_eq!(caller.heard().await.1, "go on");
    }
    drop((sockets, callers));
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sockets_of_revoked_users_are_closed_in_time_and_no_others() {
    const USERS: usize = 20;
    const OF_EACH: usize = 3;
    let _alone = alone().await;
    let uri = fresh_database().await;
    let servers: [_; 2] = TestServer::instances(&uri).await;
    let witness = servers[0].register("witness").await;
    let room = witness.create_room("busy").await;
    let mut users = Vec::new();
    for number in 0..USERS {
        users.push(servers[number % 2].register(&format!("user {number}")).await);
    }
    let (mut sockets, mut callers) = (Vec::new(), Vec::new());
    for (number, user) in users.iter().enumerate() {
        for n in 0..OF_EACH {
            let server = &servers[n % 2];
            let mut socket = Socket::connect(server, &user.token).await;
            socket.join(&room).await;
            sockets.push((number, socket));
            let mut caller = Caller::connect(server.addr, &user.token).await;
            caller.join(&room).await;
            callers.push((number, caller));
        }
    }
    let is_revoked = |number: usize| number.is_multiple_of(4);
    let flowing = async {
        for n in 0..40 {
            witness.send(&room, &format!("before {n}")).await;
        }
    };
    let path = "/api/auth/logout-all";
    let revoking = async {
        for user in users.iter().enumerate().filter(|(number, _)| is_revoked(*number)) {
            let answer = user.1.request(Method::POST, path, None).await;
            assert_eq!(answer.status(), StatusCode::OK);
        }
        Instant::now()
    };
    let ((), revoked) = tokio::join!(flowing, revoking);
    witness.send(&room, "behind").await;
    let plain = sockets.iter_mut().map(async |(number, socket)| {
        loop {
            match socket.next_or_closed().await {
                Ok(frame) if is_revoked(*number) => {
                    assert_ne!(frame["data"]["content"], "behind", "user {number}");
                }
                Ok(frame) if frame["data"]["content"] == "behind" => return,
                Ok(_) => {}
                Err(closed) => {
                    assert_eq!(closed, Some((4401, "token_revoked".to_owned())));
                    assert!(is_revoked(*number), "user {number}");
                    return;
                }
            }
        }
    });
    let called = callers.iter_mut().map(async |(number, caller)| {
        if is_revoked(*number) {
            caller.closed().await;
            return;
        }
        while caller.heard().await.1 != "behind" {}
    });
    tokio::join!(join_all(plain), join_all(called));
    assert!(revoked.elapsed() < Duration::from_secs(3), "{:?}", revoked.elapsed());
    let mut closed = 0;
    for server in &servers {
        for wire in ["ws", "socket.io"] {
            let reason = format!("chat_disconnects_total{{reason=\"revoked\",wire=\"{wire}\"}}");
            closed += metric(server.addr, &reason).await;
        }
    }
    assert_eq!(closed as usize, USERS / 4 * OF_EACH * 2);
    drop((sockets, callers));
    for server in servers {
        server.stop().await;
    }
}
