//! Tokens and passwords of clients. Nothing here knows a request or a database.

pub mod credentials;
mod password;
mod refresh;
mod token;

pub use password::{PasswordError, Passwords, Verified};
pub use token::{Claims, TokenError, Tokens};
