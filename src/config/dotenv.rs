//! The `.env` file, read as npm's dotenv 16 reads it.
//!
//! A deployment brings the file that it has. If a secret were read differently here, every token
//! would be invalid without any hint why. So the file is read exactly as by npm: with the same
//! grammar, trimming, escapes and white space. Lines that npm ignores silently are ignored, too,
//! but reported. This module does not know which variables exist, nor that the process environment
//! comes before the file.

use std::{io, path::Path, sync::LazyLock};

use regex::Regex;

/// The content of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dotenv {
    /// The variables, in the order in which their names first appear: each name once, with the
    /// value of its last entry.
    pub variables: Vec<(String, String)>,
    /// The numbers, from 1, of the lines that npm's dotenv ignores although they are neither blank
    /// nor a comment. Never their text: it may be a secret.
    pub passed_over: Vec<usize>,
}

/// Reads the file at `path`; a missing file has no variables.
///
/// # Errors
/// The file exists and cannot be read.
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

/// The line ends that JavaScript's `^` and `$` recognise. Carriage returns are removed before.
const LINE_ENDS: [char; 3] = ['\n', '\u{2028}', '\u{2029}'];

/// An entry at the start of the text: an optional `export`, a name, `=` or `:`, an optional value,
/// an optional comment, and the end of the line or of the text.
///
/// The alternatives of the value are tried in this order. If a quote is not closed, or if anything
/// but a comment follows it, the value is read as the last alternative: an unquoted value, which
/// ends at `#`. White space must follow a colon, and a line end is white space.
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

/// `\s` of JavaScript. Unlike `\s` of Rust, it includes the byte order mark and excludes U+0085.
const JAVASCRIPT_SPACE: &str =
    r"[\t-\r\x20\u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}]";

/// The entry that `text` begins with: its name, its value and the text after its line.
fn entry(text: &str) -> Option<(&str, String, &str)> {
    let parts = ENTRY.captures(text)?;
    let name = parts.name("name")?.as_str();
    let value = parts.name("value").map_or("", |value| value.as_str());
    let behind = text.get(parts.get(0)?.end()..)?;
    Some((name, unquote(value.trim_matches(is_space)), behind))
}

/// Removes the quotes if they are a pair. Only double quotes allow escapes, and only two of them.
/// As in npm, these are expanded after an opening quote even if the closing one is missing. (npm
/// would also unquote text after a U+2028 in an unquoted value; this mistake is not copied.)
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

    /// Why this parser is needed: the usual crate reads these files differently.
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
