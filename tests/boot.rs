//! A guest runs from an export.

use std::{path::PathBuf, time::Duration};

use varve_tests::{
    lab::Lab,
    process::{command, run, run_within},
    programs::repository,
};

/// Where `scripts/make-image` keeps its images.
fn images() -> PathBuf {
    let script = command(repository().join("scripts/make-image"), ["--dir"]);
    PathBuf::from(run(script).success().text().trim_end())
}

/// Without KVM, on a machine that is busy with other tests, a boot takes minutes.
const BOOT_LIMIT: Duration = Duration::from_secs(1800);

#[test]
fn a_guest_boots_from_an_export() {
    let image = images().join("base.img");
    assert!(
        image.is_file(),
        "{} is not there. It is made by: scripts/make-image base",
        image.display()
    );
    let lab = Lab::new();
    lab.snapctl().import(&image, "base");
    let drive = format!("file={},format=raw", lab.varved.nbd_uri("base"));
    let boot = command(repository().join("scripts/boot-guest"), [&drive]);
    let said = run_within(BOOT_LIMIT, boot).success().text();
    assert!(
        said.contains("varve-guest login:") && said.contains("login prompt after"),
        "{said}"
    );
    // The guest's writes went elsewhere.
    lab.assert_content("base", &image);
}
