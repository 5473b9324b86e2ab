//! Random batches, applied to RocksDB and to the model: both have to answer alike, also after
//! RocksDB was opened again.

use proptest::prelude::*;

use super::*;
use crate::format::{
    Architecture, BlockDevice, DeviceSource, ImageId, ImageRecord, Platform, Protection, Tags,
};

/// Few enough that batches meet each other's entries.
const CHUNKS: u64 = 24;
const NODES: u64 = 8;
const SNAPSHOTS: u8 = 6;
const VOLUMES: u8 = 5;
const NAMES: [&str; 5] = ["a", "a/b", "a/c", "b", "c"];
const OWNERS: [u64; 3] = [0, 7, 123_456_789_012];

#[derive(Debug, Clone)]
enum Step {
    Apply {
        batch: Batch,
        records: Vec<Record>,
        sync: bool,
    },
    Reopen,
}

fn kinds_of_nodes() -> impl Strategy<Value = RecordKind> {
    prop::sample::select(vec![RecordKind::Leaf, RecordKind::Inner, RecordKind::Root])
}

fn any_location(kind: RecordKind) -> impl Strategy<Value = Location> {
    (1u64..4, 0u64..50, 1u32..20_000)
        .prop_map(move |(pack, at, stored)| location(kind, pack, at, stored))
}

fn any_node() -> impl Strategy<Value = (Name, Location)> {
    (kinds_of_nodes(), 0..NODES).prop_flat_map(|(kind, number)| {
        any_location(kind).prop_map(move |location| (node(kind, number), location))
    })
}

/// Names of different kinds have different bytes, as the real ones have.
fn node(kind: RecordKind, number: u64) -> Name {
    Name::new(kind, *chunk(number << 8 | kind as u64).as_bytes())
}

fn any_pack_state() -> impl Strategy<Value = PackState> {
    let phase = prop::sample::select(vec![PackPhase::Open, PackPhase::Sealed, PackPhase::Emptied]);
    (1u64..6, any::<u32>(), phase).prop_map(|(number, indexed_bytes, phase)| PackState {
        pack: PackId {
            kind: if number % 2 == 0 {
                PackKind::Nodes
            } else {
                PackKind::Chunks
            },
            number,
        },
        indexed_bytes: indexed_bytes.into(),
        phase,
    })
}

/// Few enough that records share them, alone and together.
fn tags_of(seed: u32) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::from([("parity".to_owned(), (seed % 2).to_string())]);
    if seed.is_multiple_of(3) {
        // A key and a value, joined, must not look like those of another tag.
        tags.insert("par".to_owned(), "ity0".to_owned());
    }
    tags
}

/// All that is listed of some tags, in steps.
fn tagged<R: CatalogRecord>(
    meta: &dyn Meta,
    tags: &[(&str, &str)],
    from: &str,
    prefix: &str,
) -> Vec<R> {
    let tags = tags
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let filter = Filter {
        owner: None,
        name_prefix: prefix.to_owned(),
        tags: tags.collect(),
        ..Filter::default()
    };
    walk(meta, &filter, from)
}

/// All that a filter lets pass from a list key on, in steps.
fn walk<R: CatalogRecord>(meta: &dyn Meta, filter: &Filter, from: &str) -> Vec<R> {
    let mut found = Vec::new();
    let mut next = Some(from.as_bytes().to_vec());
    while let Some(from) = next {
        let page = meta.page(filter, &from, 1).unwrap();
        assert!(page.records.len() <= 1 && page.next.as_ref().is_none_or(|to| *to >= from));
        found.extend(page.records);
        next = page.next;
    }
    found
}

fn any_owner() -> impl Strategy<Value = AccountId> {
    prop::sample::select(OWNERS.map(catalog::account).to_vec())
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (0..SNAPSHOTS, prop::sample::select(&NAMES[..]), any::<u32>(), any_owner()).prop_map(|(number, name, size_bytes, owner)| {
            Change::put(&SnapshotRecord {
                owner,
                size_bytes: size_bytes.into(),
                tags: tags_of(size_bytes),
                state: state_of(size_bytes),
                sharing: sharing_of(size_bytes),
                ..snapshot(number, name)
            })
        }),
        2 => (0..SNAPSHOTS).prop_map(|number| Change::delete::<SnapshotRecord>(&snapshot_id(number))),
        3 => (0..VOLUMES, prop::sample::select(&NAMES[..]), any::<u32>(), any_owner()).prop_map(|(number, name, attachments, owner)| {
            Change::put(&VolumeRecord {
                owner,
                attachments: attachments.into(),
                attached_at_ns: attachments.is_multiple_of(2).then_some(1),
                tags: tags_of(attachments),
                ..volume(number, name)
            })
        }),
        2 => (0..VOLUMES).prop_map(|number| Change::delete::<VolumeRecord>(&volume_id(number))),
        2 => (0..IMAGES, prop::sample::select(&NAMES[..]), any::<u32>(), any_owner()).prop_map(|(number, name, bits, owner)| {
            Change::put(&image(number, name, bits, owner))
        }),
        1 => (0..IMAGES).prop_map(|number| Change::delete::<ImageRecord>(&image_id(number))),
    ]
}

