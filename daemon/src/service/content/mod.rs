//! A snapshot's content on its way out.

pub(crate) mod download;
pub(crate) mod read;
