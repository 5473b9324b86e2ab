//! Guests: they boot from exports, keep their files on volumes, lose their power, survive restarts
//! of the daemon, and map exports themselves.

mod backups;
mod boot;
mod devices;
mod file_systems;
mod full_disk;
mod power_cuts;
mod restarts;
mod units;
