//! Bounds on descriptors: the least that the store and the daemon need.

use crate::{
    limits::{COPIES_RUNNING_MAX, COPY_CONNECTIONS, COPY_ESTIMATES_MAX},
    net::limits::HANDSHAKES_LEAST,
};

/// Descriptors other than those of connections, journals and packs for reads: the fixed ones of the
/// store, the connections of copies and estimates to their sources, the guaranteed handshakes of
/// each of four listeners, and 64 for listeners, the runtime, standard streams and short-lived
/// files of client libraries.
pub const DESCRIPTORS_FIXED: u64 = varve_store::limits::STORE_DESCRIPTORS
    // The administrator's, and those of accounts.
    + ((2 * COPIES_RUNNING_MAX + COPY_ESTIMATES_MAX) * COPY_CONNECTIONS) as u64
    + 4 * HANDSHAKES_LEAST as u64
    + 64;
/// The fewest packs open for reads.
pub const PACK_DESCRIPTORS_LEAST: usize = 16;
/// The fewest descriptors for journals: with fewer than two for each volume that is being written,
/// volumes take turns.
pub const JOURNAL_DESCRIPTORS_LEAST: usize = 64;
/// The fewest descriptors with which a daemon starts: everything works, with few connections.
pub const DESCRIPTORS_LEAST: u64 =
    DESCRIPTORS_FIXED + (PACK_DESCRIPTORS_LEAST + 2 * JOURNAL_DESCRIPTORS_LEAST) as u64;
