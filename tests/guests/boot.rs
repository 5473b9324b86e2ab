//! A guest boots from an export, with all its services.

use varve_tests::{
    guest::{BOOT_LIMIT, image},
    lab::Lab,
    process::{command, run_within},
    programs::repository,
};

#[test]
fn a_guest_boots_from_an_export() {
    let image = image("base");
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
