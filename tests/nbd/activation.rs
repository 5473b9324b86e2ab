//! Sockets of a service manager: clients wait there while the daemon is away.

use std::{net::SocketAddr, path::PathBuf};

use rustix::process::Signal;
use varve_tests::{
    daemon::free_address,
    files, image,
    process::{Running, command, run, start, wait_for},
    programs::{self, repository, tool},
    scratch::Scratch,
    snapctl::Snapctl,
};

const MIB: u64 = 1 << 20;

/// A service manager that listens on both services' unix sockets, and on NBD's port.
struct Manager {
    scratch: Scratch,
    nbd_address: SocketAddr,
    process: Running,
}

impl Manager {
    fn new() -> Self {
        let scratch = Scratch::new();
        let nbd_address = free_address();
        let mut manager = command(
            "/usr/bin/python3",
            [repository().join("tests/python/activate.py")],
        );
        for (name, address) in [
            ("grpc", scratch.join("grpc.sock").display().to_string()),
            ("nbd", nbd_address.to_string()),
            ("nbd", scratch.join("nbd.sock").display().to_string()),
        ] {
            manager.arg(format!("{name}={address}"));
        }
        manager.arg("--").arg(programs::varved());
        manager.arg("--data-dir").arg(scratch.join("data"));
        let manager = Self {
            process: start(manager),
            scratch,
            nbd_address,
        };
        manager.wait_for("listening", 1);
        manager
    }

    fn wait_for(&self, said: &str, times: usize) {
        wait_for(said, || {
            let is_said = self.process.stdout().matches(said).count() >= times;
            is_said.then_some(())
        });
    }

    fn snapctl(&self) -> Snapctl {
        Snapctl::new(format!("unix:{}", self.socket("grpc").display()))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("{name}.sock"))
    }
}

#[test]
fn clients_wait_at_inherited_sockets_while_the_daemon_is_away() {
    let mut manager = Manager::new();
    let snapctl = manager.snapctl();
    let image = image::make(&manager.scratch, "image", 20 * MIB, 991);
    // No client is refused, whether or not the daemon is ready yet.
    snapctl.import(&image, "image");
    manager.wait_for("told READY=1", 1);
    let status = snapctl.run(["status"]).success();
    let uris = [
        format!("nbd+unix:///?socket={}", manager.socket("nbd").display()),
        format!("nbd://{}", manager.nbd_address),
    ];
    for uri in &uris {
        assert!(status.text().contains(uri), "{uri} is not in {status:?}");
    }

    let mut round = 0;
    for (signal, said) in [(Signal::USR1, "killed"), (Signal::USR2, "stopped with 0")] {
        manager.process.signal(signal);
        manager.wait_for(said, 1);
        assert!(
            manager.socket("nbd").exists() && manager.socket("grpc").exists(),
            "the daemon does not remove the service manager's sockets"
        );
        // They connect now, and are answered when there is a daemon.
        let mut waiting = Vec::new();
        for (number, uri) in (0..).zip([
            format!(
                "nbd+unix:///snapshot/image?socket={}",
                manager.socket("nbd").display()
            ),
            format!("nbd://{}/snapshot/image", manager.nbd_address),
        ]) {
            let copy = manager.scratch.join(format!("copy-{round}-{number}"));
            let copying = command(tool("nbdcopy"), [uri.as_ref(), copy.as_os_str()]);
            waiting.push((start(copying), copy));
        }
        let listing = start(snapctl.command(["snapshot", "list"]));
        manager.process.signal(Signal::HUP);
        round += 1;
        manager.wait_for("told READY=1", 1 + round);
        for (copying, copy) in waiting {
            copying.wait().ok();
            files::assert_same(&image, &copy);
        }
        listing.wait().ok();
    }
    manager.process.signal(Signal::TERM);
    manager.process.wait().ok();
}

#[test]
fn sockets_that_mean_nothing_are_refused_with_the_reason() {
    let scratch = Scratch::new();
    for (names, why) in [
        (&["web"][..], "\"web\""),
        (&["nbd", "nbd"], "already one for the same service"),
    ] {
        let mut manager = command(
            "/usr/bin/python3",
            [repository().join("tests/python/activate.py")],
        );
        for (number, name) in (0..).zip(names) {
            let socket = scratch.join(format!("{name}-{number}-{}", names.len()));
            manager.arg(format!("{name}={}", socket.display()));
        }
        manager.arg("--").arg(programs::varved());
        manager.arg("--data-dir").arg(scratch.join("data"));
        let mut manager = start(manager);
        let said = wait_for("the daemon to refuse", || {
            let said = manager.stderr();
            said.contains("varved:").then_some(said)
        });
        assert!(said.contains(why), "{said}");
        manager.signal(Signal::TERM);
        let ended = manager.wait();
        assert!(!ended.status.success(), "{ended:?}");
    }
}

/// nbdkit's nbd plugin as a proxy: a client of the daemon, and a server for others.
#[test]
fn a_proxy_stands_between() {
    let lab = varve_tests::lab::Lab::new();
    let image = lab.image("image", 24 * MIB + 4096, 992);
    let snapctl = lab.snapctl();
    snapctl.import(&image, "image");
    snapctl
        .run(["volume", "create", "disk", "--from", "image"])
        .ok();
    snapctl.run(["volume", "attach", "disk"]).ok();
    for (export, writes) in [("snapshot/image", false), ("volume/disk", true)] {
        let uri = format!(
            "nbd+unix:///{export}?socket={}",
            lab.varved.nbd_socket().display()
        );
        let socket = lab.scratch.join(format!("proxy-{writes}"));
        let mut proxy = command(tool("nbdkit"), ["--foreground", "--unix"]);
        proxy.arg(&socket).arg("nbd").arg(format!("uri={uri}"));
        let _proxy = start(proxy);
        wait_for("nbdkit to listen", || {
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        let through = format!("nbd+unix:///?socket={}", socket.display());
        let copy = lab.scratch.join(format!("copy-{writes}"));
        run(command(
            tool("nbdcopy"),
            [through.as_ref(), copy.as_os_str()],
        ))
        .ok();
        files::assert_same(&image, &copy);
        let map = |uri: &str| {
            run(command(tool("nbdinfo"), ["--map", uri]))
                .success()
                .text()
        };
        assert_eq!(map(&uri), map(&through));
        let write = [
            "-f",
            "raw",
            "-c",
            "write -P 7 4096 8192",
            "-c",
            "flush",
            &through,
        ];
        let written = run(command(tool("qemu-io"), write));
        if writes {
            written.ok();
            let read = ["-r", "-f", "raw", "-c", "read -P 7 4096 8192", &uri];
            run(command(tool("qemu-io"), read)).ok();
        } else {
            assert!(!written.status.success(), "{written:?}");
        }
    }
}
