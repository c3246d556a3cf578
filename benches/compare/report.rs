//! The figures, the goals, and the tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::contender::Contender;
use crate::wire::Wire;

/// All results.
#[derive(Default)]
pub struct Results {
    values: BTreeMap<(String, Contender), f64>,
    /// The curves.
    pub curves: Vec<Curve>,
    /// A note about other load on the machine, as the end of a sentence.
    pub others: Option<String>,
    /// What a reader has to know about single contenders.
    pub notes: Vec<String>,
    /// The packages that contenders are made of.
    pub packages: Vec<String>,
    /// The measurements that failed.
    pub failures: Vec<String>,
}

/// How many times less ours costs than others in a row.
pub struct Advantage {
    /// The title of the row.
    pub title: String,
    /// Than Node.
    pub node: f64,
    /// Than the best peer.
    pub peer: Option<f64>,
}

/// A curve.
#[derive(Debug, Clone)]
pub struct Curve {
    /// The title.
    pub title: String,
    /// The varied quantity.
    pub x: &'static str,
    /// The measured quantity, with its unit.
    pub y: &'static str,
    /// The points of each line.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// A row of the table.
pub struct Row {
    /// The key of its figures.
    key: &'static str,
    /// The wire, for rows that are measured on both.
    wire: Option<Wire>,
    /// The title.
    pub title: &'static str,
    unit: &'static str,
    /// Digits after the decimal point.
    digits: usize,
    /// Whether a higher figure is better.
    is_higher_better: bool,
    goals: &'static [Goal],
}

/// A goal for a figure.
enum Goal {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most Node's figure divided by this.
    NodeBy(f64),
    /// At least this many times Node's figure.
    TimesNode(f64),
    /// At most this many times the floor.
    TimesFloor(f64),
    /// At most this many times the best peer's figure.
    OfPeer(f64),
    /// At least the best peer's figure.
    AtLeastPeer,
}

use Goal::{AtLeast, AtLeastPeer, AtMost, NodeBy, OfPeer, TimesFloor, TimesNode};

/// The figures of a row that goals refer to.
struct Figures {
    ours: Option<f64>,
    node: Option<f64>,
    peer: Option<f64>,
    floor: Option<f64>,
}

const fn row(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    digits: usize,
    goals: &'static [Goal],
) -> Row {
    Row { key, wire: None, title, unit, digits, is_higher_better: false, goals }
}

impl Row {
    const fn on(self, wire: Wire) -> Self {
        Self { wire: Some(wire), ..self }
    }

