//! Files and other sources to snapshots.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tonic::Status;
use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunk_id::ChunkId,
    chunker::cut_segment,
    tree::{Leaf, LeafEntry, TreeBuilder},
};

use varve_client::{Control, ErrorKind, FileSource, RootId, Source};
use varve_fake_daemon::{FakeDaemon, Manners};

/// Bytes that look random and differ by `seed`; compressible by half.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
        bytes.extend([7; 8]);
    }
    bytes.truncate(len);
    bytes
}

/// A sparse file with these ranges of noise.
fn sparse_file(path: &Path, size_bytes: u64, data: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(size_bytes).unwrap();
    let mut plain = vec![0; usize::try_from(size_bytes).unwrap()];
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
        plain[usize::try_from(*offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
    }
    assert!(plain.len() as u64 == size_bytes);
    plain
}

/// The root of these bytes, by the definition.
pub(crate) fn root_of(plain: &[u8]) -> RootId {
    let mut tree = TreeBuilder::new(plain.len() as u64).unwrap();
    let mut cuts = Vec::new();
    for (number, segment) in (0u32..).zip(plain.chunks(SEGMENT_BYTES)) {
        let mut segment = segment.to_vec();
        segment.resize(segment.len().next_multiple_of(BLOCK_BYTES), 0);
        cut_segment(&segment, &mut cuts);
        let entries: Vec<_> = cuts
            .iter()
            .map(|cut| LeafEntry {
                start_block: cut.start_block,
                blocks: cut.blocks,
                chunk: ChunkId::of(&segment[cut.byte_range()]),
            })
            .collect();
        if !entries.is_empty() {
            tree.push(number, Leaf::new(entries).unwrap().id()).unwrap();
        }
    }
    tree.finish().0.id()
}

fn each_once(daemon: &FakeDaemon) {
    let state = daemon.state();
    assert_eq!(
        state.put.iter().collect::<BTreeSet<_>>().len(),
        state.put.len()
    );
}

#[tokio::test]
async fn a_sparse_file_gets_the_root_of_its_bytes_and_the_second_time_nothing_is_sent() {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("disk.img");
    let plain = sparse_file(
        &path,
        70 * 1024 * 1024 + 1234,
        &[
            (0, noise(1, 300_000)),
            (SEGMENT_BYTES as u64 - 8192, noise(2, 100_000)),
            (3 * SEGMENT_BYTES as u64 + 4096, noise(3, 2 * SEGMENT_BYTES)),
            // The same again, at another alignment of segments: some chunks are shared.
            (6 * SEGMENT_BYTES as u64 + 4096, noise(3, SEGMENT_BYTES)),
            (70 * 1024 * 1024 + 1000, noise(4, 234)),
        ],
    );
    let client = daemon.client().await;
    let control = Control::new();
    let tags = BTreeMap::from([("host".to_owned(), "a".to_owned())]);
    let upload = client.upload("first").tags(tags.clone()).control(&control);
    let report = upload.run(FileSource::open(&path).unwrap()).await.unwrap();

    assert_eq!(report.snapshot.root, Some(root_of(&plain)));
    assert_eq!(report.snapshot.tags, tags);
    assert_eq!(report.sent_chunks, daemon.state().put.len() as u64);
    assert_eq!(control.progress.done_bytes(), report.read_bytes);
    assert_eq!(control.progress.total_bytes(), report.read_bytes);
    assert!(
        report.read_bytes < 30 << 20,
        "holes were read: {}",
        report.read_bytes
    );
    each_once(&daemon);

    let again = client
        .upload("second")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    assert_eq!((again.sent_chunks, again.sent_bytes), (0, 0));
    assert_eq!(again.snapshot.root, report.snapshot.root);
    assert_eq!(again.snapshot.new_bytes, 0);
}

#[tokio::test]
async fn a_chunk_at_many_places_is_sent_once() {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("disk.img");
    let segment = noise(9, SEGMENT_BYTES);
    let data: Vec<_> = (0..20)
        .map(|number| (number * SEGMENT_BYTES as u64, segment.clone()))
        .collect();
    let plain = sparse_file(&path, 20 * SEGMENT_BYTES as u64, &data);
    let report = daemon
        .client()
        .await
        .upload("a")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    assert_eq!(report.snapshot.root, Some(root_of(&plain)));
    assert_eq!(report.snapshot.new_bytes, SEGMENT_BYTES as u64);
    each_once(&daemon);
}

#[tokio::test]
async fn chunks_that_the_daemon_has_are_not_sent() {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("disk.img");
    let client = daemon.client().await;
    sparse_file(
        &path,
        2 * SEGMENT_BYTES as u64,
        &[(0, noise(1, SEGMENT_BYTES))],
    );
    client
        .upload("base")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    let before = daemon.state().put.len();

    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&noise(2, 4096), 1 << 20)
        .unwrap();
    let report = client
        .upload("next")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    assert!((1..=3).contains(&report.sent_chunks), "{report:?}");
    assert_eq!(
        daemon.state().put.len() as u64,
        before as u64 + report.sent_chunks
    );
    assert_eq!(
        report.snapshot.root,
        Some(root_of(&std::fs::read(&path).unwrap()))
    );
}

