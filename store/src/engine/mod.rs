//! What the parts of an open store have in common: the engine below ingest, reads and volumes.

mod apart;
mod cache;
mod chunk;
mod commit;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod engine;
mod fetch;
mod known;
mod leaf;
mod lock;
mod options;
mod pins;
mod query;
mod space;
mod workers;

pub(crate) use self::{
    apart::{apart, apart_if_it_waits},
    cache::ReadCache,
    chunk::{CheckedChunk, open_chunk},
    commit::{Commit, Generation, PoisonOnPanic, joined, node_keys, put_record},
    engine::Engine,
    fetch::{PACK_MOVES_MAX, missing_chunk, needed_by, walked},
    leaf::{CachedNode, LocatedLeaf},
    lock::DirectoryLock,
    pins::Pins,
    space::{FreeSpace, SpaceReserve},
    workers::{Priority, Scratch, Workers},
};
pub use self::{
    chunk::{StoredChunk, VerifiedChunk},
    options::Options,
    pins::RootPin,
    query::ListQuery,
};
