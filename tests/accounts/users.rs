//! Users of one machine at the unix sockets.

use varve_tests::{
    nbd::{Peer, go_data, option, option_reply},
    programs::tool,
    snapctl::{exit, text},
};

use super::{account, admin, as_user, can_be_others, open_lab, snapctl_as};

const WEB: u32 = 30_001;
const DB: u32 = 30_002;
const NOBODY: u32 = 30_003;

#[test]
fn without_accounts_everybody_who_reaches_the_socket_is_the_administrator() {
    if !can_be_others() {
        return;
    }
    let lab = open_lab();
    snapctl_as(WEB, "volume create data --size 1M", &lab).ok();
    snapctl_as(DB, "volume delete data", &lab).ok();
    let me = snapctl_as(NOBODY, "whoami", &lab).success().text();
    assert!(
        me.contains("000000000000") && me.contains("uid:30003"),
        "{me}"
    );

    // The first account ends that, also for others than its own users.
    let id = account(&lab, "web --identity uid:30001");
    let me = snapctl_as(WEB, "whoami", &lab).success().text();
    assert!(me.contains(&id) && me.contains("uid:30001"), "{me}");
    let me = snapctl_as(NOBODY, "whoami", &lab).success().text();
    assert!(me.contains("does not know you"), "{me}");
    let refused = snapctl_as(NOBODY, "volume list", &lab).fails(super::DENIED);
    assert!(
        refused.contains("--add-identity uid:30003"),
        "advice: {refused}"
    );
    // It begins again when the last account has gone.
    admin(&lab, "account delete web");
    snapctl_as(NOBODY, "volume list", &lab).ok();
}

#[test]
fn accounts_see_and_change_what_is_theirs_and_nothing_else() {
    if !can_be_others() {
        return;
    }
    let lab = open_lab();
    account(&lab, "web --identity uid:30001");
    account(&lab, "db --identity gid:30002");
    let mut ids = Vec::new();
    for user in [WEB, DB] {
        let made = snapctl_as(user, "volume create data --size 1M -o json", &lab).success();
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        ids.push(text(&made, "id"));
        snapctl_as(user, "snapshot create data --name monday --wait", &lab).ok();
    }
    lab.snapctl()
        .run(["volume", "create", "data", "--size", "2M"])
        .ok();
    let list = snapctl_as(WEB, "volume list", &lab).success().text();
    assert_eq!(list.matches("data").count(), 1, "{list}");
    let list = admin(&lab, "volume list").text();
    assert_eq!(list.matches("data").count(), 3, "{list}");
    let list = admin(&lab, "volume list --owner db").text();
    assert!(
        list.contains(&ids[1]) || list.matches("data").count() == 1,
        "{list}"
    );

    // What is not theirs is answered like what is not there.
    let others = &ids[1];
    let absent = "vol-00000000000000000";
    for command in [
        "volume show ID",
        "volume delete ID",
        "volume attach ID",
        "volume detach ID",
        "volume resize ID 8M",
        "volume tag ID a=b",
        "volume clone ID --name copy",
        "snapshot create ID --name stolen",
    ] {
        let said = |id: &str| {
            let command = command.replace("ID", id);
            let said = snapctl_as(WEB, &command, &lab).fails(exit::NOT_FOUND);
            said.replace(id, "ID")
        };
        assert_eq!(said(others), said(absent), "{command}");
    }
    // The administrator names it by its id.
    admin(&lab, &format!("volume show {others}"));
    let show = admin(&lab, &format!("volume show {others} -o json")).text();
    assert!(show.contains("\"owner\""), "{show}");

    // What is the administrator's alone.
    for command in ["gc run", "status", "account list", "audit"] {
        let said = snapctl_as(WEB, command, &lab).fails(super::DENIED);
        assert!(said.contains("administrator"), "{command}: {said}");
    }

    // A volume that is given away is the other's.
    snapctl_as(DB, "volume create more --size 1M", &lab).ok();
    let more = snapctl_as(DB, "volume show more -o json", &lab).success();
    let more: serde_json::Value = serde_json::from_slice(&more.stdout).unwrap();
    let more = text(&more, "id");
    admin(&lab, &format!("account give web volume/{more}"));
    snapctl_as(WEB, "volume show more", &lab).ok();
    snapctl_as(DB, "volume show more", &lab).fails(exit::NOT_FOUND);
    let refused = lab.snapctl().run(["account", "delete", "web"]);
    assert!(refused.fails(exit::CONFLICT).contains("owns"));

    // Accounts act as they may at once, and after a restart.
    admin(&lab, "account set web --read-only");
    snapctl_as(WEB, "volume list", &lab).ok();
    let said = snapctl_as(WEB, "volume delete more", &lab).fails(super::DENIED);
    assert!(said.contains("read-only"), "{said}");
    let mut lab = lab;
    lab.varved.stop();
    lab.restart_with(super::open_to_all);
    admin(&lab, "account disable web");
    let said = snapctl_as(WEB, "volume list", &lab).fails(super::DENIED);
    assert!(said.contains("disabled"), "{said}");
    snapctl_as(DB, "snapshot verify monday", &lab).ok();
}

