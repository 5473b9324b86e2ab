//! NBD over TCP with TLS, by clients with and without certificates.

use std::{
    fs,
    path::{Path, PathBuf},
};

use varve_tests::{
    files,
    identity::Identity,
    lab::Lab,
    nbd::Peer,
    process::{Finished, command, run},
    programs::tool,
    scratch::Scratch,
};

const MIB: u64 = 1 << 20;

/// A directory as libnbd and QEMU expect it: the authority, and a client certificate if there is
/// one.
fn credentials(
    scratch: &Scratch,
    name: &str,
    trust: &Identity,
    show: Option<&Identity>,
) -> PathBuf {
    let directory = scratch.join(name);
    fs::create_dir(&directory).unwrap();
    fs::copy(&trust.authority, directory.join("ca-cert.pem")).unwrap();
    if let Some(show) = show {
        fs::copy(&show.cert, directory.join("client-cert.pem")).unwrap();
        fs::copy(&show.key, directory.join("client-key.pem")).unwrap();
    }
    directory
}

struct Scene {
    lab: Lab,
    identity: Identity,
    identities: Scratch,
    image: PathBuf,
}

impl Scene {
    fn new(more: &[(&str, &str)]) -> Self {
        let identities = Scratch::new();
        let identity = Identity::make(&identities);
        let lab = Lab::with(|options| {
            let options = options
                .tcp()
                .env("VARVE_NBD_TLS_CERT", &identity.cert)
                .env("VARVE_NBD_TLS_KEY", &identity.key);
            more.iter()
                .fold(options, |options, (name, value)| match *value {
                    "CA" => options.env(name, &identity.authority),
                    value => options.env(name, value),
                })
        });
        let image = lab.image("image", 24 * MIB + 4096, 971);
        lab.snapctl().import(&image, "image");
        Self {
            lab,
            identity,
            identities,
            image,
        }
    }

    fn uri(&self, export: &str, credentials: &Path) -> String {
        format!(
            "nbds://{}/{export}?tls-certificates={}",
            self.lab.varved.nbd_address(),
            credentials.display()
        )
    }

    fn copy(&self, uri: &str) -> Finished {
        let to = self.lab.scratch.join("copied");
        let _ = fs::remove_file(&to);
        run(command(tool("nbdcopy"), [Path::new(uri), &to]))
    }
}

#[test]
fn who_speaks_tls_is_served_and_nobody_else_is() {
    let scene = Scene::new(&[]);
    let trusting = credentials(&scene.identities, "trusting", &scene.identity, None);
    let uri = scene.uri("snapshot/image", &trusting);
    scene.copy(&uri).ok();
    files::assert_same(&scene.image, &scene.lab.scratch.join("copied"));

    // Without TLS the server tells nothing, not even the list of exports.
    let plain = format!("nbd://{}", scene.lab.varved.nbd_address());
    let refused = run(command(tool("nbdinfo"), ["--list", &plain]));
    assert!(!refused.status.success(), "{refused:?}");
    assert!(!refused.text().contains("image"), "{refused:?}");
    let refused = scene.copy(&format!("{plain}/snapshot/image"));
    assert!(!refused.status.success(), "{refused:?}");
    // Message by message: the connection closes on an export by name, because there is no other way
    // to refuse it.
    let mut client = Peer::tcp(scene.lab.varved.nbd_address()).unwrap();
    client.greet().unwrap();
    client.send_option(1, b"snapshot/image").unwrap();
    client.receive_until_closed();
    // A client that trusts another authority does not continue.
    let other_scratch = Scratch::new();
    let other = Identity::make(&other_scratch);
    let distrusting = credentials(&scene.identities, "distrusting", &other, None);
    let refused = scene.copy(&scene.uri("snapshot/image", &distrusting));
    assert!(!refused.status.success(), "{refused:?}");
    // The unix socket works as before.
    run(command(
        tool("nbdinfo"),
        [scene.lab.varved.nbd_uri("image")],
    ))
    .ok();
    scene.copy(&uri).ok();
}

