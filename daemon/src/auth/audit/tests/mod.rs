//! Tests of the log as a whole, on disks that fail in some way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod reading;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, AtomicU64},
};

use tempfile::TempDir;

use super::{
    event::{LOST, OTHERS, UNSYNCED},
    files::{CURRENT, Sink, audit_dir, rotated},
    limits::QUEUE_EVENTS_MAX,
    *,
};

const LONG: Duration = Duration::from_secs(20);

/// What a disk does wrong at present.
#[derive(Debug, Default)]
struct Faults {
    /// Bytes that still fit. It is full only if `is_full`.
    room: AtomicU64,
    is_full: AtomicBool,
    syncs_fail: AtomicBool,
    syncs: AtomicU64,
    stalls: AtomicBool,
}

struct Faulty(File, Arc<Faults>);

impl Sink for Faulty {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.1.stalls.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if !self.1.is_full.load(Ordering::SeqCst) {
            return self.0.append(bytes);
        }
        let room = self.1.room.load(Ordering::SeqCst);
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let fits = usize::try_from(room).unwrap().min(bytes.len());
        let length = self.0.append(&bytes[..fits])?;
        self.1.room.fetch_sub(length as u64, Ordering::SeqCst);
        Ok(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        if self.1.syncs_fail.load(Ordering::SeqCst) {
            return Err(io::Error::other("bad sector"));
        }
        self.0.sync()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.cut(length)
    }
}

fn settings() -> Settings {
    Settings {
        on_failure: OnFailure::Stop,
        ..Settings::default()
    }
}

fn small() -> Settings {
    Settings {
        file_bytes: 10 << 10,
        total_bytes: 50 << 10,
        on_failure: OnFailure::Stop,
    }
}

fn open(dir: &TempDir) -> Audit {
    Audit::open(dir.path(), &settings()).unwrap()
}

fn faulty(dir: &TempDir, settings: &Settings) -> (Audit, Arc<Faults>) {
    let faults = Arc::<Faults>::default();
    let of_sink = Arc::clone(&faults);
    let sink: MakeSink = Box::new(move |file| Box::new(Faulty(file, Arc::clone(&of_sink))));
    let audit = Audit::open_with(dir.path(), settings, sink).unwrap();
    (audit, faults)
}

fn change(resources: &str) -> Event<'_> {
    Event {
        account: Some("000000000001"),
        identity: "uid:0",
        from: "unix:pid=1,uid=0",
        face: "grpc",
        action: "DeleteVolume",
        resources,
        result: OK,
        ..Event::default()
    }
}

fn refusal(identity: &str) -> Event<'_> {
    Event {
        identity,
        action: "DeleteVolume",
        result: "PermissionDenied",
        message: Some("not yours"),
        ..Event::default()
    }
}

async fn record(audit: &Audit, resources: &str) {
    let recorded = audit.record(&change(resources)).await;
    assert_eq!(recorded, Recorded::Written, "{resources}");
}

/// All events, page by page, and the number of damaged lines.
fn all_by(dir: &TempDir, query: &Query) -> (Vec<Entry>, u64) {
    let mut query = query.clone();
    let (mut events, mut damaged) = (Vec::new(), 0);
    loop {
        let page = read(dir.path(), &query).unwrap();
        events.extend(page.events);
        damaged += page.damaged;
        if !page.has_more {
            return (events, damaged);
        }
        query.after = page.cursor;
    }
}

fn all(dir: &TempDir) -> Vec<Entry> {
    all_by(dir, &Query::default()).0
}

fn resources(events: &[Entry]) -> Vec<&str> {
    events.iter().map(|event| &*event.resources).collect()
}

fn assert_gapless(events: &[Entry]) {
    for pair in events.windows(2) {
        assert_eq!(pair[0].seq + 1, pair[1].seq, "{pair:#?}");
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_recorded_change_is_in_the_file_at_once_and_numbers_go_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    audit.admit().unwrap();
    record(&audit, "one").await;
    record(&audit, "two").await;
    assert_eq!(resources(&all(&dir)), ["one", "two"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&audit_dir(dir.path())), 0o700);
    assert_eq!(mode(&audit_dir(dir.path()).join(CURRENT)), 0o600);
    audit.close(LONG).await.unwrap();
    assert_eq!(audit.try_record(&change("late")), Recorded::Lost);
    let audit = open(&dir);
    record(&audit, "three").await;
    let events = all(&dir);
    assert_eq!(resources(&events), ["one", "two", "three"]);
    assert_eq!(events[0].seq, 1);
    assert_gapless(&events);
}

#[tokio::test]
async fn an_event_is_recorded_though_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    drop(audit.record(&change("dropped")));
    assert_eq!(audit.try_record(&change("tried")), Recorded::Queued);
    audit.close(LONG).await.unwrap();
    assert_eq!(resources(&all(&dir)), ["dropped", "tried"]);
}

