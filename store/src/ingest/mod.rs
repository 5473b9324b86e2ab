//! Uploads: chunks in, leaves in, commit.
//!
//! Everything is checked before it counts: a chunk's bytes have its id, it is cut as the chunker
//! cuts, and a leaf names only chunks that are there and leaves no gap that the chunker would not
//! leave. So the root depends on the content alone, no matter who cut it.
//!
//! | file | what |
//! | --- | --- |
//! | `new` | the description of an upload by its sender |
//! | `ingest` | an upload under way |
//! | `check` | checks of chunks and leaves |
//! | `seal` | chunks that arrived, made into records |
//! | `leaves` | the leaves of an upload, and the tree over them |
//! | `possession` | the chunks that the sender has proved to have |

mod check;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod ingest;
mod leaves;
mod new;
mod possession;
mod seal;

pub use self::{
    ingest::Ingest,
    new::{IncomingChunk, Lineage, NewSnapshot, PutOutcome},
};
