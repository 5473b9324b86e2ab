//! Guests: they boot from exports, keep their files on volumes, and lose their power.

mod boot;
mod file_systems;
mod full_disk;
mod power_cuts;
