//! How `snapctl` answers what cannot be done as it was asked.

use std::fs;

use crate::{
    fake::{FakeDaemon, Manners},
    snapctl::{disk, parse, run},
};

/// Whoever finds it: the grammar, `snapctl` later on, or the daemon.
#[test]
fn mistakes_of_usage_end_with_2() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    fs::write(daemon.path("empty.pem"), "no certificate").unwrap();
    for (command, says) in [
        ("volume create v1 --size 20T", "at most 16 TiB"),
        ("status --tls-cert x.pem", "--tls-key"),
        (
            "status --tls-ca empty.pem",
            "snapctl: empty.pem: there is no certificate in it\n",
        ),
        (
            "copy create a b --from unix:/x --name c",
            "--name is for one",
        ),
        ("device map s", "volume/NAME"),
        ("device map volume/web --block-size 100", "power of two"),
        ("device map volume/web --connections 0", "1 to "),
        ("export web out.img --format qcow3", "qcow3"),
        (
            "remote create eu https://eu:1 --ca empty.pem",
            "snapctl: empty.pem: there is no certificate in it\n",
        ),
    ] {
        if command.starts_with("device map volume") {
            run(&daemon, &["volume", "create", "web", "--size", "1M"]);
        }
        let arguments: Vec<_> = command.split(' ').collect();
        let (code, stdout, stderr) = run(&daemon, &arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{command}: {stderr}");
        assert!(stderr.contains(says), "{command}: {stderr}");
    }
    // A file that is not there, or is no disk, is no mistake of the command line.
    for command in [
        "import nope.img --name a",
        "import . --name a",
        "status --tls-ca nope.pem",
        "remote create eu https://eu:1 --ca nope.pem",
        "remote create eu https://eu:1 --cert nope.pem --key empty.pem",
    ] {
        let arguments: Vec<_> = command.split(' ').collect();
        let (code, _, stderr) = run(&daemon, &arguments);
        assert_eq!(code, 1, "{command}: {stderr}");
        assert!(
            stderr.contains("No such file") || stderr.contains("directory"),
            "{stderr}"
        );
    }
}
