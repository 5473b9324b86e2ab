//! What the daemon does for its callers, whatever protocol they speak.

pub(crate) mod content;
pub(crate) mod error;
pub(crate) mod page_token;
pub(crate) mod pages;
pub(crate) mod streams;
pub(crate) mod uploads;
