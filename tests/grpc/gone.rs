//! Callers that go as soon as they have asked for a change.

use std::{io::Write as _, net::TcpStream, thread::sleep, time::Duration};

use prost::Message as _;
use rustix::net::sockopt::set_socket_linger;
use varve_proto::v1::DeleteSnapshotRequest;
use varve_tests::{daemon::Options, lab::Lab, process::wait_for};

use super::attacks::framed;

const MIB: u64 = 1 << 20;
const SNAPSHOTS: u64 = 8;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// Headers as literals, in the simplest form of HPACK.
fn headers(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "varve"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

#[test]
fn a_change_whose_caller_has_gone_is_in_the_log() {
    let lab = Lab::with(Options::tcp);
    let image = lab.image("image", MIB, 1201);
    let names: Vec<_> = (0..SNAPSHOTS).map(|number| format!("s{number}")).collect();
    for name in &names {
        lab.snapctl().import(&image, name);
    }
    for (name, number) in names.iter().zip(0..) {
        let request = DeleteSnapshotRequest {
            snapshot: name.clone(),
        };
        let call = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(
                1,
                4,
                1,
                &headers("/varve.v1.SnapshotService/DeleteSnapshot"),
            ),
            frame(0, 1, 1, &framed(&request.encode_to_vec())),
        ];
        let mut peer = TcpStream::connect(lab.varved.grpc_address()).unwrap();
        // Closing resets the connection.
        set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        peer.write_all(&call.concat()).unwrap();
        sleep(Duration::from_micros(500 << number));
    }
    // Some may have gone before the daemon read anything. Each of the others has a line.
    sleep(Duration::from_secs(1));
    let log = wait_for("a line for each snapshot that is deleted", || {
        let deleted = names.len() - lab.snapctl().names().len();
        let log = lab.varved.log();
        let lines = log.matches("snapshot deleted").count();
        (deleted > 0 && lines == deleted).then_some(log)
    });
    let mut lines = log.lines().filter(|line| line.contains("snapshot deleted"));
    let says_all = |line: &str| {
        [
            "call=",
            "DeleteSnapshot",
            "caller=grpc:",
            "on=",
            "id=snap-",
            "name=",
        ]
        .iter()
        .all(|word| line.contains(word))
    };
    assert!(lines.all(says_all), "{log}");
}
