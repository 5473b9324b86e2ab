//! Bounds on descriptors, and what the store and the daemon need of them at the least.

use crate::{
    limits::{COPIES_RUNNING_MAX, COPY_CONNECTIONS, COPY_ESTIMATES_MAX},
    net::limits::HANDSHAKES_LEAST,
};

/// Descriptors that are neither connections, nor journals, nor packs that are read: what the store
/// says that it needs, the connections of copies and estimates to their sources, the handshakes
/// that each of four listeners always has descriptors for, and 64 for listeners, the runtime,
/// standard streams and what a client library opens for a moment.
pub const DESCRIPTORS_FIXED: u64 = varve_store::limits::STORE_DESCRIPTORS
    + ((COPIES_RUNNING_MAX + COPY_ESTIMATES_MAX) * COPY_CONNECTIONS) as u64
    + 4 * HANDSHAKES_LEAST as u64
    + 64;
/// The fewest packs open for reads.
pub const PACK_DESCRIPTORS_LEAST: usize = 16;
/// The fewest descriptors for journals: with fewer than two for each volume that is being written,
/// volumes take turns.
pub const JOURNAL_DESCRIPTORS_LEAST: usize = 64;
/// The fewest descriptors that a daemon starts with: few connections then, and everything works.
pub const DESCRIPTORS_LEAST: u64 =
    DESCRIPTORS_FIXED + (PACK_DESCRIPTORS_LEAST + 2 * JOURNAL_DESCRIPTORS_LEAST) as u64;
