//! `snapctl` against a daemon in the same process that checks the protocol's rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod accounts;
mod commands;
mod copies;
mod credentials;
mod cut_off;
mod deletions;
mod endings;
mod formats;
mod gc;
mod grammar;
mod packed;
mod replaced;
mod terminal;
mod usage;
mod vhd;
mod volumes;
