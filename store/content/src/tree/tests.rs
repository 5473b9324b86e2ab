//! Tests of the tree.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod encoding;
mod leaf_diff;
pub(super) mod walking;
