//! Garbage collection: which records are needed, how much space they take, and giving back the
//! space of the others.
//!
//! A record is needed if a root reaches it: a root that a record of the catalog names, or that is
//! pinned. `run` explains why a collection loses nothing while other work runs beside it.
//!
//! `tests/mutations/gc.toml` lists the rules, each with the tests that fail without it.
//!
//! | file | content |
//! | --- | --- |
//! | `roots` | all roots, and who needs them |
//! | `ranks` | a small number for each name of the index |
//! | `walk` | visits trees, leaves in the order of their places |
//! | `mark` | which records roots reach |
//! | `tally` | what each pack holds |
//! | `survey` | all of that together |
//! | `plan` | which packs are dropped, rewritten and merged; pure |
//! | `account` | what a deletion gives back, and what snapshots and volumes take |
//! | `stored` | what the content of an account has |
//! | `run` | one collection, from the marks to the sweep |
//! | `sweep` | empties packs and removes them |
//! | `absent` | forgets packs that are gone without the index knowing it |
//! | `collector` | one run at a time |
//! | `bits` | a set of small numbers |
//! | `look` | long looks at the index |
//! | `pace` | how fast all of it may read |

mod absent;
pub(crate) mod account;
mod bits;
mod collector;
mod look;
pub(crate) mod mark;
pub(crate) mod pace;
pub(crate) mod plan;
pub(crate) mod ranks;
pub(crate) mod roots;
mod run;
pub(crate) mod stored;
pub(crate) mod survey;
mod sweep;
pub(crate) mod tally;
mod walk;

pub(crate) use self::collector::Collector;
#[cfg(test)]
pub(crate) use self::sweep::{Sweep, Swept};
pub use self::{
    account::{DeleteEstimate, GcPlan, StoreUsage, Usage},
    collector::GcStatus,
    plan::{GcAction, GcSettings, GcStep},
    run::{GcPhase, GcProgress},
};
