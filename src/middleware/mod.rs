//! What surrounds the handlers: Express's own behaviour, the guard and the deadline.

pub mod auth;
pub mod body;
pub mod deadline;
pub mod entity_tag;
pub mod express;
pub mod measure;
pub mod path;
