//! JSON values with JavaScript's meaning, and Mongoose's casts of them.
//!
//! The Node server read every field with `JSON.parse` and Mongoose's schema types, and clients rely
//! on what those accept: a number as a name, `{"_id": "…"}` instead of a string, an id inside an
//! array. This file has those rules, and knows no routes and no documents. Values are read to a
//! bounded depth, however deep a body is nested.

use std::borrow::Cow;
use std::fmt::Write;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::models::NotAnId;

/// The maximum depth of arrays and objects. No cast looks deeper than an array inside an `_id`. A
/// deeper value becomes a [`Js::Object`] without an `_id`, which no cast accepts.
const MAX_DEPTH: u8 = 16;

/// The value of a field of `req.body` in a JavaScript handler.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Js {
    /// The field is not there.
    #[default]
    Undefined,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number. Beyond the range of a double it is infinite, as in JavaScript.
    Number(f64),
    /// A string. A lone surrogate is replaced by U+FFFD, as in the database.
    String(String),
    /// An array.
    Array(Vec<Js>),
    /// An object. Casts only read its `_id`.
    Object {
        /// The value of `_id`; [`Js::Undefined`] if there is none.
        id: Box<Js>,
    },
}

/// A value that Mongoose refuses to cast to the type of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot be cast")]
pub struct CastError;

impl Js {
    /// Casts to a string like Mongoose's `castString`: a scalar becomes its text, and an object
    /// with a non-empty string `_id` becomes that string.
    ///
    /// # Errors
    /// `null`, a missing field, an array or any other object. (Mongoose casts `null`, and its
    /// `required` validator refuses it; here the cast refuses it.)
    pub fn to_text(&self) -> Result<Cow<'_, str>, CastError> {
        match self {
            Self::String(text) => Ok(text.into()),
            Self::Bool(_) | Self::Number(_) => Ok(self.print().into()),
            Self::Object { id } => match id.as_ref() {
                Self::String(text) if !text.is_empty() => Ok(text.into()),
                _ => Err(CastError),
            },
            Self::Undefined | Self::Null | Self::Array(_) => Err(CastError),
        }
    }

    /// Casts to an id like Mongoose's `castObjectId`: the text of the value, or of its `_id` if it
    /// has one, must be 24 hexadecimal digits.
    ///
    /// # Errors
    /// Any other value, including `null` and a missing field.
    pub fn to_id<Id: std::str::FromStr<Err = NotAnId>>(&self) -> Result<Id, CastError> {
        let printed = match self {
            Self::Undefined | Self::Null => return Err(CastError),
            Self::String(text) => Cow::from(text),
            Self::Object { id } if id.is_truthy() => id.print().into(),
            value => value.print().into(),
        };
        printed.parse().map_err(|_| CastError)
    }

    /// Whether it is missing or `null`, as JavaScript's `== null`.
    pub fn is_nullish(&self) -> bool {
        matches!(self, Self::Undefined | Self::Null)
    }

    /// The result of the operator `typeof`.
    pub fn type_of(&self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Null | Self::Array(_) | Self::Object { .. } => "object",
        }
    }

    fn is_truthy(&self) -> bool {
        match self {
            Self::Undefined | Self::Null => false,
            Self::Bool(value) => *value,
            Self::Number(value) => *value != 0.0 && !value.is_nan(),
            Self::String(text) => !text.is_empty(),
            Self::Array(_) | Self::Object { .. } => true,
        }
    }

    /// The result of `toString()`. The elements of an array are joined by commas.
    fn print(&self) -> String {
        let mut out = String::new();
        self.print_into(&mut out);
        out
    }

    fn print_into(&self, out: &mut String) {
        match self {
            Self::Undefined | Self::Null => {}
            Self::Bool(value) => write!(out, "{value}").expect("writing into a string cannot fail"),
            Self::Number(value) => out.push_str(ryu_js::Buffer::new().format(*value)),
            Self::String(text) => out.push_str(text),
            Self::Object { .. } => out.push_str("[object Object]"),
            Self::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    element.print_into(out);
                }
            }
        }
    }

    /// Reads the text of one value. This never fails for a text that serde_json has accepted as
    /// JSON.
    fn from_raw(raw: &RawValue, depth: u8) -> Result<Self, serde_json::Error> {
        let text = raw.get();
        Ok(match text.as_bytes().first() {
            Some(b'"') => Self::String(serde_json::from_str(&replace_lone_surrogates(text))?),
            Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'[') if depth < MAX_DEPTH => Self::Array(
                serde_json::from_str::<Vec<&RawValue>>(text)?
                    .into_iter()
                    .map(|element| Self::from_raw(element, depth + 1))
                    .collect::<Result<_, _>>()?,
            ),
            Some(b'{') if depth < MAX_DEPTH => {
                Self::Object { id: Box::new(Fields::parse(text, depth + 1)?.take("_id")) }
            }
            Some(b'[' | b'{') => Self::Object { id: Box::default() },
            // Rust parses all numbers of JSON, and an overflow is infinite as in JavaScript.
            _ => Self::Number(text.parse().unwrap_or(f64::NAN)),
        })
    }
}

