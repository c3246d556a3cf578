//! The log: one line for each record, and a limited number of lines of one kind.
//!
//! A record can contain text of a client, for example inside a library's error. Control characters
//! are escaped, so this text cannot begin a new line or send commands to the terminal. A client or
//! a failing database can cause the same record again and again: at most ten of a kind are written
//! each second, and the others are counted.

use std::collections::HashMap;
use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use env_logger::Builder;
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};

/// The default of `RUST_LOG`.
const DEFAULT: &str = "info,actix_server=warn,mongodb=warn";
const VARIABLE: &str = "RUST_LOG";
/// The prefixes of all modules that write to the log.
const MODULES: [&str; 8] =
    ["realtime_chat_backend", "actix", "mongodb", "hickory", "rustls", "tokio", "mio", "h2"];
/// How many lines of one kind are written in each [`PERIOD`].
const MAX_LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(1);
/// See [`once_a_minute`].
const MINUTE: Duration = Duration::from_secs(60);
const MAX_ONCE: usize = 100;

/// Starts the log on standard error. `RUST_LOG` is taken from the environment, else from `.env`.
pub fn start(dotenv: &[(String, String)]) {
    let in_file = || dotenv.iter().find(|(name, _)| name == VARIABLE).map(|(_, v)| v.clone());
    let wanted = std::env::var(VARIABLE).ok().or_else(in_file);
    let filter = wanted.as_deref().filter(|wanted| is_filter(wanted));
    let mut builder = Builder::new();
    // It logs malformed requests as errors, so any client could fill the log.
    builder.filter_module("actix_http", LevelFilter::Off);
    builder.parse_filters(filter.unwrap_or(DEFAULT));
    let limiter = LineLimiter::default();
    builder.format(move |line, record| write(line, record, &limiter)).init();
    match (filter, &wanted) {
        (None, Some(wanted)) if wanted.trim().is_empty() => {
            log::info!("RUST_LOG is set but empty, so {DEFAULT} is used");
        }
        (None, Some(wanted)) => log::warn!(
            "RUST_LOG={wanted:?} is not understood, so {DEFAULT} is used. Set error, warn, info, \
             debug, trace or off, or a list with modules, such as info,mongodb=debug"
        ),
        _ => {}
    }
}

/// Whether a filter is valid. env_logger takes a word that is not a level for the name of a module.
/// An unknown module would silence everything else.
fn is_filter(filter: &str) -> bool {
    let filter = filter.split_once('/').map_or(filter, |(directives, _)| directives);
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    let is_module = |word: &str| MODULES.iter().any(|module| word.trim().starts_with(module));
    let mut directives = filter.split(',').filter(|part| !part.trim().is_empty()).peekable();
    directives.peek().is_some()
        && directives.all(|directive| match directive.split_once('=') {
            Some((module, level)) => !module.trim().is_empty() && is_level(level),
            None => is_level(directive) || is_module(directive),
        })
}

/// Whether a record that is allowed once a minute may be written now. `what` identifies it.
///
/// With more than a hundred of these in one minute, the others are not written.
pub fn once_a_minute(what: &str) -> bool {
    static SAID: LazyLock<Mutex<HashMap<String, Instant>>> = LazyLock::new(Mutex::default);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    allow_once(&mut said, what, Instant::now())
}

fn allow_once(said: &mut HashMap<String, Instant>, what: &str, now: Instant) -> bool {
    said.retain(|_, at| now.duration_since(*at) < MINUTE);
    if said.contains_key(what) || said.len() >= MAX_ONCE {
        return false;
    }
    said.insert(what.to_owned(), now);
    true
}

fn write(line: &mut Formatter, record: &Record<'_>, limiter: &LineLimiter) -> io::Result<()> {
    // Debug and trace lines are not limited: their reader wants all of them.
    let left_out = if record.level() <= Level::Info {
        let kind = Kind { file: record.file_static(), line: record.line() };
        let Some(left_out) = limiter.allow(kind, Instant::now()) else { return Ok(()) };
        left_out
    } else {
        0
    };
    let (time, style) = (line.timestamp(), line.default_level_style(record.level()));
    let (level, target) = (record.level(), record.target());
    write!(line, "[{time} {style}{level:<5}{style:#} {target}] {}", OneLine(record.args()))?;
    if left_out > 0 {
        write!(line, " (and {left_out} more like this were left out)")?;
    }
    writeln!(line)
}

