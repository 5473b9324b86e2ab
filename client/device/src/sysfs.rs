//! The NBD devices of this machine and their exports, as `/sys/block` shows them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::NbdAddress;
use crate::error::{Error, ErrorKind, Result};

const BLOCK: &str = "/sys/block";
const SECTOR_BYTES: u64 = 512;
const FORMAT: u32 = 1;

/// The identity of a device: its export. The kernel keeps this text unchanged.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Backend {
    /// Version of the fields.
    varve: u32,
    /// The export as requested.
    pub(super) export: String,
    /// The export by its id, which stays the same when the name goes to another volume.
    pub(super) opened: String,
    pub(super) address: String,
    pub(super) connections: u32,
}

impl Backend {
    pub(super) fn new(export: &str, opened: &str, address: &NbdAddress, connections: u32) -> Self {
        Self {
            varve: FORMAT,
            export: export.to_owned(),
            opened: opened.to_owned(),
            address: address.to_string(),
            connections,
        }
    }

    pub(super) fn encode(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| {
            Error::new(ErrorKind::Internal, "describe a device", error.to_string())
        })
    }

    /// Returns `None` for a device of another program.
    fn decode(text: &str) -> Option<Self> {
        let backend: Self = serde_json::from_str(text.trim_end()).ok()?;
        (backend.varve == FORMAT).then_some(backend)
    }
}

/// A device with an attached export.
#[derive(Clone, Debug)]
pub struct Mapped {
    pub(super) index: u32,
    /// `/dev/nbdN`.
    pub path: PathBuf,
    /// The export as requested.
    pub export: String,
    /// The export by its id, as opened.
    pub opened: String,
    /// The NBD address of the daemon.
    pub address: String,
    /// The intended number of connections.
    pub connections: u32,
    /// The device's size in bytes.
    pub size_bytes: u64,
    /// True if the device is read-only.
    pub read_only: bool,
    /// The process that hands the kernel new connections, if one does.
    pub process: Option<u32>,
}

/// Lists the devices with attached exports, in the order of their numbers.
///
/// # Errors
///
/// [`ErrorKind::File`] if `/sys` cannot be read.
pub fn mapped() -> Result<Vec<Mapped>> {
    let failed = |error| Error::file(format!("list {BLOCK}"), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(BLOCK).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("nbd"));
        if let Some(index) = index.and_then(|index| index.parse().ok()) {
            found.extend(read(index));
        }
    }
    found.sort_by_key(|device: &Mapped| device.index);
    Ok(found)
}

/// A device, if an export is attached as it.
pub(super) fn read(index: u32) -> Option<Mapped> {
    // A device that disappears during the read is not attached any more.
    let attribute = |name: &str| fs::read_to_string(attribute(index, name)).ok();
    attribute("pid")?;
    let backend = Backend::decode(&attribute("backend")?)?;
    let sectors: u64 = attribute("size")?.trim_end().parse().ok()?;
    Some(Mapped {
        index,
        path: device(index),
        export: backend.export,
        opened: backend.opened,
        address: backend.address,
        connections: backend.connections,
        size_bytes: sectors * SECTOR_BYTES,
        read_only: attribute("ro")?.trim_end() == "1",
        process: keeper(index),
    })
}

impl Mapped {
    /// Returns true if it is this export of this daemon.
    pub(super) fn is(&self, opened: &str, address: &NbdAddress) -> bool {
        self.opened == opened && self.address == address.to_string()
    }
}

/// Returns true if the device is attached to this very backend.
pub(super) fn has_backend(index: u32, backend: &str) -> bool {
    let kept = fs::read_to_string(attribute(index, "backend"));
    is_attached(index) && kept.is_ok_and(|kept| kept.trim_end() == backend)
}

/// Returns true if a device is attached, to Varve or to another server.
pub(super) fn is_attached(index: u32) -> bool {
    attribute(index, "pid").exists()
}

/// Returns true if the kernel keeps the identity of devices, as Linux does from 5.14 on.
pub(super) fn keeps_backends(index: u32) -> bool {
    attribute(index, "backend").exists()
}

fn attribute(index: u32, name: &str) -> PathBuf {
    Path::new(BLOCK).join(format!("nbd{index}")).join(name)
}

pub(super) fn device(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

/// The result of an attempt to claim a device.
#[derive(Debug)]
pub(super) enum Claimed {
    /// Nobody else uses the device.
    Alone(File),
    /// A description of its users.
    Used(String),
}

/// Time for programs that only probe a new device, like udev.
const GLANCE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);