#[tokio::test]
async fn a_volume_of_holes_and_one_of_a_byte() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let path = daemon.path("disk.img");
    let plain = sparse_file(&path, 3 * SEGMENT_BYTES as u64 + 1, &[]);
    let report = client
        .upload("holes")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    assert_eq!((report.read_bytes, report.sent_chunks), (0, 0));
    assert_eq!(report.snapshot.root, Some(root_of(&plain)));

    std::fs::write(&path, [1]).unwrap();
    let report = client
        .upload("byte")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    assert_eq!(report.snapshot.root, Some(root_of(&[1])));
    assert_eq!((report.snapshot.size_bytes, report.sent_bytes), (1, 4096));
}

#[tokio::test]
async fn the_daemons_limits_are_kept_and_over_tcp_chunks_go_compressed() {
    let manners = Manners {
        ids_max: 3,
        message_bytes_max: 64 << 10,
        ..Manners::default()
    };
    let daemon = FakeDaemon::start_tcp(manners);
    let path = daemon.path("disk.img");
    let plain = sparse_file(
        &path,
        40 << 20,
        &[(0, noise(1, 12 << 20)), (20 << 20, noise(2, 3 << 20))],
    );
    let report = daemon
        .client()
        .await
        .upload("a")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    assert_eq!(report.snapshot.root, Some(root_of(&plain)));
    assert_eq!(report.sent_bytes, daemon.state().payload_bytes);
    assert!(
        report.sent_bytes < (15 << 20) * 3 / 4,
        "{}",
        report.sent_bytes
    );
    each_once(&daemon);
}

#[tokio::test]
async fn an_upload_that_is_refused_in_the_middle_is_aborted_and_can_be_run_again() {
    let full = Status::resource_exhausted("no space left in the store");
    let daemon = FakeDaemon::start(Manners {
        refuse_after: Some((100, full)),
        ..Manners::default()
    });
    let path = daemon.path("disk.img");
    sparse_file(&path, 64 << 20, &[(0, noise(1, 64 << 20))]);
    let client = daemon.client().await;
    let error = client
        .upload("a")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    assert_eq!(
        error.to_string(),
        format!("import {} as a: no space left in the store", path.display())
    );
    let state = daemon.state();
    assert_eq!(
        (
            state.begun,
            state.aborted,
            state.snapshots.len(),
            state.uploads.len()
        ),
        (1, 1, 0, 0)
    );
}

#[tokio::test]
async fn a_name_that_is_taken_is_told_before_anything_is_read() {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("disk.img");
    sparse_file(&path, 8192, &[(0, noise(1, 4096))]);
    let client = daemon.client().await;
    client
        .upload("a")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    let error = client
        .upload("a")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn a_cancelled_upload_is_aborted() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let source = Trap::new(1 << 30, |_| {
        std::thread::sleep(std::time::Duration::from_millis(20))
    });
    let control = Control::new();
    let upload = client.upload("a").control(&control).run(source);
    let cancelling = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        control.cancel.cancel();
    };
    let error = tokio::join!(upload, cancelling).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(daemon.state().aborted, 1);
}

#[tokio::test]
async fn a_daemon_that_goes_away_is_unreachable() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let daemon = Arc::new(Mutex::new(Some(daemon)));
    let source = Trap::new(1 << 30, {
        let daemon = Arc::clone(&daemon);
        move |reads| {
            if reads == 5 {
                drop(daemon.lock().unwrap().take());
            }
        }
    });
    let error = client.upload("a").run(source).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_is_named_with_the_offset() {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("disk.img");
    sparse_file(&path, 8 << 20, &[(0, noise(1, 8 << 20))]);
    let source = FileSource::open(&path).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    let error = daemon
        .client()
        .await
        .upload("a")
        .run(source)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::File);
    let text = error.to_string();
    assert!(
        text.ends_with(
            "disk.img: its size changed from 8388608 to 5242880 bytes while it was read"
        ),
        "{text}"
    );
    assert_eq!(daemon.state().aborted, 1);
}

