//! A daemon that is asked to stop does so in spite of its clients, and keeps its promises.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use rustix::process::Signal;
use varve_tests::{
    daemon::Options,
    image,
    lab::Lab,
    nbd::{Peer, request},
    process::wait_for,
    rpc::Rpc,
    snapctl::{Snapctl, import_arguments, number},
    valve::Valve,
};

const MIB: u64 = 1 << 20;

#[test]
fn it_stops_beside_idle_clients() {
    let mut lab = Lab::with(Options::tcp);
    let file = lab.image("image", 10 * MIB, 111);
    lab.snapctl().import(&file, "image");
    let silent = [
        Peer::unix(&lab.varved.nbd_socket()).unwrap(),
        Peer::tcp(lab.varved.nbd_address()).unwrap(),
    ];
    let mut open = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    open.open("snapshot/image").unwrap();
    let grpc = std::os::unix::net::UnixStream::connect(lab.data_dir().join("grpc.sock")).unwrap();
    lab.varved.stop();
    drop((silent, grpc));
    open.receive_until_closed();
    lab.restart();
    lab.assert_content("image", &file);
}

#[test]
fn it_stops_beside_busy_clients() {
    let mut lab = Lab::new();
    let file = image::make_random(&lab.scratch, "image", 64 * MIB, 112);
    lab.snapctl().import(&file, "image");
    let stopping = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4u64)
        .map(|number| {
            let (mut peer, stopping) = (
                Peer::unix(&lab.varved.nbd_socket()).unwrap(),
                Arc::clone(&stopping),
            );
            peer.open("snapshot/image").unwrap();
            thread::spawn(move || {
                let mut reads = 0u64;
                // A read fails only because the daemon stops: with an error, or because the
                // connection ends.
                while let Ok(reply) = peer.read((number + reads) % 60 * MIB, 1 << 20) {
                    assert!(
                        reply.error == 0 || stopping.load(Ordering::Relaxed),
                        "{reply:?}"
                    );
                    reads += 1;
                }
                assert!(
                    stopping.load(Ordering::Relaxed),
                    "the connection broke before the daemon was stopped"
                );
                reads
            })
        })
        .collect();
    // A client that sends requests and reads no answers.
    let mut stuck = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    stuck.open("snapshot/image").unwrap();
    for cookie in 0..64 {
        stuck
            .send_request(request::READ, cookie, 0, 1 << 20)
            .unwrap();
    }
    wait_for("the readers to be at work", || {
        (number(&lab.snapctl().json(["status"]), "nbd_connections") == 5).then_some(())
    });
    stopping.store(true, Ordering::Relaxed);
    lab.varved.stop();
    for reader in readers {
        reader.join().unwrap();
    }
    lab.restart();
    lab.assert_content("image", &file);
}

#[tokio::test]
async fn it_stops_in_the_middle_of_an_import() {
    let mut lab = Lab::with(Options::tcp);
    let rpc = Rpc::connect(&lab.varved).await;
    let kept = lab.image("kept", 10 * MIB, 113);
    lab.snapctl().import(&kept, "kept");
    let new = image::make_random(&lab.scratch, "new", 64 * MIB, 114);
    let valve = Valve::before(&lab.varved, 16 << 20);
    let import = Snapctl::new(valve.endpoint()).start(import_arguments(&new, "new"));
    rpc.wait_for_status("an upload to begin", |status| status.uploads == 1)
        .await;
    lab.varved.stop();
    let finished = import.wait();
    assert!(!finished.status.success(), "{finished:?}");
    lab.restart();
    assert_eq!(lab.snapctl().verify_all(), ["kept"]);
}

#[test]
fn it_stops_while_it_starts() {
    let lab = Lab::new();
    for round in 0..4 {
        let options = Options::new(lab.scratch.join(format!("other-{round}")));
        let mut varved = options.spawn();
        thread::sleep(std::time::Duration::from_millis(round * 15));
        varved.signal(Signal::TERM);
        let status = varved.wait();
        // Before it listens to signals, the signal itself ends it.
        use std::os::unix::process::ExitStatusExt;
        assert!(status.success() || status.signal() == Some(15), "{status}");
        let _ = options.start();
    }
}
