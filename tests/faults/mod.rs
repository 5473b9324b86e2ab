//! Faults of disks, processes and files. Afterwards every snapshot that was reported as made is
//! whole, and nothing is half there.

mod crashes;
mod damage;
mod data_dir;
mod descriptors;
mod diagnostics;
mod full_disk;
mod long_log;
mod old_accounts;
mod old_stores;
mod stop;
