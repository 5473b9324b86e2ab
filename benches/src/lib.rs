//! The disk images that the micro benches and the comparison measure on.

pub mod images;
