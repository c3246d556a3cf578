//! A value of a stored document as the Node driver reads it: a JavaScript value.

use std::fmt::Write;

use bson::oid::ObjectId;
use bson::spec::{BinarySubtype, ElementType};
use bson::{Decimal128, RawBson, RawDocument};

use super::{date, number};

/// How deeply nested documents and arrays are read. MongoDB stores none with more than 180 levels.
const MAX_DEPTH: u8 = 200;

/// The integers that the driver converts to a number; others stay a [`Value::Long`].
const SAFE: std::ops::RangeInclusive<i64> = -(1 << 53)..=1 << 53;

/// A JavaScript value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `undefined`, which BSON still has.
    Undefined,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number of any type of BSON, except decimals and the largest integers.
    Number(f64),
    /// A text, or a symbol.
    Text(String),
    /// A date in milliseconds since 1970; `None` is JavaScript's invalid date.
    Date(Option<i64>),
    /// An id.
    ObjectId(ObjectId),
    /// A decimal number.
    Decimal(Decimal128),
    /// An integer that is too large for a JavaScript number.
    Long(i64),
    /// A timestamp of the oplog.
    Timestamp(u64),
    /// Bytes of any kind but a UUID.
    Binary(Vec<u8>),
    /// A UUID.
    Uuid([u8; 16]),
    /// A regular expression.
    RegExp {
        /// The pattern.
        source: String,
        /// The flags of JavaScript, in alphabetical order.
        flags: String,
    },
    /// MinKey or MaxKey: an object without properties.
    Key,
    /// JavaScript code.
    Code {
        /// Its text.
        code: String,
        /// Its variables.
        scope: Option<Object>,
    },
    /// A DBRef, as the object that it shows.
    DbRef(Object),
    /// An array.
    Array(Vec<Value>),
    /// A document.
    Object(Object),
}

/// The properties of an object, in the order in which JavaScript has them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object(Vec<(String, Value)>);

impl Object {
    /// Reads a document. False if it contains invalid BSON, where reading stops.
    pub fn read(document: &RawDocument) -> (Self, bool) {
        Self::read_within(document, MAX_DEPTH)
    }

    fn read_within(document: &RawDocument, depth: u8) -> (Self, bool) {
        let mut fields = Vec::new();
        let is_whole = read_elements(document, depth, |name, value| {
            fields.push((name.to_owned(), value));
        });
        (Self::new(fields), is_whole)
    }

