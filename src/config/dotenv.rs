//! The `.env` file, read as npm's dotenv 16 reads it.
//!
//! A deployment moves here with the file it has. A secret that two readers understand differently
//! makes every token invalid without a word of why, so npm's reading is the meaning of the file:
//! its grammar, its trimming, its escapes, its idea of white space. What npm passes over in
//! silence is passed over, too, but its lines are told. Which variables exist is not known here,
//! nor that the process environment wins over the file.

use std::{io, path::Path, sync::LazyLock};

use regex::Regex;

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dotenv {
    /// The variables, in the order in which their names first appear: each name once, with the
    /// value of its last entry.
    pub variables: Vec<(String, String)>,
    /// The numbers, from 1, of the lines that npm's dotenv passes over although they are neither
    /// blank nor a comment. Never their text: it may be a secret.
    pub passed_over: Vec<usize>,
}

/// Reads the file at `path`; one that does not exist says nothing.
///
/// # Errors
/// It exists and cannot be read.
pub fn load(path: &Path) -> io::Result<Dotenv> {
    match std::fs::read(path) {
        Ok(file) => Ok(parse(&file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Dotenv::default()),
        Err(error) => Err(error),
    }
}

/// Reads a file's contents. Bytes that are not UTF-8 become U+FFFD, as they do in Node.
pub fn parse(file: &[u8]) -> Dotenv {
    let text = String::from_utf8_lossy(file).replace("\r\n", "\n").replace('\r', "\n");
    let mut variables = Vec::new();
    let mut passed_over = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        if let Some((name, value, behind)) = entry(rest) {
            set(&mut variables, name, value);
            rest = behind;
            continue;
        }
        let (line, behind) = rest.split_once(LINE_ENDS).unwrap_or((rest, ""));
        let line = line.trim_matches(is_space);
        if !line.is_empty() && !line.starts_with('#') {
            passed_over.push(1 + newlines(&text) - newlines(rest));
        }
        rest = behind;
    }
    Dotenv { variables, passed_over }
}

/// Where JavaScript's `^` and `$` see the end of a line, once carriage returns are gone.
const LINE_ENDS: [char; 3] = ['\n', '\u{2028}', '\u{2029}'];

