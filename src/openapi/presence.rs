//! Who is there.

use utoipa::ToSchema;

use super::refusals::{PRECISE, database, field, parameter, refusals, token};
use super::values::ObjectId;
use crate::error::{ApiError, NO_ID};

refusals! {
    /// `GET /api/chat/room/{room}/online`.
    OnlineRefusals(PRECISE) = token(), parameter(), database(), [
        ApiError::RoomNotFound,
        field("room", NO_ID),
        ApiError::NoPresence,
        ApiError::RateLimited { seconds: 60 },
    ];
}

/// Who has joined a room.
#[derive(ToSchema)]
pub struct Online {
    /// The ids of the users.
    #[schema(value_type = Vec<ObjectId>)]
    pub online: Vec<ObjectId>,
}
