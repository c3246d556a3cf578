//! The black-box tests: one binary, one private mongod, a database for each test.
mod golden;
