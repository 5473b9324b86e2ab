//! The library against a daemon in the same process that checks the protocol's rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod accounts;
mod download;
mod gc;
mod hostile;
mod model;
mod read;
mod snapshots;
mod upload;
mod volumes;