#[test]
fn volumes_are_written_over_tls_by_those_with_certificates() {
    let scene = Scene::new(&[("VARVE_NBD_TLS_CLIENT_CA", "CA")]);
    let snapctl = scene.lab.snapctl();
    snapctl
        .run(["volume", "create", "disk", "--from", "image"])
        .ok();
    snapctl.run(["volume", "attach", "disk"]).ok();
    let known = credentials(
        &scene.identities,
        "known",
        &scene.identity,
        Some(&scene.identity),
    );
    let nobody = credentials(&scene.identities, "nobody", &scene.identity, None);
    let stranger_scratch = Scratch::new();
    let stranger = Identity::make(&stranger_scratch);
    let strange = credentials(
        &scene.identities,
        "strange",
        &scene.identity,
        Some(&stranger),
    );
    for refused in [&nobody, &strange] {
        let refused = scene.copy(&scene.uri("snapshot/image", refused));
        assert!(!refused.status.success(), "{refused:?}");
    }
    // QEMU writes a pattern, and reads it again, with many requests at a time.
    let address = scene.lab.varved.nbd_address();
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        known.display()
    );
    let options = format!(
        "driver=nbd,server.type=inet,server.host={},server.port={},export=volume/disk,tls-creds=tls0",
        address.ip(),
        address.port()
    );
    let mut arguments = vec!["--object", &credentials, "--image-opts", &options];
    let commands: Vec<_> = (0..16u64)
        .map(|number| format!("aio_write -P {} {} 1M", number + 1, number * MIB))
        .collect();
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.extend(["-c", "aio_flush", "-c", "flush"]);
    let checks: Vec<_> = (0..16u64)
        .map(|number| format!("read -P {} {} 1M", number + 1, number * MIB))
        .collect();
    for check in &checks {
        arguments.extend(["-c", check]);
    }
    let said = run(command(tool("qemu-io"), arguments)).success().text();
    assert!(!said.contains("verification failed"), "{said}");
    let uri = scene.uri("volume/disk", &known);
    scene.copy(&uri).ok();
    let copied = scene.lab.scratch.join("copied");
    assert_eq!(files::read_range(&copied, 7 * MIB, 4096), [8; 4096]);
    assert_eq!(
        files::read_range(&copied, 16 * MIB, 1 << 20),
        files::read_range(&scene.image, 16 * MIB, 1 << 20)
    );
}

#[test]
fn tls_is_offered_where_it_is_not_required() {
    let scene = Scene::new(&[("VARVE_NBD_TLS_REQUIRED", "false")]);
    let plain = format!("nbd://{}/snapshot/image", scene.lab.varved.nbd_address());
    scene.copy(&plain).ok();
    files::assert_same(&scene.image, &scene.lab.scratch.join("copied"));
    let trusting = credentials(&scene.identities, "trusting", &scene.identity, None);
    scene.copy(&scene.uri("snapshot/image", &trusting)).ok();
    files::assert_same(&scene.image, &scene.lab.scratch.join("copied"));
}

#[test]
fn files_that_are_no_identity_are_refused_at_the_start() {
    let scratch = Scratch::new();
    let identity = Identity::make(&scratch);
    let garbage = scratch.file("garbage.pem", "no certificate");
    let start = |cert: &Path, key: &Path, authorities: Option<&Path>| {
        let options = varve_tests::daemon::Options::new(scratch.join("data")).tcp();
        let options = options
            .env("VARVE_NBD_TLS_CERT", cert)
            .env("VARVE_NBD_TLS_KEY", key);
        let options = match authorities {
            Some(authorities) => options.env("VARVE_NBD_TLS_CLIENT_CA", authorities),
            None => options,
        };
        options.start_refused()
    };
    let (cert, key) = (&*identity.cert, &*identity.key);
    for (said, named) in [
        (start(&garbage, key, None), "garbage.pem"),
        (start(cert, &garbage, None), "garbage.pem"),
        (start(cert, key, Some(&garbage)), "garbage.pem"),
        (start(&scratch.join("absent.pem"), key, None), "absent.pem"),
    ] {
        assert!(said.contains(named), "{said}");
    }
}
