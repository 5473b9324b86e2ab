//! Packs over real disks and simulated ones.

#![allow(
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod crash;
mod damage;
mod faults;
mod forged;
mod resume;
mod write;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use varve_content::{chunker::End, codec::Codec};

use super::*;
use crate::{
    Result,
    format::{Name, PackId, PackKind, PackPhase, PackState, StoreId, names, pack::RecordKind},
    io::{
        self, Disk, IoEngine,
        sim::{Call, SimDisk},
    },
    limits,
};

const STORE: StoreId = StoreId::from_bytes([0x5a; 16]);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

/// The bytes of chunk `number`: they look random, and other numbers have others.
fn plain(number: u64, blocks: usize) -> Vec<u8> {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..blocks * 512).map(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// A chunk of 1 to 64 blocks.
fn chunk(number: u64, blocks: usize) -> EncodedRecord {
    let plain = plain(number, blocks);
    EncodedRecord::chunk(
        Name::of(RecordKind::Chunk, &plain),
        Codec::Raw,
        End::Settled,
        plain.len() as u32,
        &plain,
    )
}

/// A chunk that is stored in fewer bytes than it has. (It could not be unpacked, and nothing here
/// does that.)
fn packed_chunk(number: u64, stored_bytes: usize) -> EncodedRecord {
    let bytes = plain(number, 64);
    EncodedRecord::chunk(
        Name::of(RecordKind::Chunk, &bytes),
        Codec::Zstd,
        End::Open,
        bytes.len() as u32,
        &bytes[..stored_bytes],
    )
}

fn chunks(numbers: std::ops::Range<u64>, blocks: usize) -> Vec<EncodedRecord> {
    numbers.map(|number| chunk(number, blocks)).collect()
}

/// The directory of the build: usually not on tmpfs, where direct writes differ from those on a
/// disk.
fn beside_the_test() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

/// Packs on some disk.
struct Place {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    _keep: Option<tempfile::TempDir>,
}

impl Place {
    fn real(engine: IoEngine) -> Self {
        let keep = tempfile::tempdir_in(beside_the_test()).unwrap();
        Self {
            data_dir: keep.path().to_owned(),
            disk: Self::with_dir(io::choose(engine).unwrap(), keep.path()),
            _keep: Some(keep),
        }
    }

    fn with_dir(disk: Arc<dyn Disk>, data_dir: &Path) -> Arc<dyn Disk> {
        disk.create_dir(&names::packs(data_dir)).unwrap();
        disk
    }

    fn all() -> Vec<Self> {
        vec![
            Self::real(IoEngine::Auto),
            Self::real(IoEngine::Blocking),
            Sim::new().place(),
        ]
    }

    fn local(&self, pack_bytes_max: u64) -> Arc<LocalPacks> {
        LocalPacks::open(
            Arc::clone(&self.disk),
            &self.data_dir,
            STORE,
            pack_bytes_max,
            limits::PACKS_OPEN_MAX,
        )
        .unwrap()
    }

    fn writer(&self, pack_bytes_max: u64) -> (Arc<LocalPacks>, PackWriter) {
        let local = self.local(pack_bytes_max);
        let (writer, states) = block_on(PackWriter::resume(
            Arc::clone(&local) as _,
            PackKind::Chunks,
            Vec::new(),
        ))
        .unwrap();
        assert!(states.is_empty());
        (local, writer)
    }
}

/// A simulated disk with a directory for packs.
#[derive(Clone)]
struct Sim(Arc<SimDisk>);

impl Sim {
    const DATA_DIR: &str = "/data";

    fn new() -> Self {
        let disk = SimDisk::new();
        for dir in [
            Path::new(Self::DATA_DIR),
            &names::packs(Path::new(Self::DATA_DIR)),
        ] {
            disk.create_dir(dir).unwrap();
            disk.sync_dir(dir.parent().unwrap())
                .blocking_wait()
                .unwrap();
        }
        Self(disk)
    }

    fn place(&self) -> Place {
        Place {
            disk: Arc::clone(&self.0) as _,
            data_dir: Self::DATA_DIR.into(),
            _keep: None,
        }
    }

    fn path(pack: PackId) -> PathBuf {
        names::pack(Path::new(Self::DATA_DIR), pack)
    }
}

/// The content of an index.
#[derive(Debug, Default, Clone)]
struct Known {
    records: HashMap<Name, PlacedRecord>,
    packs: BTreeMap<PackId, PackState>,
}

impl Known {
    fn learn(&mut self, records: Vec<PlacedRecord>, packs: &[PackState]) {
        self.records
            .extend(records.into_iter().map(|record| (record.name, record)));
        self.packs
            .extend(packs.iter().map(|state| (state.pack, *state)));
    }

    /// The steps of recovery: surveys all unsealed packs, and continues them.
    async fn recover(&mut self, local: &Arc<LocalPacks>) -> Result<PackWriter> {
        let mut unsealed = Vec::new();
        let mut found = Vec::new();
        for pack in local.list()? {
            let state = self.packs.get(&pack);
            if state.is_some_and(|state| state.phase == PackPhase::Sealed) {
                continue;
            }
            let tail = recover_tail(
                &**local,
                pack,
                Some(state.map_or(0, |state| state.indexed_bytes)),
            )
            .await?;
            assert!(tail.damage.is_empty(), "{:?}", tail.damage);
            found.extend(tail.records.iter().copied());
            if tail.sealed {
                let state = PackState {
                    pack,
                    indexed_bytes: tail.end_bytes,
                    phase: PackPhase::Sealed,
                };
                self.packs.insert(pack, state);
            } else {
                unsealed.push(tail);
            }
        }
        let (writer, states) =
            PackWriter::resume(Arc::clone(local) as _, PackKind::Chunks, unsealed).await?;
        self.learn(found, &states);
        Ok(writer)
    }

    /// Checks that every record can be read, and that its bytes match its name.
    async fn check(&self, local: &Arc<LocalPacks>) {
        let reader = PackReader::new(Arc::clone(local) as _);
        for record in self.records.values() {
            let read = reader
                .read_record(&record.location, record.name)
                .await
                .unwrap();
            check_content(record.name, read.header().payload.codec, read.payload());
        }
    }
}

fn check_content(name: Name, codec: Codec, stored: &[u8]) {
    if codec == Codec::Raw {
        assert_eq!(Name::of(name.kind(), stored), name);
    }
}

/// All findings of a scan: records by offset, damage as text, and the tail.
async fn scan(
    local: &dyn PackStore,
    pack: PackId,
) -> (BTreeMap<u64, ScannedRecord>, Vec<(u64, String)>, Tail) {
    let mut scanner = PackScanner::open(local, pack).await.unwrap();
    let (mut records, mut damage) = (BTreeMap::new(), Vec::new());
    loop {
        match scanner.next().await.unwrap() {
            ScanItem::Record(record) => {
                records.insert(record.offset_bytes, record);
            }
            ScanItem::Damaged {
                offset_bytes,
                what,
                why,
                ..
            } => damage.push((offset_bytes, format!("{what}: {why}"))),
            ScanItem::End(tail) => return (records, damage, tail),
        }
    }
}