/// The kind of a line: its place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    file: Option<&'static str>,
    line: Option<u32>,
}

/// The recent lines of each kind. The number of kinds is bounded by the number of log statements.
#[derive(Debug, Default)]
struct LineLimiter(Mutex<HashMap<Kind, Recent>>);

#[derive(Debug)]
struct Recent {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl LineLimiter {
    /// Whether one more line may be written. If so, returns how many were left out since the last
    /// one.
    fn allow(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = kinds.entry(kind).or_insert(Recent { since: now, lines: 0, left_out: 0 });
        if now.duration_since(recent.since) >= PERIOD {
            (recent.since, recent.lines) = (now, 0);
        }
        if recent.lines == MAX_LINES {
            recent.left_out += 1;
            return None;
        }
        recent.lines += 1;
        Some(std::mem::take(&mut recent.left_out))
    }
}

/// Text in which control characters are escaped, so that it stays on one line.
struct OneLine<T>(T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(is_control) {
            let last = part.chars().next_back().filter(|last| is_control(*last));
            let plain = last.map_or(part, |last| part.strip_suffix(last).unwrap_or(part));
            self.0.write_str(plain)?;
            if let Some(last) = last {
                write!(self.0, "{}", last.escape_default())?;
            }
        }
        Ok(())
    }
}

/// Control characters, line separators, and characters that change the direction of text.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, line) in [
            ("plain \"text\" with \\ and ü", "plain \"text\" with \\ and ü"),
            ("ann\n[2026 ERROR] forged", "ann\\n[2026 ERROR] forged"),
            ("\u{1b}[2J\r", "\\u{1b}[2J\\r"),
            ("a\0b\u{85}\u{2028}c\u{202e}", "a\\u{0}b\\u{85}\\u{2028}c\\u{202e}"),
            ("", ""),
        ] {
            assert_eq!(OneLine(text).to_string(), line);
        }
    }

    #[test]
    fn invalid_filters_are_found() {
        for filter in [
            "info",
            "INFO",
            "off",
            "info,mongodb=debug",
            "realtime_chat_backend",
            "realtime_chat_backend::sessions=trace, warn",
            "hyper=off",
            "debug/ann",
        ] {
            assert!(is_filter(filter), "{filter}");
        }
        for filter in ["", " ", ",", "verbose", "1", "true", "info,mongodb=loud", "=info", "all"] {
            assert!(!is_filter(filter), "{filter}");
        }
    }

    #[test]
    fn surplus_lines_of_a_kind_are_counted() {
        let (limiter, now) = (LineLimiter::default(), Instant::now());
        let kind = |line| Kind { file: Some("a.rs"), line: Some(line) };
        let written = (0..100).filter(|_| limiter.allow(kind(1), now).is_some()).count();
        assert_eq!(written, 10);
        assert_eq!(limiter.allow(kind(2), now), Some(0));
        assert_eq!(limiter.allow(kind(1), now + PERIOD), Some(90));
        assert_eq!(limiter.allow(kind(1), now + PERIOD), Some(0));
    }

    #[test]
    fn once_a_minute_is_once_a_minute_for_each_and_bounded() {
        let (mut said, now) = (HashMap::new(), Instant::now());
        assert!(allow_once(&mut said, "a", now) && allow_once(&mut said, "b", now));
        assert!(!allow_once(&mut said, "a", now + MINUTE - PERIOD));
        assert!(allow_once(&mut said, "a", now + MINUTE));
        let others = (0..1_000).filter(|n| allow_once(&mut said, &n.to_string(), now + MINUTE));
        assert_eq!(others.count(), MAX_ONCE - 1);
        assert_eq!(said.len(), MAX_ONCE);
    }
}