#[tokio::test]
async fn a_log_that_is_dropped_writes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    audit.try_record(&change("one"));
    audit.refuse(&refusal("a"));
    drop(audit);
    until("written", || all(&dir).len() == 2).await;
}

#[tokio::test]
async fn a_second_daemon_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    let error = Audit::open(dir.path(), &settings()).unwrap_err();
    assert!(matches!(error, AuditError::Open { .. }), "{error}");
    audit.close(LONG).await.unwrap();
    open(&dir);
}

#[test]
fn settings_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (file_bytes, total_bytes) in [(0, 1 << 20), (1 << 20, 1 << 20)] {
        let settings = Settings {
            file_bytes,
            total_bytes,
            ..settings()
        };
        let error = Audit::open(dir.path(), &settings).unwrap_err();
        assert!(matches!(error, AuditError::Setting(_)), "{error}");
    }
}

#[tokio::test]
async fn files_are_rotated_and_the_oldest_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let settings = small();
    let audit = Audit::open(dir.path(), &settings).unwrap();
    let padding = "x".repeat(300);
    for number in 0..1000 {
        let name = format!("{number} {padding}");
        if number % 7 == 0 {
            record(&audit, &name).await;
        } else {
            audit.try_record(&change(&name));
        }
        let files = fs::read_dir(audit_dir(dir.path())).unwrap();
        let lengths = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
        let lengths: Vec<_> = lengths.collect();
        assert!(lengths.iter().all(|length| *length <= settings.file_bytes));
        assert!(
            lengths.iter().sum::<u64>() <= settings.total_bytes,
            "{lengths:?}"
        );
    }
    audit.close(LONG).await.unwrap();
    let events = all(&dir);
    assert_gapless(&events);
    assert_eq!(events.last().unwrap().seq, 1000);
    assert!(events.len() > 60, "{}", events.len());
    let files = rotated(&audit_dir(dir.path())).unwrap();
    assert!(files.len() >= 4, "{files:?}");
    // The numbers go on though the current file is gone.
    fs::remove_file(audit_dir(dir.path()).join(CURRENT)).unwrap();
    let last = files.last().unwrap().last_seq;
    let audit = Audit::open(dir.path(), &settings).unwrap();
    record(&audit, "next").await;
    assert_eq!(all(&dir).last().unwrap().seq, last + 1);
}

#[tokio::test]
async fn a_torn_line_is_kept_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    record(&audit, "one").await;
    record(&audit, "two").await;
    audit.close(LONG).await.unwrap();
    let path = audit_dir(dir.path()).join(CURRENT);
    let whole = fs::read(&path).unwrap();
    // Only the line feed is missing.
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let audit = open(&dir);
    record(&audit, "three").await;
    audit.close(LONG).await.unwrap();
    let (events, damaged) = all_by(&dir, &Query::default());
    assert_eq!(resources(&events), ["one", "two", "three"]);
    assert_eq!(damaged, 0);
    // Half of the line is missing.
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    assert_eq!(all_by(&dir, &Query::default()).1, 0, "it may be under way");
    let audit = open(&dir);
    record(&audit, "three").await;
    let (events, damaged) = all_by(&dir, &Query::default());
    assert_eq!(resources(&events), ["one", "three"]);
    assert_gapless(&events);
    assert_eq!(damaged, 1);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(str::from_utf8(&whole[..whole.len() - 40]).unwrap()));
}

