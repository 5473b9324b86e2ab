//! Uploads: content on its way in.

pub(crate) mod intake;
pub(crate) mod table;
