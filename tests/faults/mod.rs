//! What happens to disks, processes and files, and what must be left afterwards: every snapshot that was reported as made,
//! whole, and nothing that is half there.

mod crashes;
mod damage;
mod data_dir;
mod descriptors;
mod diagnostics;
mod full_disk;
mod old_stores;
mod stop;
