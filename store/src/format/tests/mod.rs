//! Tests of every format, and of the formats that have no file of their own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod records;
mod records_of_accounts;
mod records_of_images;

use std::fmt::Debug;

use proptest::prelude::*;
use varve_content::{RootId, codec::Codec, codec::Compression};

use super::{
    catalog_log::{self, LogHeader, Position},
    keys::{Holdings, Identity},
    pack::{self, Header, PackHeader, Payload, RecordKind, Trailer},
    record::Sharing,
    store_file::StoreFile,
    *,
};

/// The advice for a difference in literal bytes.
pub(super) const CHANGED: &str =
    "the format on disk has changed: change FORMAT_VERSION with it, and these bytes only then";

pub(super) const STORE: StoreId = StoreId::from_bytes([
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
]);

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Literal bytes, in lines of any length.
#[track_caller]
pub(super) fn assert_bytes(bytes: &[u8], literal: &[&str]) {
    assert_eq!(hex(bytes), literal.concat(), "{CHANGED}");
}

/// No byte may change, and none be missing, without being noticed.
#[track_caller]
pub(super) fn assert_every_byte_counts<T: Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
) {
    decode(bytes).unwrap();
    let mut changed = bytes.to_vec();
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80, 0xff] {
            changed[at] ^= mask;
            let decoded = decode(&changed);
            assert!(
                decoded.is_err(),
                "byte {at} ^ {mask:#04x} was not noticed: {decoded:?}"
            );
            changed[at] ^= mask;
        }
    }
    for len in 0..bytes.len() {
        assert!(
            decode(&bytes[..len]).is_err(),
            "{len} bytes of {} were enough",
            bytes.len()
        );
    }
}

pub(super) fn location() -> Location {
    Location {
        pack: PackId {
            kind: PackKind::Chunks,
            number: 0xa1,
        },
        offset_bytes: 0x0012_3458,
        payload: Payload {
            kind: RecordKind::Chunk,
            codec: Codec::Zstd,
            end_open: true,
            plain_bytes: 65536,
            stored_bytes: 21845,
        },
    }
}

