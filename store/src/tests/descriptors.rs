//! Many volumes and few descriptors, on a real disk.

use std::{fs, path::Path};

use bytes::Bytes;
use futures::future::join_all;

use super::{
    block_on, is_alone,
    volume_data::{BLOCK, new_volume, options, read},
};
use crate::{Store, limits};

/// Descriptors of journal files that this process has open. Directories are open only while they
/// are synced.
fn journal_descriptors() -> usize {
    let of_journals = |path: &Path| {
        let target = fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().contains("/volumes/")
            && fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
    };
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter(|descriptor| of_journals(&descriptor.as_ref().unwrap().path()))
        .count()
}

fn data(volume: usize, round: usize, blocks: usize) -> Bytes {
    let block = [volume as u8, round as u8, 1, 2].repeat(BLOCK / 4);
    Bytes::from(block.repeat(blocks))
}

/// All of them write, read what they wrote and are made durable, though only some can have their
/// files open.
#[test]
fn volumes_share_the_descriptors_that_there_are() {
    const MOST: usize = 16;
    if !is_alone("tests::descriptors::volumes_share_the_descriptors_that_there_are") {
        return;
    }
    // More are tried by hand.
    let count: usize =
        std::env::var("VARVE_TEST_VOLUMES").map_or(40, |count| count.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    // In files of 4 MiB, of which each volume has several.
    options.journal_bytes_max = 64 << 20;
    options.journal_files_open_max = MOST;
    let check_count = || {
        let open = journal_descriptors();
        // A read may open one more before it closes another.
        assert!(open <= MOST + 2, "{open} descriptors of journals are open");
    };
    let rounds = if count > 100 { 1 } else { 3 };
    let blocks = if count > 100 { 1 } else { 700 };
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        let mut volumes = Vec::new();
        for number in 0..count {
            let name = format!("v{number}");
            store
                .create_volume(new_volume(&name, 16 << 20))
                .await
                .unwrap();
            volumes.push(store.open_volume(&name.as_str().into()).await.unwrap());
        }
        for round in 0..rounds {
            for (number, volume) in volumes.iter().enumerate() {
                let at = round * blocks * BLOCK;
                let written = volume.write(at as u64, data(number, round, blocks));
                written.await.unwrap();
                check_count();
            }
        }
        for (number, volume) in volumes.iter().enumerate() {
            for round in 0..rounds {
                let at = round * blocks * BLOCK;
                assert!(read(volume, at, blocks * BLOCK).await == data(number, round, blocks));
            }
            check_count();
        }
        for volume in &volumes {
            volume.flush().await.unwrap();
            check_count();
        }
        // All at once.
        let writes = volumes.iter().enumerate().map(async |(number, volume)| {
            volume.write(0, data(number, 9, 1)).await.unwrap();
            volume.flush().await.unwrap();
        });
        join_all(writes).await;
        check_count();
        store.close().await.unwrap();
    });
    // As it was left.
    block_on(async {
        let (store, _) = Store::open(options).await.unwrap();
        for number in (0..count).step_by(1 + count / 50) {
            let volume = store
                .open_volume(&format!("v{number}").as_str().into())
                .await
                .unwrap();
            assert!(read(&volume, 0, BLOCK).await == data(number, 9, 1));
            if blocks > 1 {
                assert!(read(&volume, BLOCK, BLOCK).await == data(number, 0, 1));
            }
            check_count();
        }
        store.close().await.unwrap();
    });
}

/// They find descriptors, and then wait for what all volumes have on their way to the disk: when
/// that is over the descriptors may be gone.
#[test]
fn volumes_that_waited_together_do_not_open_more_than_there_is() {
    const MOST: usize = 16;
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    options.journal_files_open_max = MOST;
    block_on(async {
        let (store, _) = Store::open(options).await.unwrap();
        let mut volumes = Vec::new();
        for number in 0..40 {
            let name = format!("v{number}");
            let new = new_volume(&name, 1 << 20);
            store.create_volume(new).await.unwrap();
            volumes.push(store.open_volume(&name.as_str().into()).await.unwrap());
        }
        let all = u32::try_from(limits::JOURNAL_QUEUE_BYTES).unwrap();
        let held = store
            .volumes()
            .journal_write_budget
            .acquire_many(all)
            .await
            .unwrap();
        let writes = volumes.iter().enumerate();
        let mut writes =
            join_all(writes.map(|(number, volume)| volume.write(0, data(number, 1, 1))));
        for _ in 0..1000 {
            assert!(futures::poll!(&mut writes).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(journal_descriptors(), 0);
        drop(held);
        let mut is_over = false;
        while !is_over {
            is_over = futures::poll!(&mut writes).is_ready();
            let open = journal_descriptors();
            assert!(open <= MOST, "{open} descriptors of journals are open");
            tokio::task::yield_now().await;
        }
        for (number, volume) in volumes.iter().enumerate() {
            assert!(read(volume, 0, BLOCK).await == data(number, 1, 1));
        }
        store.close().await.unwrap();
    });
}