/// One entry at the start of the text: perhaps `export`, a name, `=` or `:`, perhaps a value,
/// perhaps a comment, and the line end or the end of the text.
///
/// The alternatives of the value are tried in this order. A quote that is never closed, or has
/// something other than a comment behind it, falls through to the last: an unquoted value, which
/// ends at `#`. A colon needs white space behind it, and a line end is white space.
static ENTRY: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r##"(?x)
        ^ \s* (?: export \s+ )?
        (?<name> [A-Za-z0-9_.-]+ )
        (?: \s* = | : \s+? )
        (?<value> \s* ' (?: \\' | [^'] )* '
                | \s* " (?: \\" | [^"] )* "
                | \s* ` (?: \\` | [^`] )* `
                | [^\#\n]+ )?
        \s* (?: \# [^\n\u{2028}\u{2029}]* )?
        (?: \z | [\n\u{2028}\u{2029}] )
    "##;
    Regex::new(&pattern.replace(r"\s", JAVASCRIPT_SPACE)).expect("the grammar is a valid pattern")
});

/// What `\s` is in JavaScript: unlike in Rust, a byte order mark is and U+0085 is not.
const JAVASCRIPT_SPACE: &str =
    r"[\t-\r\x20\u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}]";

/// The entry that `text` begins with, as name, value and what follows its line.
fn entry(text: &str) -> Option<(&str, String, &str)> {
    let parts = ENTRY.captures(text)?;
    let name = parts.name("name")?.as_str();
    let value = parts.name("value").map_or("", |value| value.as_str());
    let behind = text.get(parts.get(0)?.end()..)?;
    Some((name, unquote(value.trim_matches(is_space)), behind))
}

/// Takes off the quotes, when they are a pair. Only double quotes know escapes, and only two;
/// npm expands them behind an opening quote even where the closing one is missing. (It would also
/// unquote what follows a U+2028 inside an unquoted value; that accident is left out.)
fn unquote(written: &str) -> String {
    let Some(quote) = written.chars().next().filter(|first| ['\'', '"', '`'].contains(first))
    else {
        return written.to_owned();
    };
    let pair = written.strip_prefix(quote).and_then(|inner| inner.strip_suffix(quote));
    let value = pair.unwrap_or(written);
    match quote {
        '"' => value.replace(r"\n", "\n").replace(r"\r", "\r"),
        _ => value.to_owned(),
    }
}

fn set(variables: &mut Vec<(String, String)>, name: &str, value: String) {
    match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => variables.push((name.to_owned(), value)),
    }
}

fn is_space(c: char) -> bool {
    c == '\u{feff}' || (c.is_whitespace() && c != '\u{85}')
}

fn newlines(text: &str) -> usize {
    text.matches('\n').count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    type Variables = BTreeMap<String, String>;

    /// A file, and what npm's dotenv 16.6.1 made of it (`require('dotenv').parse`).
    #[derive(Deserialize)]
    struct Case {
        name: String,
        file: Option<String>,
        /// Instead of `file`, where it is not UTF-8.
        file_hex: Option<String>,
        /// The first line that npm skipped although it is neither blank nor a comment.
        skipped_line: Option<usize>,
        values: Variables,
    }

    impl Case {
        fn file(&self) -> Vec<u8> {
            match (&self.file, &self.file_hex) {
                (Some(text), _) => text.clone().into_bytes(),
                (None, hex) => bytes_of_hex(hex.as_deref().unwrap()),
            }
        }
    }

    fn table() -> Vec<Case> {
        serde_json::from_str(include_str!("../../tests/dotenv.json")).unwrap()
    }

    fn bytes_of_hex(hex: &str) -> Vec<u8> {
        let digit = |d: u8| char::from(d).to_digit(16).unwrap() as u8;
        hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
    }

    #[test]
    fn every_file_of_the_table_means_what_it_means_to_npm() {
        for case in table() {
            let read = parse(&case.file());
            let names = read.variables.len();
            let variables: Variables = read.variables.into_iter().collect();
            assert_eq!(variables, case.values, "{}", case.name);
            assert_eq!(variables.len(), names, "{}: a name is there twice", case.name);
            assert_eq!(read.passed_over.first(), case.skipped_line.as_ref(), "{}", case.name);
        }
    }

    #[test]
    fn every_line_that_is_passed_over_is_told() {
        let read = parse(b"A=1\nhunter2 hunter2\n# a comment\nB=2\n\nexport C\n");
        assert_eq!(read.passed_over, [2, 6]);
        assert_eq!(read.variables.len(), 2);
    }

    #[test]
    fn a_missing_file_has_no_variables_and_an_unreadable_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(&folder.path().join(".env")).unwrap(), Dotenv::default());
        assert!(load(folder.path()).is_err());
    }

    /// The reason for a parser of our own: the usual crate reads these files differently.
    #[test]
    fn dotenvy_would_read_other_secrets() {
        let differs = [
            "spaces inside an unquoted value",
            "hash starts a comment",
            "dollar is literal",
            "backslashes unquoted stay",
            "backslashes in double quotes stay",
            "escaped double quote keeps its backslash",
            "hash in backticks",
            "colon and space",
            "byte order mark before a comment",
            "unclosed double quote",
        ];
        let table = table();
        for name in differs {
            let case = table.iter().find(|case| case.name == name).unwrap();
            let read: Result<Variables, _> =
                dotenvy::from_read_iter(case.file().as_slice()).collect();
            assert_ne!(read.ok().as_ref(), Some(&case.values), "{name}");
        }
    }
}
