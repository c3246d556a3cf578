//! Rooms.

use utoipa::{IntoParams, ToSchema};

use super::messages::HistoryMessage;
use super::refusals::{
    BOTH, PRECISE, body, database, field, insertion, parameter, refusals, token,
};
use super::values::{Date, Id, IdParameter, ObjectId, Text};
use crate::error::{ApiError, NO_ID};

refusals! {
    /// `POST /api/chat/room`.
    CreateRoomRefusals(BOTH) = body(), token(), database(), insertion(), [
        ApiError::RoomExists,
        field("name", "is required"),
        field("name", "must not be empty"),
        field("name", "must be a string"),
        ApiError::RateLimited { seconds: 60 },
    ];
    /// `GET /api/chat/rooms`.
    GetAllRoomsRefusals(BOTH) = token(), database(), [
        field("mine", "must be true or false"),
        field("limit", "must be a whole number from 1 to 1000"),
        field("before", "must be the id of a room"),
    ];
    /// `POST /api/chat/direct`.
    DirectRefusals(PRECISE) = body(), token(), database(), insertion(), user();
    /// `GET /api/chat/room/{room}`.
    GetRoomRefusals(PRECISE) = token(), parameter(), database(), room();
    /// `PATCH /api/chat/room/{room}`.
    ChangeRoomRefusals(PRECISE) = body(), token(), parameter(), database(), room(), owner(), [
        field("name", "must not be empty"),
        field("name", "must be a string"),
        field("owner", NO_ID),
        field("owner", "must be a member"),
    ];
    /// `DELETE /api/chat/room/{room}`.
    OwnerRefusals(PRECISE) = body(), token(), parameter(), database(), room(), owner();
    /// `POST /api/chat/room/{room}/read`.
    MarkAsReadRefusals(PRECISE) =
        body(), token(), parameter(), database(), insertion(), room(), [
            ApiError::MessageNotFound,
            field("message", "is required"),
            field("message", NO_ID),
            ApiError::RateLimited { seconds: 60 },
        ];
    /// `POST /api/chat/room/{room}/members`.
    AddMemberRefusals(PRECISE) =
        body(), token(), parameter(), database(), insertion(), room(), owner(), user();
    /// `DELETE /api/chat/room/{room}/members/{user}`.
    RemoveMemberRefusals(PRECISE) = body(), token(), parameter(), database(), room(), owner(), [
        field("user", NO_ID),
    ];
}

fn room() -> [ApiError; 3] {
    [ApiError::NoMembers, ApiError::RoomNotFound, field("room", NO_ID)]
}

fn owner() -> [ApiError; 2] {
    [ApiError::NotTheOwner, ApiError::RateLimited { seconds: 60 }]
}

fn user() -> [ApiError; 5] {
    [
        ApiError::NoMembers,
        field("user", "is required"),
        field("user", NO_ID),
        field("user", "must be the id of a user"),
        ApiError::RateLimited { seconds: 60 },
    ]
}

/// Which rooms to list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Rooms {
    /// The rooms with members that this user is in and the public ones that this user has marked as
    /// read, instead of all public rooms.
    #[param(required = false)]
    pub mine: bool,
    /// With `mine`: how many rooms at most.
    #[param(minimum = 1, maximum = 1000, required = false)]
    pub limit: u16,
    /// With `mine`: only rooms before this one.
    #[param(value_type = IdParameter, inline, required = false)]
    pub before: IdParameter,
}

/// A user.
#[derive(ToSchema)]
pub struct Member {
    /// The user's id.
    #[schema(value_type = Id)]
    pub user: Id,
}

/// What may be changed of a private room.
#[derive(ToSchema)]
#[schema(example = json!({ "name": "cellar" }))]
pub struct RoomChange {
    /// Its new name.
    #[schema(value_type = Text, required = false)]
    pub name: Text,
    /// Its new owner, a member.
    #[schema(value_type = Id, required = false)]
    pub owner: Id,
}

/// One room.
#[derive(ToSchema)]
pub struct OneRoomWithMembers {
    /// The room.
    pub room: RoomWithMembers,
}

/// A room; a public one has neither owner nor members. Those that other programs wrote may lack
/// dates and `__v`.
#[derive(ToSchema)]
pub struct RoomWithMembers {
    /// What routes and events call `room`.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// Its name; a direct conversation has none.
    #[schema(required = false, example = "cellar")]
    pub name: String,
    /// `true` for a private room.
    #[schema(required = false, example = true)]
    pub private: bool,
    /// `true` for a direct conversation.
    #[schema(required = false)]
    pub direct: bool,
    /// The user who may change a private room.
    #[schema(value_type = ObjectId, required = false)]
    pub owner: ObjectId,
    /// Its members, the one who is there longest first.
    #[schema(required = false)]
    pub members: Vec<RoomMember>,
    /// When it was created.
    #[schema(value_type = Date, rename = "createdAt", required = false)]
    pub created_at: Date,
    /// When its name or owner was last changed.
    #[schema(value_type = Date, rename = "updatedAt", required = false)]
    pub updated_at: Date,
    /// One more with each change of name or owner.
    #[schema(rename = "__v", required = false, example = 0)]
    pub version: i32,
    /// In the list with `mine=true`: the last message that is not deleted, or `null`.
    #[schema(rename = "lastMessage", required = false)]
    pub last_message: Option<HistoryMessage>,
    /// In that list: how many messages of others were not read; 100 means 100 or more. It is
    /// missing while marks cannot be used, as is `lastRead`.
    #[schema(required = false, maximum = 100, example = 3)]
    pub unread: u32,
    /// In that list: the last message that was read, by a mark or by a later message of the user's
    /// own; or `null`.
    #[schema(value_type = Option<ObjectId>, rename = "lastRead", required = false)]
    pub last_read: Option<ObjectId>,
}

/// The last message that was read.
#[derive(ToSchema)]
pub struct MarkAsRead {
    /// The message's id.
    #[schema(value_type = Id)]
    pub message: Id,
}

/// A mark.
#[derive(ToSchema)]
pub struct Marked {
    /// The room.
    #[schema(value_type = ObjectId)]
    pub room: ObjectId,
    /// The message.
    #[schema(value_type = ObjectId)]
    pub message: ObjectId,
}

/// A member of a room.
#[derive(ToSchema)]
pub struct RoomMember {
    /// The user's id.
    #[schema(value_type = ObjectId, rename = "_id")]
    pub id: ObjectId,
    /// The user's name at the time when the user was added.
    #[schema(required = false, example = "ann")]
    pub username: String,
}

/// A room to create.
#[derive(ToSchema)]
#[schema(example = json!({ "name": "general" }))]
pub struct NewRoom {
    /// A name that no public room has.
    #[schema(value_type = Text)]
    pub name: Text,
    /// Whether only its members know it.
    #[schema(required = false)]
    pub private: bool,
    /// With `private`: its members beside the user who makes it.
    #[schema(value_type = Vec<Id>, required = false)]
    pub members: Vec<Id>,
}

/// A room that was created.
#[derive(ToSchema)]
pub struct CreatedRoom {
    /// `Room created successfully`.
    #[schema(example = "Room created successfully")]
    pub message: String,
    /// The room as it was stored.
    pub room: RoomWithMembers,
}
