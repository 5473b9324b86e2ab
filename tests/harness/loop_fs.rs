//! Small file systems on loop devices.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{
    process::{command, run},
    programs::{skip_because, tool},
    scratch::Scratch,
};

/// A mounted ext4 file system. Unmounted on drop.
#[derive(Debug)]
pub struct LoopFs {
    scratch: Scratch,
}

impl LoopFs {
    /// Makes and mounts a file system. Returns `None` and prints the reason where that is not
    /// possible: mounting needs root and loop devices.
    #[must_use]
    pub fn mount(size_bytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip_because("mounting a file system needs root");
            return None;
        }
        if !Path::new("/dev/loop-control").exists() {
            skip_because("there are no loop devices (no /dev/loop-control)");
            return None;
        }
        let file_system = Self {
            scratch: Scratch::new(),
        };
        let image = file_system.scratch.join("image");
        File::create(&image)
            .and_then(|file| file.set_len(size_bytes))
            .expect("make a file for a file system");
        run(command(
            tool("mkfs.ext4"),
            ["-q", "-F", "-m", "0"]
                .map(Path::new)
                .into_iter()
                .chain([image.as_path()]),
        ))
        .ok();
        fs::create_dir(file_system.path()).expect("make a mount point");
        run(command(
            tool("mount"),
            [
                Path::new("-o"),
                Path::new("loop"),
                &image,
                &file_system.path(),
            ],
        ))
        .ok();
        Some(file_system)
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.scratch.join("mount")
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // Lazily, because a failed test may have something open in it.
        let unmounted = run(command(tool("umount"), [Path::new("-l"), &self.path()]));
        if !unmounted.status.success() {
            eprintln!("{unmounted:?}");
        }
    }
}
