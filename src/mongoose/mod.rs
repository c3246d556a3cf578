//! A stored document as Mongoose shows it.
//!
//! The original read every document through a schema. A value of another type was cast to the type
//! of its field, and omitted if it could not be cast. Fields that are not in the schema were kept.
//! This module does the same for everything that BSON can contain, so that a response has the
//! fields and values of Mongoose 8.9 with its driver (BSON 6.10). `tests/documents/` has recorded
//! examples.
//!
//! `value` reads a value as the driver does, `date` and `number` parse texts as JavaScript does,
//! and this file has the casts. [`crate::views`] writes JSON, and [`crate::models`] makes the
//! queries. Ordinary documents are not read here: models read them without a copy.
//!
//! Some documents make the original answer 500 to a whole list. Here every document is shown:
//! invalid UTF-8 with U+FFFD, and a sender that is a regular expression as `null`; another such
//! field is omitted. A document is also shown as it is where names that JavaScript uses itself make
//! Mongoose or the driver show something else: documents in an array that is called `toString`, or
//! a message with a field `_bsontype`. The time zone is UTC, as on most servers: it matters for
//! texts without a zone.

pub mod date;
mod number;
pub mod value;

use bson::RawDocument;
use bson::oid::ObjectId;

use value::{Object, Value, is_inherited};

/// The types of a schema's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    ObjectId,
    /// An id that `populate` replaces by the document with this id.
    Reference,
    Text,
    Date,
    Number,
}

/// The fields of a schema.
type Schema = &'static [(&'static str, Type)];

const MESSAGE: Schema = &[
    ("_id", Type::ObjectId),
    ("room", Type::ObjectId),
    ("sender", Type::Reference),
    ("content", Type::Text),
    ("createdAt", Type::Date),
    ("updatedAt", Type::Date),
    ("__v", Type::Number),
];

const ROOM: Schema = &[
    ("_id", Type::ObjectId),
    ("name", Type::Text),
    ("createdAt", Type::Date),
    ("updatedAt", Type::Date),
    ("__v", Type::Number),
];

/// The fields of a user that this server reads.
const USER: Schema = &[("_id", Type::ObjectId), ("username", Type::Text), ("password", Type::Text)];

/// A document after Mongoose has read it: its fields in the order in which they are shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Hydrated {
    fields: Vec<(String, Shown)>,
    is_whole: bool,
}

/// The shown value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// A value.
    Value(Value),
    /// The document with this id, or the id itself where nothing is populated.
    Reference(ObjectId),
}

impl Hydrated {
    /// Reads a document of `messages`.
    pub fn message(document: &RawDocument) -> Self {
        Self::read(document, MESSAGE)
    }

    /// Reads a document of `rooms`.
    pub fn room(document: &RawDocument) -> Self {
        Self::read(document, ROOM)
    }

    /// Reads a document of `users`, or a part of one.
    pub fn user(document: &RawDocument) -> Self {
        Self::read(document, USER)
    }

    /// The fields, in their order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Shown)> {
        self.fields.iter().map(|(name, shown)| (name.as_str(), shown))
    }

    /// Takes a field out.
    pub fn take(&mut self, name: &str) -> Option<Shown> {
        let index = self.fields.iter().position(|(field, _)| field == name)?;
        Some(self.fields.remove(index).1)
    }

    /// The id in a field, if the field has one.
    pub fn id(&self, name: &str) -> Option<ObjectId> {
        match self.fields.iter().find(|(field, _)| field == name)? {
            (_, Shown::Reference(id) | Shown::Value(Value::ObjectId(id))) => Some(*id),
            _ => None,
        }
    }

    /// False if a part of the document is invalid BSON; then only the fields before it were read.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Applies `Document.prototype.init`, and then `toJSON`.
    fn read(document: &RawDocument, schema: Schema) -> Self {
        let (object, is_whole) = Object::read(document);
        let fields = object.into_fields().filter_map(|(name, value)| {
            let known = schema.iter().find(|(field, _)| *field == name);
            let shown = match known {
                Some((_, kind)) => kind.cast(value)?,
                // Mongoose takes a path of this name for a method of every object, and casts
                // nothing.
                None if is_inherited(&name) => return None,
                None => Shown::Value(value.hydrate()),
            };
            Some((name, shown))
        });
        let fields = Vec::from_iter(fields);
        // Without objects, Mongoose makes no deep copy, and so omits nothing.
        let is_flat = fields.iter().all(|(_, shown)| match shown {
            Shown::Value(value) => value.is_flat(),
            Shown::Reference(_) => false,
        });
        let fields = fields.into_iter().filter_map(|(name, shown)| match shown {
            _ if name == "prototype" && !is_flat => None,
            Shown::Value(value) => Some((name, Shown::Value(value.minimize()?))),
            reference => Some((name, reference)),
        });
        Self { fields: fields.collect(), is_whole }
    }
}

