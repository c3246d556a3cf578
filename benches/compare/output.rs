//! Writes the results to the files that are kept in the repository.

use std::fmt::Write;
use std::path::Path;

use crate::Result;
use crate::install::benches;
use crate::options::Options;
use crate::plot;
use crate::process::{machine, raise_file_limit};
use crate::report::Results;
use crate::summary;

/// The notes before the table.
const HOW_TO_READ: &str = "\
- **Processes.** Each server is one process. This server and axum have one thread for each core. The Node server \
(`node/server.js`), Bun and uWS have one thread for JavaScript, as `node server.js` starts it.
- **Peers.** Bun, uWS and axum are small servers with the same routes, events and documents (`peers`), written as somebody \
would who wants speed. In each row, the best of them is bold. None of them has a change stream, an order of messages, \
recovery, rate limits, `ETag`, idempotency keys or metrics: what these cost is in this server's figures only.
- **Passwords.** The Node server uses bcryptjs, an implementation in JavaScript with a cost of 10, in that one thread. \
This server and the peers hash with argon2id (19 MiB, two passes), in threads of their own.
- **The floor** makes one write for each delivery and does nothing else. At a high rate this server delivers more than \
the floor, since messages that wait for the same socket go out in one write.
- **Overload on purpose.** Three groups of rows give Node more than it can do: 20 logins at once, flat out, and four times \
Node's maximum. They show what happens then, not an everyday load.
- **¹ The mix:** 200 messages a second to 500 sockets, beside 20 logins at once, four histories of 10,000 messages a second, \
and five more sockets that do not read.
- **² Coming back:** this server sends what was missed, which is in its figures. On the others each socket only joins its \
room again. 400 connections are made at a time, since a longer queue of a listener would lose some.
- **Between instances**, Bun and uWS use the adapter of Socket.IO over MongoDB.
";

/// Writes `RESULTS.md`, `results.svg`, and the table of the README.
pub async fn write(results: &Results, options: &Options) -> Result<()> {
    let folder = benches();
    let now = bson::DateTime::now().try_to_rfc3339_string()?;
    let (date, _) = now.split_once('T').ok_or("no date")?;
    let node = tokio::process::Command::new("node").arg("--version").output().await?;
    let node = String::from_utf8_lossy(&node.stdout).trim().to_owned();
    let machine = machine();
    let packages = format!("**Packages.** {}.", results.packages.join("; "));
    let notes = results.notes.iter().chain([&packages]);
    let notes: String = notes.map(|note| format!("- {note}\n")).collect();
    let mut out = format!(
        "# Results of `cargo bench --bench compare`\n\n{date}; {machine}; Node {node}. Server, \
         MongoDB and load share the machine{}; a process may open {} files. Each figure of the table was taken for {:.0} s \
         after {:.0} s of warming up, REST over 32 connections. CPU is that of the server process.\n\n\
         ![The results as a plot](results.svg)\n\n{HOW_TO_READ}{notes}\n{}\n",
        results.others.as_deref().unwrap_or_default(),
        raise_file_limit()?,
        options.measure().as_secs_f64(),
        options.warm_up().as_secs_f64(),
        results.table()
    );
    for curve in &results.curves {
        let _ = write!(out, "\n## {}\n\n{}", curve.title, curve.table());
    }
    std::fs::write(folder.join("RESULTS.md"), out)?;
    let subtitle = format!("{date}; {machine}; Node {node}");
    std::fs::write(folder.join("results.svg"), plot::svg(results, &subtitle))?;
    draw_readme()
}

/// Draws the table of the README from `RESULTS.md`.
pub fn draw_readme() -> Result<()> {
    let results = std::fs::read_to_string(benches().join("RESULTS.md"))?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path)?;
    let drawn = summary::draw(&readme, &summary::table(&results));
    std::fs::write(path, drawn.ok_or("README.md has no marks for the table")?)?;
    Ok(())
}
