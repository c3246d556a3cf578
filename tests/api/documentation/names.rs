//! What the pages name exists, and what exists is named: variables, metrics, codes, lines of the
//! log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use realtime_chat_backend::config::VARIABLES;

use super::{markdown, page, pages, root};
use crate::helpers::TestServer;

/// Names in capitals that are no variables of the server.
const OTHER_VARIABLES: [&str; 3] = ["NODE_SERVER", "CHAT_SERVER", "KEY"];

/// Codes that no operation of the OpenAPI document has: of sockets, and of methods that are not
/// there.
const OF_NO_OPERATION: [&str; 4] =
    ["unknown_event", "too_many_rooms", "method_not_allowed", "not_joined"];

#[test]
fn the_readme_has_every_variable_with_its_default_and_no_other() {
    let example = fs::read_to_string(root().join(".env.example")).unwrap();
    let defaults: BTreeMap<&str, &str> =
        example.lines().filter_map(|line| line.strip_prefix("# ")?.split_once('=')).collect();
    let mut named = Vec::new();
    for row in markdown::rows(&page("README.md"), "## Configuration") {
        let [names, default, _] = row[..] else { panic!("{row:?}") };
        for name in markdown::code_spans(names) {
            named.push(name.to_owned());
            let value = match defaults[name] {
                "67108864" => "64 MiB",
                value => value,
            };
            assert!(default.contains(value), "{name}: {value:?} is not in {default:?}");
        }
    }
    assert_same("README.md", named, VARIABLES.iter().map(|&name| name.to_owned()));
}

