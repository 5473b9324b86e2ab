//! What the micro benches and the comparison share: the disk images they measure on.

pub mod images;
