//! Snapshots, volumes, copies, remotes and status as messages, and requests for them.

use bytes::Bytes;
use varve_content::block::SEGMENT_BYTES;
use varve_proto::v1;
use varve_store::{AccountId, RemoteRecord, SnapshotState, VolumeRecord, VolumeStatus};

use super::{root_bytes, timestamp};
use crate::{
    grpc::calls,
    service::{
        CloneRequest, CopySource, CopyState, CopyStatus, Error, Estimate, ListRequest, NewCopy,
        Result, Snapshot, SnapshotsRequest, Status, VolumeDetails, VolumeRequest,
    },
};

/// A snapshot, with its progress while it is pending.
pub(in crate::grpc) fn snapshot(snapshot: Snapshot) -> v1::Snapshot {
    let Snapshot { record, progress } = snapshot;
    let content = record.content().copied();
    let (state, failure) = match record.state {
        SnapshotState::Completed(_) => (v1::SnapshotState::Completed, String::new()),
        SnapshotState::Pending => {
            let waits_for = progress.waits_for.clone();
            (v1::SnapshotState::Pending, waits_for.unwrap_or_default())
        }
        SnapshotState::Failed { reason } => (v1::SnapshotState::Failed, reason),
    };
    let (volume_id, volume_name) = record
        .origin
        .map(|origin| (origin.volume.to_string(), origin.name))
        .unwrap_or_default();
    let bytes = |segments: u64| segments * SEGMENT_BYTES as u64;
    v1::Snapshot {
        id: record.id.to_string(),
        name: record.name.unwrap_or_default(),
        state: state.into(),
        size_bytes: record.size_bytes,
        data_bytes: content.map_or(0, |content| content.data_bytes),
        root: root_bytes(content.map(|content| content.root)),
        created_at: Some(timestamp(record.created_at_ns)),
        tags: record.tags,
        new_bytes: content.map_or(0, |content| content.new_bytes),
        stored_bytes: content.map_or(0, |content| content.stored_bytes),
        volume_id,
        volume_name,
        parent: record.parent.map(|id| id.to_string()).unwrap_or_default(),
        progress: (state == v1::SnapshotState::Pending).then(|| v1::SnapshotProgress {
            done_bytes: bytes(progress.segments_done),
            total_bytes: bytes(progress.segments_total),
        }),
        failure,
        owner: record.owner.to_string(),
        shared_accounts: record
            .sharing
            .accounts
            .iter()
            .map(ToString::to_string)
            .collect(),
        shared_with_everybody: record.sharing.everybody,
    }
}

/// The outcome of one deletion.
pub(in crate::grpc) fn deletion(outcome: Result<Snapshot>) -> v1::SnapshotDeletion {
    match outcome {
        Ok(deleted) => v1::SnapshotDeletion {
            deleted: Some(snapshot(deleted)),
            ..v1::SnapshotDeletion::default()
        },
        Err(error) => {
            let status = calls::status(error);
            v1::SnapshotDeletion {
                deleted: None,
                code: status.code().into(),
                message: status.message().to_owned(),
            }
        }
    }
}

/// A volume with its status.
pub(in crate::grpc) fn volume_details(details: VolumeDetails) -> v1::Volume {
    let pending = details.pending.into_iter().map(snapshot).collect();
    v1::Volume {
        status: Some(volume_status(details.status, pending)),
        ..volume(details.record)
    }
}

fn volume_status(status: VolumeStatus, pending: Vec<v1::Snapshot>) -> v1::VolumeStatus {
    v1::VolumeStatus {
        journal_bytes: status.journal_bytes,
        journal_bytes_max: status.journal_bytes_max,
        map_bytes: status.map_bytes,
        found: status.found.map(|found| v1::JournalFound {
            batches: found.batches,
            blocks: found.blocks,
            files: found.files,
            torn: found.torn.unwrap_or_default(),
        }),
        pending,
    }
}

pub(in crate::grpc) fn volume(record: VolumeRecord) -> v1::Volume {
    v1::Volume {
        id: record.id.to_string(),
        name: record.name.unwrap_or_default(),
        size_bytes: record.size_bytes,
        base: root_bytes(record.base),
        parent: record.parent.map(|id| id.to_string()).unwrap_or_default(),
        created_at: Some(timestamp(record.created_at_ns)),
        tags: record.tags,
        attached_at: record.attached_at_ns.map(timestamp),
        attachments: record.attachments,
        status: None,
        owner: record.owner.to_string(),
    }
}

pub(in crate::grpc) fn new_clone(request: v1::CloneVolumeRequest) -> CloneRequest {
    CloneRequest {
        source: request.source,
        name: request.name,
        size_bytes: (request.size_bytes != 0).then_some(request.size_bytes),
        tags: request.tags,
    }
}

pub(in crate::grpc) fn new_snapshots(request: v1::CreateSnapshotsRequest) -> SnapshotsRequest {
    SnapshotsRequest {
        volumes: request.volumes,
        name: request.name,
        tags: request.tags,
    }
}

pub(in crate::grpc) fn new_volume(request: v1::CreateVolumeRequest) -> VolumeRequest {
    VolumeRequest {
        name: request.name,
        size_bytes: (request.size_bytes != 0).then_some(request.size_bytes),
        from: Some(request.from_snapshot).filter(|key| !key.is_empty()),
        tags: request.tags,
    }
}

pub(in crate::grpc) fn list_snapshots(request: v1::ListSnapshotsRequest) -> ListRequest {
    ListRequest {
        owner: request.owner,
        name_prefix: request.name_prefix,
        tags: request.tags,
        page_size: request.page_size,
        page_token: request.page_token,
    }
}

