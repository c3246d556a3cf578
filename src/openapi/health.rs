//! Health.

use utoipa::ToSchema;

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
