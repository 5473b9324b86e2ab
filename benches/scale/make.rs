//! Makes a store: real packs, index and catalog, without the work of an upload.
//!
//! Every host has a volume of its own segments and a hundred snapshots of it. Each snapshot differs
//! from the one before in a small leaf, so it has its own path of nodes, like a snapshot of a disk
//! on which little happened.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
    sync::Arc,
    time::Instant,
};

use varve_content::{
    ChunkId, NodeId, SEGMENT_BYTES,
    chunker::{CHUNKER_VERSION, End},
    codec::{Compression, Encoder},
    tree::{InnerNode, Root, TreeBuilder},
};
use varve_store::{
    AccountId, Sharing, SnapshotContent, SnapshotId, SnapshotRecord, SnapshotState,
    format::{
        Change, Name, PackKind, StoreId,
        catalog_log::{LogHeader, Record},
        names,
        store_file::StoreFile,
    },
    io::{self, IoEngine},
    limits,
    meta::{Batch, Meta, RocksMeta},
    pack::{EncodedRecord, LocalPacks, PackStage, PackWriter},
};

use crate::{
    Failure,
    content::{self, LEAF_CHUNKS, WHOLE},
    report,
};

const STORE: StoreId = StoreId::from_bytes([0x5c; 16]);
/// Snapshots of a host.
const HOST_SNAPSHOTS: u64 = 100;
/// Length of a pack of chunks, which are small: so there are about as many packs as with ordinary
/// chunks.
const CHUNK_PACK_BYTES: u64 = 2 << 20;
/// Packs of nodes have higher numbers: they have the usual length, so they are made elsewhere.
const CHUNK_PACKS_MAX: u64 = 1 << 20;
/// Records that are appended and indexed together.
const GROUP_RECORDS: usize = 8192;
/// Snapshots that enter the index together.
const CATALOG_GROUP: usize = 1000;
/// The first snapshot, in seconds since 1970; the others follow every minute.
const FIRST_SECONDS: u64 = 1_700_000_000;

/// Makes a store of this many chunks and snapshots.
pub(crate) fn make(dir: &Path, chunks: u64, snapshots: u64) -> Result<(), Failure> {
    let begun = Instant::now();
    fs::create_dir_all(names::packs(dir))?;
    let identity = StoreFile {
        store: STORE,
        chunker_version: CHUNKER_VERSION,
        compression: Compression::default(),
        created_unix_seconds: FIRST_SECONDS,
    };
    let file = names::store_file(dir);
    if file.exists() {
        return Err(format!("there is a store in {} already", dir.display()).into());
    }
    fs::write(file, identity.encode())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut store = Store::create(dir).await?;
        let hosts = snapshots.div_ceil(HOST_SNAPSHOTS);
        let segments = chunks.div_ceil(LEAF_CHUNKS).div_ceil(hosts) * hosts;
        let leaves = store.leaves(segments).await?;
        report::seconds("chunks and leaves", begun.elapsed());
        store.snapshots(hosts, &leaves).await?;
        store.close().await?;
        report::line("chunks", segments * LEAF_CHUNKS);
        report::line("snapshots", hosts * HOST_SNAPSHOTS + 1);
        report::seconds("made", begun.elapsed());
        Ok(())
    })
}

/// A store that is being made.
struct Store {
    meta: RocksMeta,
    chunks: PackWriter,
    nodes: PackWriter,
    /// Records that are not in packs yet.
    new_chunks: Vec<EncodedRecord>,
    new_nodes: Vec<EncodedRecord>,
    log: BufWriter<File>,
    /// Records of the log that are not in the index yet.
    new_snapshots: Batch,
    sequence: u64,
}

impl Store {
    async fn create(dir: &Path) -> Result<Self, Failure> {
        let disk = io::choose(IoEngine::Auto)?;
        let writer = async |kind, pack_bytes, above| {
            let disk = Arc::clone(&disk);
            let packs = LocalPacks::open(disk, dir, STORE, pack_bytes, limits::PACKS_OPEN_MAX)?;
            packs.keep_numbers_above(above);
            let stage: Arc<dyn PackStage> = packs;
            let (writer, _) = PackWriter::resume(stage, kind, Vec::new()).await?;
            Ok::<_, Failure>(writer)
        };
        let chunks = writer(PackKind::Chunks, CHUNK_PACK_BYTES, 0).await?;
        let nodes = writer(PackKind::Nodes, limits::PACK_BYTES_MAX, CHUNK_PACKS_MAX).await?;
        let mut log = BufWriter::new(File::create(names::catalog_log(dir))?);
        log.write_all(
            &LogHeader {
                store: STORE,
                checkpoint: None,
            }
            .encode(),
        )?;
        Ok(Self {
            meta: RocksMeta::create(&names::index(dir), STORE)?,
            chunks,
            nodes,
            new_chunks: Vec::new(),
            new_nodes: Vec::new(),
            log,
            new_snapshots: Batch::default(),
            sequence: 0,
        })
    }