/// Finds out whether a device is used: mounted or part of another device, as the kernel reports, or
/// open in a program.
pub(super) async fn claim(index: u32) -> io::Result<Claimed> {
    let end = Instant::now() + GLANCE;
    loop {
        let claimed = try_claim(index)?;
        if matches!(claimed, Claimed::Alone(_)) || Instant::now() > end {
            return Ok(claimed);
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn try_claim(index: u32) -> io::Result<Claimed> {
    let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(exclusive)
        .open(device(index));
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Ok(Claimed::Used(
                "mounted, or part of a volume group, for example".to_owned(),
            ));
        }
        opened => opened?,
    };
    Ok(match open_in(&numbers_of(index, &file)?) {
        Some(process) => Claimed::Used(format!("process {process} has it open")),
        None => Claimed::Alone(file),
    })
}

/// The device numbers of a device and its partitions.
fn numbers_of(index: u32, file: &File) -> io::Result<Vec<u64>> {
    let mut numbers = vec![file.metadata()?.rdev()];
    let partitions = fs::read_dir("/dev")?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let is_ours = name.to_str()?.starts_with(&format!("nbd{index}p"));
        is_ours.then(|| entry.metadata().ok().map(|it| it.rdev()))?
    });
    numbers.extend(partitions);
    Ok(numbers)
}

/// A process, other than this one, that has one of these block devices open.
fn open_in(numbers: &[u64]) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?;
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|process| *process != std::process::id())
        .find(|process| {
            // A process that has ended meanwhile has no open files.
            let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else {
                return false;
            };
            files.flatten().any(|file| {
                fs::metadata(file.path()).is_ok_and(|it| {
                    it.file_type().is_block_device() && numbers.contains(&it.rdev())
                })
            })
        })
}

const LOCKS: &str = "/run/varve-map";

fn lock_path(index: u32) -> PathBuf {
    Path::new(LOCKS).join(format!("nbd{index}.lock"))
}

/// A file that stays locked until this is dropped.
#[derive(Debug)]
pub(super) struct Locked {
    _file: File,
}

/// Locks a file that only root may open. Returns `None` if it is locked for longer than a probe
/// takes.
async fn lock(path: &Path, patience: Duration) -> Result<Option<File>> {
    let failed = |error: io::Error| Error::file(format!("lock {}", path.display()), error);
    let mut directory = fs::DirBuilder::new();
    let made = directory.recursive(true).mode(0o700).create(LOCKS);
    made.map_err(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let end = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() > end => return Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Waits until no other process attaches a device.
pub(super) async fn attach_alone() -> Result<Locked> {
    let path = Path::new(LOCKS).join("lock");
    let locked = lock(&path, Duration::from_secs(30)).await?;
    locked.map(|file| Locked { _file: file }).ok_or_else(|| {
        let why = "another process has been attaching a device for half a minute";
        Error::new(ErrorKind::Unavailable, "attach a device", why)
    })
}

/// Held by the process that hands the kernel new connections for a device.
#[derive(Debug)]
pub(super) struct Keeping {
    _locked: Locked,
}

impl Keeping {
    /// None if another process does so.
    pub(super) async fn begin(index: u32) -> Result<Option<Self>> {
        let path = lock_path(index);
        let Some(file) = lock(&path, Duration::from_millis(500)).await? else {
            return Ok(None);
        };
        fs::write(&path, format!("{}\n", std::process::id()))
            .map_err(|error| Error::file(format!("write {}", path.display()), error))?;
        Ok(Some(Self {
            _locked: Locked { _file: file },
        }))
    }
}

/// The process that keeps a device, if one does.
pub(super) fn keeper(index: u32) -> Option<u32> {
    let file = File::open(lock_path(index)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        _ => return None,
    }
    let process = fs::read_to_string(lock_path(index)).ok()?;
    process.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_the_kernel_keeps_is_read_again() {
        let address = NbdAddress::Unix("/run/a b/nbd.sock".into());
        let backend = Backend::new("volume/we\"b", "volume/vol-1", &address, 4);
        let text = backend.encode().unwrap();
        assert_eq!(Backend::decode(&format!("{text}\n")), Some(backend));
        for other in ["", "pool/image", "{}", &text.replace(":1,", ":2,")] {
            assert_eq!(Backend::decode(other), None, "{other}");
        }
    }
}
