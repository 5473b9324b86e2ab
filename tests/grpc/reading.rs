//! Ranges of a snapshot, and abandoned downloads.

use tonic::Code;
use varve_content::SEGMENT_BYTES;
use varve_proto::v1::{DownloadRequest, ReadSnapshotRequest, read_snapshot_response};
use varve_tests::{image, lab::Lab, random::Random, rpc::Rpc};

const MIB: u64 = 1 << 20;

/// Reads a range and joins its parts.
async fn read(rpc: &Rpc, offset_bytes: u64, length_bytes: u64) -> Vec<u8> {
    let request = ReadSnapshotRequest {
        snapshot: "image".to_owned(),
        offset_bytes,
        length_bytes,
    };
    let mut stream = rpc
        .content
        .clone()
        .read_snapshot(request)
        .await
        .unwrap()
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        assert_eq!(
            part.offset_bytes,
            offset_bytes + bytes.len() as u64,
            "parts follow each other"
        );
        match part.content.expect("a part has content") {
            read_snapshot_response::Content::Data(data) => bytes.extend_from_slice(&data),
            read_snapshot_response::Content::HoleBytes(len) => {
                bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0)
            }
        }
    }
    bytes
}

#[tokio::test]
async fn any_range_can_be_read() {
    let lab = Lab::new();
    let size_bytes = 30 * MIB + 777;
    let file = lab.image("image", size_bytes, 141);
    lab.snapctl().import(&file, "image");
    let content = std::fs::read(&file).unwrap();
    let rpc = Rpc::connect(&lab.varved).await;
    let mut random = Random::of_test("any_range_can_be_read");
    let segment = SEGMENT_BYTES as u64;
    let mut ranges = vec![
        (0, 1),
        (0, size_bytes),
        (size_bytes - 1, 1),
        (segment - 1, 2),
        (segment, segment),
        (4095, 4098),
        (size_bytes - 777, 777),
    ];
    ranges.extend((0..40).map(|_| {
        let offset = random.within(0..size_bytes);
        (
            offset,
            random.within(1..(size_bytes - offset).min(3 * MIB) + 1),
        )
    }));
    for (offset, len) in ranges {
        let start = usize::try_from(offset).unwrap();
        let expected = &content[start..start + usize::try_from(len).unwrap()];
        assert!(
            read(&rpc, offset, len).await == expected,
            "{len} bytes at {offset}"
        );
    }
    assert!(
        read(&rpc, 5 * MIB, 0).await == content[5 << 20..],
        "no length: to the end"
    );
    for (offset_bytes, length_bytes) in [
        (size_bytes, 1),
        (0, size_bytes + 1),
        (u64::MAX, 1),
        (1, u64::MAX),
    ] {
        let request = ReadSnapshotRequest {
            snapshot: "image".to_owned(),
            offset_bytes,
            length_bytes,
        };
        let outcome = match rpc.content.clone().read_snapshot(request).await {
            Ok(stream) => stream.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        let code = outcome.unwrap_err().code();
        assert!(
            matches!(code, Code::InvalidArgument | Code::OutOfRange),
            "{code}"
        );
    }
}

/// Clients that disconnect, or do not read their answers, do not disturb others.
#[tokio::test]
async fn downloads_that_are_given_up_leave_room_for_others() {
    let lab = Lab::new();
    let file = image::make_random(&lab.scratch, "image", 64 * MIB, 142);
    lab.snapctl().import(&file, "image");
    let rpc = Rpc::connect(&lab.varved).await;
    let request = DownloadRequest {
        snapshot: "image".to_owned(),
        plain: true,
    };
    for _ in 0..100 {
        let mut stream = rpc
            .content
            .clone()
            .download(request.clone())
            .await
            .unwrap()
            .into_inner();
        stream.message().await.unwrap().unwrap();
    }
    lab.assert_content("image", &file);
    let absent = DownloadRequest {
        snapshot: "absent".to_owned(),
        plain: false,
    };
    let outcome = match rpc.content.clone().download(absent).await {
        Ok(stream) => stream.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    assert_eq!(outcome.unwrap_err().code(), Code::NotFound);
}
