//! Checkpoints: what was written to a volume, taken into the store.
//!
//! | file | what |
//! | --- | --- |
//! | `jobs` | which cuts of a volume are to be taken in, one after the other, and what becomes of each |
//! | `run` | one cut taken in: segments, tree, the volume's new base |
//! | `idle` | journals that nobody adds to |

mod idle;
mod jobs;
mod run;

pub(super) use jobs::{Checkpoints, Cut, Job, Purpose, passes};
