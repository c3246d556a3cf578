//! A stored document as Mongoose shows it.
//!
//! The original read every document through a schema: a value of another type was cast to the
//! type of its field, one that could not be cast was left out, and fields that no schema knows were
//! kept. This module does the same, for everything that BSON can hold, so that an answer has the
//! fields and values that Mongoose 8.9 with its driver (BSON 6.10) would put there. What was found
//! out about it is recorded in `tests/documents/`.
//!
//! `value` reads a value as the driver does, `date` and `number` hold what JavaScript makes of
//! texts, and the casts are here. JSON is written by [`crate::views`], queries are made by
//! [`crate::models`]. Ordinary documents do not come here: models read them without a copy.
//!
//! Where the original would answer 500 to the whole list, every document is shown here: text that
//! is no UTF-8 with U+FFFD, a sender that is a regular expression as `null`, a field without its
//! value. So is it where names of JavaScript's own in a document make Mongoose or the driver show
//! something else than the document: documents in an array that is called `toString`, or a message
//! with a field `_bsontype`. The time zone is UTC, as on most servers: it matters for texts that
//! name none.

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
    /// An id that `populate` replaces by the document behind it.
    Reference,
    Text,
    Date,
    Number,
}

/// The fields that a schema knows.
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

/// The fields of a user that anything here asks for.
const USER: Schema = &[("_id", Type::ObjectId), ("username", Type::Text), ("password", Type::Text)];

/// A document after Mongoose has read it: its fields in the order in which they are shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Hydrated {
    fields: Vec<(String, Shown)>,
    is_whole: bool,
}

/// What a field shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// This value.
    Value(Value),
    /// The document of this id, or the id itself where nothing is populated.
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

    /// Reads a document of `users`, whole or a part of it.
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

    /// The id in a field of that type.
    pub fn id(&self, name: &str) -> Option<ObjectId> {
        match self.fields.iter().find(|(field, _)| field == name)? {
            (_, Shown::Reference(id) | Shown::Value(Value::ObjectId(id))) => Some(*id),
            _ => None,
        }
    }

    /// False when a part of the document is no BSON, so that this is only what lies before it.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// `Document.prototype.init`, and then what `toJSON` leaves of it.
    fn read(document: &RawDocument, schema: Schema) -> Self {
        let (object, is_whole) = Object::read(document);
        let fields = object.into_fields().filter_map(|(name, value)| {
            let known = schema.iter().find(|(field, _)| *field == name);
            let shown = match known {
                Some((_, kind)) => kind.cast(value)?,
                // A path of this name is a method of every object to Mongoose, which casts nothing.
                None if is_inherited(&name) => return None,
                None => Shown::Value(value.hydrate()),
            };
            Some((name, shown))
        });
        let fields = Vec::from_iter(fields);
        // Without objects there is nothing to copy deeply, and so nothing is left out.
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
    /// The value of a field of this type; `None` when the field is left out.
    fn cast(self, value: Value) -> Option<Shown> {
        match value {
            Value::Undefined => None,
            Value::Null => Some(Shown::Value(Value::Null)),
            value => match self {
                // Mongoose tells the driver's types by this name, and casts none that is an id.
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

/// `castObjectId`: an id, or what prints as one; of an object its `_id`.
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

/// The id of a document to populate. An object of any kind becomes a new document, which nobody has
/// stored, unless it has an `_id`.
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

/// `castString`: what a scalar prints; of an object its `_id` when that is a text.
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

/// `castDate`: a number counts milliseconds, a text is what `Date` reads in it.
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
                // Beyond the years of the calendar it counts milliseconds.
                date::clip(number)
            }
        }
        value => date::parse(&value.print()?),
    };
    millis.map(|millis| Value::Date(Some(millis)))
}

/// `castNumber`: what `Number` makes of a scalar; of an object its `_id`.
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
        // There is no such type.
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
            // A document in its length and its end, with a name and a type that are known.
            let length = u32::try_from(bytes.len() + 8).unwrap().to_le_bytes();
            bytes.splice(0..0, length.into_iter().chain([kind, b'a', 0]));
            bytes.push(0);
            let document = RawDocumentBuf::from_bytes(bytes).unwrap();
            let _ = Hydrated::message(&document);
        }
    }
}
