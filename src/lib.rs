//! A chat backend: Express routes, JWT, WebSocket and Socket.IO over MongoDB change streams.

pub mod auth;
pub mod config;
pub mod error;
pub mod js;
pub mod models;
pub mod realtime;
pub mod views;