const IMAGES: u8 = 4;

fn image_id(number: u8) -> ImageId {
    ImageId::from_low_bits([number; 9])
}

/// An image that needs some of the first snapshots.
fn image(number: u8, name: &str, bits: u32, owner: AccountId) -> ImageRecord {
    let [snapshots, ..] = bits.to_le_bytes();
    let devices = (0..4).filter(|bit| snapshots >> bit & 1 == 1);
    ImageRecord {
        id: image_id(number),
        name: name.to_owned(),
        owner,
        description: String::new(),
        created_at_ns: 1,
        architecture: Architecture::X86_64,
        platform: Platform::Linux,
        boot_mode: None,
        root_device: "0".to_owned(),
        devices: devices
            .map(|bit| BlockDevice {
                name: bit.to_string(),
                source: DeviceSource::Snapshot {
                    id: snapshot_id(bit),
                    size_bytes: 512,
                },
                delete_on_termination: false,
            })
            .collect(),
        is_disabled: false,
        deprecated_at_ns: None,
        protection: Protection::Off,
        tags: tags_of(bits),
        sharing: sharing_of(bits),
    }
}

/// With few, alone and together.
fn sharing_of(number: u32) -> Sharing {
    let [_, shared, ..] = number.to_le_bytes();
    let accounts = OWNERS.iter().zip(0..);
    let accounts = accounts.filter(|(_, bit)| shared >> bit & 1 == 1);
    Sharing {
        everybody: shared % 5 == 0,
        accounts: accounts
            .map(|(owner, _)| catalog::account(*owner))
            .collect(),
    }
}

/// Pending, or completed with one of few roots.
fn state_of(number: u32) -> SnapshotState {
    match number.to_le_bytes()[0] % 4 {
        3 => SnapshotState::Pending,
        root => snapshot_state(root),
    }
}

