//! Lost records of packs: they are found, do not count as stored, and are repaired when they are
//! sent again.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use varve_content::{ChunkId, Compression, chunker};

use super::{
    Random, assert_holds, block_on, cut, incoming, new_snapshot, random_image, read, upload,
};
use crate::{
    Error, Options, Store, ViolationKind,
    engine::DirectoryLock,
    format::{
        Name, PackId, PackKind, PackPhase, PackState, names,
        pack::{TRAILER_BYTES, Trailer, encode_footer},
    },
    meta::Batch,
    rebuild,
};

/// Closes the last handle of a store, and waits until another may be opened.
pub(super) async fn closed(store: Store) {
    let dir = store.engine().options.data_dir.clone();
    store.close().await.unwrap();
    drop(store);
    for _ in 0..10_000 {
        match DirectoryLock::take(&dir) {
            Ok(lock) => return drop(lock),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    panic!("somebody has the store open still");
}

async fn opened(options: &Options) -> Store {
    Store::open(options.clone()).await.unwrap().0
}

/// The packs of a kind, and their files.
fn packs(dir: &Path, kind: PackKind) -> Vec<(PackId, PathBuf)> {
    let mut found: Vec<_> = fs::read_dir(names::packs(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some((names::pack_of(path.file_name()?)?, path)))
        .filter(|(pack, _)| pack.kind == kind)
        .collect();
    found.sort();
    found
}

fn flip(path: &Path, offset: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// How a pack loses a part, or all.
#[derive(Debug, Copy, Clone)]
enum Loss {
    Half,
    HalfOfSealed,
    All,
    /// One byte of each of some records.
    Bytes,
}

fn lose(loss: Loss, dir: &Path, kind: PackKind) {
    let found = packs(dir, kind);
    let [(_, path)] = found.as_slice() else {
        panic!("one pack: {found:?}");
    };
    let len = fs::metadata(path).unwrap().len();
    match loss {
        Loss::Half | Loss::HalfOfSealed => {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(len / 2).unwrap();
        }
        Loss::All => fs::remove_file(path).unwrap(),
        Loss::Bytes => (4096..len).step_by(9000).for_each(|at| flip(path, at)),
    }
}

#[test]
fn what_is_lost_is_sent_again_and_all_that_needs_it_is_whole() {
    for kind in [PackKind::Chunks, PackKind::Nodes] {
        for loss in [Loss::Half, Loss::HalfOfSealed, Loss::All, Loss::Bytes] {
            let dir = tempfile::tempdir().unwrap();
            let options = Options::new(dir.path());
            // Several segments, so that there are several leaves.
            let image = random_image(&mut Random::new(11), 9000);
            block_on(async {
                let store = opened(&options).await;
                upload(&store, "first", &image).await.unwrap();
                if matches!(loss, Loss::HalfOfSealed) {
                    let [(pack, ref path)] = packs(dir.path(), kind)[..] else {
                        panic!("one pack");
                    };
                    let state = PackState {
                        pack,
                        indexed_bytes: fs::metadata(path).unwrap().len(),
                        phase: PackPhase::Sealed,
                    };
                    let mut batch = Batch::default();
                    batch.packs(&[state]);
                    store.engine().meta.apply(batch, true).unwrap();
                }
                closed(store).await;
            });
            lose(loss, dir.path(), kind);
            let told = format!("{loss:?} of {kind:?}");
            block_on(async {
                // The second time as the first: the loss is not forgotten.
                for _ in 0..2 {
                    let (store, report) = Store::open(options.clone()).await.unwrap();
                    assert!(!report.damage.is_empty(), "{told}");
                    assert!(!store.vouches_for_snapshots(), "{told}");
                    let ids: Vec<_> = cut(&image).chunks.into_keys().collect();
                    let missing = store.missing_chunks(&ids).await.unwrap();
                    assert_eq!(missing.is_empty(), kind == PackKind::Nodes, "{told}");
                    closed(store).await;
                }
                let store = opened(&options).await;
                // Its copy in memory proves no more than the disk.
                let before = read(&store, "first", 0, image.len()).await;
                assert!(matches!(before, Err(Error::Damaged(_))), "{told}");
                upload(&store, "again", &image).await.unwrap();
                assert_holds(&store, "again", &image).await;
                assert_holds(&store, "first", &image).await;
                closed(store).await;
                let store = opened(&options).await;
                assert_holds(&store, "again", &image).await;
                let same = upload(&store, "third", &image).await.unwrap();
                assert_eq!(same.completed().unwrap().stored_bytes, 0, "{told}");
                closed(store).await;
                rebuild(options.clone()).await.unwrap();
                let store = opened(&options).await;
                assert_holds(&store, "first", &image).await;
                closed(store).await;
            });
        }
    }
}

#[test]
fn verifying_reads_the_disk_and_no_cache() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    let image = random_image(&mut Random::new(12), 3000);
    block_on(async {
        let store = opened(&options).await;
        let root = upload(&store, "s", &image).await.unwrap().root().unwrap();
        let cut = cut(&image);
        // All of it is in memory.
        assert!(read(&store, "s", 0, image.len()).await.unwrap() == image);
        let meta = &store.engine().meta;
        let place = |name| meta.lookup(&[name]).unwrap()[0].unwrap();
        let chunk = *cut.chunks.keys().next().unwrap();
        let leaves = [1, 0].map(|at: usize| cut.leaves[at].1.id());
        let names = [
            Name::leaf(leaves[0]),
            Name::leaf(leaves[1]),
            Name::chunk(chunk),
        ];
        for name in names {
            let at = place(name);
            let path = names::pack(dir.path(), at.pack);
            flip(&path, at.offset_bytes + 70);
            let mut verify = store.verify(&"s".into()).await.unwrap();
            let mut violations = Vec::new();
            while let Some(progress) = verify.next().await.unwrap() {
                violations.extend(progress.violations);
            }
            let named = format!("pack {} at offset {}:", at.pack, at.offset_bytes);
            let found = violations.iter().find(|found| found.name() == Some(name));
            let found = found.unwrap_or_else(|| panic!("{named}: {violations:?}"));
            assert!(found.to_string().contains(&named), "{named}: {found}");
            assert!(matches!(found.kind, ViolationKind::Damage(_)));
            assert_eq!(found.pack(), Some(at.pack));
            assert_eq!(found.pack_offset_bytes(), Some(at.offset_bytes));
            assert_eq!(found.needed_by(), ["s"]);
            flip(&path, at.offset_bytes + 70);
            assert_holds(&store, "s", &image).await;
        }
        let at = place(Name::root(root));
        flip(&names::pack(dir.path(), at.pack), at.offset_bytes + 70);
        let refused = store.verify(&"s".into()).await.unwrap_err();
        assert!(matches!(refused, Error::Damaged(_)), "{refused}");
    });
}

/// The findings of a verification, past everything in memory.
async fn violations(store: &Store, name: &str) -> crate::Result<usize> {
    let mut verify = store.verify(&name.into()).await?;
    let mut count = 0;
    while let Some(progress) = verify.next().await? {
        count += progress.violations.len();
    }
    Ok(count)
}

/// Also in a store that runs, which has read all of it before.
#[test]
fn what_is_found_damaged_is_repaired_by_whoever_stores_it_again() {
    for kind in [PackKind::Chunks, PackKind::Nodes] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path());
        let image = random_image(&mut Random::new(13), 9000);
        block_on(async {
            let store = opened(&options).await;
            upload(&store, "first", &image).await.unwrap();
            closed(store).await;
            let store = opened(&options).await;
            assert!(read(&store, "first", 0, image.len()).await.unwrap() == image);
            lose(Loss::Bytes, dir.path(), kind);
            let mut rounds = 0;
            while !matches!(violations(&store, "first").await, Ok(0)) {
                assert!(!store.vouches_for_snapshots(), "{kind:?}");
                rounds += 1;
                assert!(rounds < 20, "{kind:?}: it is not repaired");
                let name = format!("again-{rounds}");
                upload(&store, &name, &image).await.unwrap();
            }
            // Nothing below a damaged node is seen.
            assert!(rounds == 1 || kind == PackKind::Nodes, "{kind:?}: {rounds}");
            for name in ["first", "again-1"] {
                assert_holds(&store, name, &image).await;
                assert_eq!(
                    violations(&store, name).await.unwrap(),
                    0,
                    "{kind:?}: {name}"
                );
            }
            closed(store).await;
            let store = opened(&options).await;
            assert_eq!(violations(&store, "again-1").await.unwrap(), 0, "{kind:?}");
            closed(store).await;
        });
    }
}

/// A chunk of four blocks that ends in a trailer by which the pack ends at its header.
fn forged(pack: PackId, pack_bytes: u64) -> Vec<u8> {
    let footer_at = 4096;
    let records = (0..=u32::MAX)
        .find(|records| footer_at + Trailer::footer_bytes(*records) >= pack_bytes)
        .unwrap();
    assert_eq!(footer_at + Trailer::footer_bytes(records), pack_bytes);
    let mut trailer = encode_footer(pack, None, footer_at, &[]).split_off(4096 - TRAILER_BYTES);
    trailer[32..36].copy_from_slice(&records.to_le_bytes());
    let crc32 = crc32fast::hash(&trailer[..60]);
    trailer[60..].copy_from_slice(&crc32.to_le_bytes());
    assert!(Trailer::decode(&trailer, pack_bytes).is_ok());
    (0..1000)
        .map(|seed| {
            let mut random = Random::new(seed);
            let mut plain: Vec<u8> = (0..2048)
                .flat_map(|_| random.next().to_le_bytes())
                .collect();
            let start = plain.len() - TRAILER_BYTES;
            plain[start..].copy_from_slice(&trailer);
            plain
        })
        .find(|plain| chunker::check_canonical(plain).is_ok())
        .unwrap()
}

#[test]
fn an_upload_cannot_end_the_pack_that_others_are_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path());
    options.compression = Some(Compression::None);
    let image = random_image(&mut Random::new(13), 500);
    block_on(async {
        let store = opened(&options).await;
        upload(&store, "victim", &image).await.unwrap();
        let [(pack, ref path)] = packs(dir.path(), PackKind::Chunks)[..] else {
            panic!("one pack");
        };
        // 63 blocks with their headers, and one more header: the payload behind begins and ends at
        // 4 KiB.
        let start = fs::metadata(path).unwrap().len();
        let pack_bytes = start + 63 * (64 + 4096) + 64 + 4 * 4096;
        let mut chunks: Vec<_> = (0..63u8)
            .map(|number| {
                let plain = [number + 1; 4096];
                incoming(ChunkId::of(&plain), &plain)
            })
            .collect();
        let last = forged(pack, pack_bytes);
        chunks.push(incoming(ChunkId::of(&last), &last));
        let attack = store
            .begin_ingest(new_snapshot("attack", 4096))
            .await
            .unwrap();
        attack.put_chunks(chunks).await.unwrap();
        attack.flush().await.unwrap();
        assert_eq!(fs::metadata(path).unwrap().len(), pack_bytes);
        let known = store.status().await.unwrap().chunks;
        drop(attack);
        closed(store).await;

        let (store, report) = Store::open(options.clone()).await.unwrap();
        assert_eq!(report.damage, []);
        assert_holds(&store, "victim", &image).await;
        closed(store).await;
        let report = rebuild(options.clone()).await.unwrap();
        assert_eq!((report.chunks, report.damage), (known, Vec::new()));
        let store = opened(&options).await;
        assert_holds(&store, "victim", &image).await;
        closed(store).await;
    });
}

/// Chunks that pack to a few bytes each are indexed long before they are 32 MiB.
#[test]
fn groups_are_bounded_in_chunks_too() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    block_on(async {
        let store = opened(&options).await;
        let ingest = store.begin_ingest(new_snapshot("s", 4096)).await.unwrap();
        let mut sent = 0u64;
        for _ in 0..12 {
            let chunks = (0..4096u64).map(|number| {
                let mut plain = vec![0; 4096];
                plain[..8].copy_from_slice(&(sent + number + 1).to_le_bytes());
                incoming(ChunkId::of(&plain), &plain)
            });
            ingest.put_chunks(chunks.collect()).await.unwrap();
            sent += 4096;
            let indexed = store.status().await.unwrap().chunks;
            assert!(
                sent - indexed < 2 * crate::limits::INDEX_GROUP_RECORDS as u64,
                "{sent} sent, {indexed} indexed"
            );
        }
        let indexed = store.status().await.unwrap().chunks;
        assert!(indexed > 0, "no group was indexed of {sent} chunks");
        drop(ingest);
        closed(store).await;
    });
}
