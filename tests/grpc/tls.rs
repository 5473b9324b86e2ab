//! gRPC over TCP with TLS.

use std::path::PathBuf;

use varve_tests::{
    files,
    identity::Identity,
    lab::Lab,
    process::run,
    scratch::Scratch,
    snapctl::{Snapctl, exit},
};

const MIB: u64 = 1 << 20;

#[test]
fn import_and_export_work_over_tls() {
    let identities = Scratch::new();
    let identity = Identity::make(&identities);
    let lab = Lab::with(|options| identity.serve(options));
    let file = lab.image("image", 20 * MIB + 7, 161);
    let snapctl = Snapctl::new(lab.varved.tcp_endpoint().replace("http://", "https://"));
    let trusting = |arguments: &[&str]| {
        let mut command = snapctl.command(arguments);
        command.env("SSL_CERT_FILE", &identity.authority);
        run(command)
    };
    trusting(&["import", file.to_str().unwrap(), "--name", "image"]).ok();
    let out = lab.scratch.join("out");
    trusting(&["export", "image", out.to_str().unwrap()]).ok();
    files::assert_same(&file, &out);

    // A client that does not trust the authority, or does not use TLS, gets nothing.
    let other = Identity::make(&lab.scratch);
    let mut command = snapctl.command(["status"]);
    command.env("SSL_CERT_FILE", &other.authority);
    let said = run(command).fails(exit::UNREACHABLE);
    assert!(said.contains("certificate"), "{said}");
    Snapctl::new(lab.varved.tcp_endpoint())
        .run(["status"])
        .fails(exit::UNREACHABLE);
    // The unix socket works as before.
    lab.snapctl().verify("image");
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_at_the_start() {
    let scratch = Scratch::new();
    let identity = Identity::make(&scratch);
    let garbage = scratch.file("garbage.pem", "no certificate");
    let data = scratch.join("data");
    let cases = [
        (
            scratch.join("absent.pem"),
            identity.key.clone(),
            "absent.pem",
        ),
        (garbage.clone(), identity.key.clone(), "garbage.pem"),
        (identity.cert.clone(), garbage, "garbage.pem"),
    ];
    for (cert, key, named) in cases {
        let options = varve_tests::daemon::Options::new(&data).tcp();
        let said = options
            .env("VARVE_GRPC_TLS_CERT", cert)
            .env("VARVE_GRPC_TLS_KEY", key)
            .start_refused();
        assert!(said.contains(named), "{said}");
    }
}

#[test]
fn who_has_to_show_a_certificate_and_does_not_gets_nothing() {
    let identities = Scratch::new();
    let identity = Identity::make(&identities);
    let there = Lab::with(|options| identity.serve_known(options));
    let image = there.image("image", 20 * MIB, 162);
    there.snapctl().import(&image, "image");
    let endpoint = there.varved.tcp_endpoint().replace("http://", "https://");

    // snapctl, and then another daemon.
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let own = [
        path(&identity.authority),
        path(&identity.cert),
        path(&identity.key),
    ];
    let snapctl = Snapctl::new(&endpoint);
    let trusting = ["status", "--tls-ca", &own[0]];
    let showing = ["--tls-cert", &own[1], "--tls-key", &own[2]];
    snapctl.run(trusting).fails(exit::UNREACHABLE);
    snapctl.run(trusting.iter().chain(&showing)).ok();
    let said = snapctl.run(trusting.iter().chain(&showing[..2]));
    assert!(said.fails(exit::USAGE).contains("--tls-key"));
    let other = Identity::make(&there.scratch);
    let stranger = [path(&other.cert), path(&other.key)];
    let showing = ["--tls-cert", &stranger[0], "--tls-key", &stranger[1]];
    snapctl
        .run(trusting.iter().chain(&showing))
        .fails(exit::UNREACHABLE);

    let here = Lab::with(|options| options.env("VARVE_COPIES_TLS_CA", &identity.authority));
    let asked = here
        .snapctl()
        .run(["copy", "estimate", "image", "--from", &endpoint]);
    // The same error as for any daemon that cannot serve now.
    let said = asked.fails(exit::FAILURE);
    assert!(said.contains("image"), "{said}");
    let here = Lab::with(|options| {
        options
            .env("VARVE_COPIES_TLS_CA", &identity.authority)
            .env("VARVE_COPIES_TLS_CERT", &identity.cert)
            .env("VARVE_COPIES_TLS_KEY", &identity.key)
    });
    let copied = here
        .snapctl()
        .json(["copy", "image", "--from", &endpoint, "--wait"]);
    assert_eq!(copied["state"], "completed");
    here.assert_content("image", &image);
}
