//! Records in a data directory, for tests that damage it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use varve_store::format::{
    PackId, PackKind, names,
    pack::{Header, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader},
};

use crate::files;

/// A record in a pack.
#[derive(Debug, Clone)]
pub struct Record {
    /// The pack.
    pub pack: PackId,
    /// The pack's file.
    pub path: PathBuf,
    /// Offset of its header in the file.
    pub offset_bytes: u64,
    /// Its header.
    pub header: RecordHeader,
}

impl Record {
    /// Its id, as in messages.
    #[must_use]
    pub fn id(&self) -> String {
        self.header
            .id
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Offset of its payload in the file.
    #[must_use]
    pub fn payload_offset_bytes(&self) -> u64 {
        self.offset_bytes + RECORD_HEADER_BYTES as u64
    }

    /// Inverts bits of one byte of its payload.
    pub fn flip(&self) {
        let middle = u64::from(self.header.payload.stored_bytes) / 2;
        flip_byte(&self.path, self.payload_offset_bytes() + middle);
    }
}

/// The packs of a kind, by number.
#[must_use]
pub fn packs(data_dir: &Path, kind: PackKind) -> Vec<(PackId, PathBuf)> {
    let dir = names::packs(data_dir);
    let entries =
        fs::read_dir(&dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display()));
    let mut packs: Vec<_> = entries
        .map(|entry| entry.expect("list the packs").path())
        .filter_map(|path| {
            let pack = names::pack_of(path.file_name()?)?;
            (pack.kind == kind).then_some((pack, path))
        })
        .collect();
    packs.sort();
    packs
}

/// All whole records of the packs of a kind, in the order they were written.
#[must_use]
pub fn records(data_dir: &Path, kind: PackKind) -> Vec<Record> {
    let mut records = Vec::new();
    for (pack, path) in packs(data_dir, kind) {
        let bytes = fs::read(&path).expect("read a pack");
        let mut offset = PACK_HEADER_BYTES;
        // Ends at the footer of a sealed pack, and at the end of the records of an open one.
        while let Some(Ok(header)) = bytes
            .get(offset..)
            .map(|rest| Header::decode(rest, offset as u64))
        {
            if let Header::Record(record) = header {
                records.push(Record {
                    pack,
                    path: path.clone(),
                    offset_bytes: offset as u64,
                    header: record,
                });
            }
            offset += usize::try_from(header.total_bytes()).expect("a record fits into memory");
        }
    }
    records
}

/// Inverts the bits of one byte of a file.
pub fn flip_byte(path: &Path, offset: u64) {
    let byte = files::read_range(path, offset, 1)[0];
    files::write_range(path, offset, &[!byte]);
}

/// Truncates a file.
pub fn truncate(path: &Path, len: u64) {
    let file = fs::File::options()
        .write(true)
        .open(path)
        .expect("open a file to cut it off");
    file.set_len(len).expect("cut a file off");
    file.sync_all().expect("sync a file");
}
