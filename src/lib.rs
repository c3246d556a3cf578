//! A chat backend: Express routes, JWT, WebSocket and Socket.IO over MongoDB change streams.

pub mod models;
pub mod realtime;
pub mod views;
