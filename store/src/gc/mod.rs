//! Garbage collection: which records are needed, how much space they take, and giving back the
//! space of the others.
//!
//! A record is needed if a root reaches it: a root that a record of the catalog names, or that is
//! pinned. `run` has the argument why a collection loses nothing, whatever runs beside it.
//!
//! The rules, and the test of `tests/space` (or of the file) that fails without each:
//!
//! | rule | test |
//! | --- | --- |
//! | all kinds of records are asked for their roots | `all_counts_are_those_by_brute_force` |
//! | pins count | `pinned_content_is_needed`, `owners_are_named_in_words` |
//! | names that share what is hashed have slots of their own | `names_that_share_what_is_hashed_have_slots_of_their_own` |
//! | rows behind a watermark count as needed | `records_that_come_while_marks_are_made_are_needed` |
//! | nodes behind a watermark are told apart by name | `a_node_that_comes_back_is_not_taken_for_another` |
//! | each node is looked up | `a_missing_node_ends_the_marks` |
//! | chunks of late leaves are looked up | `records_that_come_while_marks_are_made_are_needed` |
//! | a damaged node ends the walk, with its owner | `a_damaged_node_ends_the_marks_and_is_named_with_who_needs_it` |
//! | chunks of other slices are not counted, nodes once | `all_counts_are_those_by_brute_force` |
//! | the second owner of a node tells its children | `all_counts_are_those_by_brute_force` |
//! | nodes that others need are not part of an estimate | `all_counts_are_those_by_brute_force` |
//! | a state does not cover records that are not indexed yet | `a_pack_is_indexed_up_to_the_first_record_that_is_not` (`engine/unindexed.rs`) |
//! | copies fit into the free space, drops come first | `plans_keep_the_rules` |
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
//! | `run` | one collection, from the marks to the sweep |
//! | `sweep` | empties packs and removes them |
//! | `collector` | one run at a time |
//! | `bits` | a set of small numbers |
//! | `look` | long looks at the index |
//! | `pace` | how fast all of it may read |

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