/// One change, or several together.
fn any_record() -> impl Strategy<Value = Record> {
    prop_oneof![
        3 => any_change().prop_map(Record::One),
        1 => prop::collection::vec(any_change(), 0..4).prop_map(Record::Several),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let chunks = prop::collection::vec((0..CHUNKS, any_location(RecordKind::Chunk)), 0..8);
    let nodes = prop::collection::vec(any_node(), 0..4);
    let packs = prop::collection::vec(any_pack_state(), 0..3);
    let records = prop::collection::vec(any_record(), 0..4);
    let apply = (chunks, nodes, packs, records, any::<bool>()).prop_map(
        |(chunks, nodes, packs, records, sync)| {
            let mut batch = Batch::default();
            let chunks = chunks.into_iter().map(|(number, at)| (chunk(number), at));
            for (name, location) in chunks.chain(nodes) {
                batch.put(name, location);
            }
            batch.packs(&packs);
            Step::Apply {
                batch,
                records,
                sync,
            }
        },
    );
    prop_oneof![8 => apply, 1 => Just(Step::Reopen)]
}

/// All that can be asked.
fn answers(meta: &dyn Meta) -> impl PartialEq + std::fmt::Debug + use<> {
    let nodes = (0..NODES).flat_map(|number| {
        [RecordKind::Leaf, RecordKind::Inner, RecordKind::Root].map(|kind| node(kind, number))
    });
    let names: Vec<_> = (0..CHUNKS).map(chunk).chain(nodes).collect();
    let pages: Vec<_> = [
        (None, ""),
        (None, "a/"),
        (Some("a"), ""),
        (Some("a/b"), "a"),
    ]
    .into_iter()
    .flat_map(|(after, prefix)| {
        [
            (
                list::<SnapshotRecord>(meta, after, prefix, 100).unwrap(),
                list::<VolumeRecord>(meta, after, prefix, 100).unwrap(),
            ),
            (
                list::<SnapshotRecord>(meta, after, prefix, 2).unwrap(),
                list::<VolumeRecord>(meta, after, prefix, 2).unwrap(),
            ),
        ]
    })
    .collect();
    let by_tags: Vec<_> = [
        (&[("parity", "0")][..], "", ""),
        (&[("parity", "1")], "a/", "a"),
        (&[("par", "ity0"), ("parity", "0")], "", ""),
        (&[("par", "ity0"), ("parity", "1")], "a/b\0", "a"),
        (&[("par", "ity1")], "", ""),
        (&[("parity", "")], "", ""),
    ]
    .into_iter()
    .map(|(tags, from, prefix)| {
        (
            tagged::<SnapshotRecord>(meta, tags, from, prefix),
            tagged::<VolumeRecord>(meta, tags, from, prefix),
        )
    })
    .collect();
    let owners = OWNERS.map(catalog::account);
    let by_name: Vec<_> = owners
        .into_iter()
        .flat_map(|owner| NAMES.map(|name| (owner, name)))
        .map(|(owner, name)| {
            (
                meta.get_named::<SnapshotRecord>(owner, name).unwrap(),
                meta.get_named::<VolumeRecord>(owner, name).unwrap(),
            )
        })
        .collect();
    let by_owner: Vec<_> = owners
        .into_iter()
        .flat_map(|owner| ["", "a/"].map(|prefix| (owner, prefix)))
        .flat_map(|(owner, prefix)| [Tags::new(), tags_of(0)].map(|tags| (owner, prefix, tags)))
        .map(|(owner, prefix, tags)| {
            let filter = Filter {
                owner: Some(owner),
                name_prefix: prefix.to_owned(),
                tags,
                ..Filter::default()
            };
            (
                walk::<SnapshotRecord>(meta, &filter, ""),
                walk::<VolumeRecord>(meta, &filter, ""),
            )
        })
        .collect();
    let grantees = owners.map(Grantee::Account).into_iter();
    let shared: Vec<_> = grantees
        .chain([Grantee::Everybody])
        .flat_map(|grantee| [None, Some(owners[1])].map(|owner| (grantee, owner)))
        .flat_map(|(grantee, owner)| ["", "a/"].map(|prefix| (grantee, owner, prefix)))
        .flat_map(|it| [Tags::new(), tags_of(0)].map(|tags| (it, tags)))
        .map(|((grantee, owner, prefix), tags)| {
            let filter = Filter {
                owner,
                name_prefix: prefix.to_owned(),
                tags,
                shared_with: Some(grantee),
                snapshot: None,
            };
            (
                walk::<SnapshotRecord>(meta, &filter, ""),
                walk::<VolumeRecord>(meta, &filter, ""),
            )
        })
        .collect();
    let needing: Vec<_> = (0..5)
        .flat_map(|number| [None, Some(owners[1])].map(|owner| (number, owner)))
        .map(|(number, owner)| {
            let filter = Filter {
                owner,
                snapshot: Some(snapshot_id(number)),
                ..Filter::default()
            };
            walk::<ImageRecord>(meta, &filter, "")
        })
        .collect();
    let by_id: Vec<_> = (0..SNAPSHOTS.max(VOLUMES))
        .map(|number| {
            (
                meta.get::<SnapshotRecord>(&snapshot_id(number)).unwrap(),
                meta.get::<VolumeRecord>(&volume_id(number)).unwrap(),
            )
        })
        .collect();
    let holdings = owners.map(|owner| meta.holdings(owner).unwrap());
    let by_root: Vec<_> = (0..4).map(|root| of_root(meta, root)).collect();
    let by_root_and_owner: Vec<_> = (0..4)
        .flat_map(|root| owners.map(|owner| (root, owner)))
        .map(|(root, owner)| {
            let root = RootId::from_bytes([root; 32]);
            let found: Option<SnapshotRecord> = meta.get_of_root(root, Some(owner)).unwrap();
            found.map(|found| found.owner)
        })
        .collect();

    (
        (
            meta.totals().unwrap(),
            meta.catalog_sequence().unwrap(),
            meta.pack_states().unwrap(),
        ),
        meta.lookup(&names).unwrap(),
        (pages, by_tags, by_name, by_owner, shared, needing),
        (by_id, by_root, by_root_and_owner, holdings),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rocks_and_the_model_answer_alike(steps in prop::collection::vec(any_step(), 1..24)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let model = MemoryMeta::default();
        let mut rocks = RocksMeta::create(&path, STORE).unwrap();
        for step in steps {
            match step {
                Step::Apply { mut batch, records: new, sync } => {
                    batch.catalog = records(&model, new).catalog;
                    let expected = model.apply(batch.clone(), sync).map_err(|error| error.to_string());
                    let found = rocks.apply(batch, sync).map_err(|error| error.to_string());
                    prop_assert_eq!(found, expected);
                }
                Step::Reopen => {
                    drop(rocks);
                    rocks = RocksMeta::open(&path, STORE).unwrap();
                }
            }
            prop_assert_eq!(answers(&rocks), answers(&model));
        }
        drop(rocks);
        rocks = RocksMeta::open(&path, STORE).unwrap();
        prop_assert_eq!(answers(&rocks), answers(&model));
    }
}
