//! The behaviour that all disks share.

#![allow(
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

use std::{path::PathBuf, sync::Arc};

use super::{completion::block_on, sim::SimDisk, *};

/// A disk with a directory that is removed in the end.
struct Place {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    _keep: Option<tempfile::TempDir>,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The directory of the build: usually not on tmpfs, where direct writes differ from those on a
/// disk.
fn beside_the_test() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().to_owned()
}

/// All disks.
fn places() -> Vec<Place> {
    let real = |disk: Arc<dyn Disk>| {
        let keep = tempfile::tempdir_in(beside_the_test()).unwrap();
        Place {
            disk,
            dir: keep.path().to_owned(),
            _keep: Some(keep),
        }
    };
    let mut places = vec![real(Arc::new(blocking::start(4, 8).unwrap())), sim_place()];
    // Some containers refuse it, and then the store does without.
    match uring::start(8) {
        Ok(disk) => places.push(real(Arc::new(disk))),
        Err(error) => eprintln!("io_uring is not tested, it is refused: {error}"),
    }
    places
}

fn sim_place() -> Place {
    let disk = SimDisk::new();
    let dir = PathBuf::from("/dir");
    disk.create_dir(&dir).unwrap();
    Place {
        disk,
        dir,
        _keep: None,
    }
}

#[test]
fn what_is_written_is_read() {
    for place in places() {
        for direct in [false, true] {
            let path = place.path(&format!("file-{direct}"));
            let file = if direct {
                place.disk.open_direct(&path, OpenMode::CreateNew).unwrap()
            } else {
                place.disk.open(&path, OpenMode::CreateNew).unwrap()
            };
            let bytes: Vec<u8> = (0..3_000_000u32 / 4096 * 4096)
                .map(|n| (n % 253) as u8)
                .collect();
            let back = place
                .disk
                .write(&file, 8192, AlignedBuf::from_slice(&bytes))
                .blocking_wait()
                .unwrap();
            assert_eq!(
                &*back,
                &bytes,
                "{}: the buffer comes back",
                place.disk.name()
            );
            place.disk.sync_data(&file).blocking_wait().unwrap();
            place.disk.sync_dir(&place.dir).blocking_wait().unwrap();
            assert_eq!(place.disk.len(&file).unwrap(), 8192 + bytes.len() as u64);
            drop(file);

            let file = place.disk.open(&path, OpenMode::Read).unwrap();
            let read = place
                .disk
                .read(&file, 8192, bytes.len())
                .blocking_wait()
                .unwrap();
            assert_eq!(&*read, &bytes);
            let hole = place.disk.read(&file, 1, 8000).blocking_wait().unwrap();
            assert!(hole.iter().all(|byte| *byte == 0) && hole.len() == 8000);
            assert!(
                place
                    .disk
                    .read(&file, 5, 0)
                    .blocking_wait()
                    .unwrap()
                    .is_empty()
            );
        }
    }
}

#[test]
fn the_end_of_a_file_is_an_error_or_a_short_read() {
    for place in places() {
        let file = place
            .disk
            .open(&place.path("file"), OpenMode::CreateNew)
            .unwrap();
        place
            .disk
            .write(&file, 0, AlignedBuf::from_slice(&[7; 5000]))
            .blocking_wait()
            .unwrap();
        let error = place
            .disk
            .read(&file, 4000, 1001)
            .blocking_wait()
            .unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::UnexpectedEof,
            "{}",
            place.disk.name()
        );
        assert_eq!(
            place
                .disk
                .read_up_to(&file, 4000, 1001)
                .blocking_wait()
                .unwrap()
                .len(),
            1000
        );
        assert_eq!(
            place
                .disk
                .read_up_to(&file, 9000, 10)
                .blocking_wait()
                .unwrap()
                .len(),
            0
        );
        place.disk.set_len(&file, 100).unwrap();
        assert_eq!(
            place
                .disk
                .read_up_to(&file, 0, 1001)
                .blocking_wait()
                .unwrap()
                .len(),
            100
        );
        assert_eq!(place.disk.len(&file).unwrap(), 100);
    }
}

