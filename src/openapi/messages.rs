//! Messages and histories.

use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::{IntoParams, ToSchema};

use super::refusals::{
    BOTH, PRECISE, body, database, field, insertion, parameter, refusals, token,
};
use super::values::{Date, Id, IdParameter, ObjectId, Text, schema};
use crate::error::ApiError;

refusals! {
    /// `GET /api/chat/messages/{room}`.
    GetMessagesRefusals(BOTH) = token(), parameter(), database(), [
        field("room", "must be an id of 24 hexadecimal digits"),
        field("limit", "must be a whole number from 1 to 1000"),
        field("before", "must be the id of a message"),
        field("after", "must be the id of a message"),
        field("deleted", "must be true or false"),
    ];
    /// `POST /api/chat/message`.
    SendMessageRefusals(BOTH) = body(), token(), database(), insertion(), [
        ApiError::RoomNotFound,
        field("room", "must be an id of 24 hexadecimal digits"),
        field("sender", "is required"),
        field("sender", "must be an id of 24 hexadecimal digits"),
        field("content", "is required"),
        field("content", "must not be empty"),
        field("content", "must be a string"),
        ApiError::SenderMismatch,
        ApiError::IdempotencyKey,
        ApiError::IdempotencyConflict,
        ApiError::NoIdempotency(String::new()),
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `PATCH /api/chat/message/{message}`.
    EditMessageRefusals(PRECISE) = body(), token(), change(), insertion(), [
        ApiError::MessageDeleted,
        ApiError::EditConflict,
        field("content", "is required"),
        field("content", "must not be empty"),
        field("content", "must be a string"),
        field("__v", "must be a whole number from 0 on"),
        ApiError::IdempotencyKey,
        ApiError::IdempotencyConflict,
        ApiError::NoIdempotency(String::new()),
    ];
    /// `DELETE /api/chat/message/{message}`.
    DeleteMessageRefusals(PRECISE) = body(), token(), change(), insertion();
}

/// What a change of a message can be refused for.
fn change() -> Vec<ApiError> {
    let mut errors = vec![
        ApiError::MessageNotFound,
        ApiError::NotTheSender,
        field("message", "must be an id of 24 hexadecimal digits"),
        ApiError::RateLimited { seconds: 60 },
    ];
    errors.extend(parameter());
    errors.extend(database());
    errors
}

schema! {
    /// An `Idempotency-Key`: HTTP takes white space around it away.
    Key = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(r"^[!-~]([\t -~]{0,253}[!-~])?$"))
        .min_length(Some(1))
        .max_length(Some(255));
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
