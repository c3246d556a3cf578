//! The black-box tests: one binary, one private mongod, a database for each test.

mod auth;
mod golden;
mod helpers;
mod idempotency;
mod mongod;
mod odd_input;
mod outage;
mod pages;
