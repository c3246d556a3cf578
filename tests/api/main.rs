//! The black-box tests: one binary, one private mongod, a database for each test.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what a test does not expect is its failure"
)]

mod account;
mod auth;
mod clients;
mod cors;
mod deployment;
mod docs;
mod documentation;
mod documents;
mod golden;
mod helpers;
mod layers;
mod limits;
mod log;
mod malformed;
mod messages;
mod metrics;
mod mongod;
mod odd_input;
mod outage;
mod panics;
mod past;
mod postman;
mod program;
mod realtime;
mod rooms;
mod routes;
mod schemathesis;
mod siege;
mod socketio;
mod strangers;
mod way_back;
