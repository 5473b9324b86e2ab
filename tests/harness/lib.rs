//! Helpers for tests of a running Varve.
//!
//! - [`lab`]: a daemon on an empty store, with a directory for files. [`daemon`]: starts and ends
//!   of a `varved` on a data directory.
//! - [`snapctl`]: runs of `snapctl` and their results.
//! - [`image`]: disk images made from a seed. [`identity`]: certificates. [`files`]: comparison and
//!   sparseness of files.
//! - [`data_dir`]: records in a data directory, for tests that damage it.
//! - [`guest`]: virtual machines that run a script. [`qmp`]: QEMU's machine protocol.
//! - [`link`]: a link between two daemons that is long, narrow, cut or bad. [`valve`]: a relay to
//!   the daemon that closes in the middle of a transfer.
//! - [`rpc`]: the gRPC services, called directly. [`nbd`]: NBD, message by message.
//! - [`process`], [`programs`], [`scratch`], [`random`], [`loop_fs`], [`network`]: processes with
//!   their output and a time limit, paths of programs, temporary directories, repeatable random
//!   numbers, small file systems, networks.
//!
//! Invariants: tests run in any order and side by side, so nothing here has a fixed name, path or
//! port. Every wait has an end. No test depends on how long something takes: time limits only end a
//! hang. A missing tool is a failure that says what to install.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "tests: a failure is a panic that says what went wrong"
)]

pub mod daemon;
pub mod data_dir;
pub mod files;
pub mod guest;
pub mod identity;
pub mod image;
pub mod lab;
pub mod link;
pub mod loop_fs;
pub mod nbd;
pub mod network;
pub mod process;
pub mod programs;
pub mod qmp;
pub mod random;
mod relay;
pub mod rpc;
pub mod scratch;
pub mod snapctl;
pub mod valve;
