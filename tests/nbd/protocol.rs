//! The protocol's rules, checked through libnbd by a script in its shell.

use std::process::Command;

use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::run_with_input,
    programs::{repository, tool},
};

/// nbdsh takes the first `python3` in the PATH; libnbd's module is only in the system's.
fn nbdsh() -> Command {
    let mut command = Command::new(tool("nbdsh"));
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .args(["-c", "-"])
        .env("PATH", format!("/usr/bin:/bin:{path}"));
    command
}

fn run_script(name: &str, variables: &[(&str, &str)]) {
    let script = std::fs::read(repository().join("tests/python").join(name)).unwrap();
    let mut command = nbdsh();
    command.envs(variables.iter().copied());
    let finished = run_with_input(command, &script).success();
    assert!(
        finished.text().ends_with("all is as it should be\n"),
        "{finished:?}"
    );
}

#[test]
fn an_export_keeps_to_the_protocol() {
    let lab = Lab::with(Options::tcp);
    let file = lab.image("image", (50 << 20) + 1000, 171);
    lab.snapctl().import(&file, "image");
    for uri in [lab.varved.nbd_uri("image"), lab.varved.nbd_tcp_uri("image")] {
        run_script(
            "nbd_protocol.py",
            &[("URI", &uri), ("IMAGE", file.to_str().unwrap())],
        );
    }
}
