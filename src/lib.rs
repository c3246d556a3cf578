//! A chat backend: Express routes, JWT, WebSocket and Socket.IO over MongoDB change streams.

pub mod app;
pub mod auth;
pub mod casts;
pub mod chat;
pub mod check;
pub mod config;
pub mod controllers;
pub mod error;
pub mod js;
pub mod limits;
pub mod metrics;
pub mod middleware;
pub mod models;
pub mod mongod;
pub mod openapi;
pub mod realtime;
pub mod routes;
pub mod server;
pub mod views;
