//! Real encodings of catalog logs, from which the corpus is made.

use varve_store::format::{
    Change, CopyOutcome, CopyRecord, RemoteRecord, SnapshotRecord, SnapshotState, VolumeRecord,
    catalog_log::{CheckpointId, LogHeader, Record, checkpoint::BlockWriter},
};

use super::samples::{
    Samples, copy, remote, snapshot, snapshot_id, snapshot_of_volume, store, volume,
    volume_with_pending,
};

/// The samples of a decoder, by file name.
pub(super) fn of(decoder: &str) -> Samples {
    match decoder {
        "catalog-log-header" => vec![
            (
                "header",
                LogHeader::without_checkpoint(store()).encode().to_vec(),
            ),
            ("with-checkpoint", header_with_checkpoint()),
        ],
        "catalog-log" => vec![("records", records())],
        "catalog-log-checkpoint" => vec![
            ("empty", checkpoint(&[])),
            ("one-block", checkpoint(&checkpoint_changes())),
        ],
        other => panic!("{other} is no decoder of catalog logs"),
    }
}

fn records() -> Vec<u8> {
    [
        Record::One(Change::put(&snapshot(0))).encode(1),
        Record::One(Change::put(&snapshot(3))).encode(2),
        Record::One(Change::delete::<SnapshotRecord>(&snapshot_id())).encode(3),
        Record::One(Change::put(&volume(false))).encode(4),
        Record::One(Change::put(&volume(true))).encode(5),
        Record::One(Change::delete::<VolumeRecord>(&volume(true).id)).encode(6),
        Record::Several(vec![
            Change::put(&snapshot_of_volume(SnapshotState::Pending)),
            Change::put(&volume_with_pending()),
        ])
        .encode(7),
        Record::One(Change::put(&copy(CopyOutcome::UnderWay))).encode(8),
        Record::One(Change::delete::<CopyRecord>(
            &copy(CopyOutcome::UnderWay).id,
        ))
        .encode(9),
        Record::One(Change::put(&remote(true))).encode(10),
        Record::One(Change::delete::<RemoteRecord>(&remote(true).name)).encode(11),
    ]
    .concat()
}

const CHECKPOINT: CheckpointId = CheckpointId {
    base_sequence: 11,
    generation: 3,
};

fn header_with_checkpoint() -> Vec<u8> {
    let header = LogHeader {
        store: store(),
        checkpoint: Some(CHECKPOINT),
    };
    header.encode().to_vec()
}

/// Records of each kind, and the deletion of a volume.
fn checkpoint_changes() -> Vec<Change> {
    vec![
        Change::put(&snapshot(3)),
        Change::put(&snapshot_of_volume(SnapshotState::Pending)),
        Change::put(&volume_with_pending()),
        Change::put(&copy(CopyOutcome::UnderWay)),
        Change::put(&remote(true)),
        Change::delete::<VolumeRecord>(&volume(true).id),
    ]
}

/// The generation of a log, and its checkpoint of these changes.
fn checkpoint(changes: &[Change]) -> Vec<u8> {
    let mut writer = BlockWriter::new(CHECKPOINT.generation);
    for change in changes {
        assert_eq!(writer.push(change), None, "they fit into one block");
    }
    let generation = CHECKPOINT.generation.to_le_bytes().to_vec();
    [generation, writer.finish()].concat()
}
