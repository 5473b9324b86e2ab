//! Checkpoints: they take the writes to a volume into the store.
//!
//! | file | content |
//! | --- | --- |
//! | `jobs` | the checkpoints that are due: their order, their retries, and their outcomes |
//! | `run` | one checkpoint: segments, tree, the volume's new base |
//! | `idle` | checkpoints of idle journals |

mod idle;
mod jobs;
mod run;

pub(crate) use idle::Tried;
pub(super) use jobs::{Checkpoints, Cut, Job, Purpose, passes};
