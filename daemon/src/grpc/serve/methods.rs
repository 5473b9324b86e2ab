//! The bounds of each method: the one place that needs a decision about a new method.

use std::time::Duration;

use crate::limits;

/// The bounds of a method.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method {
    /// The longest message of a request.
    pub(super) request_bytes: usize,
    /// Bytes of memory for each byte of a message: in the buffer where it arrives, and decoded.
    pub(super) held_per_byte: u64,
    /// Fields of a request that are lists of messages with lists.
    pub(super) lists_in: &'static [u32],
    /// True if a request may be several messages.
    pub(super) takes_many: bool,
    /// Length of the longest answer, if it is long and is made in one piece.
    pub(super) answer_bytes: u64,
    /// Time limit of a whole call.
    pub(super) within: Option<Duration>,
}

const SMALL: Method = Method {
    request_bytes: limits::SMALL_MESSAGE_BYTES_MAX,
    held_per_byte: 2,
    lists_in: &[],
    takes_many: false,
    answer_bytes: 0,
    within: Some(limits::CALL_WITHIN),
};

const STREAM: Method = Method {
    within: None,
    ..SMALL
};

const LONG: Method = Method {
    within: Some(limits::LONG_CALL_WITHIN),
    ..SMALL
};

const LIST: Method = Method {
    answer_bytes: limits::ANSWER_BYTES_MAX as u64,
    ..SMALL
};

impl Method {
    /// The bounds by the path of a request. An unknown method takes little.
    pub(super) fn of(path: &str) -> Self {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/'))
        else {
            return SMALL;
        };
        match (service, method) {
            ("varve.v1.ContentService", "PutChunks") => Self {
                request_bytes: limits::MESSAGE_BYTES_MAX,
                takes_many: true,
                ..STREAM
            },
            ("varve.v1.ContentService", "PutLeaves") => Self {
                request_bytes: limits::MESSAGE_BYTES_MAX,
                held_per_byte: 3,
                lists_in: &[2],
                ..SMALL
            },
            ("varve.v1.ContentService", "FindMissing") => Self {
                request_bytes: limits::FIND_MESSAGE_BYTES_MAX,
                ..SMALL
            },
            ("varve.v1.ContentService", "Download" | "ReadSnapshot")
            | ("varve.v1.SnapshotService", "DiffSnapshots" | "VerifySnapshot")
            | ("varve.v1.ReplicationService", "Hold" | "FetchChunks")
            | ("varve.v1.GcService", "RunGc")
            | ("grpc.health.v1.Health", "Watch") => STREAM,
            ("varve.v1.GcService", "EstimateDelete" | "GetUsage") => Self {
                request_bytes: limits::MESSAGE_BYTES_MAX,
                answer_bytes: limits::ANSWER_BYTES_MAX as u64,
                ..LONG
            },
            ("varve.v1.GcService", "PlanGc") => Self {
                answer_bytes: limits::ANSWER_BYTES_MAX as u64,
                ..LONG
            },
            ("varve.v1.ContentService", "CommitUpload")
            | ("varve.v1.SnapshotService", "CreateSnapshots" | "DeleteSnapshot")
            | (
                "varve.v1.VolumeService",
                "CloneVolume" | "DeleteVolume" | "AttachVolume" | "DetachVolume",
            )
            | ("varve.v1.CopyService", "EstimateCopy") => LONG,
            ("varve.v1.ImageService", "RegisterImage") => Self {
                held_per_byte: 3,
                ..SMALL
            },
            ("varve.v1.SnapshotService", "DeleteSnapshots") => Self {
                answer_bytes: limits::ANSWER_BYTES_MAX as u64,
                ..LONG
            },
            ("varve.v1.SnapshotService", "ListSnapshots")
            | ("varve.v1.VolumeService", "ListVolumes" | "GetVolume")
            | ("varve.v1.ImageService", "ListImages")
            | ("varve.v1.CopyService", "ListCopies")
            | ("varve.v1.RemoteService", "ListRemotes")
            | ("varve.v1.AccountService", "ListAccounts" | "ListTokens" | "ReadAudit")
            | ("varve.v1.ReplicationService", "FetchNodes") => LIST,
            (_, "ServerReflectionInfo") => Self {
                takes_many: true,
                ..SMALL
            },
            _ => SMALL,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// A renamed method must not silently get the bounds of an unknown one.
    #[test]
    fn streams_have_no_deadline_and_all_others_do() {
        let all = FileDescriptorSet::decode(varve_proto::DESCRIPTORS).unwrap();
        let mut streams = 0;
        for file in all.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let is_stream = method.client_streaming() || method.server_streaming();
                    streams += usize::from(is_stream);
                    assert_eq!(Method::of(&path).within.is_none(), is_stream, "{path}");
                    assert_eq!(
                        Method::of(&path).takes_many,
                        method.client_streaming(),
                        "{path}"
                    );
                }
            }
        }
        assert_eq!(streams, 8);
        let put = Method::of("/varve.v1.ContentService/PutLeaves");
        assert_eq!(put.request_bytes, limits::MESSAGE_BYTES_MAX);
        for odd in ["", "/", "x", "/x", "/x/y/z"] {
            assert_eq!(Method::of(odd).request_bytes, SMALL.request_bytes);
        }
    }
}