#[test]
fn a_read_past_the_end_of_a_file_that_shrank_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    sparse_file(&path, 8 << 20, &[(0, noise(1, 8 << 20))]);
    let source = FileSource::open(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(5 << 20).unwrap();
    let error = source.read_at(4 << 20, &mut vec![0; 2 << 20]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "it ends at 5242880: it was 8388608 bytes long and became shorter while it was read"
    );
}

#[tokio::test]
async fn a_file_that_is_written_to_while_it_is_read_is_refused() {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("disk.img");
    sparse_file(&path, 8 << 20, &[(0, noise(1, 1 << 20))]);
    let source = FileSource::open(&path).unwrap();
    // File times are as coarse as the system's clock ticks.
    std::thread::sleep(std::time::Duration::from_millis(20));
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[1], 4 << 20)
        .unwrap();
    let error = daemon
        .client()
        .await
        .upload("a")
        .run(source)
        .await
        .unwrap_err();
    assert_eq!(error.why(), "it was written to while it was read");
    assert!(daemon.state().snapshots.is_empty());
}

#[tokio::test]
async fn a_source_that_cannot_be_read_fails_the_upload() {
    let daemon = FakeDaemon::start(Manners::default());
    let mut source = Trap::new(1 << 30, |_| {});
    source.fails_at = Some(64 << 20);
    let error = daemon
        .client()
        .await
        .upload("a")
        .run(source)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "read trap at offset 67108864: the disk is broken"
    );
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |path: &Path| FileSource::open(path).unwrap_err().to_string();
    let empty = dir.path().join("empty.img");
    File::create(&empty).unwrap();
    assert_eq!(
        refusal(&empty),
        format!("open {}: is empty", empty.display())
    );
    assert_eq!(
        refusal(dir.path()),
        format!(
            "open {}: is a directory, not a disk image",
            dir.path().display()
        )
    );
    let missing = dir.path().join("none");
    assert_eq!(
        refusal(&missing),
        format!("open {}: No such file or directory", missing.display())
    );
    assert!(
        refusal(Path::new("/dev/null")).ends_with("is neither a regular file nor a block device")
    );
}

#[test]
fn a_spooled_stream_is_the_same_bytes_without_its_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let plain = sparse_file(
        &path,
        (30 << 20) + 77,
        &[(5000, noise(1, 200_000)), (20 << 20, noise(2, 3 << 20))],
    );
    let source = FileSource::spool(&mut File::open(&path).unwrap(), "pipe").unwrap();
    assert_eq!(source.size_bytes(), plain.len() as u64);
    assert!(
        source.data_bytes_hint() < 4 << 20,
        "{}",
        source.data_bytes_hint()
    );
    let mut read = vec![1; plain.len()];
    source.read_at(0, &mut read).unwrap();
    assert!(read == plain);
    assert_eq!(
        FileSource::spool(&mut io::empty(), "pipe")
            .unwrap_err()
            .to_string(),
        "open pipe: is empty"
    );
}

/// A source of noise that runs something at each read.
struct Trap<F> {
    size_bytes: u64,
    fails_at: Option<u64>,
    reads: AtomicUsize,
    at_read: F,
}

impl<F: Fn(usize)> Trap<F> {
    fn new(size_bytes: u64, at_read: F) -> Self {
        Self {
            size_bytes,
            fails_at: None,
            reads: AtomicUsize::new(0),
            at_read,
        }
    }
}

impl<F: Fn(usize) + Send + Sync + 'static> Source for Trap<F> {
    fn name(&self) -> String {
        "trap".to_owned()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        Ok((offset_bytes < self.size_bytes).then_some(offset_bytes..self.size_bytes))
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        (self.at_read)(self.reads.fetch_add(1, Ordering::Relaxed));
        if self
            .fails_at
            .is_some_and(|at| (offset_bytes..offset_bytes + buffer.len() as u64).contains(&at))
        {
            return Err(io::Error::other("the disk is broken"));
        }
        buffer.copy_from_slice(&noise(offset_bytes, buffer.len()));
        Ok(())
    }
}
