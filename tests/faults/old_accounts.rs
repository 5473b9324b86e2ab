//! A store of an earlier version with accounts: its accounts, tokens and owners are as they were,
//! and it continues as a store of this version.

use std::{env, fs, path::Path};

use varve_store::format::names;
use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{Finished, command, run},
    programs,
    snapctl::{Snapctl, text},
};

use super::old_stores::{lab_with, pack};

/// The kept store, by the commit that made it.
const KEPT: &str = "accounts-by-d0d3561.tar.gz";
const WEB: &str = "123456789012";
/// The file with a token of the account, in the data directory.
const TOKEN: &str = "web.token";

fn image() -> Vec<u8> {
    (0..64u8).flat_map(|block| [block + 1; 4096]).collect()
}

/// Runs `snapctl` over TCP with the token.
fn as_web(lab: &Lab, arguments: &str) -> Finished {
    let tcp = Snapctl::new(lab.varved.tcp_endpoint());
    let mut command = tcp.command(arguments.split(' '));
    command.env("VARVE_TOKEN_FILE", lab.data_dir().join(TOKEN));
    run(command)
}

fn admin(lab: &Lab, arguments: &str) {
    lab.snapctl().run(arguments.split(' ')).ok();
}

/// The content of the kept store, made by the programs under test.
fn make() -> Lab {
    let mut lab = Lab::with(Options::tcp);
    admin(
        &lab,
        &format!("account create web --id {WEB} --alias www --identity uid:30001"),
    );
    admin(&lab, "account create reader --identity cert:CN=reader");
    admin(&lab, "account set reader --read-only");
    let token =
        "account token create web --scope read --scope volumes --description ci --output-file";
    let token = token.split(' ').map(Path::new);
    lab.snapctl()
        .run(token.chain([&*lab.data_dir().join(TOKEN)]))
        .ok();
    as_web(&lab, "volume create data --size 1M --tag tier=gold").ok();
    let file = lab.scratch.file("image", image());
    let made = lab.snapctl().import(&file, "base").id();
    admin(&lab, &format!("account give web snapshot/{made}"));
    admin(&lab, "volume create data --size 2M");
    lab.varved.stop();
    lab
}

fn check(lab: &Lab) {
    let accounts = lab.snapctl().json(["account", "list"]);
    let accounts = accounts["accounts"].as_array().unwrap();
    let of = |name: &str| accounts.iter().find(|it| it["name"] == name).unwrap();
    let web = of("web");
    assert_eq!((&*text(web, "id"), &*text(web, "alias")), (WEB, "www"));
    assert_eq!(web["identities"], serde_json::json!(["uid:30001"]));
    assert_eq!(of("reader")["state"], "read_only");
    let tokens = lab.snapctl().json(["account", "token", "list", "www"]);
    assert_eq!(tokens["tokens"][0]["description"], "ci");

    let list = as_web(lab, "volume list --tag tier=gold").success().text();
    assert!(list.contains("data") && list.contains("1.0 MiB"), "{list}");
    let copy = lab.scratch.join("copy.img");
    as_web(lab, &format!("export base {} --force", copy.display())).ok();
    assert!(fs::read(copy).unwrap() == image());
    let all = lab.snapctl().json(["volume", "list", "--owner", "all"]);
    assert_eq!(all["volumes"].as_array().unwrap().len(), 2);
}

/// Starts the stopped store, and checks it: as it is, and after a rebuild.
fn opens_and_goes_on(lab: &mut Lab) {
    lab.restart_with(Options::tcp);
    check(lab);
    let used = lab.snapctl().json(["account", "show", "web"]);
    assert!(used.to_string().contains("\"snapshots\""), "{used}");
    // What only this version has.
    admin(lab, "account set web --quota snapshots=1 --quota volumes=2");
    admin(lab, &format!("account access-key create {WEB}"));
    let base = as_web(lab, "snapshot show base -o json").success();
    let base: serde_json::Value = serde_json::from_slice(&base.stdout).unwrap();
    let base = text(&base, "id");
    admin(lab, &format!("snapshot share {base} all reader"));
    as_web(lab, &format!("volume create more --from {base}")).ok();
    let said = as_web(lab, "volume create too-much --size 1M").fails(7);
    assert!(said.contains("volumes"), "{said}");
    as_web(lab, "volume delete more").ok();
    lab.varved.stop();
    fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    rebuild.arg(lab.data_dir());
    run(rebuild).ok();
    lab.restart_with(Options::tcp);
    check(lab);
    let shown = lab.snapctl().json(["snapshot", "show", &base]);
    assert_eq!(shown["shared_with_everybody"], true);
    assert_eq!(shown["shared_accounts"].as_array().unwrap().len(), 1);
    as_web(lab, "volume create more --size 1M").ok();
    as_web(lab, "volume create too-much --size 1M").fails(7);
}

#[test]
fn a_store_with_accounts_of_an_earlier_commit_opens_and_goes_on() {
    opens_and_goes_on(&mut lab_with(KEPT));
}

/// With `VARVE_KEEP_STORE` it also packs the store to that file, for later versions to open.
#[test]
fn a_store_with_accounts_that_is_made_now_opens_and_goes_on() {
    let mut lab = make();
    if let Some(archive) = env::var_os("VARVE_KEEP_STORE") {
        return pack(&lab, &archive);
    }
    opens_and_goes_on(&mut lab);
}
