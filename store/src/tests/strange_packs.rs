//! Pack files that the index does not know, or knows otherwise: no start cuts off bytes that may be
//! the only copy.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Random, assert_holds, block_on, random_image, repairs::closed, upload};
use crate::{
    Options, Store,
    format::{PackId, PackKind, names},
    rebuild,
};

fn chunk_pack(dir: &Path, number: u64) -> PathBuf {
    let kind = PackKind::Chunks;
    names::pack(dir, PackId { kind, number })
}

fn chunk_packs(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(names::packs(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let pack = names::pack_of(path.file_name().unwrap());
            pack.is_some_and(|pack| pack.kind == PackKind::Chunks)
        })
        .collect();
    found.sort();
    found
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_pack_under_another_name_is_named_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    let image = random_image(&mut Random::new(21), 500);
    let later = random_image(&mut Random::new(22), 100);
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        upload(&store, "web", &image).await.unwrap();
        closed(store).await;
        let packs = chunk_packs(dir.path());
        let [place] = &packs[..] else {
            panic!("one pack: {packs:?}");
        };
        let bytes = fs::read(place).unwrap();
        let moved = chunk_pack(dir.path(), 9);
        fs::rename(place, &moved).unwrap();
        for round in 0..2 {
            let (store, report) = Store::open(options.clone()).await.unwrap();
            let said: Vec<_> = report.damage.iter().map(ToString::to_string).collect();
            assert!(
                said.iter().any(|it| it.contains("chunk-0000000000000009")
                    && it.contains("expected chunk-0000000000000009")
                    && it.contains("found chunk-000000000000000")),
                "{said:?}"
            );
            assert_eq!(report.torn_packs, [] as [String; 0]);
            assert!(!store.vouches_for_snapshots());
            upload(&store, &format!("later-{round}"), &later)
                .await
                .unwrap();
            closed(store).await;
            assert!(fs::read(&moved).unwrap() == bytes);
        }
        let numbers = chunk_packs(dir.path());
        assert!(numbers.len() > 1 && numbers.iter().all(|path| *path >= moved));
        let report = rebuild(options.clone()).await.unwrap();
        assert!(!report.is_whole(), "{report}");
        assert!(fs::read(&moved).unwrap() == bytes);

        // With its name it is a pack again.
        fs::rename(&moved, place).unwrap();
        let (store, report) = Store::open(options.clone()).await.unwrap();
        assert_eq!(report.damage, []);
        assert_holds(&store, "web", &image).await;
        assert_holds(&store, "later-1", &later).await;
        closed(store).await;
    });
}

/// The index is a copy from before the records were written: it promises none of them.
#[test]
fn an_older_index_does_not_make_damage_a_torn_end() {
    for first_is_known in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path());
        let (first, second) = (
            random_image(&mut Random::new(23), 300),
            random_image(&mut Random::new(24), 300),
        );
        block_on(async {
            let (store, _) = Store::open(options.clone()).await.unwrap();
            if first_is_known {
                upload(&store, "first", &first).await.unwrap();
            }
            closed(store).await;
            let (index, older) = (names::index(dir.path()), dir.path().join("older"));
            copy_dir(&index, &older);
            let behind = chunk_packs(dir.path());
            let behind = behind
                .first()
                .map_or(4096, |it| fs::metadata(it).unwrap().len());
            let (store, _) = Store::open(options.clone()).await.unwrap();
            upload(&store, "second", &second).await.unwrap();
            closed(store).await;
            fs::remove_dir_all(&index).unwrap();
            fs::rename(&older, &index).unwrap();
            let packs = chunk_packs(dir.path());
            let [pack] = &packs[..] else {
                panic!("one pack: {packs:?}");
            };
            let mut bytes = fs::read(pack).unwrap();
            // In the header of a record; others follow.
            bytes[usize::try_from(behind).unwrap() + 20] ^= 1;
            fs::write(pack, &bytes).unwrap();

            let (store, report) = Store::open(options.clone()).await.unwrap();
            assert_eq!(report.torn_packs, [] as [String; 0]);
            assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
            assert!(report.recovered_records > 3, "{report}");
            if first_is_known {
                assert_holds(&store, "first", &first).await;
            }
            upload(&store, "again", &second).await.unwrap();
            assert_holds(&store, "second", &second).await;
            closed(store).await;
            assert!(fs::read(pack).unwrap()[..bytes.len()] == bytes);
        });
    }
}
