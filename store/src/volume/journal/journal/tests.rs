#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use rustix::io::Errno;

use super::*;
use crate::{
    format::{StoreId, names, volume::VolumeId},
    io::{
        Disk,
        sim::{Call, SimDisk},
    },
    tests::block_on,
    volume::journal::{batch::Change, recycle::JournalSpace},
};

const DATA_DIR: &str = "/data";
const VOLUME: VolumeId = VolumeId::from_low_bits([7; 9]);
const FILES_OPEN_MAX: usize = 4;

fn journal_on(disk: &Arc<SimDisk>) -> Journal {
    let data_dir = Path::new(DATA_DIR);
    for dir in [
        data_dir.to_owned(),
        names::volumes(data_dir),
        names::volume(data_dir, VOLUME),
    ] {
        disk.create_dir(&dir).unwrap();
    }
    let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(disk);
    let owner = Owner {
        space: Arc::new(JournalSpace::new(Arc::clone(&disk), FILES_OPEN_MAX)),
        disk,
        data_dir: data_dir.to_owned(),
        store: StoreId::from_bytes([1; 16]),
        volume: VOLUME,
        bytes_max: 64 << 20,
    };
    let found = Found {
        epoch_first: 1,
        files: BTreeMap::new(),
        last_sequence: first_sequence_of(1) - 1,
    };
    Journal::new(owner, found)
}

fn batch_of(start_block: u64) -> Batch {
    let mut batch = Batch::default();
    let data = Bytes::from(vec![1; JOURNAL_BLOCK_BYTES]);
    batch.take(&mut Change::Data { start_block, data });
    batch
}

fn write(journal: &Journal, start_block: u64) -> BatchPlace {
    let begun = journal.begin(&batch_of(start_block)).unwrap();
    block_on(begun.completion).unwrap();
    journal.written(begun.place);
    begun.place
}

/// The last file was made, and closed for another volume's before its first batch was begun. Then it could not be opened again, and
/// meanwhile a snapshot ended the epoch.
#[test]
fn no_file_follows_one_in_which_nothing_was_begun() {
    let disk = SimDisk::new();
    let journal = journal_on(&disk);
    write(&journal, 0);
    block_on(journal.sync()).unwrap();
    journal.new_file().unwrap();
    assert!(journal.owner.space.files.has_room(FILES_OPEN_MAX));
    disk.refuse(Call::Open, 1, Errno::MFILE.raw_os_error());
    let refused = journal.begin(&batch_of(1)).unwrap_err();
    assert!(matches!(refused, Error::Shortage { .. }), "{refused:?}");
    assert_eq!(disk.still_refused(Call::Open), 0);

    assert_eq!(journal.end_epoch(), 2);
    assert_eq!(write(&journal, 1).number, 2);
    block_on(journal.sync()).unwrap();
    for number in 1..3 {
        let path = names::journal_file(Path::new(DATA_DIR), VOLUME, number);
        let header = FileHeader::decode(&disk.contents(&path).unwrap()).unwrap();
        assert_eq!(header.number, number);
    }
    // The next one is another.
    assert_eq!(journal.end_epoch(), 3);
    assert_eq!(write(&journal, 2).number, 3);
}
