//! The bodies of requests and answers, for the document only: the server reads requests as
//! JavaScript would ([`crate::js`]) and writes answers by hand ([`crate::views`]).

use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    ArrayBuilder, KnownFormat, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, Type,
};
use utoipa::{IntoParams, PartialSchema, ToSchema};

/// Declares a schema that is built by an expression.
macro_rules! schema {
    ($($(#[$doc:meta])* $name:ident = $build:expr;)+) => {$(
        $(#[$doc])*
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                RefOr::T($build.into())
            }
        }

        impl ToSchema for $name {}
    )+};
}

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

    /// An `Idempotency-Key`: HTTP takes white space around it away.
    Key = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(r"^[!-~]([\t -~]{0,253}[!-~])?$"))
        .min_length(Some(1))
        .max_length(Some(255));
}

fn id(digits: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^[{digits}]{{24}}$")))
        .min_length(Some(24))
        .max_length(Some(24))
        .examples([json!("676d2c34b1e8a27d9c0f4a11")])
}

/// Who wants to register.
#[derive(ToSchema)]
#[schema(example = json!({ "username": "ann", "password": "correct horse" }))]
pub struct Registration {
    /// A name that nobody has.
    #[schema(value_type = Text)]
    pub username: Text,
    /// Of any length; every byte counts.
    pub password: String,
}

/// Who wants to log in.
#[derive(ToSchema)]
#[schema(example = json!({ "username": "ann", "password": "correct horse" }))]
pub struct Login {
    /// The name of the registration.
    #[schema(value_type = Text)]
    pub username: Text,
    /// The password of the registration.
    pub password: String,
}

/// A login that succeeded.
#[derive(ToSchema)]
pub struct Session {
    /// Goes into `Authorization: Bearer <token>`; valid for one hour.
    #[schema(pattern = r"^[\w-]+\.[\w-]+\.[\w-]+$")]
    pub token: String,
    /// The `sender` of this user's messages.
    #[schema(value_type = ObjectId, rename = "userId")]
    pub user_id: ObjectId,
}

/// What was done, for people.
#[derive(ToSchema)]
pub struct Done {
    /// One sentence.
    #[schema(example = "User registered successfully")]
    pub message: String,
}

/// A room to create.
#[derive(ToSchema)]
#[schema(example = json!({ "name": "general" }))]
pub struct NewRoom {
    /// A name that no room has.
    #[schema(value_type = Text)]
    pub name: Text,
}

/// A room that was created.
#[derive(ToSchema)]
pub struct CreatedRoom {
    /// `Room created successfully`.
    #[schema(example = "Room created successfully")]
    pub message: String,
    /// The room as it was stored.
    pub room: Room,
}

/// A room. Those that other programs wrote may lack dates and `__v`.
#[derive(ToSchema)]
pub struct Room {
    /// What routes and events call `room`.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// Unique.
    #[schema(example = "general")]
    pub name: String,
    /// When it was created.
    #[schema(value_type = Date, rename = "createdAt", required = false)]
    pub created_at: Date,
    /// The same.
    #[schema(value_type = Date, rename = "updatedAt", required = false)]
    pub updated_at: Date,
    /// Mongoose's version.
    #[schema(rename = "__v", required = false, example = 0)]
    pub version: i32,
}

/// Which part of a history to answer.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many messages at most; 50 when only `before` or `after` is given.
    #[param(minimum = 1, maximum = 1000, required = false)]
    pub limit: u16,
    /// Only messages before this one.
    #[param(value_type = IdParameter, inline, required = false)]
    pub before: IdParameter,
    /// Only messages behind this one.
    #[param(value_type = IdParameter, inline, required = false)]
    pub after: IdParameter,
    /// Whether what is left of deleted messages is shown.
    #[param(required = false)]
    pub deleted: bool,
}

/// What makes a request one that can be repeated.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Retry {
    /// A key of your own choice for each message; the answer to a retry is that of the first.
    #[param(value_type = Key, inline, rename = "Idempotency-Key", required = false)]
    pub key: Key,
}

/// A message to send.
#[derive(ToSchema)]
#[schema(example = json!({
    "room": "676d2c41b1e8a27d9c0f4a15",
    "sender": "676d2c34b1e8a27d9c0f4a11",
    "content": "hello",
}))]
pub struct NewMessage {
    /// Where to.
    #[schema(value_type = Id)]
    pub room: Id,
    /// The user of the token, `userId` of the login.
    #[schema(value_type = Id)]
    pub sender: Id,
    /// What to say.
    #[schema(value_type = Text)]
    pub content: Text,
}

/// A message that was stored.
#[derive(ToSchema)]
pub struct SentMessage {
    /// As `receiveMessage` carries it, too.
    pub message: Message,
}

