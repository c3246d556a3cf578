//! What fields and parameters of more than one noun hold.

use serde_json::json;
use utoipa::openapi::schema::{
    ArrayBuilder, KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, Type,
};

/// Declares a schema that is built by an expression.
macro_rules! schema {
    ($($(#[$doc:meta])* $name:ident = $build:expr;)+) => {$(
        $(#[$doc])*
        pub struct $name;

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::RefOr::T($build.into())
            }
        }

        impl utoipa::ToSchema for $name {}
    )+};
}
pub(super) use schema;

schema! {
    /// A text, or a value that is cast to one.
    Text = OneOfBuilder::new()
        .description(Some(
            "A text. Numbers and booleans become the text that JavaScript prints (`1.50` is \
             `\"1.5\"`), an object becomes its `_id`.",
        ))
        .item(ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)))
        .item(ObjectBuilder::new().schema_type(Type::Number))
        .item(ObjectBuilder::new().schema_type(Type::Boolean))
        .item(
            ObjectBuilder::new()
                .property("_id", ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)))
                .required("_id"),
        );

    /// An id, or a value that is cast to one.
    Id = OneOfBuilder::new()
        .description(Some(
            "An id of 24 hexadecimal digits in either case, which an array or the `_id` of an \
             object may hold.",
        ))
        .item(id("0-9a-fA-F"))
        .item(ArrayBuilder::new().items(id("0-9a-fA-F")).min_items(Some(1)).max_items(Some(1)))
        .item(ObjectBuilder::new().property("_id", id("0-9a-fA-F")).required("_id"));

    /// An id in a path or query.
    IdParameter = id("0-9a-fA-F");

    /// An id as answers have it.
    ObjectId = id("0-9a-f");

    /// A point in time, in milliseconds.
    Date = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .examples([json!("2026-01-02T03:04:05.678Z")]);
}

fn id(digits: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^[{digits}]{{24}}$")))
        .min_length(Some(24))
        .max_length(Some(24))
        .examples([json!("676d2c34b1e8a27d9c0f4a11")])
}