    /// All chunks, and the leaves that have each of them once.
    async fn leaves(&mut self, segments: u64) -> Result<Vec<NodeId>, Failure> {
        let mut encoder = Encoder::new(Compression::Lz4);
        let mut leaves = Vec::new();
        for segment in 0..segments {
            let mut ids = Vec::new();
            for number in segment * LEAF_CHUNKS..(segment + 1) * LEAF_CHUNKS {
                let plain = content::chunk(number);
                let id = ChunkId::of(&plain);
                ids.push(id);
                let (codec, packed) = encoder.encode(&plain);
                let plain_bytes = u32::try_from(plain.len())?;
                let name = Name::chunk(id);
                let record = EncodedRecord::chunk(name, codec, End::Open, plain_bytes, packed);
                self.new_chunks.push(record);
            }
            let leaf = content::leaf(&ids)?;
            leaves.push(leaf.id());
            self.new_nodes
                .push(EncodedRecord::node(Name::leaf(leaf.id()), &leaf.encode()));
            self.index(GROUP_RECORDS).await?;
        }
        Ok(leaves)
    }

    /// All snapshots: the one of all chunks, and those of each host.
    async fn snapshots(&mut self, hosts: u64, leaves: &[NodeId]) -> Result<(), Failure> {
        let whole = self.tree(leaves, None)?;
        self.snapshot(WHOLE.to_owned(), &whole, BTreeMap::new())?;
        let host_segments = leaves.len() / usize::try_from(hosts)?;
        for (host, leaves) in (0..hosts).zip(leaves.chunks(host_segments)) {
            for number in 0..HOST_SNAPSHOTS {
                // A chunk of the store that no other snapshot of the host has at this place.
                let changed = host * HOST_SNAPSHOTS + number;
                let changed = content::leaf(&[ChunkId::of(&content::chunk(changed))])?;
                let name = Name::leaf(changed.id());
                self.new_nodes
                    .push(EncodedRecord::node(name, &changed.encode()));
                let root = self.tree(leaves, Some(changed.id()))?;
                let keep = if number % 2 == 0 { "yes" } else { "no" };
                let tags = [
                    ("host".to_owned(), format!("host-{host:04}")),
                    ("keep".to_owned(), keep.to_owned()),
                    ("class".to_owned(), format!("class-{}", host % 10)),
                ];
                let name = format!("host-{host:04}/{number:03}");
                self.snapshot(name, &root, tags.into())?;
                self.index(GROUP_RECORDS).await?;
            }
        }
        Ok(())
    }

    /// The tree over these leaves, and an optional one after them.
    fn tree(&mut self, leaves: &[NodeId], last: Option<NodeId>) -> Result<Root, Failure> {
        let leaves: Vec<_> = leaves.iter().copied().chain(last).collect();
        let mut tree = TreeBuilder::new(leaves.len() as u64 * SEGMENT_BYTES as u64)?;
        for (segment, leaf) in (0..).zip(leaves) {
            tree.push(segment, leaf)?;
        }
        let (root, inners) = tree.finish();
        let encoded =
            |inner: &InnerNode| EncodedRecord::node(Name::inner(inner.id()), &inner.encode());
        self.new_nodes.extend(inners.iter().map(encoded));
        self.new_nodes
            .push(EncodedRecord::node(Name::root(root.id()), &root.encode()));
        Ok(root)
    }

    /// Adds a snapshot, to the log and to the next group for the index.
    fn snapshot(
        &mut self,
        name: String,
        root: &Root,
        tags: BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        self.sequence += 1;
        let mut id = [0; 9];
        id[1..].copy_from_slice(&self.sequence.to_be_bytes());
        let record = SnapshotRecord {
            id: SnapshotId::from_low_bits(id),
            name: Some(name),
            owner: AccountId::ADMINISTRATOR,
            description: String::new(),
            size_bytes: root.size_bytes,
            state: SnapshotState::Completed(SnapshotContent {
                root: root.id(),
                data_bytes: root.size_bytes,
                new_bytes: 0,
                stored_bytes: 0,
            }),
            created_at_ns: (FIRST_SECONDS + 60 * self.sequence) * 1_000_000_000,
            tags,
            origin: None,
            parent: None,
            sharing: Sharing::default(),
        };
        let record = Record::One(Change::put(&record));
        self.log.write_all(&record.encode(self.sequence))?;
        self.new_snapshots.catalog(self.sequence, record);
        Ok(())
    }

    /// Appends and indexes new records, if there are as many as `enough`.
    async fn index(&mut self, enough: usize) -> Result<(), Failure> {
        if self.new_chunks.len() + self.new_nodes.len() >= enough {
            let mut batch = Batch::default();
            for (writer, new) in [
                (&self.chunks, &mut self.new_chunks),
                (&self.nodes, &mut self.new_nodes),
            ] {
                let appended = writer.append(std::mem::take(new)).await?;
                let flushed = writer.flush().await?;
                batch.packs(flushed.packs());
                for record in flushed.settle(appended)? {
                    batch.put(record.name, record.location);
                }
            }
            self.meta.apply(batch, false)?;
        }
        if self.new_snapshots.len() >= enough.min(CATALOG_GROUP) {
            let batch = std::mem::take(&mut self.new_snapshots);
            self.meta.apply(batch, false)?;
        }
        Ok(())
    }

    /// Ends like a daemon that is asked to stop.
    async fn close(mut self) -> Result<(), Failure> {
        self.index(1).await?;
        self.log.flush()?;
        self.log.get_ref().sync_all()?;
        let mut batch = Batch::default();
        batch.packs(self.chunks.close().await?.packs());
        batch.packs(self.nodes.close().await?.packs());
        self.meta.apply(batch, true)?;
        Ok(())
    }
}
