//! The process: configuration, logging, start, signals.

fn main() {}
