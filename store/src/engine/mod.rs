//! The engine of an open store, on which uploads, reads and volumes are built.
//!
//! It knows none of them, and nothing of the API above.
//!
//! | file | what |
//! | --- | --- |
//! | `engine` | the parts of an open store |
//! | `options` | how a store is opened |
//! | `commit` | the order of durability: packs, catalog log, index |
//! | `log_checkpoint` | the catalog log is replaced by one that begins with a checkpoint |
//! | `known` | which chunks and nodes the store has |
//! | `fetch` | nodes and chunks, from the cache or from packs |
//! | `cache` | what was read, kept in memory |
//! | `located` | nodes with the places of their children |
//! | `hints` | these places, as far as they are known |
//! | `places` | where children are, by hints or by the index |
//! | `chunk` | chunks on their way out, and the check that they pass |
//! | `pins` | roots whose content is in use |
//! | `reliance` | packs that running work relies on |
//! | `rows` | which rows are made, moved and removed |
//! | `query` | snapshots and volumes alike: find, list, tag |
//! | `workers` | threads for hashing, compression and calls that block |
//! | `budget` | what uploads and reads may hold at one time |
//! | `ledger` | what accounts store, against their quotas of stored bytes |
//! | `space` | free space, and what can give some back |
//! | `apart` | work in a task of its own that ends with its caller |
//! | `pending` | what was appended and waits for the index |
//! | `unindexed` | where in packs that is, and what it forbids to say of them |
//! | `lock` | one process at a time has a data directory open |

mod apart;
mod budget;
mod cache;
mod chunk;
mod commit;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod engine;
mod fetch;
mod hints;
mod known;
mod ledger;
mod located;
mod lock;
mod log_checkpoint;
mod options;
mod pending;
mod pins;
mod places;
mod query;
mod reliance;
mod rows;
mod space;
mod unindexed;
mod workers;

pub(crate) use self::{
    apart::{apart, apart_if_it_waits},
    budget::Budgets,
    cache::{Lent, ReadCache},
    chunk::{CheckedChunk, open_chunk},
    commit::{Commit, CommitParts, PoisonOnPanic, joined},
    engine::Engine,
    fetch::{PACK_MOVES_MAX, needed_by, walked},
    ledger::{Charge, Count, Due, Ledger, Ledgers},
    located::{LocatedLeaf, plain_bytes},
    lock::DirectoryLock,
    pending::Generation,
    pins::Pins,
    reliance::{Floors, Guard, Moving, Reliance},
    space::{FreeSpace, SpaceReserve},
    workers::{Priority, Scratch, Workers},
};
pub use self::{
    chunk::{StoredChunk, VerifiedChunk},
    options::Options,
    pins::RootPin,
    query::{ListPlace, ListQuery},
    reliance::HeldPack,
};
