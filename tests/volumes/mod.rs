//! Volumes: as records, as disks that clients write to, and after crashes.

mod crashes;
mod data;
mod pending;
mod records;

use std::{
    thread,
    time::{Duration, Instant},
};

use varve_tests::{
    daemon::Varved,
    nbd::Peer,
    process::{Finished, command, run},
    programs::tool,
};

const MIB: u64 = 1 << 20;

/// The URI of a volume's export.
pub(crate) fn uri(varved: &Varved, volume: &str) -> String {
    format!(
        "nbd+unix:///volume/{volume}?socket={}",
        varved.nbd_socket().display()
    )
}

/// The same over TCP.
fn tcp_uri(varved: &Varved, volume: &str) -> String {
    format!("nbd://{}/volume/{volume}", varved.nbd_address())
}

/// A connection to a volume's export.
pub(crate) fn peer(varved: &Varved, volume: &str) -> Peer {
    let mut peer = Peer::unix(&varved.nbd_socket()).unwrap();
    peer.open(&format!("volume/{volume}")).unwrap();
    peer
}

/// Runs `snapctl volume` with these arguments, which must succeed.
fn volume(varved: &Varved, arguments: &str) {
    let arguments = ["volume"].into_iter().chain(arguments.split(' '));
    varved.snapctl().run(arguments).ok();
}

/// Makes a volume, and attaches it.
pub(crate) fn make(varved: &Varved, name: &str, arguments: &str) {
    volume(varved, &format!("create {name} {arguments}"));
    volume(varved, &format!("attach {name}"));
}

/// Makes a snapshot of a volume and waits until it is complete. Returns the root of its content.
pub(crate) fn snapshot(varved: &Varved, volume: &str, name: &str) -> String {
    let snapctl = varved.snapctl();
    snapctl
        .run(["snapshot", "create", volume, "--name", name, "--wait"])
        .ok();
    root(varved, name)
}

/// Waits until a snapshot is complete.
fn completed(varved: &Varved, snapshot: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let shown = varved.snapctl().show(snapshot);
        match shown["state"].as_str() {
            Some("completed") => return,
            Some("pending") => assert!(Instant::now() < deadline, "still pending: {shown}"),
            _ => panic!("{shown}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until all snapshots are complete.
fn all_completed(varved: &Varved) {
    for snapshot in varved.snapctl().names() {
        completed(varved, &snapshot);
    }
}

/// The root of a snapshot's content.
fn root(varved: &Varved, snapshot: &str) -> String {
    varve_tests::snapctl::text(&varved.snapctl().show(snapshot), "root")
}

fn tool_run(name: &str, arguments: &[&str]) -> Finished {
    run(command(tool(name), arguments))
}