pub(in crate::grpc) fn list_volumes(request: v1::ListVolumesRequest) -> ListRequest {
    ListRequest {
        owner: request.owner,
        name_prefix: request.name_prefix,
        tags: request.tags,
        page_size: request.page_size,
        page_token: request.page_token,
    }
}

pub(in crate::grpc) fn list_copies(request: v1::ListCopiesRequest) -> ListRequest {
    ListRequest {
        page_size: request.page_size,
        page_token: request.page_token,
        ..ListRequest::default()
    }
}

pub(in crate::grpc) fn copy(status: CopyStatus) -> v1::Copy {
    let state = match status.state {
        CopyState::Queued => v1::CopyState::Queued,
        CopyState::Running => v1::CopyState::Running,
        CopyState::Waiting => v1::CopyState::Waiting,
        CopyState::Completed => v1::CopyState::Completed,
        CopyState::Failed => v1::CopyState::Failed,
        CopyState::Cancelled => v1::CopyState::Cancelled,
    };
    let record = status.record;
    v1::Copy {
        id: record.id.to_string(),
        source: Some(v1::CopySource {
            endpoint: record.endpoint,
            snapshot: record.snapshot,
            allow_plaintext: record.allow_plaintext,
        }),
        name: record.name,
        state: state.into(),
        created_at: Some(timestamp(record.created_at_ns)),
        ended_at: record.ended_at_ns.map(timestamp),
        root: root_bytes(record.root),
        size_bytes: record.size_bytes,
        data_bytes: record.data_bytes,
        done_data_bytes: record.done_data_bytes,
        received_chunks: record.received_chunks,
        received_bytes: record.received_bytes,
        rate_bytes_per_second: status.rate_bytes_per_second,
        limit_bytes_per_second: record.bytes_per_second,
        last_error: record.last_error,
        last_error_code: record.last_error_code.into(),
        snapshot_id: record.made.map(|id| id.to_string()).unwrap_or_default(),
        tags: record.tags,
        owner: record.owner.to_string(),
    }
}

pub(in crate::grpc) fn copy_source(source: Option<v1::CopySource>) -> Result<CopySource> {
    let source = source.ok_or_else(|| Error::field("source", "it is missing"))?;
    Ok(CopySource {
        endpoint: source.endpoint,
        snapshot: source.snapshot,
        allow_plaintext: source.allow_plaintext,
    })
}

pub(in crate::grpc) fn new_copy(request: v1::CreateCopyRequest) -> Result<NewCopy> {
    Ok(NewCopy {
        // The service knows the caller's.
        owner: AccountId::ADMINISTRATOR,
        source: copy_source(request.source)?,
        name: request.name,
        tags: request.tags,
        bytes_per_second: request.bytes_per_second,
    })
}

pub(in crate::grpc) fn estimate(estimate: &Estimate) -> v1::EstimateCopyResponse {
    v1::EstimateCopyResponse {
        root: Bytes::copy_from_slice(estimate.root.id().as_bytes()),
        size_bytes: estimate.root.size_bytes,
        missing_chunks: estimate.missing_chunks,
        missing_bytes: estimate.missing_bytes,
        present_data_bytes: estimate.present_data_bytes,
        data_bytes: estimate.data_bytes,
    }
}

pub(in crate::grpc) fn new_remote(remote: Option<v1::Remote>) -> Result<RemoteRecord> {
    let remote = remote.ok_or_else(|| Error::field("remote", "it is missing"))?;
    Ok(RemoteRecord {
        // The service knows it.
        owner: AccountId::ADMINISTRATOR,
        name: remote.name,
        endpoint: remote.endpoint,
        allow_plaintext: remote.allow_plaintext,
        tls_ca: remote.tls_ca,
        tls_cert: remote.tls_cert,
        tls_key: remote.tls_key,
        token_file: remote.token_file,
        created_at_ns: 0,
    })
}

pub(in crate::grpc) fn remote(remote: RemoteRecord) -> v1::Remote {
    v1::Remote {
        name: remote.name,
        endpoint: remote.endpoint,
        allow_plaintext: remote.allow_plaintext,
        tls_ca: remote.tls_ca,
        tls_cert: remote.tls_cert,
        tls_key: remote.tls_key,
        token_file: remote.token_file,
        created_at: Some(timestamp(remote.created_at_ns)),
        owner: remote.owner.to_string(),
    }
}

pub(in crate::grpc) fn status(status: Status) -> v1::GetStatusResponse {
    let store = status.store;
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_id: store.store_id,
        format_version: store.format_version,
        chunker_version: store.chunker_version,
        data_dir: status.data_dir.to_string_lossy().into_owned(),
        started_at: Some(status.started_at.into()),
        snapshots: store.snapshots,
        volumes: store.volumes,
        images: store.images,
        logical_bytes: store.logical_bytes,
        chunks: store.chunks,
        chunk_bytes: store.chunk_bytes,
        stored_bytes: store.stored_bytes,
        packs: store.packs,
        uploads: status.uploads as u64,
        nbd_connections: status.nbd_connections as u64,
        io_engine: store.io_engine.to_owned(),
        compression: store.compression.to_string(),
        free_bytes: store.free_bytes,
        read_only_reason: store.read_only_reason.unwrap_or_default(),
        nbd_uris: status.nbd_uris,
        dead_bytes: super::dead_bytes(&status.gc),
        gc: Some(super::gc_status(status.gc)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let refused = new_copy(v1::CreateCopyRequest::default()).unwrap_err();
        assert!(refused.to_string().contains("source: it is missing"));
        let refused = new_remote(None).unwrap_err();
        assert!(refused.to_string().contains("remote: it is missing"));
    }
}