#[tokio::test]
async fn a_full_disk_stops_changes_and_takes_no_event_and_no_part_of_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(&dir, &settings());
    record(&audit, "one").await;
    faults.room.store(20, Ordering::SeqCst);
    faults.is_full.store(true, Ordering::SeqCst);
    assert_eq!(audit.record(&change("two")).await, Recorded::Queued);
    let error = audit.admit().unwrap_err().to_string();
    assert!(error.contains("no storage space"), "{error}");
    let path = audit_dir(dir.path()).join(CURRENT);
    until("cut", || fs::read(&path).unwrap().ends_with(b"}\n")).await;
    assert_eq!(audit.try_record(&change("three")), Recorded::Queued);
    audit.refuse(&refusal("a"));
    faults.is_full.store(false, Ordering::SeqCst);
    until("admitted", || audit.admit().is_ok()).await;
    record(&audit, "four").await;
    audit.close(LONG).await.unwrap();
    let (events, damaged) = all_by(&dir, &Query::default());
    let mut seen = resources(&events);
    seen.retain(|resources| !resources.is_empty());
    assert_eq!(seen, ["one", "two", "three", "four"]);
    assert_eq!(events.len(), 5);
    assert_gapless(&events);
    assert_eq!(damaged, 0);
}

#[tokio::test]
async fn events_that_find_no_room_are_counted_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        on_failure: OnFailure::Count,
        ..settings()
    };
    let (audit, faults) = faulty(&dir, &settings);
    faults.is_full.store(true, Ordering::SeqCst);
    let mut lost = 0;
    let many = 2 * QUEUE_EVENTS_MAX;
    let started = Instant::now();
    for number in 0..many {
        let name = number.to_string();
        let recorded = audit.record(&change(&name)).await;
        assert_ne!(recorded, Recorded::Written);
        lost += u64::from(recorded == Recorded::Lost);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "nobody waits");
    assert!(lost > 0);
    audit.admit().unwrap();
    faults.is_full.store(false, Ordering::SeqCst);
    audit.close(LONG).await.unwrap();
    let events = all(&dir);
    assert_gapless(&events);
    let told: Vec<_> = events.iter().filter(|event| event.action == LOST).collect();
    let counted: u64 = told.iter().map(|event| event.count).sum();
    assert_eq!(counted, lost, "{told:?}");
    assert_eq!(
        events.len() - told.len() + usize::try_from(lost).unwrap(),
        many
    );
    let message = told[0].message.as_deref().unwrap();
    assert!(message.contains("no storage space"), "{message}");
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_start_is_a_failure_like_others() {
    let dir = tempfile::tempdir().unwrap();
    // A line without an end has to be completed at the opening.
    fs::create_dir(audit_dir(dir.path())).unwrap();
    fs::write(audit_dir(dir.path()).join(CURRENT), "{").unwrap();
    let faults = Arc::<Faults>::default();
    faults.is_full.store(true, Ordering::SeqCst);
    let of_sink = Arc::clone(&faults);
    let sink: MakeSink = Box::new(move |file| Box::new(Faulty(file, Arc::clone(&of_sink))));
    let audit = Audit::open_with(dir.path(), &settings(), sink).unwrap();
    audit.admit().unwrap_err();
    assert_eq!(audit.record(&change("one")).await, Recorded::Queued);
    faults.is_full.store(false, Ordering::SeqCst);
    until("admitted", || audit.admit().is_ok()).await;
    record(&audit, "two").await;
    assert_eq!(resources(&all(&dir)), ["one", "two"]);
}

#[tokio::test]
async fn lines_that_the_disk_did_not_confirm_are_told_of_in_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(&dir, &settings());
    faults.syncs_fail.store(true, Ordering::SeqCst);
    record(&audit, "one").await;
    until("refused", || audit.admit().is_err()).await;
    faults.syncs_fail.store(false, Ordering::SeqCst);
    until("admitted", || audit.admit().is_ok()).await;
    record(&audit, "two").await;
    audit.close(LONG).await.unwrap();
    let events = all(&dir);
    assert_gapless(&events);
    let told: Vec<_> = events.iter().filter(|it| it.action == UNSYNCED).collect();
    // The line about it may be unconfirmed as well.
    assert!(!told.is_empty());
    assert_eq!(told[0].count, 1);
    assert!(!rotated(&audit_dir(dir.path())).unwrap().is_empty());
    assert_eq!(resources(&events).first(), Some(&"one"));
    assert_eq!(resources(&events).last(), Some(&"two"));
}

#[tokio::test]
async fn a_directory_that_is_gone_stops_changes_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    record(&audit, "one").await;
    fs::rename(audit_dir(dir.path()), dir.path().join("aside")).unwrap();
    assert_eq!(audit.record(&change("two")).await, Recorded::Queued);
    audit.admit().unwrap_err();
    fs::rename(dir.path().join("aside"), audit_dir(dir.path())).unwrap();
    until("admitted", || audit.admit().is_ok()).await;
    assert_eq!(resources(&all(&dir)), ["one", "two"]);
}

