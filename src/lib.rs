//! A chat backend: Express routes, JWT, WebSocket and Socket.IO over MongoDB change streams.
//!
//! # The map
//!
//! Each part uses only parts below it: nothing imports upward.
//!
//! ```text
//! main                  the process: arguments, log, signals
//! check, health_check   the commands --check and --health
//! app                   builds and connects all parts; the order of start and stop
//! routes                the route table
//! controllers           the REST handlers
//! wires                 the chat on each wire: ws, socket_io
//! sessions              the session of one client on any wire: requests, recovery; registry:
//!                       permits, limits, drain
//! presence              who is online on all instances; heartbeats
//! exchange              who types, from instance to instance
//! chat                  the operations of REST and sockets: send, edit, rooms, marks, accounts
//! middleware            Express's behaviour, authentication, deadlines
//! server                HTTP, and the handover of WebSockets
//! limits, refusals      rate limits; counters of refused sockets
//! hub                   the rooms of one worker: members, inboxes, offsets
//! feed                  the change stream, the ring of recent events, the revoked tokens
//! openapi               the API document
//! auth                  tokens and passwords
//! casts                 fields of requests as values of models
//! error                 every error that a client can get
//! views, js             JSON for clients; JSON from clients with JavaScript's rules
//! models                documents, queries, indexes
//! mongoose              documents as Mongoose reads them
//! config                environment variables and .env
//! protocols             websocket, engine_io, socket_io, cors: nothing of chat
//! mongod                the embedded MongoDB
//! metrics, logging
//! ```
//!
//! # A message
//!
//! A request or an event calls [`chat::Chat::send`], which checks the message, stores it with write
//! concern `majority` and answers the sender. It does not deliver the message. MongoDB's change
//! stream brings the insert to the [feed] of every instance. The feed encodes it once and appends
//! it to the [ring](feed::ring). The [hub] of each worker follows the ring and puts the event into
//! the inboxes of the local [members](hub::member) of the room. Each session writes it to its wire
//! at its own pace; if nothing else waits, the hub writes it directly. So every member of the room
//! gets every message once, in one order.
//!
//! # What holds everywhere
//!
//! - Only the feed publishes what has a position. What has none, such as typing, is a
//!   [signal](hub::signals): it is passed on at once, is never kept and may be lost.
//! - A hub is used only by its own thread. Nothing awaits while a lock is held.
//! - Every queue is bounded. A client whose queue overflows is disconnected with a reason, and can
//!   resume.
//! - A position means the same on every instance and after a restart.
//! - Input of clients and of the database can have any shape: no `unwrap` and no unchecked index on
//!   it.

pub mod app;
pub mod auth;
pub mod casts;
pub mod chat;
pub mod check;
pub mod config;
pub mod controllers;
pub mod error;
pub mod exchange;
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
pub mod presence;
pub mod protocols;
pub mod refusals;
pub mod routes;
pub mod server;
pub mod sessions;
pub mod views;
pub mod wires;