pub(super) fn snapshot() -> SnapshotRecord {
    SnapshotRecord {
        id: "snap-0123456789abcdef0".parse().unwrap(),
        name: Some("vm/disk".to_owned()),
        owner: AccountId::ADMINISTRATOR,
        description: String::new(),
        size_bytes: 4 << 30,
        state: SnapshotState::Completed(SnapshotContent {
            root: RootId::from_bytes([0x5a; 32]),
            data_bytes: 486 << 20,
            new_bytes: 480 << 20,
            stored_bytes: 170 << 20,
        }),
        created_at_ns: 1_735_689_600_123_456_789,
        tags: [("k", "v"), ("os", "дебиан")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        origin: None,
        parent: None,
        sharing: Sharing::default(),
    }
}

/// A record that needs the second version of the encoding.
pub(super) fn snapshot_of_volume(state: SnapshotState) -> SnapshotRecord {
    SnapshotRecord {
        state,
        origin: Some(SnapshotOrigin {
            volume: volume().id,
            name: "vm".to_owned(),
        }),
        parent: Some(SnapshotId::from_low_bits([0x11; 9])),
        ..snapshot()
    }
}

pub(super) fn volume() -> VolumeRecord {
    VolumeRecord {
        id: "vol-0fedcba9876543210".parse().unwrap(),
        name: Some("vm/disk".to_owned()),
        owner: AccountId::ADMINISTRATOR,
        description: String::new(),
        size_bytes: 4 << 30,
        base: Some(RootId::from_bytes([0x5a; 32])),
        parent: Some(snapshot().id),
        created_at_ns: 1_735_689_600_123_456_789,
        tags: [("k".to_owned(), "v".to_owned())].into(),
        attached_at_ns: Some(1_735_689_600_917_051_157),
        attachments: 3,
        journal_from: 5,
        pending: Vec::new(),
        promised_sequence: 0,
    }
}

/// Without a name, another account's, and described: what only the third version of the encoding
/// can say.
pub(super) fn snapshot_of_nobody() -> SnapshotRecord {
    SnapshotRecord {
        name: None,
        owner: "123456789012".parse().unwrap(),
        description: "née".to_owned(),
        ..snapshot()
    }
}

/// The same of a volume, in the fourth version of its encoding.
pub(super) fn volume_of_nobody() -> VolumeRecord {
    VolumeRecord {
        name: None,
        owner: "123456789012".parse().unwrap(),
        description: "née".to_owned(),
        ..volume()
    }
}

/// One that is completed.
pub(super) fn copy() -> CopyRecord {
    CopyRecord {
        owner: AccountId::ADMINISTRATOR,
        id: "copy-0a1b2c3d4e5f60718".parse().unwrap(),
        endpoint: "unix:/x".to_owned(),
        allow_plaintext: true,
        snapshot: "web".to_owned(),
        name: "eu/web".to_owned(),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        bytes_per_second: 1 << 20,
        created_at_ns: 1_735_689_600_123_456_789,
        outcome: CopyOutcome::Completed,
        ended_at_ns: Some(1_735_689_600_917_051_157),
        root: Some(RootId::from_bytes([0x5a; 32])),
        made: Some(snapshot().id),
        size_bytes: 4 << 30,
        data_bytes: 2 << 20,
        done_data_bytes: 1 << 20,
        received_chunks: 5,
        received_bytes: 3 << 10,
        last_error: "cut".to_owned(),
        last_error_code: 14,
    }
}

pub(super) fn remote() -> RemoteRecord {
    RemoteRecord {
        owner: AccountId::ADMINISTRATOR,
        name: "eu".to_owned(),
        endpoint: "https://eu:1".to_owned(),
        allow_plaintext: true,
        tls_ca: "/ca".to_owned(),
        tls_cert: "/c".to_owned(),
        tls_key: "/k".to_owned(),
        token_file: String::new(),
        created_at_ns: 1_735_689_600_123_456_789,
    }
}

/// The same of an account, with a token.
pub(super) fn remote_of_account() -> RemoteRecord {
    RemoteRecord {
        owner: AccountId::from_number(7).unwrap(),
        token_file: "/t".to_owned(),
        ..remote()
    }
}

/// The same with pending snapshots.
pub(super) fn volume_with_pending() -> VolumeRecord {
    let pending = |byte: u8, next_file| PendingSnapshot {
        snapshot: SnapshotId::from_low_bits([byte; 9]),
        next_file,
    };
    VolumeRecord {
        pending: vec![pending(0x21, 6), pending(0x22, 6)],
        ..volume()
    }
}

/// The same with what they promise of the journal.
pub(super) fn volume_with_promise() -> VolumeRecord {
    VolumeRecord {
        promised_sequence: 0x0000_0005_0000_0041,
        ..volume_with_pending()
    }
}

fn store_file() -> StoreFile {
    StoreFile {
        store: STORE,
        chunker_version: 1,
        compression: Compression::Zstd,
        created_unix_seconds: 1_735_689_600,
    }
}

#[test]
fn store_file_is_pinned() {
    let text = "\
# A Varve store. Not to be edited: the checksum below covers every byte above it.
format_version = 1
store_id = 00112233445566778899aabbccddeeff
chunker_version = 1
compression = zstd
created_unix_seconds = 1735689600
crc32 = 1d443c7a
";
    assert_eq!(store_file().encode(), text, "{CHANGED}");
    assert_eq!(StoreFile::decode(text.as_bytes()), Ok(store_file()));
    assert!(text.len() < store_file::STORE_FILE_BYTES_MAX);
    assert_every_byte_counts(text.as_bytes(), StoreFile::decode);
}

#[test]
fn a_store_of_another_version_is_told_so_whatever_else_it_says() {
    let error =
        StoreFile::decode(b"# A Varve store.\nformat_version = 2\nnew_key = 7\n").unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(
        error.to_string(),
        "format version of the store is unknown to this version: it knows 1, found 2"
    );
}

#[test]
fn store_files_that_are_none() {
    let good = store_file().encode();
    for bad in [
        String::new(),
        "hello\n".to_owned(),
        good.replace("format_version = 1", "format_version = one"),
        good.replace("format_version = 1", "format_version = -1"),
        good.replace("zstd", "lzma"),
        good.replace("zstd", "lz4"),
        good.replace("00112233", "00112233 "),
        good.replace("store_id", "store"),
        format!("{good}\n"),
        format!("{good}{good}"),
        good.replace('\n', "\r\n"),
    ] {
        let error = StoreFile::decode(bad.as_bytes()).unwrap_err();
        assert!(!error.is_unknown(), "{bad}: {error}");
    }
}

#[test]
fn holdings_are_pinned() {
    let holdings = Holdings {
        volumes: 3,
        snapshots: 0x0102,
        attached_volumes: 1,
        images: 0,
    };
    let bytes = holdings.encode();
    assert_bytes(
        &bytes,
        &[
            "01",
            "0300000000000000",
            "0201000000000000",
            "0100000000000000",
        ],
    );
    assert_eq!(Holdings::decode(&bytes), Ok(holdings));
    for len in 0..bytes.len() {
        assert!(Holdings::decode(&bytes[..len]).is_err());
    }
    assert!(Holdings::decode(&[&[2], &bytes[1..]].concat()).is_err());
    let account = AccountId::from_number(0x1234).unwrap();
    assert_eq!(Holdings::key_of(account), b"holdings:\0\0\0\0\0\0\x12\x34");
    assert!(Holdings::key_of(account).as_slice() < keys::BEHIND_HOLDINGS);
    assert!(keys::HOLDINGS_COUNTED < keys::HOLDINGS, "no account's");
}

#[test]
fn index_values_are_pinned() {
    assert_bytes(
        &location().encode(),
        &[
            "01",
            "a100000000000000",
            "5834120000000000",
            "01020100",
            "00000100",
            "55550000",
        ],
    );
    let state = PackState {
        pack: location().pack,
        indexed_bytes: 0x0500_0000,
        phase: PackPhase::Sealed,
    };
    assert_bytes(&PackState::key_of(state.pack), &["00000000000000a1"]);
    assert_bytes(&state.encode(), &["01010100", "0000000500000000"]);
    let emptied = PackState {
        phase: PackPhase::Emptied,
        ..state
    };
    assert_bytes(&emptied.encode(), &["02010200", "0000000500000000"]);
    assert_bytes(
        &Identity { store: STORE }.encode(),
        &["01", "00112233445566778899aabbccddeeff"],
    );
    assert_bytes(&keys::encode_sequence(7), &["0700000000000000"]);
    let totals = Totals {
        chunks: 1,
        chunk_bytes: 2,
        nodes: 3,
        stored_bytes: 4,
        packs: 5,
        snapshots: 6,
        logical_bytes: 7,
        volumes: 8,
        others: keys::Counts::default(),
    };
    let counted: Vec<String> = (1..=8).map(|n| format!("0{n}00000000000000")).collect();
    assert_bytes(&totals.encode(), &["02", &counted.concat()]);

    assert_eq!(Location::decode(&location().encode()), Ok(location()));
    assert_eq!(
        PackState::decode(&PackState::key_of(state.pack), &state.encode()),
        Ok(state)
    );
    assert_eq!(
        Identity::decode(&Identity { store: STORE }.encode()),
        Ok(Identity { store: STORE })
    );
    assert_eq!(keys::decode_sequence(&keys::encode_sequence(7)), Ok(7));
    assert_eq!(Totals::decode(&totals.encode()), Ok(totals));
    assert_eq!(
        keys::decode_named(snapshot().id.as_bytes()),
        Ok(snapshot().id)
    );
    // As they were before there were volumes.
    let without = Totals {
        volumes: 0,
        ..totals
    };
    assert_bytes(&without.encode(), &["01", &counted[..7].concat()]);
    assert_eq!(Totals::decode(&without.encode()), Ok(without));
    let mut zero = totals.encode();
    zero[57] = 0;
    assert!(Totals::decode(&zero).is_err(), "one encoding of a value");
    // More than 64 bits hold.
    let wide = Totals {
        logical_bytes: 7 << 64,
        volumes: 0,
        ..totals
    };
    let literal = [
        &counted[..6].concat(),
        "0000000000000000",
        "0700000000000000",
        "0000000000000000",
    ];
    assert_bytes(&wide.encode(), &["03", &literal.concat()]);
    assert_eq!(Totals::decode(&wide.encode()), Ok(wide));
    let mut narrow = wide.encode();
    narrow[57] = 0;
    assert!(Totals::decode(&narrow).is_err(), "one encoding of a value");
    // Records of kinds that have no field of their own.
    let mut others = totals;
    *others.count_mut(record::note::Note::KIND).unwrap() = 9;
    let literal = [
        &counted[..7].concat(),
        "0000000000000000",
        &counted[7],
        "01",
        "1e0900000000000000",
    ];
    let bytes = others.encode();
    assert_bytes(&bytes, &["04", &literal.concat()]);
    assert_eq!(Totals::decode(&bytes), Ok(others));
    for (at, byte) in [(73, 0), (73, 2), (74, 32), (75, 0)] {
        let mut bad = bytes.clone();
        bad[at] = byte;
        assert!(Totals::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn kinds_of_records_share_nothing_on_disk() {
    let kinds: Vec<_> = record::note::KINDS.iter().collect();
    let mut numbers = vec![5];
    let mut families = vec![keys::CHUNKS, keys::NODES, keys::PACKS, keys::META];
    for kind in &kinds {
        numbers.extend([kind.number, kind.deletion()]);
        families.extend(kind.families());
    }
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count);
    let count = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), count);
    let all: Vec<_> = Kinds::ALL.iter().collect();
    assert_eq!(kinds[..all.len()], all);
}

#[test]
fn index_values_of_another_version_are_told_so() {
    let mut value = location().encode();
    value[0] = 2;
    assert!(Location::decode(&value).unwrap_err().is_unknown());
    let mut value = Totals::default().encode();
    value[0] = 5;
    assert!(Totals::decode(&value).unwrap_err().is_unknown());
}

/// A change as a record of the log.
fn one(change: Change) -> Vec<u8> {
    catalog_log::Record::One(change).encode(1)
}

/// Bytes that look right at first sight: those of some format with a few changes, and the header's
/// checksum put right again, so that decoding goes on behind it.
fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
    let pack_header = PackHeader {
        pack: location().pack,
        store: STORE,
        created_unix_seconds: 1,
        nonce: Some([0x5e; 12]),
    };
    let (footer, trailer_at) = pack::tests::footer();
    let trailer = trailer_at..footer.len();
    // With what the header's checksum covers, itself included.
    let seeds = vec![
        (pack_header.encode().to_vec(), 0..64),
        (pack::tests::record(), 0..64),
        (pack::encode_padding(8704).to_vec(), 0..64),
        (footer, trailer),
        (
            LogHeader::without_checkpoint(STORE).encode().to_vec(),
            0..64,
        ),
        (one(Change::put(&snapshot())), 0..32),
        (one(Change::delete::<SnapshotRecord>(&snapshot().id)), 0..32),
        (one(Change::put(&volume())), 0..32),
        (one(Change::delete::<VolumeRecord>(&volume().id)), 0..32),
        (
            catalog_log::Record::Several(vec![
                Change::put(&snapshot_of_volume(SnapshotState::Pending)),
                Change::put(&volume_with_pending()),
            ])
            .encode(1),
            0..32,
        ),
        (one(Change::put(&copy())), 0..32),
        (one(Change::put(&remote())), 0..32),
        (one(Change::delete::<RemoteRecord>(&remote().name)), 0..32),
        (copy().encode(), 0..0),
        (remote().encode(), 0..0),
        (remote_of_account().encode(), 0..0),
        (volume().encode(), 0..0),
        (volume_with_pending().encode(), 0..0),
        (snapshot_of_volume(SnapshotState::Pending).encode(), 0..0),
        (volume_of_nobody().encode(), 0..0),
        (snapshot_of_nobody().encode(), 0..0),
        (store_file().encode().into_bytes(), 0..0),
        (snapshot().encode(), 0..0),
        (location().encode().to_vec(), 0..0),
        (Totals::default().encode(), 0..0),
        (one(Change::put(&records_of_images::image())), 0..32),
        (records_of_images::image().encode(), 0..0),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (prop::sample::select(seeds), changes).prop_map(|((mut bytes, header), changes)| {
        for (at, byte) in changes {
            let at = if header.is_empty() {
                at.index(bytes.len())
            } else {
                header.start + at.index(header.len())
            };
            bytes[at] = byte;
        }
        fields::put_crc32(&mut bytes[header]);
        bytes
    })
}

/// Runs every decoder. None may panic; what they find does not matter here.
fn decode_all(bytes: &[u8], number: u64) {
    let _ = StoreFile::decode(bytes);
    let _ = SnapshotRecord::decode(bytes);
    let _ = VolumeRecord::decode(bytes);
    let _ = ImageRecord::decode(bytes);
    let _ = Location::decode(bytes);
    let _ = PackState::decode(bytes, bytes);
    let _ = Totals::decode(bytes);
    let _ = LastRun::decode(bytes);
    let _ = Identity::decode(bytes);
    let _ = keys::decode_sequence(bytes);
    let _ = keys::decode_named::<snapshot::OfSnapshot>(bytes);
    let _ = PackHeader::decode(bytes);
    if let Ok(header) = Header::decode(bytes, number) {
        let body = bytes.get(pack::RECORD_HEADER_BYTES..).unwrap_or_default();
        let _ = header.check_body(body);
    }
    for pack_bytes in [number, bytes.len() as u64] {
        if let Ok(trailer) = Trailer::decode(bytes, pack_bytes) {
            let _ = pack::decode_footer(bytes, &trailer);
        }
    }
    let _ = LogHeader::decode(bytes);
    for at_end in [false, true] {
        let from = Position {
            offset_bytes: number,
            next_sequence: 1,
        };
        let mut scan = catalog_log::scan(Kinds::ALL, bytes, from, at_end);
        assert!(scan.by_ref().count() <= bytes.len() / catalog_log::LOG_ALIGN + 1);
        let _ = scan.position();
    }
}

/// A name, an owner and a description, or what records without them have.
fn any_owned() -> impl Strategy<Value = (Option<String>, AccountId, String)> {
    let owner = prop_oneof![Just(0), 0..1_000_000_000_000_u64];
    let owner = owner.prop_map(|number| AccountId::from_number(number).unwrap());
    let description = prop_oneof![Just(String::new()), "\\PC{0,80}"];
    (
        prop::option::weighted(0.8, "\\PC{0,140}"),
        owner,
        description,
    )
}

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..6000), number: u64) {
        decode_all(&bytes, number);
    }

    #[test]
    fn decoders_take_bytes_that_are_nearly_right(bytes in nearly_right(), number in prop_oneof![Just(8192u64), Just(8704), any::<u64>()]) {
        decode_all(&bytes, number);
    }

    #[test]
    fn records_of_snapshots_read_back(
        id: [u8; 9],
        (name, owner, description) in any_owned(),
        numbers: [u64; 5],
        root: [u8; 32],
        state in 0..3,
        reason in "\\PC{0,80}",
        origin: Option<([u8; 9], String)>,
        parent: Option<[u8; 9]>,
        tags in prop::collection::btree_map("\\PC{0,20}", "\\PC{0,20}", 0..6),
    ) {
        let record = SnapshotRecord {
            id: SnapshotId::from_low_bits(id),
            name,
            owner,
            description,
            size_bytes: numbers[0],
            state: match state {
                0 => SnapshotState::Pending,
                1 => SnapshotState::Failed { reason },
                _ => SnapshotState::Completed(SnapshotContent {
                    root: RootId::from_bytes(root),
                    data_bytes: numbers[1],
                    new_bytes: numbers[3],
                    stored_bytes: numbers[4],
                }),
            },
            created_at_ns: numbers[2],
            tags,
            origin: origin.map(|(id, name)| SnapshotOrigin { volume: VolumeId::from_low_bits(id), name }),
            parent: parent.map(SnapshotId::from_low_bits),
            sharing: Sharing::default(),
        };
        prop_assert_eq!(SnapshotRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn records_of_volumes_read_back(
        id: [u8; 9],
        (name, owner, description) in any_owned(),
        sectors in 1u64..1 << 55,
        numbers: [u64; 2],
        base: Option<([u8; 32], Option<[u8; 9]>)>,
        attached: Option<(u64, u64)>,
        pending in prop::collection::vec((any::<[u8; 9]>(), any::<u64>()), 0..4),
        promised_sequence in prop_oneof![Just(0), any::<u64>()],
        tags in prop::collection::btree_map("\\PC{0,20}", "\\PC{0,20}", 0..6),
    ) {
        let record = VolumeRecord {
            id: VolumeId::from_low_bits(id),
            name,
            owner,
            description,
            size_bytes: sectors * volume::SECTOR_BYTES,
            base: base.map(|(root, _)| RootId::from_bytes(root)),
            parent: base.and_then(|(_, parent)| parent).map(SnapshotId::from_low_bits),
            created_at_ns: numbers[0],
            tags,
            attached_at_ns: attached.map(|(at, _)| at),
            attachments: attached.map_or(0, |(_, number)| number.max(1)),
            journal_from: numbers[1].max(1),
            pending: pending
                .into_iter()
                .scan(numbers[1].max(1), |last, (id, more)| {
                    *last = last.saturating_add(more);
                    Some(PendingSnapshot { snapshot: SnapshotId::from_low_bits(id), next_file: *last })
                })
                .collect(),
            promised_sequence,
        };
        prop_assert_eq!(VolumeRecord::decode(&record.encode()), Ok(record));
    }
}
