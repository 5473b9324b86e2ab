//! Holders of certificates, over TLS.

use varve_tests::{identity::Identity, lab::Lab, process::run, scratch::Scratch, snapctl::Snapctl};

use super::{account, admin};

#[test]
fn the_subject_of_a_certificate_is_an_identity() {
    let identities = Scratch::new();
    let identity = Identity::make(&identities);
    let lab = Lab::with(|options| identity.serve_known(options));
    let snapctl = Snapctl::new(lab.varved.tcp_endpoint().replace("http://", "https://"));
    let showing = |arguments: &str| {
        let mut command = snapctl.command(arguments.split(' '));
        command
            .env("VARVE_TLS_CA", &identity.authority)
            .env("VARVE_TLS_CERT", &identity.cert)
            .env("VARVE_TLS_KEY", &identity.key);
        run(command)
    };
    // As before, as long as there are no accounts.
    let me = showing("whoami").success().text();
    assert!(me.contains("000000000000"), "{me}");
    let id = account(&lab, "web");
    showing("volume list").fails(super::DENIED);
    admin(&lab, "account set web --add-identity cert:CN=varved");
    let me = showing("whoami").success().text();
    assert!(me.contains(&id) && me.contains("cert:CN=varved"), "{me}");
    showing("volume create data --size 1M").ok();
    assert!(
        admin(&lab, "volume list --owner web")
            .text()
            .contains("data")
    );
    // The same certificate may be the administrator's.
    admin(&lab, "account set web --remove-identity cert:CN=varved");
    admin(&lab, "account set admin --add-identity cert:CN=varved");
    showing("status").ok();
}