    /// An object from properties that were set in this order. A property that is set again keeps
    /// its place, and indexes come first.
    fn new(set: Vec<(String, Value)>) -> Self {
        let mut fields: Vec<(String, Value)> = Vec::with_capacity(set.len());
        let mut places = std::collections::HashMap::with_capacity(set.len());
        for (name, value) in set {
            match places.get(&name).and_then(|place: &usize| fields.get_mut(*place)) {
                Some(field) => field.1 = value,
                None => {
                    places.insert(name.clone(), fields.len());
                    fields.push((name, value));
                }
            }
        }
        // The sort is stable, so the others keep their order.
        fields.sort_by_key(|(name, _)| array_index(name).unwrap_or(u32::MAX));
        Self(fields)
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The properties, in their order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The properties themselves, in their order.
    pub fn into_fields(self) -> impl Iterator<Item = (String, Value)> {
        self.0.into_iter()
    }

    /// Whether `_bsontype` says that this is a value of this type of the driver: Mongoose
    /// recognises the types by it.
    fn has_type_name(&self, type_name: &str) -> bool {
        matches!(self.get("_bsontype"), Some(Value::Text(name)) if name == type_name)
    }

    /// Whether Mongoose takes its property `constructor` for a class.
    fn has_constructor(&self) -> bool {
        self.get("constructor").is_some_and(Value::is_truthy) && self.get("valueOf").is_none()
    }

    /// Converts `{$ref, $id, $db}` to a DBRef, as the driver does. A DBRef shows its fields in
    /// another order.
    fn into_value(self) -> Value {
        let dollars = || self.fields().map(|(name, _)| name).filter(|name| name.starts_with('$'));
        let is_reference = dollars().next().is_some()
            && dollars().all(|name| matches!(name, "$ref" | "$id" | "$db"))
            && self.get("$id").is_some_and(|id| !matches!(id, Value::Undefined | Value::Null))
            && matches!(self.get("$ref"), Some(Value::Text(_)))
            && matches!(self.get("$db"), None | Some(Value::Text(_)));
        if !is_reference {
            return Value::Object(self);
        }
        let (mut namespace, mut id, mut db) = (String::new(), Value::Null, None);
        let mut others = Vec::new();
        for (name, value) in self.0 {
            match (name.as_str(), value) {
                ("$ref", Value::Text(text)) => namespace = text,
                ("$db", Value::Text(text)) => db = Some(text),
                ("$id", value) => id = value,
                // The driver copies by assignment, which sets the prototype instead.
                ("__proto__", _) => {}
                (_, value) => others.push((name, value)),
            }
        }
        Value::reference(namespace, id, db, others)
    }
}

impl Value {
    /// Whether JavaScript takes it for true in a condition.
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Undefined | Self::Null => false,
            Self::Bool(value) => *value,
            Self::Number(value) => *value != 0.0 && !value.is_nan(),
            Self::Text(text) => !text.is_empty(),
            _ => true,
        }
    }

    /// Whether Mongoose copies it as it is, without inspecting its content.
    pub(super) fn is_flat(&self) -> bool {
        matches!(
            self,
            Self::Undefined
                | Self::Null
                | Self::Bool(_)
                | Self::Number(_)
                | Self::Text(_)
                | Self::Date(_)
                | Self::ObjectId(_)
                | Self::Decimal(_)
        )
    }

    /// Whether it is an object whose `_bsontype` names this type of the driver.
    pub(super) fn has_type_name(&self, type_name: &str) -> bool {
        matches!(self, Self::Object(object) if object.has_type_name(type_name))
    }

    /// The result of the operator `typeof`.
    pub fn type_of(&self) -> &'static str {
        match self {
            Self::Undefined => "undefined",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::Text(_) => "string",
            _ => "object",
        }
    }

    /// `String(value)`; `None` when that throws.
    pub fn print(&self) -> Option<String> {
        let mut out = String::new();
        self.print_into(&mut out)?;
        Some(out)
    }

    fn print_into(&self, out: &mut String) -> Option<()> {
        let written = match self {
            Self::Undefined => write!(out, "undefined"),
            Self::Null => write!(out, "null"),
            Self::Bool(value) => write!(out, "{value}"),
            Self::Number(value) => write!(out, "{}", ryu_js::Buffer::new().format(*value)),
            Self::Text(text) => write!(out, "{text}"),
            Self::Date(None) => write!(out, "Invalid Date"),
            Self::Date(Some(millis)) => return date::print(out, *millis).ok(),
            Self::ObjectId(id) => write!(out, "{id}"),
            Self::Decimal(value) => write!(out, "{value}"),
            Self::Long(value) => write!(out, "{value}"),
            Self::Timestamp(value) => write!(out, "{value}"),
            Self::Binary(bytes) => write!(out, "{}", String::from_utf8_lossy(bytes)),
            Self::Uuid(bytes) => print_uuid(out, bytes),
            Self::RegExp { source, flags } => write!(out, "/{}/{flags}", escape(source)),
            // A stored property `toString` is no function, so the call throws.
            Self::Object(object) if object.get("toString").is_some() => return None,
            Self::Key | Self::Code { .. } | Self::DbRef(_) | Self::Object(_) => {
                write!(out, "[object Object]")
            }
            Self::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    if !matches!(element, Self::Undefined | Self::Null) {
                        element.print_into(out)?;
                    }
                }
                Ok(())
            }
        };
        written.ok()
    }

    /// `Number(value)`, NaN when that throws.
    pub fn to_number(&self) -> f64 {
        match self {
            Self::Undefined => f64::NAN,
            Self::Null => 0.0,
            Self::Bool(value) => f64::from(u8::from(*value)),
            Self::Number(value) => *value,
            Self::Date(millis) => millis.map_or(f64::NAN, |millis| millis as f64),
            value => value.print().map_or(f64::NAN, |text| number::parse(&text)),
        }
    }

    /// The part that Mongoose copies of a value that is not in its schema. Documents in documents,
    /// but not those in arrays, lose the fields whose names every object has.
    pub(super) fn hydrate(self) -> Self {
        let Self::Object(object) = self else { return self };
        let fields = object.into_fields().filter_map(|(name, value)| match value {
            _ if matches!(name.as_str(), "__proto__" | "constructor") => None,
            Self::Object(_) if is_inherited(&name) => None,
            value => Some((name, value.hydrate())),
        });
        Self::Object(Object(fields.collect()))
    }

    /// The part of a value that `toJSON` keeps; `None` for `undefined` and for an empty document.
    /// In an array, an empty document stays.
    pub(super) fn minimize(self) -> Option<Self> {
        match self.minimize_element() {
            Self::Undefined => None,
            Self::Object(object) if object.0.is_empty() => None,
            value => Some(value),
        }
    }

    fn minimize_element(self) -> Self {
        match self {
            Self::Array(elements) => {
                Self::Array(elements.into_iter().map(Self::minimize_element).collect())
            }
            Self::Object(object) if object.has_type_name("Double") => {
                Self::Number(object.get("value").map_or(f64::NAN, Self::to_number))
            }
            // Mongoose takes it for an object of a class, and keeps it as it is.
            Self::Object(object) if object.has_constructor() => Self::Object(object),
            Self::Object(object) => {
                let fields = object.into_fields().filter_map(|(name, value)| {
                    let is_special =
                        matches!(name.as_str(), "__proto__" | "constructor" | "prototype");
                    if is_special { None } else { Some((name, value.minimize()?)) }
                });
                Self::Object(Object(fields.collect()))
            }
            value => value,
        }
    }

    /// A DBRef. The namespace may contain the name of the database.
    fn reference(
        namespace: String,
        id: Self,
        mut db: Option<String>,
        others: Vec<(String, Self)>,
    ) -> Self {
        let mut parts = namespace.split('.');
        let collection = match (parts.next(), parts.next(), parts.next()) {
            (Some(database), Some(collection), None) => {
                db = Some(database.to_owned());
                collection.to_owned()
            }
            _ => namespace,
        };
        let mut fields = vec![("$ref".to_owned(), Self::Text(collection)), ("$id".to_owned(), id)];
        fields.extend(others);
        fields.extend(db.map(|db| ("$db".to_owned(), Self::Text(db))));
        Self::DbRef(Object::new(fields))
    }
}