/// The fields of a JSON object. Of duplicate fields the last one counts, as in JavaScript.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    values: Vec<(String, Js)>,
    /// The output of [`stringify()`] for strings with lone surrogates, which are rare.
    echoes: Vec<(String, String)>,
}

impl Fields {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// The text is not a JSON object.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        Self::parse(text, 0)
    }

    /// Takes a field out; [`Js::Undefined`] if it is missing.
    pub fn take(&mut self, name: &str) -> Js {
        match self.values.iter().rposition(|(key, _)| key == name) {
            Some(index) => self.values.remove(index).1,
            None => Js::Undefined,
        }
    }

    /// The JSON of a field with a lone surrogate, for an answer that echoes the field: in
    /// JavaScript it still has the surrogate, although the database has U+FFFD. `None` for a field
    /// without a lone surrogate.
    pub fn take_echo(&mut self, name: &str) -> Option<String> {
        let index = self.echoes.iter().rposition(|(key, _)| key == name)?;
        Some(self.echoes.swap_remove(index).1)
    }

    fn parse(text: &str, depth: u8) -> Result<Self, serde_json::Error> {
        struct Object(u8);

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some((key, raw)) = map.next_entry::<&RawValue, &RawValue>()? {
                    fields.push(key, raw, self.0).map_err(serde::de::Error::custom)?;
                }
                Ok(fields)
            }
        }

        let mut json = serde_json::Deserializer::from_str(text);
        let fields = json.deserialize_map(Object(depth))?;
        json.end()?;
        Ok(fields)
    }

    fn push(&mut self, key: &RawValue, raw: &RawValue, depth: u8) -> Result<(), serde_json::Error> {
        let key: String = serde_json::from_str(&replace_lone_surrogates(key.get()))?;
        self.echoes.retain(|(known, _)| *known != key);
        self.echoes.extend(stringify(raw.get()).map(|echo| (key.clone(), echo)));
        self.values.push((key, Js::from_raw(raw, depth)?));
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Js {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Self::from_raw(raw, 0).map_err(serde::de::Error::custom)
    }
}

/// Replaces the escapes of lone surrogates by `\ufffd`. They are valid JSON, but not Unicode.
///
/// `JSON.parse` accepts them, and the driver stores U+FFFD. serde_json would refuse the text.
fn replace_lone_surrogates(json: &str) -> Cow<'_, str> {
    let mut replaced = Cow::Borrowed(json);
    for (at, _) in lone_surrogates(json) {
        replaced.to_mut().replace_range(at + 2..at + 6, "fffd");
    }
    replaced
}

/// The output of `JSON.stringify` for a string literal with lone surrogates: only they are still
/// escaped. `None` for all other JSON.
fn stringify(json: &str) -> Option<String> {
    let literal = json.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::from("\"");
    let mut at = 0;
    for (lone, unit) in lone_surrogates(literal) {
        out.push_str(&plain(literal.get(at..lone)?)?);
        write!(out, "\\u{unit:04x}").ok()?;
        at = lone + 6;
    }
    if at == 0 {
        return None;
    }
    out.push_str(&plain(literal.get(at..)?)?);
    out.push('"');
    Some(out)
}

/// A part of a string literal without needless escapes.
fn plain(part: &str) -> Option<String> {
    let text: String = serde_json::from_str(&format!("\"{part}\"")).ok()?;
    let json = serde_json::to_string(&text).ok()?;
    Some(json.strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// The escapes of lone surrogates in a JSON text: the offset and the code unit of each.
fn lone_surrogates(json: &str) -> impl Iterator<Item = (usize, u16)> {
    let bytes = json.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            at += bytes.get(at..)?.iter().position(|byte| *byte == b'\\')?;
            let begin = at;
            match (unit(bytes, at), unit(bytes, at + 6)) {
                (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => at += 12,
                (Some(lone @ 0xD800..=0xDFFF), _) => {
                    at += 6;
                    return Some((begin, lone));
                }
                (Some(_), _) => at += 6,
                // Any other escape is two bytes long: `\\u` must not be taken for `\u`.
                (None, _) => at += 2,
            }
        }
    })
}

