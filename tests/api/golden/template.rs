//! Texts with variables (`${name}`) and placeholders (`<kind>` or `<kind:name>`).
//!
//! A placeholder accepts a kind of text; a named one binds what it met, and from then on accepts
//! only that. A text is compared from left to right without ever going back, which the kinds
//! allow: none can be followed by a character that it would accept itself.

use std::{collections::HashMap, net::SocketAddr, sync::LazyLock, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey};
use regex::Regex;
use sha1::{Digest as _, Sha1};

/// The secret that signs every token of the transcripts.
const SECRET: &[u8] = b"golden-secret";

/// How far a new token's `iat` may be from this clock, in seconds.
const CLOCK_SLACK: u64 = 120;

/// How much of the actual text a template must cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Whole,
    Prefix,
}

/// What the variables of one scenario stand for.
#[derive(Debug)]
pub struct Variables(HashMap<String, String>);

impl Variables {
    /// The variables that every scenario begins with: `run`, `num` and `host`.
    pub fn new(address: SocketAddr) -> Self {
        let random = getrandom::u64().expect("the system has random numbers");
        let run = format!("q{:09x}", random & 0xf_ffff_ffff);
        let number = format!("{}1", 10_000_000 + random % 89_000_000);
        Self(HashMap::from([
            ("run".to_owned(), run),
            ("num".to_owned(), number),
            ("host".to_owned(), address.to_string()),
        ]))
    }

    /// Puts the variables' values in.
    pub fn fill(&self, text: &str) -> Result<String, String> {
        static VARIABLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\$\{([^{}]*)\}"));
        let mut filled = String::new();
        let mut rest = text;
        while let Some(found) = VARIABLE.find(rest) {
            let (before, behind) = (&rest[..found.start()], &rest[found.end()..]);
            filled += before;
            filled += &self.value(&found.as_str()[2..found.len() - 1])?;
            rest = behind;
        }
        Ok(filled + rest)
    }

    fn value(&self, expression: &str) -> Result<String, String> {
        match expression.split_once(':') {
            Some(("repeat", what)) => {
                let (text, times) = what.rsplit_once(':').ok_or("repeat needs a number")?;
                Ok(text.repeat(times.parse().map_err(|_| "repeat needs a number")?))
            }
            Some(("upper", name)) => Ok(self.bound(name)?.to_uppercase()),
            Some(("strong", name)) => Ok(self.bound(name)?.replacen("W/", "", 1)),
            _ => self.bound(expression).map(str::to_owned),
        }
    }

    fn bound(&self, name: &str) -> Result<&str, String> {
        let missing = || format!("${{{name}}} is not bound: an earlier step failed");
        self.0.get(name).map(String::as_str).ok_or_else(missing)
    }

    /// Compares a text with a template. Names are bound only when all of it fits. `body` is the
    /// body of the answer from which the text comes: lengths and tags are judged by it.
    pub fn fit(
        &mut self,
        template: &str,
        actual: &str,
        fit: Fit,
        body: &[u8],
    ) -> Result<(), String> {
        static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| {
            pattern(r"<(objectid|isodate|jwt|etag|len|int|sid|httpdate)(?::([A-Za-z0-9_.\-]+))?>")
        });
        let template = self.fill(template)?;
        let mut bound = HashMap::new();
        let mut expected = template.as_str();
        let mut rest = actual;
        while let Some(found) = PLACEHOLDER.captures(expected) {
            let whole = found.get_match();
            rest = take(rest, &expected[..whole.start()], actual)?;
            expected = &expected[whole.end()..];
            let name = found.get(2).map(|name| name.as_str().to_owned());
            let known = name.as_ref().and_then(|name| bound.get(name).or(self.0.get(name)));
            if let Some(known) = known {
                rest = take(rest, known, actual)?;
                continue;
            }
            let kind = Kind::named(&found[1]);
            let text = kind.find(rest).ok_or_else(|| mismatch(rest, &found[0], actual))?;
            kind.check(text, body)?;
            rest = &rest[text.len()..];
            bound.extend(name.map(|name| (name, text.to_owned())));
        }
        rest = take(rest, expected, actual)?;
        if fit == Fit::Whole && !rest.is_empty() {
            return Err(mismatch(rest, "the end", actual));
        }
        self.0.extend(bound);
        Ok(())
    }
}

/// Takes a literal text off the front.
fn take<'a>(rest: &'a str, literal: &str, actual: &str) -> Result<&'a str, String> {
    rest.strip_prefix(literal).ok_or_else(|| mismatch(rest, literal, actual))
}

