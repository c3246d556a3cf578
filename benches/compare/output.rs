//! Writes the results to the files that are kept in the repository.

use std::fmt::Write;
use std::path::Path;

use crate::Result;
use crate::options::Options;
use crate::plot;
use crate::process::machine;
use crate::report::Results;

/// The notes before the table.
const HOW_TO_READ: &str = "\
- **Processes.** Each server is one process. This server has one thread for each core. The Node server (`node/server.js`) \
has one thread for JavaScript, as `node server.js` starts it. The floor writes from one thread at a time.
- **Passwords.** The Node server uses bcryptjs, an implementation in JavaScript with a cost of 10, in that one thread. \
This server hashes with argon2id, in threads of their own.
- **The floor** makes one write for each delivery and does nothing else. At a high rate this server delivers more than \
the floor, since messages that wait for the same socket go out in one write.
- **Overload on purpose.** Three groups of rows give Node more than it can do: 20 logins at once, flat out, and four times \
Node's maximum. They show what happens then, not an everyday load.
";

/// Writes `RESULTS.md` and `results.svg`.
pub async fn write(results: &Results, folder: &Path, options: &Options) -> Result<()> {
    let now = bson::DateTime::now().try_to_rfc3339_string()?;
    let (date, _) = now.split_once('T').ok_or("no date")?;
    let node = tokio::process::Command::new("node").arg("--version").output().await?;
    let node = String::from_utf8_lossy(&node.stdout).trim().to_owned();
    let machine = machine();
    let mut out = format!(
        "# Results of `cargo bench --bench compare`\n\n{date}; {machine}; Node {node}. Server, \
         MongoDB and load share the machine{}. Each figure of the table was taken for {:.0} s \
         after {:.0} s of warming up, REST over 32 connections. CPU is that of the server process.\n\n\
         ![The results as a plot](results.svg)\n\n{HOW_TO_READ}\n{}\n",
        results.others.as_deref().unwrap_or_default(),
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
    Ok(())
}
