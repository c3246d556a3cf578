//! Every clause of both protocols against the conformance server, by clients that do exactly
//! what they are told.
//!
//! The heartbeat there is tight (300 and 200 ms), so whatever is not about heartbeats answers
//! pings as a client does.

mod engine;

mod socket;