fn mismatch(rest: &str, expected: &str, actual: &str) -> String {
    let same = rest.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count();
    let excerpt = |text: &str| text.chars().skip(same).take(120).collect::<String>();
    let before = actual.len() - rest.len();
    format!(
        "behind {before} bytes and {same} characters: {:?}, not {:?}",
        excerpt(rest),
        excerpt(expected)
    )
}

/// What a placeholder accepts.
enum Kind {
    /// A signed token of the server's own making, issued now.
    Token,
    /// The weak tag that Express makes of the body.
    Tag,
    /// The number of the body's bytes.
    Length,
    /// Any text of this pattern.
    Text(&'static Regex),
}

impl Kind {
    fn named(name: &str) -> Self {
        static OBJECT_ID: LazyLock<Regex> = LazyLock::new(|| pattern("^[0-9a-f]{24}"));
        static DATE: LazyLock<Regex> = LazyLock::new(|| {
            pattern(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T([0-9]{2}:){2}[0-9]{2}\.[0-9]{3}Z")
        });
        static HTTP_DATE: LazyLock<Regex> = LazyLock::new(|| {
            pattern("^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} ([0-9]{2}:){2}[0-9]{2} GMT")
        });
        static SESSION: LazyLock<Regex> = LazyLock::new(|| pattern("^[A-Za-z0-9_-]{20}"));
        match name {
            "jwt" => Self::Token,
            "etag" => Self::Tag,
            "len" => Self::Length,
            "objectid" => Self::Text(&OBJECT_ID),
            "isodate" => Self::Text(&DATE),
            "httpdate" => Self::Text(&HTTP_DATE),
            "sid" => Self::Text(&SESSION),
            _ => Self::Text(&NUMBER),
        }
    }

    /// The text of this kind at the front.
    fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        static TOKEN: LazyLock<Regex> =
            LazyLock::new(|| pattern(r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"));
        static TAG: LazyLock<Regex> =
            LazyLock::new(|| pattern(r#"^W/"[0-9a-f]+-[A-Za-z0-9+/]{27}""#));
        let pattern: &Regex = match self {
            Self::Token => &TOKEN,
            Self::Tag => &TAG,
            Self::Length => &NUMBER,
            Self::Text(pattern) => pattern,
        };
        pattern.find(text).map(|found| found.as_str())
    }

    fn check(&self, text: &str, body: &[u8]) -> Result<(), String> {
        match self {
            Self::Token => check_token(text),
            Self::Tag if !body.is_empty() && text != express_tag(body) => {
                Err(format!("{text} is not the tag of the body, {}", express_tag(body)))
            }
            Self::Length if text != body.len().to_string() => {
                Err(format!("{text} is not the length of the body, {}", body.len()))
            }
            _ => Ok(()),
        }
    }
}

static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern("^[0-9]+"));

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are valid")
}

fn express_tag(body: &[u8]) -> String {
    let digest = STANDARD.encode(Sha1::digest(body));
    format!("W/\"{:x}-{}\"", body.len(), &digest[..27])
}

/// A token must be byte for byte what jsonwebtoken makes, except for the id and the time.
fn check_token(token: &str) -> Result<(), String> {
    static CLAIMS: LazyLock<Regex> =
        LazyLock::new(|| pattern(r#"^\{"id":"[0-9a-f]{24}","iat":([0-9]+),"exp":([0-9]+)\}$"#));
    let (message, signature) = token.rsplit_once('.').ok_or("a token has three parts")?;
    let (header, claims) = message.split_once('.').ok_or("a token has three parts")?;
    if header != "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9" {
        return Err(format!("the token's header is {header}"));
    }
    let key = DecodingKey::from_secret(SECRET);
    let verified =
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key, Algorithm::HS256);
    if !verified.is_ok_and(|genuine| genuine) {
        return Err("the token's signature does not verify".to_owned());
    }
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims)
        .map_err(|error| error.to_string())?;
    let claims = String::from_utf8_lossy(&claims);
    let times = CLAIMS.captures(&claims).ok_or_else(|| format!("the claims are {claims}"))?;
    let second = |part: usize| times[part].parse::<u64>().map_err(|error| error.to_string());
    let (issued, expires) = (second(1)?, second(2)?);
    let now = SystemTime::UNIX_EPOCH.elapsed().map_err(|error| error.to_string())?.as_secs();
    if expires != issued + 3600 || issued.abs_diff(now) > CLOCK_SLACK {
        return Err(format!("the token is not of now and for an hour: {claims}"));
    }
    Ok(())
}
