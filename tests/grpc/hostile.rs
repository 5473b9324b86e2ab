//! Peers that do not speak gRPC, or send nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{allow_open_files, wait_for},
    random::Random,
};

const MIB: u64 = 1 << 20;

fn assert_serving(lab: &Lab, file: &std::path::Path) {
    lab.assert_content("image", file);
    let log = lab.varved.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(
        lab.varved.peak_memory_bytes() < 512 << 20,
        "{}",
        lab.varved.peak_memory_bytes()
    );
}

fn served() -> (Lab, std::path::PathBuf) {
    let lab = Lab::with(Options::tcp);
    let file = lab.image("image", 4 * MIB, 156);
    lab.snapctl().import(&file, "image");
    (lab, file)
}

fn tcp(lab: &Lab) -> TcpStream {
    TcpStream::connect(lab.varved.tcp_endpoint().trim_start_matches("http://")).unwrap()
}

fn unix(lab: &Lab) -> UnixStream {
    UnixStream::connect(lab.data_dir().join("grpc.sock")).unwrap()
}

#[test]
fn garbage_is_answered_by_closing() {
    let (lab, file) = served();
    let mut random = Random::of_test("garbage_is_answered_by_closing");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for round in 0..40 {
        let mut garbage = vec![0; random.index(4000) + 100];
        random.fill(&mut garbage);
        // Some begin with the preface.
        let start = if round % 2 == 0 { &preface[..] } else { b"" };
        let mut peer = unix(&lab);
        let mut answer = Vec::new();
        // Either side may give up first.
        let _ = peer
            .write_all(&[start, &garbage].concat())
            .and_then(|()| peer.shutdown(std::net::Shutdown::Write));
        let _ = peer.read_to_end(&mut answer);
        let mut peer = tcp(&lab);
        let _ = peer
            .write_all(&[start, &garbage].concat())
            .and_then(|()| peer.shutdown(std::net::Shutdown::Write));
        let _ = peer.read_to_end(&mut answer);
    }
    assert_serving(&lab, &file);
}

#[test]
fn a_thousand_idle_connections_leave_room_for_work() {
    allow_open_files();
    let (lab, file) = served();
    let idle: Vec<_> = (0..500).map(|_| (tcp(&lab), unix(&lab))).collect();
    assert_serving(&lab, &file);
    drop(idle);
    assert_serving(&lab, &file);
}

/// More connections than slots, which send nothing, or only a client's first bytes.
#[test]
fn more_idle_connections_than_places_hang_nobody() {
    allow_open_files();
    let (lab, file) = served();
    // The preface, and empty settings.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut silent = Vec::new();
    let mut idle = Vec::new();
    for number in 0..4500 {
        if number < 300 {
            silent.push(tcp(&lab));
        }
        let mut peer = unix(&lab);
        // The daemon may have closed it already to make room.
        let _ = peer.write_all(hello);
        // The daemon's settings arrive: its handshake is over.
        let _ = peer.read(&mut [0; 64]);
        idle.push(peer);
        if number % 1500 == 1499 {
            assert_serving(&lab, &file);
        }
    }
    let log = lab.varved.log();
    for words in [
        "end the oldest gRPC handshake for a new connection",
        "end an idle gRPC connection for a new one",
    ] {
        let lines = log.matches(words).count();
        assert!((1..500).contains(&lines), "{lines} times {words}");
    }
    // The connection that gives way is closed.
    assert_eq!(silent[0].read(&mut [0; 64]).unwrap(), 0);
    let mut said = Vec::new();
    idle[0].read_to_end(&mut said).unwrap();
    drop((silent, idle));
    assert_serving(&lab, &file);
}

/// The wait for the rest of a preface has an end.
#[test]
fn a_silent_connection_is_ended() {
    let (lab, file) = served();
    let mut peers = [tcp(&lab), tcp(&lab)];
    peers[1].write_all(b"PRI * HTTP/2.0\r\n").unwrap();
    for peer in &mut peers {
        assert_eq!(
            peer.read(&mut [0; 64]).unwrap(),
            0,
            "closed, without a word"
        );
    }
    wait_for("the end to be told", || {
        let log = lab.varved.log();
        log.contains("its handshake took longer than 10s")
            .then_some(())
    });
    assert_serving(&lab, &file);
}
