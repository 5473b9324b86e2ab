//! What the parts of an open store have in common: the engine below ingest, reads and volumes.

mod apart;
mod cache;
mod chunk;
mod commit;
mod fetch;
mod leaf;
mod lock;
mod query;
mod workers;

pub(crate) use self::{
    apart::{apart, apart_if_it_waits},
    cache::ReadCache,
    chunk::{CheckedChunk, open_chunk},
    commit::{Commit, Generation, PoisonOnPanic, joined, node_keys, put_record},
    fetch::{missing_chunk, needed_by, walked},
    leaf::{CachedNode, LocatedLeaf},
    lock::DirectoryLock,
    workers::{Priority, Scratch, Workers},
};
pub use self::{
    chunk::{StoredChunk, VerifiedChunk},
    query::ListQuery,
};