#[test]
fn no_page_names_a_variable_that_does_not_exist() {
    let is_capital = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut count = 0;
    for (path, text) in pages() {
        for span in markdown::prose(&text).into_iter().flat_map(markdown::code_spans) {
            let (name, rest) = span.split_at(span.find(|c| !is_capital(c)).unwrap_or(span.len()));
            let is_variable = name.contains('_') && rest.is_empty() || rest.starts_with('=');
            if name.len() > 1 && is_variable {
                count += 1;
                let is_known = VARIABLES.contains(&name) || OTHER_VARIABLES.contains(&name);
                assert!(is_known, "{}: {span}", path.display());
            }
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn the_readme_says_how_many_differences_are_listed() {
    let differences = markdown::rows(&page("docs/migrating.md"), "## Differences").len();
    assert!(page("README.md").contains(&format!("[{differences} listed differences](")));
}

#[test]
fn every_metric_is_explained_and_no_other() {
    let mut named = BTreeSet::new();
    let text = page("docs/operations.md");
    for row in markdown::rows(&text, "## Metrics") {
        named.extend(markdown::code_spans(row[0]).map(str::to_owned));
    }
    let is_metric = |text: &String| {
        text.starts_with("chat_") && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let counted: BTreeSet<String> =
        literals_of_sources().into_iter().map(|literal| literal.text).filter(is_metric).collect();
    assert!(named.len() > 20, "{named:?}");
    assert_same("docs/operations.md", named, counted);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_code_is_explained_with_its_status_and_no_other() {
    let server = TestServer::start().await;
    let document = server.document().await;
    let mut sent = BTreeSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
                let examples = answer["content"]["application/json"]["examples"].as_object();
                for example in examples.into_iter().flat_map(|examples| examples.values()) {
                    if let Some(code) = example["value"]["code"].as_str() {
                        sent.insert((code.to_owned(), status.clone()));
                    }
                }
            }
        }
    }
    let mut explained = BTreeSet::new();
    for row in markdown::rows(&page("docs/realtime.md"), "## Errors") {
        let codes: Vec<&str> = markdown::code_spans(row[0]).collect();
        let statuses: Vec<&str> = row[1].split(", ").collect();
        for (index, code) in codes.iter().enumerate() {
            // One status for all codes, or one for each.
            let status = statuses.get(index).or(statuses.first()).unwrap();
            if !OF_NO_OPERATION.contains(code) {
                explained.insert(((*code).to_owned(), (*status).to_owned()));
            }
        }
    }
    assert_same("docs/realtime.md", explained, sent);
}

/// Fails with what only the page has, and what it lacks.
fn assert_same<T: Ord + Debug>(
    page: &str,
    named: impl IntoIterator<Item = T>,
    existing: impl IntoIterator<Item = T>,
) {
    let (named, existing): (BTreeSet<T>, BTreeSet<T>) =
        (named.into_iter().collect(), existing.into_iter().collect());
    let unknown = Vec::from_iter(named.difference(&existing));
    let missing = Vec::from_iter(existing.difference(&named));
    let is_same = unknown.is_empty() && missing.is_empty();
    assert!(is_same, "{page} lacks {missing:?}, and names {unknown:?}, which does not exist");
}

#[test]
fn every_line_of_the_log_is_explained_and_no_other() {
    let text = page("docs/operations.md");
    let explained: Vec<&str> = markdown::rows(&text, "## Log lines")
        .into_iter()
        .flat_map(|row| markdown::code_spans(row[0]))
        .map(|line| line.trim_matches(['…', ' ']))
        .collect();
    let literals = literals_of_sources();
    for line in &explained {
        let is_said = literals.iter().any(|literal| literal.text.contains(line));
        assert!(is_said, "no line of the log is like {line:?}");
    }
    let mut said = 0;
    for literal in literals.iter().filter(|literal| literal.is_logged()) {
        said += 1;
        let is_explained = explained.iter().any(|line| literal.text.contains(line));
        assert!(is_explained, "docs/operations.md does not explain {:?}", literal.text);
    }
    assert!(said > 40, "{said}");
}

/// A string in the code.
struct Literal {
    /// The code before it, without white space at its end.
    before: String,
    /// What it says, with `…` for each placeholder.
    text: String,
}

impl Literal {
    /// Whether this is a line of the log that is written unless `RUST_LOG` asks for more, and not
    /// only the frame of a text that is made elsewhere.
    fn is_logged(&self) -> bool {
        let macros = ["log::error!(", "log::warn!(", "log::info!("];
        let letters = self.text.chars().filter(char::is_ascii_alphabetic).count();
        macros.iter().any(|name| self.before.ends_with(name))
            && letters > 5
            && !self.text.contains("times since the last such line")
    }
}

fn literals_of_sources() -> Vec<Literal> {
    let mut literals = Vec::new();
    collect(&root().join("src"), &mut literals);
    literals
}

fn collect(folder: &Path, literals: &mut Vec<Literal>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, literals);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            literals.extend(read(&fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The strings in Rust code; comments and characters are passed over.
fn read(code: &str) -> Vec<Literal> {
    let (mut literals, mut before) = (Vec::new(), String::new());
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(behind) = rest.strip_prefix("r\"").or(rest.strip_prefix("r#\"")) {
            let end = if rest.starts_with("r#") { "\"#" } else { "\"" };
            rest = behind.split_once(end).map_or("", |(_, rest)| rest);
        } else if c == '\'' {
            // A character, or a lifetime.
            let length = match rest.as_bytes().get(1) {
                Some(b'\\') => rest[2..].find('\'').map_or(1, |end| end + 3),
                _ => rest
                    .chars()
                    .nth(2)
                    .filter(|c| *c == '\'')
                    .map_or(1, |_| 2 + rest.chars().nth(1).map_or(0, char::len_utf8)),
            };
            rest = &rest[length..];
        } else if c == '"' {
            let (text, behind) = string(&rest[1..]);
            literals.push(Literal { before: before.trim_end().to_owned(), text: shown(&text) });
            before.clear();
            rest = behind;
        } else {
            before.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    literals
}

/// A string up to its closing quote, and what follows that.
fn string(code: &str) -> (String, &str) {
    let mut text = String::new();
    let mut chars = code.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, &code[at + 1..]),
            '\\' => match chars.next() {
                Some((_, '\n')) => {
                    // The line goes on behind the indentation of the next.
                    let indented = chars.as_str();
                    let skipped = indented.len() - indented.trim_start().len();
                    for _ in 0..skipped {
                        chars.next();
                    }
                }
                Some((_, 'n')) => text.push('\n'),
                Some((_, c)) => text.push(c),
                None => {}
            },
            c => text.push(c),
        }
    }
    (text, "")
}

/// A format with `…` for each placeholder.
fn shown(format: &str) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some((literal, behind)) = rest.split_once('{') {
        text += literal;
        match (behind.strip_prefix('{'), behind.split_once('}')) {
            (Some(behind), _) => {
                text.push('{');
                rest = behind;
            }
            (None, Some((_, behind))) => {
                text.push('…');
                rest = behind;
            }
            (None, None) => rest = "",
        }
    }
    text + rest
}

#[test]
fn strings_are_found_in_code() {
    let code = "// \"no\"\nlog::warn!(\n    \"a {x} \\\n     b\"); let q = '\"'; let e = '\\''; f::<'a>(\"{{c}}\")";
    let found: Vec<(String, String)> =
        read(code).into_iter().map(|literal| (literal.before, literal.text)).collect();
    assert_eq!(found[0], ("log::warn!(".to_owned(), "a … b".to_owned()));
    assert_eq!(found[1].1, "{c}}");
    assert_eq!(found.len(), 2);
}
