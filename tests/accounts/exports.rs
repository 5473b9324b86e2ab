//! The table of exports in `docs/permissions.md`, against a running daemon: every kind of name, as
//! each kind of caller.

use std::{collections::BTreeMap, fs};

use varve_tests::{
    lab::Lab,
    programs::{repository, tool},
    snapctl::text,
};

use super::{account, admin, as_user, can_be_others, open_lab, snapctl_as, tickets};

const ROOT: u32 = 0;

/// What an account owns, by the ways to name it.
struct Things {
    volume: String,
    snapshot: String,
    image: String,
    ticketed: String,
}

/// The things of an account: a volume `data`, attached with a ticket, its snapshot `monday`, and an
/// image `web` of that.
fn things(lab: &Lab, user: u32) -> Things {
    snapctl_as(user, "volume create data --size 1M", lab).ok();
    snapctl_as(user, "snapshot create data --name monday --wait", lab).ok();
    let register = "image register --name web --block-device sda=snapshot:monday";
    snapctl_as(user, register, lab).ok();
    let id = |arguments: &str| {
        let shown = snapctl_as(user, arguments, lab).success();
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        text(&shown, "id")
    };
    let volume = id("volume show data -o json");
    Things {
        ticketed: tickets::attach(lab, &volume).export,
        snapshot: id("snapshot show monday -o json"),
        image: id("image show web -o json"),
        volume,
    }
}

impl Things {
    fn export(&self, row: &str) -> String {
        match row {
            "image/NAME" => "image/web".to_owned(),
            "image/ID" => format!("image/{}", self.image),
            "image/ID/DEVICE" => format!("image/{}/sda", self.image),
            "snapshot/NAME" => "snapshot/monday".to_owned(),
            "snapshot/ID" => format!("snapshot/{}", self.snapshot),
            "volume/NAME" => "volume/data".to_owned(),
            "volume/ID" => format!("volume/{}", self.volume),
            "volume/ID@NUMBER" => format!("volume/{}@1", self.volume),
            "volume/ID@NUMBER:TICKET" => self.ticketed.clone(),
            other => panic!("{other:?} is no kind of name"),
        }
    }
}

/// The names that a user gets from the option LIST. `None`: it is refused.
fn list(user: u32, lab: &Lab) -> Option<String> {
    let socket = lab.varved.nbd_socket();
    let script = format!(
        "h.set_opt_mode(True)\n\
         h.connect_unix({:?})\n\
         names = []\n\
         h.opt_list(lambda name, _: names.append(name))\n\
         h.opt_abort()\n\
         print(names)",
        socket.display().to_string()
    );
    // libnbd's module is only in the system's python.
    let path = "PATH=/usr/bin:/bin";
    let listed = as_user(user, &tool("env"), &[path, "nbdsh", "-c", &script], lab);
    let names = String::from_utf8_lossy(&listed.stdout);
    listed.status.success().then(|| names.trim().to_owned())
}

/// The cells of each row, by the headings of their columns.
fn rows(document: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let (_, section) = document.split_once("## Exports").unwrap();
    let mut lines = section.lines().filter(|line| line.starts_with('|'));
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim_matches('|').split('|');
        line.map(|cell| cell.trim().to_owned()).collect()
    };
    let headings = cells(lines.next().unwrap());
    let rows = lines.skip(1).map(|line| {
        let mut cells = cells(line).into_iter();
        let name = cells.next().unwrap();
        (name, headings[1..].iter().cloned().zip(cells).collect())
    });
    rows.collect()
}

#[test]
fn every_export_is_opened_by_whom_the_table_says() {
    if !can_be_others() {
        return;
    }
    let document = fs::read_to_string(repository().join("docs/permissions.md")).unwrap();
    let lab = open_lab();
    let accounts = [("web", 30_001), ("reader", 30_002), ("other", 30_003)];
    for (name, user) in accounts {
        account(&lab, &format!("{name} --identity uid:{user}"));
    }
    let mut owned = BTreeMap::new();
    for (kind, user) in [
        ("administrator", ROOT),
        ("account", 30_001),
        ("read-only account", 30_002),
        ("other", 30_003),
    ] {
        owned.insert(kind, things(&lab, user));
    }
    admin(&lab, "account set reader --read-only");
    let others = &owned["other"];
    let socket = lab.varved.nbd_socket();
    let opens = |user: u32, export: &str| {
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
        let size = as_user(user, &tool("nbdinfo"), &["--size", &uri], &lab);
        size.status.success()
    };
    let mut seen = 0;
    for (name, cells) in rows(&document) {
        for (kind, user) in [
            ("administrator", ROOT),
            ("account", 30_001),
            ("read-only account", 30_002),
            ("nobody", 30_004),
        ] {
            let cell = &*cells[kind];
            let own = owned.get(kind);
            seen += 1;
            if name == "the list of exports" {
                let list = list(user, &lab);
                let expected = match cell {
                    "own" => Some("['image/web', 'snapshot/monday', 'volume/data']".to_owned()),
                    "no" => None,
                    other => panic!("{name}: {other:?} is no cell"),
                };
                assert_eq!(list, expected, "{name} as {kind}");
                continue;
            }
            for name in name.split(", ").map(|name| name.trim_matches('`')) {
                let [is_own, is_other] = match cell {
                    "yes" | "all" => [true, true],
                    // Nothing is shared here: `sharing` has tests of that.
                    "own" | "own, shared" => [true, false],
                    "no" => [false, false],
                    other => panic!("{name}: {other:?} is no cell"),
                };
                // The tickets of a read-only account are not valid.
                let is_own = is_own && !(name.ends_with("TICKET") && kind.starts_with("read"));
                if let Some(own) = own {
                    let is_open = opens(user, &own.export(name));
                    assert_eq!(is_open, is_own, "{name} as {kind}: its own");
                }
                // The name of a thing of another account is one of the caller's own things.
                if !name.ends_with("NAME") || own.is_none() {
                    let is_open = opens(user, &others.export(name));
                    assert_eq!(is_open, is_other, "{name} as {kind}: of another");
                }
            }
        }
    }
    assert_eq!(seen, 8 * 4, "the table has this many cells");
}
