//! Varve as its users meet it: the shipped `varved` and `snapctl`, and real clients beside them.
//!
//! Each module is one kind of behaviour:
//!
//! - [`import_export`]: content in and out, in every format, whole and interrupted.
//! - [`snapshots`]: listing, showing, tagging, deleting, comparing and verifying them.
//! - [`images`]: what machines boot from: registering, lists, sharing, exports.
//! - [`volumes`]: the same for volumes, as records; writes to them, and their content after
//!   crashes.
//! - [`copies`]: snapshots copied from one daemon to another, over links that break, and from a
//!   source that lies.
//! - [`archives`]: snapshots as self-contained files.
//! - [`backups`]: the example programs of the client library, which back up and restore.
//! - [`bad_input`]: mistakes in the input of `snapctl`.
//! - [`faults`]: full disks, crashes at any point, damage, data directories in a wrong state.
//! - [`gc`]: space that comes back, beside everything else, and after crashes.
//! - [`grpc`]: the protocol's rules, broken on purpose; a third-party client.
//! - [`nbd`]: exports read by QEMU, libnbd and fio; peers that break the protocol.
//! - [`guests`]: virtual machines on exports and volumes, and varved inside a machine that loses
//!   its power. [`memory`]: its bounds.
//! - [`fuzz`]: decoders on random bytes.
//! - [`soak`]: everything at one time, and daemons that are killed again and again.
//! - [`scripts`]: installation of packages, where they conflict.
//! - [`tidy`]: rules of this repository's own structure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests: a failure is a panic that says what went wrong"
)]

mod accounts;
mod archives;
mod backups;
mod bad_input;
mod copies;
mod faults;
mod fuzz;
mod gc;
mod grpc;
mod guests;
mod images;
mod import_export;
mod memory;
mod nbd;
mod scripts;
mod snapshots;
mod soak;
mod tidy;
mod volumes;
