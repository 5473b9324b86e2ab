//! Every name in the data directory.
//!
//! ```text
//! FORMAT                          which store this is: written first, and once
//! LOCK                            locked by the process that has the store open
//! catalog.log                     changes of the catalog, perhaps behind a checkpoint
//! catalog.log.new                 the next one, as long as its checkpoint is being written
//! catalog.log.old                 the one that the last checkpoint replaced
//! catalog.log.damaged             one that a rebuild replaced; then .damaged-1 and so on
//! catalog.log.cut-0000000000012000  what a rebuild cut off there
//! packs/chunk-0000000000000001.pack
//! packs/node-0000000000000002.pack
//! volumes/vol-0123456789abcdef0/owner   which volume the journal is of
//! volumes/vol-0123456789abcdef0/journal-0000000000000001.log
//! index/                          RocksDB
//! index.old/                      RocksDB as it was before the last rebuild
//! ```

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use super::{PackId, volume::VolumeId};

const PACK_SUFFIX: &str = ".pack";
const JOURNAL_PREFIX: &str = "journal-";
const JOURNAL_SUFFIX: &str = ".log";

/// The identity of the store ([`StoreFile`](super::store_file::StoreFile)).
#[must_use]
pub fn store_file(data_dir: &Path) -> PathBuf {
    data_dir.join("FORMAT")
}

/// The temporary name of the identity, before it is renamed.
#[must_use]
pub fn store_file_unfinished(data_dir: &Path) -> PathBuf {
    data_dir.join("FORMAT.unfinished")
}

/// The file that an open store keeps locked.
#[must_use]
pub fn lock(data_dir: &Path) -> PathBuf {
    data_dir.join("LOCK")
}

/// The catalog log.
#[must_use]
pub fn catalog_log(data_dir: &Path) -> PathBuf {
    data_dir.join("catalog.log")
}

/// The temporary name of an empty catalog log, before it is renamed.
#[must_use]
pub fn catalog_log_unfinished(data_dir: &Path) -> PathBuf {
    data_dir.join("catalog.log.unfinished")
}

/// A catalog log that a checkpoint begins, before it is renamed.
#[must_use]
pub fn catalog_log_new(data_dir: &Path) -> PathBuf {
    data_dir.join("catalog.log.new")
}

/// The catalog log that the last checkpoint replaced.
#[must_use]
pub fn catalog_log_old(data_dir: &Path) -> PathBuf {
    data_dir.join("catalog.log.old")
}

/// A damaged catalog log that a rebuild replaced, the `nth` one.
#[must_use]
pub fn catalog_log_damaged(data_dir: &Path, nth: u32) -> PathBuf {
    let more = match nth {
        0 => String::new(),
        nth => format!("-{nth}"),
    };
    data_dir.join(format!("catalog.log.damaged{more}"))
}

/// The file in which a rebuild keeps the end of the catalog log that it cuts off at an offset, for
/// the `nth` time.
#[must_use]
pub fn catalog_log_cut(data_dir: &Path, offset_bytes: u64, nth: u32) -> PathBuf {
    let more = match nth {
        0 => String::new(),
        nth => format!("-{nth}"),
    };
    data_dir.join(format!("catalog.log.cut-{offset_bytes:016x}{more}"))
}

/// RocksDB's directory during a rebuild. Like the next one, it has nothing that packs and log do
/// not have.
#[must_use]
pub fn index_unfinished(data_dir: &Path) -> PathBuf {
    data_dir.join("index.unfinished")
}

/// The place of the directory that a rebuild has replaced.
#[must_use]
pub fn index_old(data_dir: &Path) -> PathBuf {
    data_dir.join("index.old")
}

/// A directory that exists if index and catalog were ever rebuilt. Then the catalog may have a
/// snapshot whose content is not all in the packs.
#[must_use]
pub fn rebuilt(data_dir: &Path) -> PathBuf {
    data_dir.join("rebuilt")
}

/// Returns true if a file of this name may exist in the directory of a new store: a file that an
/// interrupted creation leaves, or one of a new file system.
#[must_use]
pub fn may_precede_store(file_name: &OsStr) -> bool {
    ["LOCK", "FORMAT.unfinished", "lost+found"]
        .iter()
        .any(|name| file_name == *name)
}

