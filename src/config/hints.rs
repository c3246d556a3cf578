//! Hints about variables that are set, but not in a way that has the intended effect.

use super::{ConfigError, VARIABLES};

/// Names that other programs read a database's connection string from.
const OTHER_NAMES: [&str; 4] = ["MONGO_URL", "MONGODB_URL", "DB_URI", "DATABASE_URL"];

/// Hints about variables of the environment and of the file `.env`, as sentences.
pub(super) fn notices(
    environment: impl Fn(&str) -> Option<String>,
    file: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut notices = Vec::new();
    let is_set = |value: Option<String>| value.is_some_and(|value| !value.is_empty());
    let either = |name: &str| environment(name).or_else(|| file(name));
    for name in VARIABLES {
        let Some(value) = environment(name) else { continue };
        if is_quoted(&value) {
            notices.push(format!(
                "{name} is in quotes, which count as part of its value: docker's --env-file does \
                 not remove them. Write it without quotes"
            ));
        }
        if value.is_empty() && (*name == "JWT_SECRET" || is_set(file(name))) {
            notices.push(format!(
                "{name} is set but empty in the environment; .env is not read for it"
            ));
        }
    }
    if is_set(either("MONGO_URI")) || is_set(either("MONGODB_URI")) {
        return notices;
    }
    for name in OTHER_NAMES {
        if either(name).is_some_and(|value| value.trim_start().starts_with("mongodb")) {
            notices.push(format!(
                "{name} is a connection string, but is not read here: set MONGO_URI to use it"
            ));
        }
    }
    notices
}

/// A more precise error, which depends on how the variable was set.
pub(super) fn explain(
    error: ConfigError,
    environment: impl Fn(&str) -> Option<String>,
    file: impl Fn(&str) -> Option<String>,
) -> ConfigError {
    let is_empty = |value: Option<String>| value.is_some_and(|value| value.is_empty());
    match error {
        ConfigError::NoSecret if is_empty(environment("JWT_SECRET")) => {
            ConfigError::EmptySecret { place: "in the environment; .env is not read for it" }
        }
        ConfigError::NoSecret if is_empty(file("JWT_SECRET")) => {
            ConfigError::EmptySecret { place: "in .env" }
        }
        ConfigError::Invalid { name, .. }
            if environment(name).is_some_and(|value| is_quoted(&value)) =>
        {
            ConfigError::Quoted { name }
        }
        error => error,
    }
}

/// Whether a whole value is in a pair of quotes.
fn is_quoted(value: &str) -> bool {
    let value = value.trim();
    ['"', '\'', '`'].iter().any(|quote| {
        value.strip_prefix(*quote).and_then(|inner| inner.strip_suffix(*quote)).is_some()
    })
}