/// Reads the elements of a document or array. False if reading stops at invalid BSON.
fn read_elements(document: &RawDocument, depth: u8, mut set: impl FnMut(&str, Value)) -> bool {
    // The elements begin after the length of the document.
    let mut at = 4;
    for element in document.iter_elements() {
        let Ok(element) = element else { return false };
        let begin = at + 1 + element.key().len() + 1;
        at = begin + element.size();
        let bytes = document.as_bytes().get(begin..at).unwrap_or_default();
        let Some((value, is_whole)) = read_value(element.element_type(), &element, bytes, depth)
        else {
            return false;
        };
        set(element.key().as_str(), value);
        if !is_whole {
            return false;
        }
    }
    true
}

/// Reads a value, and whether it is whole; `None` if it is invalid BSON, or too deep.
fn read_value(
    kind: ElementType,
    element: &bson::raw::RawElement<'_>,
    bytes: &[u8],
    depth: u8,
) -> Option<(Value, bool)> {
    let mut is_whole = true;
    let mut nested = |document: &RawDocument| {
        let (object, whole) = Object::read_within(document, depth.checked_sub(1)?);
        is_whole = whole;
        Some(object)
    };
    let value = match kind {
        ElementType::EmbeddedDocument => nested(RawDocument::from_bytes(bytes).ok()?)?.into_value(),
        ElementType::Array => {
            let mut elements = Vec::new();
            let array = RawDocument::from_bytes(bytes).ok()?;
            let depth = depth.checked_sub(1)?;
            is_whole = read_elements(array, depth, |_, value| elements.push(value));
            Value::Array(elements)
        }
        // The type of the `bson` crate does not give access to its content.
        ElementType::DbPointer => {
            let (namespace, id) = bytes.split_at_checked(bytes.len().checked_sub(12)?)?;
            let namespace = namespace.get(4..namespace.len().checked_sub(1)?)?;
            let namespace = String::from_utf8_lossy(namespace).into_owned();
            let id = Value::ObjectId(ObjectId::from_bytes(id.try_into().ok()?));
            Value::reference(namespace, id, None, Vec::new())
        }
        _ => match element.value_utf8_lossy().ok()? {
            RawBson::Null => Value::Null,
            RawBson::Boolean(value) => Value::Bool(value),
            RawBson::Double(value) => Value::Number(value),
            RawBson::Int32(value) => Value::Number(value.into()),
            RawBson::Int64(value) if SAFE.contains(&value) => Value::Number(value as f64),
            RawBson::Int64(value) => Value::Long(value),
            RawBson::String(text) | RawBson::Symbol(text) => Value::Text(text),
            RawBson::DateTime(at) => Value::Date(date::clip(at.timestamp_millis() as f64)),
            RawBson::ObjectId(id) => Value::ObjectId(id),
            RawBson::Decimal128(value) => Value::Decimal(value),
            RawBson::Timestamp(at) => {
                Value::Timestamp(u64::from(at.time) << 32 | u64::from(at.increment))
            }
            RawBson::Binary(binary) => match (binary.subtype, <[u8; 16]>::try_from(&*binary.bytes))
            {
                (BinarySubtype::Uuid, Ok(bytes)) => Value::Uuid(bytes),
                _ => Value::Binary(binary.bytes),
            },
            RawBson::RegularExpression(regex) => {
                let options = regex.options.as_str();
                // The Node driver converts "s" to JavaScript's "g", keeps "i" and "m", and drops
                // all others.
                let flags = [('s', 'g'), ('i', 'i'), ('m', 'm')].into_iter();
                let flags = flags.filter(|(option, _)| options.contains(*option));
                Value::RegExp {
                    source: regex.pattern.as_str().to_owned(),
                    flags: flags.map(|(_, flag)| flag).collect(),
                }
            }
            RawBson::JavaScriptCode(code) => Value::Code { code, scope: None },
            RawBson::JavaScriptCodeWithScope(with) => {
                Value::Code { scope: Some(nested(&with.scope)?), code: with.code }
            }
            RawBson::MinKey | RawBson::MaxKey => Value::Key,
            _ => Value::Undefined,
        },
    };
    Some((value, is_whole))
}

