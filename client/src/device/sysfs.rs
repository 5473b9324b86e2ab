//! Which devices there are, and what is at the other end of them, as the kernel tells in `/sys/block`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::NbdAddress;
use crate::error::{Error, Result};

const BLOCK: &str = "/sys/block";
const SECTOR_BYTES: u64 = 512;
const FORMAT: u32 = 1;

/// What is at the other end of a device: kept by the kernel, word for word.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Backend {
    /// Which fields there are.
    varve: u32,
    /// As it was asked for.
    pub(super) export: String,
    /// The same with an id, which stays the same when the name goes to another volume.
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
        serde_json::to_string(self)
            .map_err(|error| Error::internal("describe a device", error.to_string()))
    }

    /// None for what is not Varve's.
    fn decode(text: &str) -> Option<Self> {
        let backend: Self = serde_json::from_str(text.trim_end()).ok()?;
        (backend.varve == FORMAT).then_some(backend)
    }
}

/// A device that an export is attached as.
#[derive(Clone, Debug)]
pub struct Mapped {
    pub(super) index: u32,
    /// `/dev/nbdN`.
    pub path: PathBuf,
    /// The export, as it was asked for.
    pub export: String,
    /// The export by its id, as it was opened.
    pub opened: String,
    /// Where the daemon serves it.
    pub address: String,
    /// How many connections there are when all is well.
    pub connections: u32,
    /// Of the device, in bytes.
    pub size_bytes: u64,
    /// Whether it cannot be written to.
    pub read_only: bool,
    /// The process that hands the kernel new connections; none if nobody does.
    pub process: Option<u32>,
}

/// The devices that exports are attached as, in the order of their numbers.
///
/// # Errors
///
/// `/sys` cannot be read.
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
    // What goes away while it is read is not attached any more.
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

/// Whether anything is attached as a device, Varve's or not.
pub(super) fn is_attached(index: u32) -> bool {
    attribute(index, "pid").exists()
}

/// Whether the kernel keeps what a device is: it does from Linux 5.14 on.
pub(super) fn keeps_backends(index: u32) -> bool {
    attribute(index, "backend").exists()
}

fn attribute(index: u32, name: &str) -> PathBuf {
    Path::new(BLOCK).join(format!("nbd{index}")).join(name)
}

pub(super) fn device(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

/// Opens a device for nobody else: none if it is in use, mounted say.
pub(super) fn claim(path: &Path) -> io::Result<Option<File>> {
    let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(exclusive)
        .open(path);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
        opened => opened.map(Some),
    }
}

const LOCKS: &str = "/run/varve-map";

fn lock_path(index: u32) -> PathBuf {
    Path::new(LOCKS).join(format!("nbd{index}.lock"))
}

/// Held by the process that hands the kernel new connections for a device.
#[derive(Debug)]
pub(super) struct Keeping {
    _locked: File,
}

impl Keeping {
    /// None if another process does so.
    pub(super) fn begin(index: u32) -> Result<Option<Self>> {
        let path = lock_path(index);
        let failed = |error: io::Error| Error::file(format!("lock {}", path.display()), error);
        fs::create_dir_all(LOCKS).map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        use rustix::fs::{FlockOperation, flock};
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.map_err(|error| failed(error.into()))?,
        }
        fs::write(&path, format!("{}\n", std::process::id())).map_err(failed)?;
        Ok(Some(Self { _locked: file }))
    }
}

/// The process that keeps a device, if one does.
fn keeper(index: u32) -> Option<u32> {
    use rustix::fs::{FlockOperation, flock};
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