/// RocksDB's directory.
#[must_use]
pub fn index(data_dir: &Path) -> PathBuf {
    data_dir.join("index")
}

/// The directory of all packs.
#[must_use]
pub fn packs(data_dir: &Path) -> PathBuf {
    data_dir.join("packs")
}

/// A pack.
#[must_use]
pub fn pack(data_dir: &Path, id: PackId) -> PathBuf {
    packs(data_dir).join(format!("{id}{PACK_SUFFIX}"))
}

/// The pack whose file has this name in the directory of packs; `None` for any other file.
#[must_use]
pub fn pack_of(file_name: &OsStr) -> Option<PackId> {
    file_name.to_str()?.strip_suffix(PACK_SUFFIX)?.parse().ok()
}

/// The directory of all volumes' journals.
#[must_use]
pub fn volumes(data_dir: &Path) -> PathBuf {
    data_dir.join("volumes")
}

/// The directory of one volume's journal.
#[must_use]
pub fn volume(data_dir: &Path, id: VolumeId) -> PathBuf {
    volumes(data_dir).join(id.to_string())
}

/// The volume whose journal's directory has this name in the directory of all; `None` for anything
/// else.
#[must_use]
pub fn volume_of(file_name: &OsStr) -> Option<VolumeId> {
    file_name.to_str()?.parse().ok()
}

/// The owner record of a volume's journal.
#[must_use]
pub fn journal_owner(data_dir: &Path, id: VolumeId) -> PathBuf {
    volume(data_dir, id).join("owner")
}

/// One of a volume's journal files.
#[must_use]
pub fn journal_file(data_dir: &Path, id: VolumeId, number: u64) -> PathBuf {
    volume(data_dir, id).join(format!("{JOURNAL_PREFIX}{number:016x}{JOURNAL_SUFFIX}"))
}

/// The number of the journal file that has this name in its volume's directory; `None` for any
/// other file.
#[must_use]
pub fn journal_number_of(file_name: &OsStr) -> Option<u64> {
    let digits = file_name
        .to_str()?
        .strip_prefix(JOURNAL_PREFIX)?
        .strip_suffix(JOURNAL_SUFFIX)?;
    let hexadecimal = digits
        .bytes()
        .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 16 || !hexadecimal {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::format::PackKind;

    #[test]
    fn pack_names_are_read_back() {
        for (kind, name) in [
            (PackKind::Chunks, "/d/packs/chunk-00000000000000a1.pack"),
            (PackKind::Nodes, "/d/packs/node-00000000000000a1.pack"),
        ] {
            let id = PackId { kind, number: 0xa1 };
            let path = pack(Path::new("/d"), id);
            assert_eq!(path, Path::new(name));
            assert_eq!(pack_of(path.file_name().unwrap()), Some(id));
        }
    }

    #[test]
    fn journal_names_are_read_back() {
        let id = "vol-0123456789abcdef0".parse().unwrap();
        let path = journal_file(Path::new("/d"), id, 0xa1);
        assert_eq!(
            path,
            Path::new("/d/volumes/vol-0123456789abcdef0/journal-00000000000000a1.log")
        );
        assert_eq!(journal_number_of(path.file_name().unwrap()), Some(0xa1));
        let dir = path.parent().unwrap();
        assert_eq!(volume_of(dir.file_name().unwrap()), Some(id));
        assert_eq!(volume_of(path.file_name().unwrap()), None);
        for name in [
            "",
            "journal-a1.log",
            "journal-00000000000000A1.log",
            "journal-00000000000000a1",
        ] {
            assert_eq!(journal_number_of(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn other_files_are_no_packs() {
        for name in [
            "",
            "chunk-00000000000000a1",
            "chunk-00000000000000A1.pack",
            "chunk-+0000000000000a1.pack",
            "chunk-0000000000000000.pack",
            "chunk-a1.pack",
            "node-000000000000000a1.pack",
            "root-00000000000000a1.pack",
            "chunk-00000000000000a1.pack.tmp",
        ] {
            assert_eq!(pack_of(OsStr::new(name)), None, "{name}");
        }
    }
}
