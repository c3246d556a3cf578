//! Ordinary documents: exactly the expected fields, types and order.
//!
//! Nearly all documents are ordinary and are read without a copy. [`mongoose`](crate::mongoose)
//! reads the others.

use std::iter::Peekable;

use bson::oid::ObjectId;
use bson::raw::RawIter;
use bson::{DateTime, RawBsonRef, RawDocument};

use crate::mongoose::date;

/// The fields of a document, taken one by one.
pub(super) struct Fields<'a>(Peekable<RawIter<'a>>);

/// `createdAt`, `updatedAt` and `__v`; each is `None` if it is missing.
type Stamps = (Option<DateTime>, Option<DateTime>, Option<i32>);

impl<'a> Fields<'a> {
    pub(super) fn of(document: &'a RawDocument) -> Self {
        Self(document.iter_elements().peekable())
    }

    /// The next field, which must be an id of this name.
    pub(super) fn id(&mut self, name: &str) -> Option<ObjectId> {
        self.take(name)?.as_object_id()
    }

    /// The next field, which must be a text of this name.
    pub(super) fn text(&mut self, name: &str) -> Option<&'a str> {
        self.take(name)?.as_str()
    }

    /// The fields that Mongoose appends; `None` if the rest of the document has anything else.
    pub(super) fn stamps(mut self) -> Option<Stamps> {
        let date = |value: RawBsonRef<'_>| {
            value.as_datetime().filter(|at| date::clip(at.timestamp_millis() as f64).is_some())
        };
        let created_at =
            self.take("createdAt").map_or(Some(None), |value| date(value).map(Some))?;
        let updated_at =
            self.take("updatedAt").map_or(Some(None), |value| date(value).map(Some))?;
        let version = self.take("__v").map_or(Some(None), |value| value.as_i32().map(Some))?;
        self.0.next().is_none().then_some((created_at, updated_at, version))
    }

    /// The value of the next field if that has this name.
    fn take(&mut self, name: &str) -> Option<RawBsonRef<'a>> {
        let field =
            self.0.next_if(|field| field.as_ref().is_ok_and(|field| field.key().as_str() == name));
        field?.ok()?.value().ok()
    }
}