/// The exports that a user sees.
fn exports(user: u32, lab: &varve_tests::lab::Lab) -> Vec<String> {
    let uri = format!("nbd+unix:///?socket={}", lab.varved.nbd_socket().display());
    let info = as_user(user, &tool("nbdinfo"), &["--list", "--json", &uri], lab);
    if !info.status.success() {
        return vec![format!("refused: {}", info.text())];
    }
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let exports = info["exports"].as_array().unwrap().iter();
    exports.map(|export| text(export, "export-name")).collect()
}

#[test]
fn exports_follow_the_user_of_the_connection() {
    if !can_be_others() {
        return;
    }
    let lab = open_lab();
    account(&lab, "web --identity uid:30001");
    account(&lab, "db --identity uid:30002");
    let mut ids = Vec::new();
    for user in [WEB, DB] {
        let made = snapctl_as(user, "volume create data --size 1M -o json", &lab).success();
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        ids.push(text(&made, "id"));
        snapctl_as(user, "volume attach data", &lab).ok();
    }
    snapctl_as(WEB, "snapshot create data --name monday --wait", &lab).ok();
    assert_eq!(exports(WEB, &lab), ["snapshot/monday", "volume/data"]);
    assert_eq!(exports(DB, &lab), ["volume/data"]);
    let refused = exports(NOBODY, &lab);
    assert!(refused[0].starts_with("refused:"), "{refused:?}");

    let open = |user: u32, export: &str| {
        let socket = lab.varved.nbd_socket();
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
        let said = as_user(user, &tool("nbdinfo"), &["--size", &uri], &lab);
        (said.status.success(), said.text())
    };
    assert!(open(WEB, "volume/data").0 && open(DB, "volume/data").0);
    assert!(open(WEB, &format!("volume/{}", ids[0])).0);
    // Of another account, and of nobody: the same answer.
    let others = open(DB, &format!("volume/{}", ids[0]));
    let absent = open(DB, "volume/vol-00000000000000000");
    assert!(!others.0 && !absent.0);
    assert_eq!(
        others.1.replace(&ids[0], "ID"),
        absent.1.replace("vol-00000000000000000", "ID")
    );
    assert!(!open(DB, &format!("volume/{}@1", ids[0])).0);
    assert!(!open(DB, "snapshot/monday").0);
    assert!(!open(NOBODY, "volume/data").0);

    // The administrator opens all by their ids.
    let mut root = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    root.greet().unwrap();
    let by_name = root
        .ask_outcome(option::GO, &go_data("volume/data"))
        .unwrap();
    assert_eq!(by_name, option_reply::ERR_UNKNOWN, "it has no such volume");
    let export = go_data(&format!("volume/{}", ids[0]));
    let by_id = root.ask_outcome(option::GO, &export).unwrap();
    assert_eq!(by_id, option_reply::ACK);
}
