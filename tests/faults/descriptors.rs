//! A daemon that runs out of descriptors: guests wait, nothing is lost, and it recovers by itself.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{fs, thread};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use varve_tests::{
    daemon::{Options, Varved},
    lab::Lab,
    nbd::Peer,
    process::wait_for,
    scratch::Scratch,
    snapctl::import_arguments,
};

const MIB: u64 = 1 << 20;

fn open_descriptors(varved: &Varved) -> u64 {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", varved.id())).unwrap();
    descriptors.count() as u64
}

/// Changes the limit of open files of a running daemon; `None`: the original limit.
fn permit(varved: &Varved, count: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: count.or(maximum),
        maximum,
    };
    let id = Pid::from_raw(varved.id().try_into().unwrap()).unwrap();
    prlimit(Some(id), Resource::Nofile, limit).unwrap();
}

fn make_volume(varved: &Varved, name: &str, size: &str) {
    let snapctl = varved.snapctl();
    snapctl.run(["volume", "create", name, "--size", size]).ok();
    snapctl.run(["volume", "attach", name]).ok();
}

fn attached(varved: &Varved, name: &str) -> Peer {
    let mut peer = Peer::unix(&varved.nbd_socket()).unwrap();
    peer.open(&format!("volume/{name}")).unwrap();
    peer
}

/// The guest of a volume continues when there are descriptors again, and so do imports and all
/// else.
#[test]
fn a_want_of_descriptors_is_waited_for() {
    // With journal files of 4 MiB one is full soon.
    let mut lab = Lab::with(|options| options.env("VARVE_JOURNAL_BYTES_MAX", "67108864"));
    make_volume(&lab.varved, "v", "64M");
    let mut peer = attached(&lab.varved, "v");
    let block = vec![0x5a; MIB as usize];
    assert_eq!(peer.write(0, &block).unwrap(), 0);

    permit(&lab.varved, Some(open_descriptors(&lab.varved)));
    let guest = thread::spawn(move || {
        for at in 1..20 {
            assert_eq!(
                peer.write(at * MIB, &vec![at as u8; MIB as usize]).unwrap(),
                0
            );
        }
        assert_eq!(peer.flush().unwrap(), 0);
        peer
    });
    wait_for("varved to say that it is short of a resource", || {
        lab.varved
            .log()
            .contains("short of a resource")
            .then_some(())
    });
    assert!(!guest.is_finished());
    permit(&lab.varved, None);
    let mut peer = guest.join().unwrap();
    for at in 1..20 {
        let read = peer.read_bytes(at * MIB, MIB as u32).unwrap().unwrap();
        assert!(read == vec![at as u8; MIB as usize]);
    }
    let file = lab.image("image", 20 * MIB, 77);
    lab.snapctl().import(&file, "image");
    lab.assert_content("image", &file);
    assert!(!lab.varved.log().contains("stops writing"));
    drop(peer);
    lab.varved.stop();
    lab.restart();
    lab.assert_content("image", &file);
}

/// An import waits, too, for a pack or the index, and is whole in the end.
#[test]
fn an_import_goes_on_when_there_are_descriptors_again() {
    let lab = Lab::new();
    let first = lab.image("first", 8 * MIB, 78);
    lab.snapctl().import(&first, "first");
    // More than a pack of 256 MiB, so that a second one is needed.
    let file = varve_tests::image::make_random(&lab.scratch, "image", 300 * MIB, 79);
    let import = lab.snapctl().start(import_arguments(&file, "image"));
    // By the time that this much has arrived, it has its connection and its first pack.
    let packs = lab.data_dir().join("packs");
    wait_for("the import to be under way", || {
        let sizes = fs::read_dir(&packs)
            .unwrap()
            .map(|entry| entry.unwrap().metadata());
        let bytes: u64 = sizes
            .map(|metadata| metadata.map_or(0, |it| it.len()))
            .sum();
        (bytes > 60 * MIB).then_some(())
    });
    permit(&lab.varved, Some(open_descriptors(&lab.varved)));
    wait_for("varved to say that it is short of a resource", || {
        lab.varved
            .log()
            .contains("short of a resource")
            .then_some(())
    });
    permit(&lab.varved, None);
    import.wait().ok();
    lab.assert_content("image", &file);
    lab.assert_content("first", &first);
    assert!(!lab.varved.log().contains("stops writing"));
}

/// Silent connections take only their own share. The store and its management keep the rest.
#[test]
fn idle_connections_do_not_starve_the_store() {
    const PERMITTED: u64 = 600;
    const VOLUMES: u64 = 20;
    let scratch = Scratch::new();
    let options = Options::new(scratch.join("data"))
        .env("VARVE_JOURNAL_BYTES_MAX", "67108864")
        .open_files(PERMITTED)
        .tcp();
    let varved = options.start();
    let said = varved.log();
    assert!(
        said.contains("600 open files are permitted, 19064 are asked for with 4096 volumes"),
        "{said}"
    );
    let mut peers = Vec::new();
    for number in 0..VOLUMES {
        make_volume(&varved, &format!("v{number}"), "64M");
        peers.push(attached(&varved, &format!("v{number}")));
    }
    // More than the limit: the excess ones wait, or are refused.
    let idle: Vec<_> = (0..300)
        .flat_map(|_| [varved.grpc_address(), varved.nbd_address()])
        .filter_map(|address| std::net::TcpStream::connect(address).ok())
        .collect();
    assert!(idle.len() > 300);
    for (number, peer) in (0..).zip(&mut peers) {
        for at in 0..12 {
            let bytes = vec![number as u8 + at as u8; MIB as usize];
            assert_eq!(peer.write(at * MIB, &bytes).unwrap(), 0);
            let open = open_descriptors(&varved);
            assert!(open < PERMITTED, "{open} are open");
        }
    }
    let file = varve_tests::image::make(&scratch, "image", 20 * MIB, 80);
    varved.snapctl().import(&file, "image");
    for (number, peer) in (0..).zip(&mut peers) {
        for at in 0..12 {
            let read = peer.read_bytes(at * MIB, MIB as u32).unwrap().unwrap();
            assert!(read == vec![number as u8 + at as u8; MIB as usize]);
        }
        assert_eq!(peer.flush().unwrap(), 0);
    }
    varved.snapctl().verify("image");
    assert!(
        !varved.log().contains("short of a resource"),
        "{}",
        varved.log()
    );
}

#[test]
fn too_few_descriptors_are_refused_with_what_helps() {
    let scratch = Scratch::new();
    let said = Options::new(scratch.join("data"))
        .open_files(300)
        .start_refused();
    assert!(
        said.contains("300 open files are permitted, and varved needs 584 at least")
            && said.contains("ulimit -n"),
        "{said}"
    );
}
