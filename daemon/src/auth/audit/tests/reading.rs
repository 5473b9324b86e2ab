//! Tests of the reader.

use std::{fs, ops::RangeInclusive};

use jiff::Timestamp;
use tempfile::TempDir;

use super::{
    super::{
        files::{CURRENT, audit_dir},
        limits::{LINE_BYTES_MAX, PAGE_EVENTS_MAX},
    },
    *,
};

/// Files of lines as an earlier daemon has written them: line `n` at second `n`.
fn given(dir: &TempDir, files: &[(&str, RangeInclusive<u64>)]) {
    fs::create_dir(audit_dir(dir.path())).unwrap();
    for (name, seqs) in files {
        let mut text = String::new();
        for seq in seqs.clone() {
            let time = Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap();
            let account = seq % 3;
            let action = ["Create", "Delete"][usize::from(seq.is_multiple_of(2))];
            text.push_str(&format!(
                r#"{{"seq":{seq},"time":"{time:.6}","account":"{account}","#
            ));
            text.push_str(&format!("\"action\":\"{action}\"}}\n"));
        }
        fs::write(audit_dir(dir.path()).join(name), text).unwrap();
    }
}

fn seqs(events: &[Entry]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn a_reader_finds_what_it_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    given(
        &dir,
        &[
            ("audit-19700101T000010Z-00000000000000000010.jsonl", 1..=10),
            ("audit-19700101T000020Z-00000000000000000020.jsonl", 11..=20),
            (CURRENT, 21..=25),
            ("audit.txt", 90..=99),
        ],
    );
    let at = |second| Some(Timestamp::from_second(second).unwrap());
    let ask = |query: Query| seqs(&all_by(&dir, &query).0);
    assert_eq!(ask(Query::default()), (1..=25).collect::<Vec<_>>());
    let query = Query {
        since: at(9),
        until: at(22),
        account: Some("0".to_owned()),
        ..Query::default()
    };
    assert_eq!(ask(query.clone()), [9, 12, 15, 18, 21]);
    let query = Query {
        action: Some("Delete".to_owned()),
        ..query
    };
    for limit in [0, 1, 2, 3] {
        let query = Query {
            limit,
            ..query.clone()
        };
        assert_eq!(ask(query), [12, 18], "{limit}");
    }
    let page = read(
        dir.path(),
        &Query {
            limit: 4,
            after: 8,
            ..Query::default()
        },
    )
    .unwrap();
    assert_eq!(seqs(&page.events), [9, 10, 11, 12]);
    assert_eq!((page.cursor, page.has_more), (12, true));
    assert_eq!(
        ask(Query {
            after: 24,
            ..Query::default()
        }),
        [25]
    );
    assert_eq!(
        ask(Query {
            after: 25,
            ..Query::default()
        }),
        [0; 0]
    );
    // The name says that this one has nothing of the time, so it is not opened.
    let oldest = "audit-19700101T000010Z-00000000000000000010.jsonl";
    let oldest = audit_dir(dir.path()).join(oldest);
    fs::remove_file(&oldest).unwrap();
    fs::create_dir(&oldest).unwrap();
    assert_eq!(
        ask(Query {
            since: at(24),
            ..Query::default()
        }),
        [24, 25]
    );
    read(dir.path(), &Query::default()).unwrap_err();
}

#[test]
fn a_log_that_does_not_exist_has_no_events() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        read(dir.path(), &Query::default()).unwrap(),
        Page::default()
    );
}

#[test]
fn every_place_in_a_long_file_with_damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    given(&dir, &[(CURRENT, 1..=20_000)]);
    let path = audit_dir(dir.path()).join(CURRENT);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    // Longer than a probe, without line feeds and with.
    bytes[middle..middle + 100_000].fill(b'x');
    bytes[middle + 200_000..middle + 300_000].fill(b'\n');
    fs::write(&path, &bytes).unwrap();
    let page = |after, limit| {
        let query = Query {
            after,
            limit,
            ..Query::default()
        };
        read(dir.path(), &query).unwrap()
    };
    let whole = seqs(&all(&dir));
    assert!(
        whole.len() > 15_000 && whole.len() < 19_000,
        "{}",
        whole.len()
    );
    for after in (0..20_000).step_by(501) {
        let expected = whole.iter().find(|seq| **seq > after).unwrap();
        assert_eq!(seqs(&page(after, 1).events), [*expected], "{after}");
    }
    assert_eq!(page(0, 1_000_000).events.len(), PAGE_EVENTS_MAX);
}

#[test]
fn endless_lines_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    given(&dir, &[(CURRENT, 1..=2)]);
    let path = audit_dir(dir.path()).join(CURRENT);
    let good = fs::read(&path).unwrap();
    let long = |length| [&vec![b' '; length][..], b"{}\n", &good[..]].concat();
    for length in [
        LINE_BYTES_MAX - 3,
        LINE_BYTES_MAX - 2,
        LINE_BYTES_MAX,
        1 << 20,
    ] {
        fs::write(&path, long(length)).unwrap();
        let (events, damaged) = all_by(&dir, &Query::default());
        assert_eq!(seqs(&events), [1, 2], "{length}");
        assert_eq!(damaged, 1, "{length}");
    }
}
