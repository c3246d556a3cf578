//! Front ends that are written with the client of the server, `/chat.js`. Each is a process of Node.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout_at};

use crate::account::Account;
use crate::stored::Stored;
use crate::transcript::Text;

/// A front end that is running.
pub struct App {
    name: String,
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// A message as a front end shows it.
#[derive(Debug, Deserialize)]
struct Shown {
    content: String,
    state: String,
    version: i64,
}

impl App {
    /// Starts one that logs in at `addr` and opens these rooms.
    pub fn start(addr: SocketAddr, account: &Account, rooms: &[String]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/chaos/app.mjs");
        let (name, password) = account.credentials();
        let mut process = Command::new("node")
            // Node 20 has it, and 22 needs no option for it.
            .arg("--experimental-websocket")
            .arg(script)
            .arg(format!("http://{addr}"))
            .args([name, password])
            .args(rooms)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if log::log_enabled!(log::Level::Debug) {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .kill_on_drop(true)
            .spawn()
            .expect("the front ends need Node.js 20 or later; --apps 0 leaves them out");
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { name: format!("the front end of {name}"), process, input, output }
    }

    /// Lets it write no more, and waits until nothing of it waits. Returns what is wrong.
    pub async fn finish(&mut self, until: Instant) -> Option<String> {
        // If it has ended, there is no answer either.
        let _ = self.input.write_all(b"finish\n").await;
        match timeout_at(until, self.output.next_line()).await {
            Ok(Ok(Some(line))) if line == "finished" => None,
            answer => Some(format!("{} does not finish: {answer:?}", self.name)),
        }
    }

    /// Ends it. Returns how many messages it shows, and where it shows something else than what is
    /// stored.
    pub async fn judge(self, stored: &Stored, until: Instant) -> (usize, Vec<String>) {
        let Self { name, mut process, input, mut output } = self;
        drop(input);
        let answer = timeout_at(until, output.next_line()).await;
        let Ok(Ok(Some(line))) = answer else {
            return (0, vec![format!("{name} shows nothing: {answer:?}")]);
        };
        let rooms: Result<HashMap<String, HashMap<String, Shown>>, _> = serde_json::from_str(&line);
        let rooms = match rooms {
            Ok(rooms) => rooms,
            Err(error) => return (0, vec![format!("{name} shows no messages: {error}: {line}")]),
        };
        let _ = process.wait().await;
        let (mut count, mut problems) = (0, Vec::new());
        for (room, shown) in rooms {
            count += shown.len();
            let nothing = HashMap::new();
            let texts = stored.texts.get(&room).unwrap_or(&nothing);
            let missing = missing(texts, &shown);
            problems.extend(missing.map(|missing| format!("{name}, {room}: {missing}")));
            for (id, text) in texts.iter().filter(|(id, _)| shown.contains_key(*id)) {
                let wanted = text.content.as_ref().map(|content| (content, text.version));
                let found = shown.get(id).map(|shown| (&shown.content, shown.version));
                if wanted != found {
                    problems
                        .push(format!("{name} shows {found:?} in {room}, stored is {wanted:?}"));
                }
            }
            let unknown = shown.iter().filter(|(id, _)| !texts.contains_key(*id));
            problems.extend(unknown.map(|(id, shown)| format!("{name} shows {id}: {shown:?}")));
            let waiting = shown.values().filter(|shown| shown.state != "stored");
            problems.extend(waiting.map(|shown| format!("{name} has not sent {shown:?}")));
        }
        (count, problems)
    }
}

/// Says which of the messages of a room are not shown, if there are any.
fn missing(texts: &HashMap<String, Text>, shown: &HashMap<String, Shown>) -> Option<String> {
    let shows = texts.iter().filter(|(_, text)| text.content.is_some());
    let stored: BTreeSet<_> = shows.map(|(id, _)| id).collect();
    let places = stored.iter().enumerate().filter(|(_, id)| !shown.contains_key(**id));
    let places: Vec<_> = places.map(|(place, _)| place).collect();
    let (first, last) = (places.first()?, places.last()?);
    Some(format!(
        "{} of {} messages are not shown, the first of them is number {first}, the last {last}",
        places.len(),
        stored.len(),
    ))
}
