//! Volumes: block devices that are written to.

mod records;

pub use records::NewVolume;