/// A message with the plain id of its sender.
#[derive(ToSchema)]
pub struct Message {
    /// Where it was said.
    #[schema(value_type = ObjectId)]
    pub room: ObjectId,
    /// Who said it.
    #[schema(value_type = ObjectId)]
    pub sender: ObjectId,
    /// What was said.
    #[schema(example = "hello")]
    pub content: String,
    /// Its own id.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// When it was stored.
    #[schema(value_type = Date, rename = "createdAt")]
    pub created_at: Date,
    /// The same.
    #[schema(value_type = Date, rename = "updatedAt")]
    pub updated_at: Date,
    /// Mongoose's version.
    #[schema(rename = "__v", example = 0)]
    pub version: i32,
}

/// The new content of a message.
#[derive(ToSchema)]
#[schema(example = json!({ "content": "hello, all" }))]
pub struct Edit {
    /// What the message says from now on.
    #[schema(value_type = Text)]
    pub content: Text,
    /// The version that is to be changed; another one is refused.
    #[schema(rename = "__v", required = false, minimum = 0, example = 0)]
    pub version: i32,
}

/// A message that was edited.
#[derive(ToSchema)]
pub struct EditedMessage {
    /// As `messageEdited` carries it, too: a message with `editedAt`.
    pub message: Edited,
}

/// A message with the time of its last edit.
#[derive(ToSchema)]
pub struct Edited {
    /// Where it was said.
    #[schema(value_type = ObjectId)]
    pub room: ObjectId,
    /// Who said it.
    #[schema(value_type = ObjectId)]
    pub sender: ObjectId,
    /// What it says now.
    #[schema(example = "hello, all")]
    pub content: String,
    /// Its own id.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// When it was stored.
    #[schema(value_type = Date, rename = "createdAt", required = false)]
    pub created_at: Date,
    /// When it was last changed.
    #[schema(value_type = Date, rename = "updatedAt")]
    pub updated_at: Date,
    /// Mongoose's version, one more than before.
    #[schema(rename = "__v", example = 1)]
    pub version: i32,
    /// When it was last edited.
    #[schema(value_type = Date, rename = "editedAt")]
    pub edited_at: Date,
}

/// A message that was deleted.
#[derive(ToSchema)]
pub struct DeletedMessage {
    /// What is left of it.
    pub message: Deleted,
}

/// What is left of a deleted message.
#[derive(ToSchema)]
pub struct Deleted {
    /// Its own id.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// Where it was said.
    #[schema(value_type = ObjectId)]
    pub room: ObjectId,
    /// Who said it.
    #[schema(value_type = ObjectId)]
    pub sender: ObjectId,
    /// Empty.
    #[schema(example = "")]
    pub content: String,
    /// When it was stored.
    #[schema(value_type = Date, rename = "createdAt", required = false)]
    pub created_at: Date,
    /// When it was deleted.
    #[schema(value_type = Date, rename = "updatedAt")]
    pub updated_at: Date,
    /// When it was deleted.
    #[schema(value_type = Date, rename = "deletedAt")]
    pub deleted_at: Date,
}

/// A message of a history. Those that other programs wrote may lack dates and `__v`.
#[derive(ToSchema)]
pub struct HistoryMessage {
    /// Its own id.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// Where it was said.
    #[schema(value_type = ObjectId)]
    pub room: ObjectId,
    /// Who said it; `null` when that user is gone.
    #[schema(required = true)]
    pub sender: Option<Sender>,
    /// What was said.
    #[schema(example = "hello")]
    pub content: String,
    /// When it was stored.
    #[schema(value_type = Date, rename = "createdAt", required = false)]
    pub created_at: Date,
    /// The same.
    #[schema(value_type = Date, rename = "updatedAt", required = false)]
    pub updated_at: Date,
    /// Mongoose's version.
    #[schema(rename = "__v", required = false, example = 0)]
    pub version: i32,
    /// When it was last edited, if it was.
    #[schema(value_type = Date, rename = "editedAt", required = false)]
    pub edited_at: Date,
    /// When it was deleted, with `deleted=true`. Then there is no `__v`.
    #[schema(value_type = Date, rename = "deletedAt", required = false)]
    pub deleted_at: Date,
}

/// A user by name.
#[derive(ToSchema)]
pub struct Sender {
    /// The user's id.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// The user's name.
    #[schema(example = "ann")]
    pub username: String,
}

/// How this instance feels.
#[derive(ToSchema)]
pub struct Health {
    /// One word.
    #[schema(example = "ok")]
    pub status: String,
    /// When ready: `cluster`, or `local` without change streams, with a standalone MongoDB.
    #[schema(required = false, example = "cluster")]
    pub realtime: String,
    /// Why it is not ready.
    #[schema(required = false, example = "MongoDB does not answer")]
    pub reason: String,
}
