//! The middleware around the handlers: Express's behaviour, authentication, the deadline and the
//! measurements.

pub mod auth;
pub mod body;
pub mod deadline;
pub mod entity_tag;
pub mod express;
pub mod measure;
pub mod path;
pub mod precise;