impl Type {
    /// The value of a field of this type; `None` if the field is omitted.
    fn cast(self, value: Value) -> Option<Shown> {
        match value {
            Value::Undefined => None,
            Value::Null => Some(Shown::Value(Value::Null)),
            value => match self {
                // Mongoose recognises the driver's types by this name, and does not cast an id.
                Self::ObjectId if value.has_type_name("ObjectId") => Some(Shown::Value(value)),
                Self::ObjectId => cast_id(&value).map(Value::ObjectId).map(Shown::Value),
                Self::Reference => cast_reference(&value),
                Self::Text => cast_text(value).map(Shown::Value),
                Self::Date => cast_date(&value).map(Shown::Value),
                Self::Number => cast_number(&value).map(Shown::Value),
            },
        }
    }
}

/// `castObjectId`: an id, or a value that prints as one; for an object, its `_id`.
fn cast_id(value: &Value) -> Option<ObjectId> {
    let value = match value {
        Value::Object(object) => object.get("_id").filter(|id| id.is_truthy())?,
        value => value,
    };
    match value {
        Value::ObjectId(id) => Some(*id),
        value => ObjectId::parse_str(value.print()?).ok(),
    }
}

/// The id of a document to populate. An object without an `_id` becomes a new document, which is
/// not stored, and so `null`.
fn cast_reference(value: &Value) -> Option<Shown> {
    match value {
        Value::Object(object) => {
            let id = object.get("_id").and_then(cast_id);
            Some(id.map_or(Shown::Value(Value::Null), Shown::Reference))
        }
        Value::Long(_)
        | Value::Timestamp(_)
        | Value::Binary(_)
        | Value::RegExp { .. }
        | Value::Key
        | Value::Code { .. }
        | Value::DbRef(_) => Some(Shown::Value(Value::Null)),
        value => cast_id(value).map(Shown::Reference),
    }
}

/// `castString`: a scalar as printed; for an object, its `_id` if that is a text.
fn cast_text(value: Value) -> Option<Value> {
    let text = match value {
        Value::Text(text) => text,
        Value::Object(object) => match object.get("_id")? {
            Value::Text(id) if !id.is_empty() => id.clone(),
            _ => return None,
        },
        Value::Array(_) | Value::Key | Value::Code { .. } | Value::DbRef(_) => return None,
        value => value.print()?,
    };
    Some(Value::Text(text))
}

/// `castDate`: a number counts milliseconds; a text is read as by `Date`.
fn cast_date(value: &Value) -> Option<Value> {
    let millis = match value {
        Value::Date(date) => *date,
        Value::Bool(_) => None,
        Value::Number(millis) => date::clip(*millis),
        Value::Text(text) if text.is_empty() => return Some(Value::Null),
        Value::Text(text) => {
            let number = number::parse(text);
            if number.is_nan() || (-271_820.0..275_761.0).contains(&number) {
                date::parse(text)
            } else {
                // A number beyond the years of the calendar counts milliseconds.
                date::clip(number)
            }
        }
        value => date::parse(&value.print()?),
    };
    millis.map(|millis| Value::Date(Some(millis)))
}

/// `castNumber`: a scalar as converted by `Number`; for an object, its `_id`.
fn cast_number(value: &Value) -> Option<Value> {
    let value = match value {
        Value::Object(object) => object.get("_id")?,
        value => value,
    };
    let number = match value {
        Value::Null => return Some(Value::Null),
        Value::Text(text) if text.is_empty() => return Some(Value::Null),
        Value::Undefined | Value::Array(_) => return None,
        value => value.to_number(),
    };
    (!number.is_nan()).then_some(Value::Number(number))
}

#[cfg(test)]
mod tests {
    use bson::{Bson, RawDocumentBuf, doc, rawdoc};

    use super::*;

    fn names(document: &Hydrated) -> Vec<&str> {
        document.fields().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_lies_before_broken_bytes_is_shown() {
        let whole = rawdoc! { "_id": ObjectId::new(), "content": "hello", "topic": "x" };
        assert!(Hydrated::message(&whole).is_whole());
        let mut bytes = whole.into_bytes();
        let at = bytes.windows(6).position(|window| window == b"topic\0").unwrap();
        // No type of BSON has this code.
        bytes[at - 1] = 0x77;
        let broken = RawDocumentBuf::from_bytes(bytes).unwrap();
        let broken = Hydrated::message(&broken);
        assert!(!broken.is_whole());
        assert_eq!(names(&broken), ["_id", "content"]);
    }

    #[test]
    fn documents_of_any_depth_are_read_on_a_small_stack() {
        let deep = |depth| {
            let mut value = Bson::Int32(1);
            for level in 0..depth {
                value = match level % 2 {
                    0 => Bson::Array(vec![value]),
                    _ => Bson::Document(doc! { "a": value }),
                };
            }
            RawDocumentBuf::try_from(&doc! { "a": value }).unwrap()
        };
        let (most, too_much) = (deep(180), deep(1_000));
        let reading = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
            assert!(Hydrated::message(&most).is_whole());
            assert!(!Hydrated::message(&too_much).is_whole());
        });
        reading.unwrap().join().unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            kind in 0_u8..0x14,
        ) {
            // The bytes get a valid length and end, and begin with an element of a known type.
            let length = u32::try_from(bytes.len() + 8).unwrap().to_le_bytes();
            bytes.splice(0..0, length.into_iter().chain([kind, b'a', 0]));
            bytes.push(0);
            let document = RawDocumentBuf::from_bytes(bytes).unwrap();
            let _ = Hydrated::message(&document);
        }
    }
}
