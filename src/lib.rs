//! A chat backend: Express routes, JWT, WebSocket and Socket.IO over MongoDB change streams.
//!
//! # The map
//!
//! In reading order. An arrow is "uses"; nothing uses what stands above it.
//!
//! ```text
//! main ─▶ logging, app             the process; who knows every part, start and stop order
//!          ├─▶ server              HTTP, and the hand-over of WebSockets
//!          ├─▶ routes ─▶ controllers, middleware     what Express had, one to one
//!          ├─▶ wires               the chat on each wire: ws, socket_io
//!          ├─▶ sessions            one conversation, whatever its wire; recovery: coming back
//!          ├─▶ chat                what the chat does, for REST and sockets alike: send
//!          ├─▶ hub                 who is in which room on this thread: member, inbox, offset
//!          ├─▶ feed                the change stream, the only writer of the ring: the recent past
//!          ├─▶ models ─▶ mongoose  documents, queries, indexes; odd documents as Mongoose reads them
//!          ├─▶ protocols           socket_io ─▶ engine_io ─▶ websocket, cors: ignorant of chat
//!          ├─▶ auth, limits, refusals, metrics
//!          ├─▶ error, views, js, casts               what clients read, and what they wrote
//!          ├─▶ openapi             the document of the routes
//!          ├─▶ mongod              the embedded MongoDB
//!          ├─▶ check, health_check  what --check and --health say
//!          └─▶ config
//! ```
//!
//! # A message
//!
//! A request or an event reaches [`chat::Chat::send`], which checks and stores it by a majority
//! and answers its sender. Nothing is delivered there. MongoDB's change stream brings the insert
//! to the [feed] of every instance, which encodes it once and appends it to the
//! [ring](feed::ring). The [hub] of each worker follows the ring and puts it
//! into the inboxes of the local [members](hub::member) of its room; each session writes it
//! to its own wire, at its own pace. Where nothing waits, the hub writes it directly. So everybody
//! gets every message once, in one order.
//!
//! # What holds everywhere
//!
//! - Only the feed publishes; only a hub's own thread touches it; nothing awaits under a lock.
//! - Whoever must wait, waits in something bounded; what does not fit ends with a reason that its
//!   client can resume from.
//! - A position means the same on every instance, and at every later time.
//! - What a client or the database sends is never trusted to have a shape: no `unwrap`, no index.

pub mod app;
pub mod auth;
pub mod casts;
pub mod chat;
pub mod check;
pub mod config;
pub mod controllers;
pub mod error;
pub mod feed;
pub mod health_check;
pub mod hub;
pub mod js;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod middleware;
pub mod models;
pub mod mongod;
pub mod mongoose;
pub mod openapi;
pub mod protocols;
pub mod refusals;
pub mod routes;
pub mod server;
pub mod sessions;
pub mod views;
pub mod wires;
