//! Writes the results to the files that are kept in the repository.

use std::fmt::Write;
use std::path::Path;

use crate::Result;
use crate::options::Options;
use crate::plot;
use crate::process::machine;
use crate::report::Results;

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
         ![The results as a plot](results.svg)\n\n{}\n",
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
