//! Sockets that send messages and close directly after them, like a closed browser tab.

use std::sync::Arc;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};
use mongodb::Client;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::endings::{Ending, Leaver, Transport, endings, missing_and_misordered};
use crate::server::token;
use crate::{Checks, Target};

/// How many connect and close at the same time.
const AT_ONCE: usize = 200;
/// How many share a room. Each receives the messages of the others while it connects.
const PER_ROOM: usize = 20;
/// The time between the first messages of two silent clients.
const SPACING: Duration = Duration::from_millis(20);
/// How long after the last stored message the missing ones count as lost.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn run(target: &Target, sockets: usize) -> Checks {
    let mut checks = Checks::default();
    let client = Client::with_uri_str(target.mongo.uri("siege")).await.unwrap();
    let messages = client.database("siege").collection::<Document>("messages");
    for transport in [Transport::Plain, Transport::WebSocket, Transport::Polling] {
        let ways = endings(transport).iter().chain(&[Ending::Silence]);
        for (&ending, count) in ways.flat_map(|ending| [1, 2, 10, 64].map(|count| (ending, count)))
        {
            let name = format!("{transport:?}, {ending:?}, {count} messages");
            let mut rooms = Vec::new();
            for group in 0..sockets.div_ceil(PER_ROOM) {
                rooms.push(target.server.room(&format!("{name}, {group}")).await);
            }
            let at_once = if ending == Ending::Silence { sockets } else { AT_ONCE };
            let gate = Arc::new(Semaphore::new(at_once));
            let mut leaving = JoinSet::new();
            for number in 0..sockets {
                let (gate, room) = (Arc::clone(&gate), rooms[number / PER_ROOM].clone());
                let (addr, token) = (target.server.addr, token());
                leaving.spawn(async move {
                    let _turn = gate.acquire().await;
                    if ending == Ending::Silence {
                        // Silent clients keep their connections and do not wait for each other;
                        // this spreads them.
                        sleep(SPACING * number as u32).await;
                    }
                    let leaver = Leaver::connect(addr, transport, &token, &room, number).await;
                    leaver.send_and_end(count, ending).await;
                });
            }
            leaving.join_all().await;
            let stored = settled(&messages, &rooms, sockets * count).await;
            let contents = stored.iter().map(String::as_str);
            let (missing, misordered) = missing_and_misordered(contents, sockets, count);
            let figures = format!("{missing} missing, {misordered} out of order");
            checks.check(&name, missing == 0 && misordered == 0, figures);
        }
    }
    let unprocessed = target.server.count(&["chat_unprocessed_messages_total"]).await;
    checks.check("no message was left unprocessed", unprocessed == 0, unprocessed.to_string());
    checks
}

/// The contents of these rooms in the order of their ids, when there are `expected` of them or no
/// more are stored.
async fn settled(
    messages: &mongodb::Collection<Document>,
    rooms: &[String],
    expected: usize,
) -> Vec<String> {
    let rooms: Vec<ObjectId> = rooms.iter().map(|room| room.parse().unwrap()).collect();
    let room = doc! { "room": { "$in": rooms } };
    let (mut count, mut since) = (0, Instant::now());
    while count < expected as u64 && since.elapsed() < SETTLE_TIMEOUT {
        let now = messages.count_documents(room.clone()).await.unwrap();
        if now > count {
            (count, since) = (now, Instant::now());
        }
        sleep(Duration::from_millis(100)).await;
    }
    let mut found = messages.find(room).sort(doc! { "_id": 1 }).await.unwrap();
    let mut contents = Vec::new();
    while found.advance().await.unwrap() {
        contents.push(found.current().get_str("content").unwrap().to_owned());
    }
    contents
}