#[tokio::test]
async fn a_file_that_is_taken_away_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    record(&audit, "one").await;
    fs::remove_file(audit_dir(dir.path()).join(CURRENT)).unwrap();
    record(&audit, "two").await;
    let events = all(&dir);
    assert_eq!(resources(&events), ["two"]);
    assert_eq!(events[0].seq, 2, "the gap shows that a line is missing");
}

#[tokio::test]
async fn a_disk_that_stalls_holds_nobody_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(&dir, &settings());
    faults.stalls.store(true, Ordering::SeqCst);
    let started = Instant::now();
    assert_eq!(audit.record(&change("one")).await, Recorded::Queued);
    assert!(started.elapsed() >= limits::RECORD_WITHIN);
    assert!(started.elapsed() < 2 * limits::RECORD_WITHIN);
    audit.admit().unwrap();
    let mut queued = 1;
    while audit.try_record(&change("more")) == Recorded::Queued {
        queued += 1;
    }
    assert!(queued >= QUEUE_EVENTS_MAX);
    audit.admit().unwrap_err();
    audit.refuse(&refusal("a"));
    let closed = audit.close(Duration::from_millis(100)).await;
    assert!(matches!(closed, Err(AuditError::Unfinished)));
    faults.stalls.store(false, Ordering::SeqCst);
}

#[tokio::test]
async fn a_full_disk_ends_the_closing_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(&dir, &settings());
    faults.is_full.store(true, Ordering::SeqCst);
    audit.try_record(&change("one"));
    let started = Instant::now();
    audit.close(Duration::from_millis(300)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn there_is_one_sync_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, faults) = faulty(&dir, &settings());
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(2500) {
        record(&audit, "x").await;
    }
    let seconds = started.elapsed().as_secs();
    let syncs = faults.syncs.load(Ordering::SeqCst);
    assert!((1..=seconds + 1).contains(&syncs), "{syncs} in {seconds} s");
    // The last lines, too, though nothing follows them.
    until("synced", || faults.syncs.load(Ordering::SeqCst) > syncs).await;
}

#[tokio::test]
async fn a_flood_of_refusals_becomes_few_lines() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir);
    for _ in 0..50_000 {
        audit.refuse(&refusal("token:a"));
    }
    for number in 0..5000 {
        audit.refuse(&refusal(&format!("token:{number}")));
    }
    record(&audit, "one").await;
    until("written", || {
        let counts = all(&dir).iter().map(|event| event.count).sum::<u64>();
        counts == 55_001
    })
    .await;
    let events = all(&dir);
    assert!(events.len() < 1200, "{}", events.len());
    let most = events.iter().max_by_key(|event| event.count).unwrap();
    assert_eq!(most.identity, "token:a");
    assert!(events.iter().any(|event| event.action == OTHERS));
    assert_gapless(&events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lines_of_many_threads_are_each_there_once_while_a_reader_follows() {
    const THREADS: usize = 10;
    const EACH: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        file_bytes: 64 << 10,
        ..settings()
    };
    let audit = Arc::new(Audit::open(dir.path(), &settings).unwrap());
    let runtime = tokio::runtime::Handle::current();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (audit, runtime) = (Arc::clone(&audit), runtime.clone());
            thread::spawn(move || {
                for number in 0..EACH {
                    let name = format!("{thread}-{number}");
                    let recorded = runtime.block_on(audit.record(&change(&name)));
                    assert_ne!(recorded, Recorded::Lost);
                }
            })
        })
        .collect();
    let mut query = Query::default();
    let mut seen = Vec::new();
    let started = Instant::now();
    while seen.len() < THREADS * EACH {
        assert!(started.elapsed() < 3 * LONG, "{}", seen.len());
        let page = read(dir.path(), &query).unwrap();
        assert_eq!(page.damaged, 0);
        query.after = page.cursor;
        seen.extend(page.events);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert_gapless(&seen);
    assert_eq!(seen, all(&dir));
    let mut next = BTreeMap::new();
    for event in &seen {
        let (thread, number) = event.resources.split_once('-').unwrap();
        let expected = next.entry(thread.to_owned()).or_insert(0_usize);
        assert_eq!(number.parse::<usize>().unwrap(), *expected);
        *expected += 1;
    }
    assert!(seen.windows(2).all(|pair| pair[0].time <= pair[1].time));
    assert!(rotated(&audit_dir(dir.path())).unwrap().len() > 5);
}
