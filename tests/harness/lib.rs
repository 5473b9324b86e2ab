//! What the tests of a running Varve stand on.
//!
//! - [`lab`]: a daemon on an empty store, and room for files. [`daemon`]: a `varved` of one's own, in a data directory of one's own, and its end, wanted or not.
//! - [`snapctl`]: runs of `snapctl` and what they answer.
//! - [`image`]: disk images made from a seed. [`identity`]: certificates. [`files`]: whether two are the same, and how sparse.
//! - [`data_dir`]: what lies in a data directory, for tests that damage it.
//! - [`guest`]: virtual machines that run a script. [`qmp`]: QEMU, asked from outside.
//! - [`link`]: a way between two daemons that is long, narrow, cut or bad. [`valve`]: a way to the daemon that closes in the middle of a transfer.
//! - [`rpc`]: the gRPC services, asked directly. [`nbd`]: NBD, spoken by hand.
//! - [`process`], [`programs`], [`scratch`], [`random`], [`loop_fs`], [`network`]: programs with their output and a time limit, where
//!   they are, directories that go away, random numbers that can be had again, small file systems, networks.
//!
//! What must hold: tests run in any order and side by side, so nothing here has a fixed name, path or port. Nothing
//! waits for ever, and no test depends on how long something takes: limits are there to end a hang. A
//! tool that is missing is a failure that says what to install.

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