/// Whether every JavaScript object has a property of this name.
pub(super) fn is_inherited(name: &str) -> bool {
    matches!(
        name,
        "__proto__"
            | "__defineGetter__"
            | "__defineSetter__"
            | "__lookupGetter__"
            | "__lookupSetter__"
            | "constructor"
            | "hasOwnProperty"
            | "isPrototypeOf"
            | "propertyIsEnumerable"
            | "toLocaleString"
            | "toString"
            | "valueOf"
    )
}

/// Whether JavaScript treats a character as space, line ends included.
pub(super) fn is_js_space(char: char) -> bool {
    // Unicode's property lacks U+FEFF and has U+0085.
    char == '\u{feff}' || (char.is_whitespace() && char != '\u{85}')
}

/// The array index that a property's name means: "0" to "4294967294", without leading zeros.
fn array_index(name: &str) -> Option<u32> {
    let is_plain = name == "0"
        || matches!(name.as_bytes(), [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit));
    name.parse().ok().filter(|index| is_plain && *index != u32::MAX)
}

/// The source of a regular expression as it is written in a literal (ECMA-262,
/// EscapeRegExpPattern).
fn escape(source: &str) -> String {
    if source.is_empty() {
        return "(?:)".to_owned();
    }
    let mut out = String::with_capacity(source.len());
    let (mut is_escaped, mut in_class) = (false, false);
    for char in source.chars() {
        let name = match char {
            '\n' => Some("n"),
            '\r' => Some("r"),
            '\u{2028}' => Some("u2028"),
            '\u{2029}' => Some("u2029"),
            '/' if !in_class => Some("/"),
            _ => None,
        };
        match name {
            // The text already has the backslash.
            Some(name) if is_escaped => out.push_str(name),
            Some(name) => out.extend(["\\", name]),
            None => out.push(char),
        }
        if !is_escaped {
            in_class = (in_class || char == '[') && char != ']';
        }
        is_escaped = char == '\\' && !is_escaped;
    }
    out
}

fn print_uuid(out: &mut String, bytes: &[u8; 16]) -> std::fmt::Result {
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        write!(out, "{byte:02x}")?;
    }
    Ok(())
}
