//! Core dumps of the daemon: none, unless a setting permits them.
//!
//! Its memory has the key of `auth.key`, tokens of calls under way, and the data of guests. A dump
//! would carry them to a place that nobody thinks of as secret.

use rustix::process::{Resource, getrlimit, setrlimit};

/// The limit in bytes: no dump is that short, so none is written to a file. The kernel gives a dump
/// to a program (a `core_pattern` that begins with `|`) whatever the limit, except for this one.
const LIMIT_BYTES: u64 = 1;

/// Forbids core dumps of this process.
///
/// # Errors
///
/// The limit cannot be set.
pub fn forbid() -> rustix::io::Result<()> {
    let mut limit = getrlimit(Resource::Core);
    let most = limit.maximum.unwrap_or(LIMIT_BYTES);
    limit.current = Some(most.min(LIMIT_BYTES));
    setrlimit(Resource::Core, limit)
}