    const fn more(self) -> Self {
        Self { is_higher_better: true, ..self }
    }
}

const PLAIN: Wire = Wire::Plain;
const SOCKET_IO: Wire = Wire::SocketIo;

/// The rows of the table, in their order.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("rooms cpu", "`GET /rooms`, 5 rooms: CPU per answer", "µs", 0, &[NodeBy(12.0), OfPeer(0.5)]),
    row("rooms rate", "– answers a second", "", 0, &[]).more(),
    row("messages cpu", "`GET /messages/:room`, 50 messages: CPU per answer", "µs", 0, &[NodeBy(20.0), OfPeer(0.5)]),
    row("messages rate", "– answers a second", "", 0, &[TimesNode(8.0)]).more(),
    row("message cpu", "`POST /message`: CPU per answer", "µs", 0, &[NodeBy(8.0), OfPeer(0.6)]),
    row("message rate", "– answers a second", "", 0, &[TimesNode(3.0), AtLeastPeer]).more(),
    row("private cpu", "2,000 times a second `POST /message` to a private room: CPU per answer", "µs", 0, &[]),
    row("private share", "– of the same to a public room", "%", 0, &[AtMost(110.0)]),
    row("unauthorized cpu", "a 401: CPU per answer", "µs", 1, &[NodeBy(8.0), OfPeer(1.0)]),
    row("unauthorized rate", "– answers a second", "", 0, &[]).more(),
    row("logins before", "`GET /rooms` 200 times a second: p99", "ms", 1, &[]),
    row("logins during", "– while 20 logins run at once: p99", "ms", 1, &[AtMost(50.0)]),
    row("logins rate", "– answered as many as before", "%", 0, &[AtLeast(99.0)]).more(),
    row("logins a second", "– logins a second", "", 0, &[]).more(),
    row("fanout cpu", "50 messages a second to 500 sockets, `/ws`: CPU per delivery", "µs", 1, &[NodeBy(2.0), TimesFloor(1.5)]).on(PLAIN),
    row("fanout p50", "– message to subscriber, p50", "ms", 1, &[AtMost(5.0)]).on(PLAIN),
    row("fanout p99", "– message to subscriber, p99", "ms", 1, &[AtMost(12.0)]).on(PLAIN),
    row("fanout cpu", "50 messages a second to 500 sockets, Socket.IO: CPU per delivery", "µs", 1, &[NodeBy(2.0), TimesFloor(1.5), OfPeer(0.85)]).on(SOCKET_IO),
    row("fanout p50", "– message to subscriber, p50", "ms", 1, &[AtMost(5.0), OfPeer(1.0)]).on(SOCKET_IO),
    row("fanout p99", "– message to subscriber, p99", "ms", 1, &[AtMost(12.0)]).on(SOCKET_IO),
    row("fast cpu", "400 messages a second to 500 sockets, `/ws`: CPU per delivery", "µs", 2, &[]).on(PLAIN),
    row("fast p50", "– message to subscriber, p50", "ms", 1, &[]).on(PLAIN),
    row("fast p99", "– message to subscriber, p99", "ms", 1, &[]).on(PLAIN),
    row("fast cpu", "400 messages a second to 500 sockets, Socket.IO: CPU per delivery", "µs", 2, &[OfPeer(0.5)]).on(SOCKET_IO),
    row("fast p50", "– message to subscriber, p50", "ms", 1, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("fast p99", "– message to subscriber, p99", "ms", 1, &[]).on(SOCKET_IO),
    row("few cpu", "400 messages a second to 50 sockets, `/ws`: CPU per delivery", "µs", 1, &[]).on(PLAIN),
    row("few p50", "– message to subscriber, p50", "ms", 1, &[]).on(PLAIN),
    row("few p99", "– message to subscriber, p99", "ms", 1, &[]).on(PLAIN),
    row("few cpu", "400 messages a second to 50 sockets, Socket.IO: CPU per delivery", "µs", 1, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("few p50", "– message to subscriber, p50", "ms", 1, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("few p99", "– message to subscriber, p99", "ms", 1, &[]).on(SOCKET_IO),
    row("posted p50", "50 messages a second by `POST /message` to 500 sockets, `/ws`: p50", "ms", 1, &[AtMost(5.0)]).on(PLAIN),
    row("posted p99", "– p99", "ms", 1, &[AtMost(12.0)]).on(PLAIN),
    row("edits message cpu", "1,000 edits a second to 10 sockets, `/ws`: CPU per edit", "µs", 0, &[]).on(PLAIN),
    row("edits p50", "– edit to subscriber, p50", "ms", 1, &[]).on(PLAIN),
    row("edits p99", "– edit to subscriber, p99", "ms", 1, &[AtMost(50.0)]).on(PLAIN),
    row("edits reached", "– of that rate reached", "%", 0, &[AtLeast(99.0)]).on(PLAIN).more(),
    row("edits message cpu", "1,000 edits a second to 10 sockets, Socket.IO: CPU per edit", "µs", 0, &[]).on(SOCKET_IO),
    row("edits p50", "– edit to subscriber, p50", "ms", 1, &[]).on(SOCKET_IO),
    row("edits p99", "– edit to subscriber, p99", "ms", 1, &[AtMost(50.0)]).on(SOCKET_IO),
    row("edits reached", "– of that rate reached", "%", 0, &[AtLeast(99.0)]).on(SOCKET_IO).more(),
    row("mix p50", "a mix ¹, `/ws`: message to subscriber, p50", "ms", 1, &[]).on(PLAIN),
    row("mix p99", "– p99", "ms", 1, &[]).on(PLAIN),
    row("mix p999", "– p99.9", "ms", 1, &[]).on(PLAIN),
    row("mix p50", "a mix ¹, Socket.IO: message to subscriber, p50", "ms", 1, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("mix p99", "– p99", "ms", 1, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("mix p999", "– p99.9", "ms", 1, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("flat deliveries", "flat out to 500 sockets, `/ws`: deliveries a second", "", 0, &[TimesNode(6.0)]).on(PLAIN).more(),
    row("flat cpu", "– CPU per delivery", "µs", 2, &[]).on(PLAIN),
    row("flat deliveries", "flat out to 500 sockets, Socket.IO: deliveries a second", "", 0, &[TimesNode(6.0), AtLeastPeer]).on(SOCKET_IO).more(),
    row("flat cpu", "– CPU per delivery", "µs", 2, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("overload p99", "four times Node's maximum, `/ws`: p99", "ms", 1, &[AtMost(100.0)]).on(PLAIN),
    row("overload reached", "– of that rate reached", "%", 0, &[AtLeast(99.0)]).on(PLAIN).more(),
    row("overload p99", "four times Node's maximum, Socket.IO: p99", "ms", 1, &[AtMost(100.0)]).on(SOCKET_IO),
    row("overload reached", "– of that rate reached", "%", 0, &[AtLeast(99.0)]).on(SOCKET_IO).more(),
    row("fanout faults", "lost, doubled or misordered at 50 messages a second, or closed", "", 0, &[AtMost(0.0)]),
    row("fast faults", "– at 400 messages a second", "", 0, &[AtMost(0.0)]),
    row("few faults", "– to 50 sockets", "", 0, &[AtMost(0.0)]),
    row("posted faults", "– by `POST /message`", "", 0, &[AtMost(0.0)]),
    row("edits faults", "– of edits", "", 0, &[AtMost(0.0)]),
    row("mix faults", "– in the mix", "", 0, &[AtMost(0.0)]),
    row("flat faults", "– flat out", "", 0, &[AtMost(0.0)]),
    row("overload faults", "– at four times Node's maximum", "", 0, &[AtMost(0.0)]),
    row("sockets kib", "an idle socket among 10,000, `/ws`", "KiB", 1, &[AtMost(3.0)]).on(PLAIN),
    row("sockets kib", "an idle socket among 10,000, Socket.IO", "KiB", 1, &[AtMost(4.5), OfPeer(1.0)]).on(SOCKET_IO),
    row("start memory", "idle process", "MB", 1, &[AtMost(20.0), OfPeer(1.0)]),
    row("memory with", "6,000 Socket.IO sockets come and go six times: process with them", "MB", 1, &[]),
    row("memory first", "– a minute after the first time", "MB", 1, &[]),
    row("memory last", "– a minute after the sixth time", "MB", 1, &[OfPeer(1.0)]),
    row("memory ratio", "– that in fresh processes", "×", 1, &[AtMost(2.0)]),
    row("memory growth", "– growth between the two", "MB", 1, &[AtMost(1.0)]),
    row("reconnect seconds", "10,000 sockets come back at once, `/ws`: until the last is there ²", "s", 2, &[]).on(PLAIN),
    row("reconnect cpu", "– CPU for each socket", "µs", 0, &[]).on(PLAIN),
    row("reconnect seconds", "10,000 sockets come back at once, Socket.IO: until the last is there ²", "s", 2, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("reconnect cpu", "– CPU for each socket", "µs", 0, &[OfPeer(1.0)]).on(SOCKET_IO),
    row("private-rooms ms", "a socket with 1,000 private rooms comes back: time on `/ws`", "ms", 0, &[]).on(PLAIN),
    row("private-rooms ms", "– on Socket.IO", "ms", 0, &[]).on(SOCKET_IO),
    row("start seconds", "start to first answer from the database", "s", 3, &[AtMost(0.05), OfPeer(1.0)]),
];

impl Results {
    /// Records a figure.
    pub fn set(&mut self, key: &str, contender: Contender, value: f64) {
        self.values.insert((key.to_owned(), contender), value);
    }

    /// Records a figure of a wire. A contender with one wire gets the figure for both wires. Faults
    /// are added up.
    pub fn set_on(&mut self, name: &str, what: &str, wire: Wire, contender: Contender, value: f64) {
        if what == "faults" {
            *self.values.entry((format!("{name} {what}"), contender)).or_default() += value;
            return;
        }
        let both = [PLAIN, SOCKET_IO];
        let wires = if contender.wires().len() == 1 { &both[..] } else { &[wire] };
        for wire in wires {
            self.set(&format!("{name} {what} {}", wire.name()), contender, value);
        }
    }

    /// A figure of a wire.
    pub fn get(&self, key: &str, wire: Wire, contender: Contender) -> Option<f64> {
        self.values.get(&(format!("{key} {}", wire.name()), contender)).copied()
    }

    fn of(&self, row: &Row, contender: Contender) -> Option<f64> {
        match row.wire {
            Some(wire) => self.get(row.key, wire, contender),
            None => self.values.get(&(row.key.to_owned(), contender)).copied(),
        }
    }

    /// The best peer in a row, and its figure.
    fn best_peer(&self, row: &Row) -> Option<(Contender, f64)> {
        let figures = Contender::PEERS.map(|peer| Some((peer, self.of(row, peer)?)));
        let figures = figures.into_iter().flatten();
        match row.is_higher_better {
            true => figures.max_by(|(_, a), (_, b)| a.total_cmp(b)),
            false => figures.min_by(|(_, a), (_, b)| a.total_cmp(b)),
        }
    }

    /// The ratios of Node's cost and of the best peer's to ours for each row, for the plot.
    pub fn advantages(&self) -> Vec<Advantage> {
        let mut subject = "";
        let mut advantages = Vec::new();
        for row in ROWS {
            // A dash continues the title of the row before.
            let title = match row.title.strip_prefix('–') {
                Some(rest) => format!("{subject}:{rest}"),
                None => {
                    subject = row.title.split_once(':').map_or(row.title, |(subject, _)| subject);
                    row.title.to_owned()
                }
            };
            let (ours, node) = (self.of(row, Contender::Ours), self.of(row, Contender::Node));
            if let (Some(ours @ 1e-9..), Some(node), "µs" | "KiB" | "MB" | "s") =
                (ours, node, row.unit)
                && row.key != "memory growth"
            {
                let peer = self.best_peer(row).map(|(_, peer)| peer / ours);
                let title = title.replace(['`', '²'], "").trim_end().to_owned();
                advantages.push(Advantage { title, node: node / ours, peer });
            }
        }
        advantages
    }

    /// The table in Markdown. The best peer's figure is bold.
    pub fn table(&self) -> String {
        let is_measured = |contender: &Contender| self.values.keys().any(|(_, c)| c == contender);
        let columns: Vec<Contender> = Contender::ALL
            .into_iter()
            .filter(|contender| !contender.is_peer() || is_measured(contender))
            .collect();
        let has_peers = columns.iter().any(|contender| contender.is_peer());
        let mut heads: Vec<&str> = columns.iter().map(|contender| contender.name()).collect();
        heads.extend(has_peers.then_some("ours to the best peer"));
        heads.push("ours to Node");
        let mut out = format!("| | {} | goal | |\n|---|", heads.join(" | "));
        out.push_str(&"--:|".repeat(heads.len()));
        out.push_str("---|---|\n");
        for row in ROWS {
            let ours = self.of(row, Contender::Ours);
            let node = self.of(row, Contender::Node);
            let floor = self.of(row, Contender::Floor);
            let peer = self.best_peer(row);
            if columns.iter().all(|contender| self.of(row, *contender).is_none()) {
                continue;
            }
            let show = |contender: &Contender| {
                let shown = self.of(row, *contender).map(|value| with_unit(value, row));
                let is_best = peer.is_some_and(|(best, _)| best == *contender);
                match (shown, is_best) {
                    (Some(shown), true) => format!("**{shown}**"),
                    (shown, _) => shown.unwrap_or_default(),
                }
            };
            let to = |other: Option<f64>| match (ours, other) {
                (Some(ours), Some(other)) if ours > 0.0 && other > 0.0 => ratio(ours / other),
                _ => String::new(),
            };
            let peer = peer.map(|(_, figure)| figure);
            let mut cells: Vec<String> = columns.iter().map(show).collect();
            cells.extend(has_peers.then(|| to(peer)));
            cells.push(to(node));
            let goals: Vec<_> = row.goals.iter().map(|goal| goal.text(row)).collect();
            let figures = Figures { ours, node, peer, floor };
            let verdicts = row.goals.iter().map(|goal| goal.verdict(&figures));
            let verdict = match verdicts.reduce(|all, one| Some(all? && one?)) {
                Some(Some(true)) => "reached",
                Some(Some(false)) => "**not reached**",
                Some(None) | None => "",
            };
            let (cells, goals) = (cells.join(" | "), goals.join(", "));
            let _ = writeln!(out, "| {} | {cells} | {goals} | {verdict} |", row.title);
        }
        for failure in &self.failures {
            let _ = writeln!(out, "\nNot measured: {failure}");
        }
        out
    }
}

impl Curve {
    /// The points in Markdown, one column for each line.
    pub fn table(&self) -> String {
        let mut points: BTreeMap<u64, Vec<Option<f64>>> = BTreeMap::new();
        for (index, (_, line)) in self.lines.iter().enumerate() {
            for (x, y) in line {
                let row = points.entry(*x as u64).or_insert_with(|| vec![None; self.lines.len()]);
                if let Some(cell) = row.get_mut(index) {
                    *cell = Some(*y);
                }
            }
        }
        let names: Vec<_> = self.lines.iter().map(|(name, _)| name.as_str()).collect();
        let mut out = format!("| {} | {} |\n|--:", self.x, names.join(" | "));
        out.push_str(&"|--:".repeat(names.len()));
        out.push_str("|\n");
        for (x, row) in points {
            let cells: Vec<_> =
                row.iter().map(|cell| cell.map_or_else(String::new, short)).collect();
            let _ = writeln!(out, "| {} | {} |", grouped(x as f64, 0), cells.join(" | "));
        }
        let _ = writeln!(out, "\nIn the cells: {}.", self.y);
        out
    }
}

impl Goal {
    fn text(&self, row: &Row) -> String {
        match self {
            AtMost(limit) => format!("≤ {}", with_unit(*limit, row)),
            AtLeast(limit) => format!("≥ {}", with_unit(*limit, row)),
            NodeBy(factor) => format!("≤ 1/{factor} of Node"),
            TimesNode(factor) => format!("≥ {factor} × Node"),
            TimesFloor(factor) => format!("≤ {factor} × floor"),
            OfPeer(1.0) => "≤ best peer".to_owned(),
            OfPeer(factor) => format!("≤ {factor} × best peer"),
            AtLeastPeer => "≥ best peer".to_owned(),
        }
    }

    fn verdict(&self, figures: &Figures) -> Option<bool> {
        let &Figures { ours, node, peer, floor } = figures;
        Some(match self {
            AtMost(limit) => ours? <= *limit,
            AtLeast(limit) => ours? >= *limit,
            NodeBy(factor) => ours? <= node? / factor,
            TimesNode(factor) => ours? >= node? * factor,
            TimesFloor(factor) => ours? <= floor? * factor,
            OfPeer(factor) => ours? <= peer? * factor,
            AtLeastPeer => ours? >= peer?,
        })
    }
}

fn with_unit(value: f64, row: &Row) -> String {
    let number = grouped(value, row.digits);
    match row.unit {
        "" => number,
        "%" => format!("{number} %"),
        unit => format!("{number} {unit}"),
    }
}

/// A ratio in the usual form: 1/14 or 9.3 ×.
fn ratio(ratio: f64) -> String {
    match ratio {
        0.0..0.1 => format!("1/{:.0}", 1.0 / ratio),
        0.1..1.0 => format!("1/{:.1}", 1.0 / ratio),
        _ => format!("{ratio:.1} ×"),
    }
}

/// A number with commas between thousands.
pub fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// A number with its significant digits.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        0.0..1.0 => 2,
        1.0..20.0 => 1,
        _ => 0,
    };
    grouped(value, digits)
}