#[test]
fn names_come_and_go() {
    for place in places() {
        let disk = &place.disk;
        disk.create_dir(&place.path("sub")).unwrap();
        assert_eq!(
            disk.create_dir(&place.path("sub")).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        for name in ["a", "b"] {
            let file = disk.open(&place.path(name), OpenMode::CreateNew).unwrap();
            disk.write(&file, 0, AlignedBuf::from_slice(name.as_bytes()))
                .blocking_wait()
                .unwrap();
        }
        let taken = disk
            .open_direct(&place.path("a"), OpenMode::CreateNew)
            .unwrap_err();
        assert_eq!(
            taken.kind(),
            io::ErrorKind::AlreadyExists,
            "{}",
            disk.name()
        );
        disk.rename(&place.path("a"), &place.path("b")).unwrap();
        let mut names = disk.list(&place.dir).unwrap();
        names.sort();
        assert_eq!(names, ["b", "sub"]);
        let file = disk.open(&place.path("b"), OpenMode::ReadWrite).unwrap();
        assert_eq!(&*disk.read(&file, 0, 1).blocking_wait().unwrap(), b"a");
        disk.link(&place.path("b"), &place.path("c")).unwrap();
        let taken = disk.link(&place.path("b"), &place.path("c")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        let missing = disk.link(&place.path("x"), &place.path("d")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        disk.remove(&place.path("b")).unwrap();
        let other = disk.open(&place.path("c"), OpenMode::Read).unwrap();
        assert_eq!(&*disk.read(&other, 0, 1).blocking_wait().unwrap(), b"a");
        disk.remove(&place.path("c")).unwrap();
        let gone = disk.open(&place.path("b"), OpenMode::Read).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            disk.list(&place.path("b")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            &*disk.read(&file, 0, 1).blocking_wait().unwrap(),
            b"a",
            "an open file stays"
        );
        assert!(disk.free_bytes(&place.dir).unwrap() > 0);
    }
}

#[test]
fn direct_reads_and_writes_are_refused_where_they_are_not_aligned() {
    for place in places() {
        let file = place
            .disk
            .open_direct(&place.path("file"), OpenMode::CreateNew)
            .unwrap();
        for (offset_bytes, len) in [(1, 4096), (0, 4095), (512, 4096)] {
            let buf = AlignedBuf::from_slice(&vec![1; len]);
            let disk = &place.disk;
            for refused in [
                disk.write(&file, offset_bytes, buf),
                disk.read(&file, offset_bytes, len),
                disk.read_up_to(&file, offset_bytes, len),
            ] {
                let error = refused.blocking_wait().unwrap_err();
                let disk = disk.name();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{disk}");
            }
        }
    }
}

#[test]
fn a_direct_read_gets_the_end_of_a_file_wherever_it_is() {
    for place in places() {
        let path = place.path("file");
        let disk = &place.disk;
        let file = disk.open(&path, OpenMode::CreateNew).unwrap();
        let written = disk.write(&file, 0, AlignedBuf::from_slice(&[7; 5000]));
        written.blocking_wait().unwrap();
        let file = disk.open_direct(&path, OpenMode::Read).unwrap();
        for (offset_bytes, expected) in [(0, 5000), (4096, 904), (8192, 0)] {
            let read = disk.read_up_to(&file, offset_bytes, 8192);
            let read = read.blocking_wait().unwrap();
            assert_eq!(read.len(), expected, "{}", disk.name());
        }
    }
}

#[test]
fn errors_of_the_kernel_are_passed_on() {
    for place in places() {
        let path = place.path("file");
        place.disk.open(&path, OpenMode::CreateNew).unwrap();
        if place.disk.name() != "simulated" {
            let read_only = place.disk.open(&path, OpenMode::Read).unwrap();
            let error = place
                .disk
                .write(&read_only, 0, AlignedBuf::from_slice(&[1]))
                .blocking_wait()
                .unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(rustix::io::Errno::BADF.raw_os_error())
            );
        }
        let other = sim_place();
        let foreign = other
            .disk
            .open(&other.path("file"), OpenMode::CreateNew)
            .unwrap();
        if place.disk.name() != "simulated" {
            let error = place.disk.sync_data(&foreign).blocking_wait().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert_eq!(
                place.disk.len(&foreign).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
        let error = place.disk.sync_dir(&place.path("none")).blocking_wait();
        assert!(error.is_err() || place.disk.name() == "simulated");
    }
}

/// Many more requests than may wait, from several threads and in any order.
#[test]
fn more_requests_than_places_wait_for_their_turn() {
    for place in places() {
        let file = place
            .disk
            .open(&place.path("file"), OpenMode::CreateNew)
            .unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (disk, file) = (&place.disk, &file);
                scope.spawn(move || {
                    let offset = |n: u64| (thread * 100 + n) * 512;
                    let writes: Vec<_> = (0..100)
                        .map(|n| {
                            disk.write(file, offset(n), AlignedBuf::from_slice(&[n as u8; 512]))
                        })
                        .collect();
                    for write in writes.into_iter().rev() {
                        write.blocking_wait().unwrap();
                    }
                    let reads: Vec<_> = (0..100)
                        .map(|n| (n, disk.read(file, offset(n), 512)))
                        .collect();
                    for (n, read) in reads {
                        assert!(
                            read.blocking_wait()
                                .unwrap()
                                .iter()
                                .all(|byte| *byte == n as u8)
                        );
                    }
                });
            }
        });
    }
}

#[test]
fn a_completion_that_is_dropped_does_not_take_the_buffer_along() {
    for place in places() {
        let file = place
            .disk
            .open(&place.path("file"), OpenMode::CreateNew)
            .unwrap();
        place
            .disk
            .write(&file, 0, AlignedBuf::from_slice(&vec![3; 1 << 20]))
            .blocking_wait()
            .unwrap();
        for _ in 0..200 {
            drop(place.disk.read(&file, 0, 1 << 20));
            let mine = AlignedBuf::from_slice(&[9; 4096]);
            assert!(
                mine.iter().all(|byte| *byte == 9),
                "memory that the kernel still fills was given out again"
            );
        }
        let (disk, name) = (Arc::clone(&place.disk), place.disk.name());
        drop(disk);
        assert_eq!(
            place.disk.read(&file, 0, 10).blocking_wait().unwrap().len(),
            10,
            "{name}"
        );
    }
}

#[test]
fn closing_a_disk_finishes_what_was_begun() {
    for start in [|| blocking::start(2, 64), || uring::start(64)] {
        let Ok(disk) = start() else { continue };
        let dir = tempfile::tempdir().unwrap();
        let file = disk
            .open(&dir.path().join("file"), OpenMode::CreateNew)
            .unwrap();
        let writes: Vec<_> = (0..32)
            .map(|n| disk.write(&file, n * 4096, AlignedBuf::from_slice(&[n as u8; 4096])))
            .collect();
        drop(disk);
        for write in writes {
            write.blocking_wait().unwrap();
        }
        assert_eq!(
            std::fs::read(dir.path().join("file")).unwrap().len(),
            32 * 4096
        );
    }
}

#[test]
fn what_waits_for_a_place_when_the_disk_is_closed_fails() {
    for start in [|| blocking::start(1, 2), || uring::start(2)] {
        let Ok(disk) = start() else { continue };
        let dir = tempfile::tempdir().unwrap();
        let file = disk
            .open(&dir.path().join("file"), OpenMode::CreateNew)
            .unwrap();
        let syncs: Vec<_> = (0..50).map(|_| disk.sync_data(&file)).collect();
        drop(disk);
        let (done, failed): (Vec<_>, Vec<_>) =
            syncs.into_iter().map(block_on).partition(Result::is_ok);
        assert!(done.len() >= 2);
        assert!(
            failed
                .iter()
                .all(|result| result.as_ref().unwrap_err().to_string() == "the disk was closed")
        );
    }
}

/// A pipe returns only part of a read: the rest needs more calls.
#[test]
fn short_reads_and_writes_go_on() {
    use std::io::Write as _;
    for start in [|| blocking::start(2, 8), || uring::start(8)] {
        let Ok(disk) = start() else { continue };
        let (reader, mut writer) = std::io::pipe().unwrap();
        let file = File::os(Path::new("pipe"), reader.into(), false);
        let feed = std::thread::spawn(move || {
            for n in 0..10u8 {
                writer.write_all(&[n; 100]).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let read = disk.read(&file, 0, 1000).blocking_wait();
        feed.join().unwrap();
        match read {
            Ok(read) => assert!(
                read.chunks(100)
                    .zip(0..10u8)
                    .all(|(part, n)| part.iter().all(|byte| *byte == n))
            ),
            // Reads at an offset are refused, unless a ring makes them.
            Err(error) => assert_eq!(
                error.raw_os_error(),
                Some(rustix::io::Errno::SPIPE.raw_os_error())
            ),
        }
    }
}

#[test]
fn tmpfs_is_written_through_the_page_cache_if_need_be() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let disk = choose(IoEngine::Auto).unwrap();
    let file = disk
        .open_direct(&dir.path().join("file"), OpenMode::CreateNew)
        .unwrap();
    disk.write(&file, 0, AlignedBuf::from_slice(&[1; 4096]))
        .blocking_wait()
        .unwrap();
    assert_eq!(disk.len(&file).unwrap(), 4096);
    assert!(
        disk.write(&file, 1, AlignedBuf::from_slice(&[1; 4096]))
            .blocking_wait()
            .is_err()
    );
}

#[test]
fn engines_have_names() {
    for engine in [IoEngine::Auto, IoEngine::IoUring, IoEngine::Blocking] {
        assert_eq!(engine.to_string().parse(), Ok(engine));
    }
    assert_eq!(
        "aio".parse::<IoEngine>().unwrap_err().to_string(),
        "\"aio\" is not an IO engine: use auto, io_uring or blocking"
    );
    assert_eq!(choose(IoEngine::Blocking).unwrap().name(), "blocking");
}

/// Requests and errors of the system: a request waits for the end of a shortage, and a failed sync
/// is final whatever its reason.
#[test]
fn reads_and_writes_wait_for_what_the_system_is_short_of_and_syncs_do_not() {
    use super::{
        request::{Progress, Request, Task, Transfer},
        shortage::is_shortage,
    };
    use rustix::io::Errno;
    use tokio::sync::{Semaphore, oneshot};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = File::os(&path, std::fs::File::create(&path).unwrap().into(), false);
    let places = Arc::new(Semaphore::new(8));
    let request = |is_sync: bool| {
        let task = if is_sync {
            Task::SyncData(oneshot::channel().0)
        } else {
            Task::Write(Transfer {
                buf: AlignedBuf::from_slice(&[1; 512]),
                offset_bytes: 0,
                len: 512,
                done: 0,
                may_be_short: false,
                reply: oneshot::channel().0,
            })
        };
        let place = Arc::clone(&places).try_acquire_owned().unwrap();
        Request::new(file.clone(), task, place)
    };
    let failed = |errno: Errno| Err(io::Error::from(errno));
    for errno in [Errno::NOMEM, Errno::NFILE, Errno::MFILE] {
        let progress = request(false).advance(failed(errno));
        assert!(
            matches!(progress, Progress::Later(_)),
            "{errno:?}: {progress:?}"
        );
        let progress = request(true).advance(failed(errno));
        let Progress::Done(Err(error)) = progress else {
            panic!("{errno:?}: {progress:?}");
        };
        assert!(!is_shortage(&error), "{error}");
    }
    for errno in [Errno::INTR, Errno::AGAIN] {
        for is_sync in [false, true] {
            let mut request = request(is_sync);
            let mut count = 0;
            let last = loop {
                match request.advance(failed(errno)) {
                    Progress::Continue => count += 1,
                    other => break other,
                }
            };
            assert_eq!(count, 100);
            match last {
                Progress::Later(_) => assert!(!is_sync),
                Progress::Done(Err(error)) => assert!(is_sync && !is_shortage(&error)),
                other => panic!("{other:?}"),
            }
        }
    }
    for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS] {
        for is_sync in [false, true] {
            let progress = request(is_sync).advance(failed(errno));
            assert!(matches!(progress, Progress::Done(Err(_))), "{progress:?}");
        }
    }
}

/// A request for which a ring finds the system short of something goes on in a thread.
#[test]
fn a_write_that_is_handed_over_is_made_by_a_thread() {
    use super::{
        queue::{Queue, Wake},
        request::{Request, Task, Transfer},
    };
    use tokio::sync::{Semaphore, oneshot};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = File::os(&path, std::fs::File::create(&path).unwrap().into(), false);
    let queue = Arc::new(Queue::new(4, Wake::Condvar(parking_lot::Condvar::new())));
    let mut disk = super::os_disk::OsDisk::new("test", Arc::clone(&queue), Arc::clone(&queue));
    blocking::add_threads(&mut disk, "io", 1, &queue).unwrap();
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let (reply, outcome) = oneshot::channel();
    let task = Task::Write(Transfer {
        buf: AlignedBuf::from_slice(&[7; 512]),
        offset_bytes: 0,
        len: 512,
        done: 0,
        may_be_short: false,
        reply,
    });
    queue.hand_over(Request::new(file, task, place));
    block_on(async { outcome.await.unwrap() }).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [7; 512]);
}
