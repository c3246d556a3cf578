//! The README's table has the figures of `benches/RESULTS.md`.

// The same code draws it at the end of a run.
#[path = "../../../benches/compare/summary.rs"]
mod summary;

use super::{markdown, page};

#[test]
fn the_table_of_the_readme_is_that_of_the_results() {
    let readme = page("README.md");
    let table = summary::table(&page("benches/RESULTS.md"));
    let shown = summary::draw(&readme, &table).expect("the README has the marks");
    assert_eq!(readme, shown, "cargo bench --bench compare -- --redraw");
    let rows = markdown::rows(&readme, "## How fast");
    assert!(rows.len() > 8, "{rows:#?}");
    for row in rows {
        // Each row is about this server, whatever failed of the others.
        assert!(row[1].starts_with(|first: char| first.is_ascii_digit()), "{row:?}");
    }
}

/// Results with some rows of a run with peers.
const RESULTS: &str = "\
# Results

| | ours | Node | Bun | uWS | axum | floor | ours to the best peer | ours to Node | goal | |
|---|--:|--:|--:|--:|--:|--:|--:|--:|---|---|
| `GET /rooms`, 5 rooms: CPU per answer | 61 µs | 1,142 µs | 156 µs | 249 µs | **35 µs** |  | 1.7 × | 1/19 | | **not reached** |
| – answers a second | 1 | 2 | 3 | 4 | **5** |  |  |  |  |  |
| `GET /rooms` 200 times a second: p99 | 3.0 ms | 8.9 ms | **2.0 ms** | 3.0 ms | 4.0 ms |  | 1.5 × | 1/3.0 |  |  |
| – while 20 logins run at once: p99 | 6.6 ms | 8,455.7 ms | 9.0 ms | **8.0 ms** | 9.5 ms |  | 1/1.2 | 1/1290 |  |  |
| flat out to 500 sockets, Socket.IO: deliveries a second | 1,684,742 | 58,867 |  |  |  | 150,287 |  | 28.6 × |  |  |
| – CPU per delivery | 0.48 µs | 17.55 µs | **3.00 µs** |  |  | 6.28 µs | 1/6.3 | 1/37 |  |  |

| another table | ours |
|--:|--:|
| idle process | 1 MB |
";

#[test]
fn the_table_names_the_best_peer_of_each_row() {
    let rows = "\
| | Here | Best peer | Node | Here to the best peer |
|---|--:|--:|--:|--:|
| `GET /rooms`: CPU per answer | 61 µs | 35 µs, axum | 1,142 µs | 1.7 × |
| as many messages as possible to 500 sockets: deliveries a second | 1,684,742 | – | 58,867 | – |
| `GET /rooms` while 20 users log in at once: p99 | 6.6 ms | 8.0 ms, uWS | 8,455.7 ms | 1/1.2 |
";
    assert_eq!(summary::table(RESULTS), rows);
}

#[test]
fn a_run_without_peers_is_compared_with_node() {
    let results = "| | ours | Node | floor | ours to Node | goal | |\n|---|--:|--:|--:|--:|---|---|\n\
                   | idle process | 14 MB | 90 MB |  | 1/6.4 | ≤ 20 MB | reached |\n";
    let rows = "| | Here | Node | Here to Node |\n|---|--:|--:|--:|\n| an idle process | 14 MB | 90 MB | 1/6.4 |\n";
    assert_eq!(summary::table(results), rows);
}

#[test]
fn only_what_is_between_the_marks_is_drawn() {
    let readme = format!("a\n{}\n| old |\n{}\nb\n", summary::BEGIN, summary::END);
    let drawn = format!("a\n{}\n| new |\n{}\nb\n", summary::BEGIN, summary::END);
    assert_eq!(summary::draw(&readme, "| new |\n"), Some(drawn));
    assert_eq!(summary::draw("no marks\n", "| new |\n"), None);
}
