//! The client against a daemon in the same process that checks the protocol's rules, and `snapctl` against it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod copies;
mod cut_off;
mod download;
mod endings;
mod fake;
mod formats;
mod grammar;
mod packed;
mod replaced;
mod snapctl;
mod snapshots;
mod terminal;
mod upload;
mod usage;
mod vhd;
mod volumes;