/// The UTF-16 code unit of a `\uXXXX` escape that begins at `at`.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::RoomId;

    fn js(json: &str) -> Js {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn strings_are_cast_as_mongoose_casts_them() {
        for (json, text) in [
            ("\"a\"", Some("a")),
            ("1.50", Some("1.5")),
            ("1e21", Some("1e+21")),
            ("1e999", Some("Infinity")),
            ("-0", Some("0")),
            ("123456789012345680000", Some("123456789012345680000")),
            ("1e-7", Some("1e-7")),
            ("true", Some("true")),
            (r#"{"_id":"x"}"#, Some("x")),
            (r#"{"_id":"x","_id":"y"}"#, Some("y")),
            (r#"{"_id":""}"#, None),
            (r#"{"_id":5}"#, None),
            (r#"{"a":1}"#, None),
            (r#"["a"]"#, None),
            ("null", None),
        ] {
            assert_eq!(js(json).to_text().ok().as_deref(), text, "{json}");
        }
    }

    #[test]
    fn ids_are_cast_as_mongoose_casts_them() {
        let id = "0123456789abcdef01234567";
        for (json, valid) in [
            (format!("\"{id}\""), true),
            (format!("\"{}\"", id.to_uppercase()), true),
            (format!("[\"{id}\"]"), true),
            (format!("[[\"{id}\"]]"), true),
            (format!("{{\"_id\":\"{id}\"}}"), true),
            (format!("{{\"_id\":[\"{id}\"]}}"), true),
            (format!("{{\"_id\":{{\"_id\":\"{id}\"}}}}"), false),
            (format!("[{{\"_id\":\"{id}\"}}]"), false),
            (format!("[\"{id}\",\"{id}\"]"), false),
            ("\"abcdefghijkl\"".to_owned(), false),
            ("12345".to_owned(), false),
            ("[]".to_owned(), false),
            ("{}".to_owned(), false),
        ] {
            assert_eq!(js(&json).to_id::<RoomId>().is_ok(), valid, "{json}");
        }
    }

    #[test]
    fn any_depth_is_read_and_none_is_kept_beyond_the_bound() {
        let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
        assert!(js(&deep).to_id::<RoomId>().is_err());
        let mut fields = Fields::from_json(&format!("{{\"a\":{deep},\"b\":1}}")).unwrap();
        assert_eq!(fields.take("b"), Js::Number(1.0));
    }

    #[test]
    fn the_last_of_duplicate_fields_counts_whatever_was_taken_before() {
        let mut fields = Fields::from_json(r#"{"a":1,"a":2,"b":3,"b":4,"c":5,"c":6}"#).unwrap();
        for (name, value) in [("a", 2.0), ("b", 4.0), ("c", 6.0)] {
            assert_eq!(fields.take(name), Js::Number(value), "{name}");
        }
        assert_eq!(fields.take("d"), Js::Undefined);
    }

    #[test]
    fn lone_surrogates_become_the_replacement_character_and_are_echoed() {
        for (json, read, echo) in [
            (r#""\ud83d\ude00""#, "😀", None),
            (r#""\ud83d""#, "\u{fffd}", Some(r#""\ud83d""#)),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}", Some(r#""\ude00\ud83d""#)),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀", Some(r#""\ud83d😀""#)),
            (r#""\\ud83d""#, "\\ud83d", None),
            (r#""\uD83Dx\u0041\n""#, "\u{fffd}xA\n", Some(r#""\ud83dxA\n""#)),
            (r#""\ufffd""#, "\u{fffd}", None),
        ] {
            let mut fields = Fields::from_json(&format!("{{\"a\":{json}}}")).unwrap();
            assert_eq!(fields.take("a"), Js::String(read.to_owned()), "{json}");
            assert_eq!(fields.take_echo("a").as_deref(), echo, "{json}");
        }
        let mut fields = Fields::from_json(r#"{"\ud800":1,"a":"\ud800","a":"b"}"#).unwrap();
        assert_eq!(fields.take("\u{fffd}"), Js::Number(1.0));
        assert_eq!(fields.take_echo("a"), None);
    }
}
