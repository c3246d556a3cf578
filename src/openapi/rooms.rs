//! Rooms.

use utoipa::ToSchema;

use super::refusals::{BOTH, body, database, field, insertion, refusals, token};
use super::values::{Date, ObjectId, Text};
use crate::error::ApiError;

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
    GetAllRoomsRefusals(BOTH) = token(), database();
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
