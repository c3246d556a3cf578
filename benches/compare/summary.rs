//! The README's table, drawn from the table of `RESULTS.md`, so that the two have the same figures.
//!
//! Text in, text out: a test draws it again and compares.

use std::fmt::Write;

/// The line of the README before the table.
pub const BEGIN: &str = "<!-- Drawn by `cargo bench --bench compare -- --peers`: begin -->";
/// The line of the README after the table.
pub const END: &str = "<!-- end -->";

/// The columns of `RESULTS.md` in which peers are.
const PEERS: [&str; 3] = ["Bun", "uWS", "axum"];

/// The rows: their titles in `RESULTS.md`, of which one with a dash belongs to the row above it that
/// has none, and in the README. A row that was not measured is left out.
const ROWS: &[(&str, &str, &str)] = &[
    ("`GET /rooms`, 5 rooms: CPU per answer", "", "`GET /rooms`: CPU per answer"),
    (
        "`GET /messages/:room`, 50 messages: CPU per answer",
        "",
        "history of 50 messages: CPU per answer",
    ),
    ("`POST /message`: CPU per answer", "", "`POST /message`: CPU per answer"),
    (
        "50 messages a second to 500 sockets, Socket.IO: CPU per delivery",
        "",
        "50 messages a second to 500 sockets: CPU per delivery",
    ),
    (
        "400 messages a second to 500 sockets, Socket.IO: CPU per delivery",
        "",
        "400 messages a second to 500 sockets: CPU per delivery",
    ),
    (
        "flat out to 500 sockets, Socket.IO: deliveries a second",
        "",
        "as many messages as possible to 500 sockets: deliveries a second",
    ),
    (
        "a mix ¹, Socket.IO: message to subscriber, p50",
        "– p99",
        "a delivery beside logins, long histories and slow sockets: p99",
    ),
    (
        "`GET /rooms` 200 times a second: p99",
        "– while 20 logins run at once: p99",
        "`GET /rooms` while 20 users log in at once: p99",
    ),
    ("an idle socket among 10,000, Socket.IO", "", "an idle socket among 10,000"),
    (
        "6,000 Socket.IO sockets come and go six times: process with them",
        "– a minute after the sixth time",
        "a process that 6,000 sockets have left",
    ),
    ("idle process", "", "an idle process"),
    ("start to first answer from the database", "", "start to first answer"),
];

/// The table for these results.
pub fn table(results: &str) -> String {
    let rows = rows(results);
    let heads = rows.first().map(|row| row.cells.clone()).unwrap_or_default();
    let column = |name: &str| heads.iter().position(|head| *head == name);
    let peers: Vec<usize> = PEERS.iter().filter_map(|peer| column(peer)).collect();
    let (to, head) = match peers.is_empty() {
        true => ("ours to Node", "| | Here | Node | Here to Node |\n|---|--:|--:|--:|\n"),
        false => (
            "ours to the best peer",
            "| | Here | Best peer | Node | Here to the best peer |\n|---|--:|--:|--:|--:|\n",
        ),
    };
    let mut out = head.to_owned();
    for (title, continued, shown) in ROWS {
        let wanted = if continued.is_empty() { title } else { continued };
        let is_it = |row: &&Row| row.subject == *title && row.cells.first() == Some(wanted);
        let Some(row) = rows.iter().find(is_it) else { continue };
        let cell = |name: &str| match column(name).and_then(|index| row.cells.get(index)) {
            Some(&"") | None => "–",
            Some(text) => text,
        };
        let _ = write!(out, "| {shown} | {} | ", cell("ours"));
        if !peers.is_empty() {
            // The best one is bold.
            let best = peers.iter().find_map(|index| {
                let figure = row.cells.get(*index)?.strip_prefix("**")?.strip_suffix("**")?;
                Some(format!("{figure}, {}", heads.get(*index)?))
            });
            let _ = write!(out, "{} | ", best.as_deref().unwrap_or("–"));
        }
        let _ = writeln!(out, "{} | {} |", cell("Node"), cell(to));
    }
    out
}

/// The README with this table between its marks; `None` if it has none.
pub fn draw(readme: &str, table: &str) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// A row of the first table.
struct Row<'a> {
    /// The title of the last row that does not begin with a dash.
    subject: &'a str,
    cells: Vec<&'a str>,
}

fn rows(results: &str) -> Vec<Row<'_>> {
    let lines = results.lines().skip_while(|line| !line.starts_with('|'));
    let mut subject = "";
    let mut rows = Vec::new();
    for line in lines.take_while(|line| line.starts_with('|')) {
        let Some(inside) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            continue;
        };
        let cells: Vec<&str> = inside.split('|').map(str::trim).collect();
        let title = cells.first().copied().unwrap_or_default();
        if title.starts_with("---") {
            continue;
        }
        if !title.starts_with('–') {
            subject = title;
        }
        rows.push(Row { subject, cells });
    }
    rows
}
