//! Tests of the tree.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod encoding;
mod leaf_diff;
mod updating;
pub(super) mod walking;
