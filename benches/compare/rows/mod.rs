//! The measurements: one file for each of the store's jobs.

pub(crate) mod boot;
pub(crate) mod collection;
pub(crate) mod copy;
pub(crate) mod database;
pub(crate) mod export;
pub(crate) mod hash;
pub(crate) mod import;
pub(crate) mod memory;
pub(crate) mod nbd;
pub(crate) mod protocol;
pub(crate) mod snapshots;
pub(crate) mod stored;
pub(crate) mod volume;
