//! Checkpoints: what was written to a volume, taken into the store.
//!
//! | file | what |
//! | --- | --- |
//! | `jobs` | the checkpoints that are due: their order, their retries, and their outcomes |
//! | `run` | one checkpoint: segments, tree, the volume's new base |
//! | `idle` | checkpoints of idle journals |

mod idle;
mod jobs;
mod run;

pub(super) use jobs::{Checkpoints, Cut, Job, Purpose, passes};
