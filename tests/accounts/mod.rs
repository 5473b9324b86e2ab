//! Accounts with real programs: several users of one machine, tokens and certificates, gRPC and
//! NBD; what each may do, and what the audit log tells.

mod access_keys;
mod audit;
mod certificates;
mod copies;
mod core_dumps;
mod cost;
mod exports;
mod quotas;
mod replication;
mod sharing;
mod table;
mod tickets;
mod tokens;
mod uploads;
mod users;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{Finished, command, run},
    programs::{self, tool},
    snapctl::{Snapctl, text},
};

/// The exit code of `snapctl` for a caller who may not do something.
const DENIED: i32 = 1;

/// A daemon whose sockets are open to all users of the machine.
fn open_lab() -> Lab {
    let lab = Lab::with(open_to_all);
    open_files(&lab);
    lab
}

fn open_to_all(options: Options) -> Options {
    options
        .tcp()
        .env("VARVE_SOCKET_MODE", "0666")
        .env("VARVE_SOCKET_OPEN_TO_ALL", "true")
}

/// Lets other users reach the sockets and a copy of `snapctl`.
fn open_files(lab: &Lab) {
    for path in [lab.scratch.path(), &lab.data_dir()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    fs::copy(programs::snapctl(), lab.scratch.join("snapctl")).unwrap();
}

/// Returns true if this test can act as other users. Otherwise says so.
fn can_be_others() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        programs::skip_because("only root can act as other users");
    }
    is_root
}

/// Runs a program as a user with a group of the same number.
fn as_user(user: u32, program: &Path, arguments: &[&str], lab: &Lab) -> Finished {
    let ids = [format!("--reuid={user}"), format!("--regid={user}")];
    let mut setpriv = command(tool("setpriv"), &ids);
    setpriv
        .arg("--clear-groups")
        .arg(program)
        .args(arguments)
        .env("VARVE_ENDPOINT", lab.varved.endpoint())
        .env("HOME", "/nonexistent");
    run(setpriv)
}

/// Runs `snapctl` as a user.
fn snapctl_as(user: u32, arguments: &str, lab: &Lab) -> Finished {
    let arguments: Vec<_> = arguments.split(' ').collect();
    as_user(user, &lab.scratch.join("snapctl"), &arguments, lab)
}

/// Runs `snapctl` as the administrator, which must succeed.
pub(crate) fn admin(lab: &Lab, arguments: &str) -> Finished {
    lab.snapctl().run(arguments.split(' ')).success()
}

/// Makes an account, and returns its id.
pub(crate) fn account(lab: &Lab, arguments: &str) -> String {
    let arguments = format!("account create {arguments}");
    text(&lab.snapctl().json(arguments.split(' ')), "id")
}

/// Makes a token, in a file.
pub(crate) fn token(lab: &Lab, name: &str, arguments: &str) -> PathBuf {
    let file = lab.scratch.join(name);
    let create = format!("account token create {arguments} --output-file");
    let create = create.split(' ').map(Path::new).chain([&*file]);
    lab.snapctl().run(create).ok();
    file
}

/// Runs `snapctl` over TCP with a token.
pub(crate) fn with_token(lab: &Lab, token: &Path, arguments: &str) -> Finished {
    let tcp = Snapctl::new(lab.varved.tcp_endpoint());
    let mut command = tcp.command(arguments.split(' '));
    command.env("VARVE_TOKEN_FILE", token);
    run(command)
}
