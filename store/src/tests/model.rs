//! Random operations on a store on a real disk, and the same on a map from names to bytes.

use std::collections::BTreeMap;

use super::{Random, assert_holds, block_on, random_image, read, scribble, seed, upload};
use crate::{DiffKind, Error, ListQuery, Options, Store, io::IoEngine, rebuild};

type Model = BTreeMap<String, Vec<u8>>;

async fn step(store: &Store, model: &mut Model, random: &mut Random, number: usize) {
    let names: Vec<_> = model.keys().cloned().collect();
    let any = |random: &mut Random| names.get(random.below(names.len().max(1))).cloned();
    match (random.below(10), any(random)) {
        (0..=2, _) | (_, None) => {
            let blocks = 1 + random.below(4000);
            let mut image = random_image(random, blocks);
            // Sizes need not be multiples of a block.
            image.truncate(image.len() - random.below(4096));
            let name = format!("fresh-{number}");
            upload(store, &name, &image).await.unwrap();
            model.insert(name, image);
        }
        (3..=5, Some(base)) => {
            let mut image = model[&base].clone();
            let whole = image.len() / 4096 * 4096;
            if whole > 0 {
                scribble(random, &mut image[..whole], 3);
            }
            let name = format!("changed-{number}");
            upload(store, &name, &image).await.unwrap();
            model.insert(name, image);
        }
        (6, Some(name)) => {
            let refused = upload(store, &name, &[1; 4096]).await.unwrap_err();
            assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
        }
        (7, Some(name)) => {
            store.delete_snapshot(&name.as_str().into()).await.unwrap();
            model.remove(&name);
            assert!(matches!(
                store.snapshot(&name.as_str().into()).await,
                Err(Error::NotFound { .. })
            ));
        }
        (8, Some(name)) => {
            let image = &model[&name];
            for _ in 0..20 {
                let offset = random.below(image.len());
                let len = random.below((image.len() - offset).min(100_000) + 1);
                assert!(
                    read(store, &name, offset, len).await.unwrap() == image[offset..offset + len]
                );
            }
            let past = read(store, &name, image.len(), 1).await.unwrap_err();
            assert!(matches!(past, Error::Invalid(_)), "{past}");
        }
        (_, Some(base)) => {
            let target = any(random).unwrap();
            check_diff(store, model, &base, &target).await;
        }
    }
}

/// Every difference is covered, added or removed extents are zero on the other side, and extents
/// are in order.
async fn check_diff(store: &Store, model: &Model, base: &str, target: &str) {
    let (old, new) = (&model[base], &model[target]);
    let longest = old.len().max(new.len());
    let mut covered = vec![None; longest.div_ceil(4096)];
    let mut diff = store.diff(&base.into(), &target.into()).await.unwrap();
    let mut behind = 0;
    while let Some(extents) = diff.next().await.unwrap() {
        for extent in extents {
            assert!(extent.offset_bytes >= behind, "extents overlap or go back");
            behind = extent.offset_bytes + extent.length_bytes;
            assert!(behind <= longest as u64);
            let blocks = extent.offset_bytes as usize / 4096..(behind as usize).div_ceil(4096);
            covered[blocks].fill(Some(extent.kind));
        }
    }
    let block = |image: &[u8], at: usize| -> Vec<u8> {
        let bytes = image
            .get(at * 4096..(at * 4096 + 4096).min(image.len()))
            .unwrap_or_default();
        let mut block = bytes.to_vec();
        block.resize(4096, 0);
        block
    };
    for (at, kind) in covered.iter().enumerate() {
        let (old, new) = (block(old, at), block(new, at));
        match kind {
            None => assert!(old == new, "block {at} differs and is not reported"),
            Some(DiffKind::Added) => assert!(
                old.iter().all(|byte| *byte == 0),
                "block {at} of base is no hole"
            ),
            Some(DiffKind::Removed) => assert!(
                new.iter().all(|byte| *byte == 0),
                "block {at} of target is no hole"
            ),
            Some(DiffKind::Changed) => {}
        }
    }
}

async fn check_all(store: &Store, model: &Model) {
    let query = ListQuery {
        limit: 1000,
        ..ListQuery::default()
    };
    let listed: Vec<_> = store
        .list_snapshots(query)
        .await
        .unwrap()
        .into_iter()
        .map(|record| record.label().into_owned())
        .collect();
    assert_eq!(listed, model.keys().cloned().collect::<Vec<_>>());
    for (name, image) in model {
        assert_holds(store, name, image).await;
    }
    let status = store.status().await.unwrap();
    assert_eq!(status.snapshots, model.len() as u64);
    assert_eq!(
        status.logical_bytes,
        model.values().map(|image| image.len() as u64).sum::<u64>()
    );
}

fn run(engine: IoEngine, steps: usize) {
    let mut random = Random::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path().join("store"));
    options.io_engine = engine;
    // Small, so that reads go to the packs, too.
    options.chunk_cache_bytes = 1 << 20;
    let mut model = Model::new();
    for round in 0..4 {
        block_on(async {
            let (store, report) = Store::open(options.clone()).await.unwrap();
            assert_eq!(report.created, round == 0);
            assert!(round == 0 || report.is_clean(), "{report}");
            check_all(&store, &model).await;
            for number in 0..steps {
                step(&store, &mut model, &mut random, round * steps + number).await;
            }
            check_all(&store, &model).await;
            store.close().await.unwrap();
            let refused = upload(&store, "late", &[1; 4096]).await.unwrap_err();
            assert!(matches!(refused, Error::Closing), "{refused}");
        });
        if round == 1 {
            block_on(async {
                std::fs::remove_dir_all(options.data_dir.join("index")).unwrap();
                let refused = Store::open(options.clone()).await.unwrap_err();
                assert!(refused.to_string().contains("varved rebuild"), "{refused}");
                let report = rebuild(options.clone()).await.unwrap();
                assert_eq!(report.snapshots, model.len() as u64);
                assert!(
                    report.damage.is_empty() && report.incomplete.is_empty(),
                    "{report}"
                );
            });
        }
    }
}

#[test]
fn a_store_behaves_like_a_map_from_names_to_bytes() {
    run(IoEngine::Auto, 12);
}

#[test]
fn with_threads_instead_of_io_uring_too() {
    run(IoEngine::Blocking, 6);
}

/// Only root can give a file away, and this is a danger only with root's rights.
#[test]
fn a_store_of_another_user_is_refused_before_anything_is_made() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    let files = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        super::repairs::closed(store).await;
        std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        std::fs::remove_file(dir.path().join("LOCK")).unwrap();
        std::os::unix::fs::chown(dir.path().join("FORMAT"), Some(4711), None).unwrap();
        let before = files();
        for refused in [
            Store::open(options.clone()).await.unwrap_err(),
            rebuild(options.clone()).await.unwrap_err(),
        ] {
            let said = refused.to_string();
            assert!(
                said.contains("user 4711") && said.contains("sudo -u '#4711' varved"),
                "{said}"
            );
            assert_eq!(files(), before);
        }
    });
}
