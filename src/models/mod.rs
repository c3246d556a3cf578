//! The documents of the database and every query on them.
//!
//! Documents know BSON and nothing of HTTP or JSON; an id leaves this module as a type of its
//! own, so that a room's id cannot be passed where a user's is meant.

pub mod message;

pub use message::Message;

use bson::oid::ObjectId;

/// Declares the id of one kind of document: an `ObjectId` that no other kind accepts.
macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub ObjectId);

        impl $name {
            /// Makes a fresh id, as the original's driver does: by this process, from its clock.
            #[expect(clippy::new_without_default, reason = "a default id would be a surprise")]
            pub fn new() -> Self {
                Self(ObjectId::new())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0.to_hex())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.to_hex())
            }
        }

        /// 24 hexadecimal digits in either case. Mongoose's other forms are casts, not ids.
        impl std::str::FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                ObjectId::parse_str(text).map(Self).map_err(|_| NotAnId)
            }
        }
    )+};
}

id!(
    /// The id of a user.
    UserId,
    /// The id of a room.
    RoomId,
    /// The id of a message.
    MessageId,
);

/// A text that is not 24 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of 24 hexadecimal digits")]
pub struct NotAnId;
