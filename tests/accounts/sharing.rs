//! Snapshots that are shared with other accounts.

use std::fs;

use varve_tests::{
    daemon::Options,
    lab::Lab,
    snapctl::{exit, text},
};

use super::{account, admin, token, with_token};

/// Runs `snapctl` with a token, and returns its JSON.
fn json(lab: &Lab, token: &std::path::Path, arguments: &str) -> serde_json::Value {
    let made = with_token(lab, token, &format!("{arguments} -o json")).success();
    serde_json::from_slice(&made.stdout).unwrap()
}

#[test]
fn a_shared_snapshot_is_read_and_cloned_by_its_id_and_nothing_else() {
    let lab = Lab::with(Options::tcp);
    let ids = ["web", "db", "ci"].map(|name| account(&lab, name));
    let [web, db, ci] = ["web", "db", "ci"].map(|name| token(&lab, name, name));
    let image = lab.scratch.join("disk.img");
    fs::write(&image, vec![7; 3 << 20]).unwrap();
    let import = format!("import {} --name base --tag k=secret", image.display());
    let made = json(&lab, &web, &import);
    let snapshot = text(&made["snapshot"], "id");

    // What others do not see is answered like what is not there.
    let absent = "snap-00000000000000000";
    let reads = [
        "snapshot show ID",
        "snapshot verify ID",
        "volume create mine --from ID",
        "volume clone ID --name clone",
        "snapshot diff ID ID",
    ];
    let changes = [
        "snapshot delete ID",
        "snapshot tag ID a=b",
        "snapshot share ID all",
        "snapshot unshare ID all",
    ];
    let refused = |token, command: &str| {
        let said = |id: &str| {
            let command = command.replace("ID", id);
            let said = with_token(&lab, token, &command).fails(exit::NOT_FOUND);
            said.replace(id, "ID")
        };
        assert_eq!(said(&snapshot), said(absent), "{command}");
    };
    for command in reads.iter().chain(&changes) {
        refused(&db, command);
    }

    // Accounts name each other by ids, which may be of nobody.
    let said = with_token(&lab, &web, "snapshot share base db").fails(exit::USAGE);
    assert!(said.contains("12 digits"), "{said}");
    let share = format!("snapshot share base {} 999999999999", ids[1]);
    let shared = json(&lab, &web, &share);
    assert_eq!(shared["shared_accounts"].as_array().unwrap().len(), 2);

    for command in reads {
        with_token(&lab, &db, &command.replace("ID", &snapshot)).ok();
    }
    for command in changes {
        refused(&db, command);
    }
    refused(&ci, reads[0]);
    // A name is one of the account's own.
    with_token(&lab, &db, "snapshot show base").fails(exit::NOT_FOUND);
    let copy = lab.scratch.join("copy.img");
    let export = format!("export {snapshot} {}", copy.display());
    with_token(&lab, &db, &export).ok();
    assert!(fs::read(&copy).unwrap() == fs::read(&image).unwrap());

    // Readers see the content, and not how the owner keeps it.
    let seen = json(&lab, &db, &format!("snapshot show {snapshot}"));
    assert_eq!(seen["owner"], ids[0]);
    assert_eq!(seen["shared_accounts"], serde_json::json!([]));
    assert_eq!(seen["tags"], serde_json::json!({}));
    let listed = |token, owner: &str| {
        let all = json(&lab, token, &format!("snapshot list --owner {owner}"));
        let all = all["snapshots"].as_array().unwrap();
        all.iter().map(|it| text(it, "id")).collect::<Vec<_>>()
    };
    let one = std::slice::from_ref(&snapshot);
    assert_eq!(listed(&db, "all"), one);
    assert_eq!(listed(&db, &ids[0]), one);
    assert!(listed(&db, "self").is_empty() && listed(&ci, "all").is_empty());
    // Nobody learns of an account by asking for its snapshots.
    assert!(listed(&db, &ids[2]).is_empty() && listed(&db, "123456789012").is_empty());
    let tagged = json(&lab, &db, "snapshot list --tag k=secret");
    assert_eq!(tagged["snapshots"], serde_json::json!([]));

    // Everybody, by the administrator, who knows names.
    admin(&lab, &format!("snapshot share {snapshot} all ci"));
    assert_eq!(listed(&ci, "all"), one);
    // What was made stays when the sharing ends.
    let unshare = format!("snapshot unshare base all {} {}", ids[1], ids[2]);
    let left = json(&lab, &web, &unshare);
    assert_eq!(left["shared_accounts"], serde_json::json!(["999999999999"]));
    for command in reads {
        refused(&db, command);
    }
    with_token(&lab, &db, "volume show mine").ok();
    let copies = json(&lab, &db, "volume list");
    assert_eq!(copies["volumes"].as_array().unwrap().len(), 2);

    let log = admin(&lab, "audit --action ShareSnapshot -o json").text();
    assert!(log.contains(&ids[1]) && log.contains(&snapshot), "{log}");
}
