//! Varve as its users meet it: `varved` and `snapctl` as they are shipped, and real clients beside them.
//!
//! Each module is one kind of behaviour:
//!
//! - [`import_export`]: content in and out, in every format, whole and interrupted.
//! - [`snapshots`]: listing, looking at, tagging, deleting, comparing and verifying them.
//! - [`volumes`]: the same of volumes, as records; writes to them, and what is left of those after crashes.
//! - [`copies`]: snapshots copied from one daemon to another, over links that break, and from a source that lies.
//! - [`archives`]: snapshots as files that hold all there is to them.
//! - [`backups`]: the client library's example programs, which back up and restore.
//! - [`bad_input`]: what `snapctl` is given by mistake.
//! - [`faults`]: full disks, crashes at any point, damage, data directories that are not as they should be.
//! - [`grpc`]: the protocol's rules, broken on purpose; a client that is not ours.
//! - [`nbd`]: exports read by QEMU, libnbd and fio; peers that break the protocol.
//! - [`guests`]: virtual machines on exports and volumes, and varved inside of one that loses its power. [`memory`]: its bounds.
//! - [`fuzz`]: decoders, given bytes that nobody wrote.
//! - [`scripts`]: what installs packages, where they get in each other's way.
//! - [`tidy`]: rules of this repository's own structure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests: a failure is a panic that says what went wrong"
)]

mod archives;
mod backups;
mod bad_input;
mod copies;
mod faults;
mod fuzz;
mod grpc;
mod guests;
mod import_export;
mod memory;
mod nbd;
mod scripts;
mod snapshots;
mod tidy;
mod volumes;
