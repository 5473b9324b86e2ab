//! Quotas of accounts, as users meet them.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tonic::{Code, Request, Status, client::Grpc, metadata::MetadataValue, transport::Endpoint};
use varve_store::format::names;
use varve_tests::{
    daemon::Options,
    lab::Lab,
    nbd::Peer,
    process::{command, run},
    programs,
    snapctl::exit,
};

use super::{account, admin, table::Raw, token, with_token};

fn lab() -> Lab {
    Lab::with(Options::tcp)
}

/// Runs `snapctl` with a token, which the daemon refuses because a quota is used up.
fn exceeds(lab: &Lab, token: &Path, arguments: &str, says: &str) {
    let said = with_token(lab, token, arguments).fails(exit::OUT_OF_SPACE);
    assert!(said.contains(says), "{arguments}: {said}");
}

#[test]
fn each_quota_of_records_refuses_what_is_too_much_and_says_what_is_left() {
    let mut lab = lab();
    account(&lab, "web");
    let web = token(&lab, "web.token", "web");
    admin(
        &lab,
        "account set web --quota volumes=2 --quota snapshots=2 --quota attached-volumes=1",
    );
    let web_does = |lab: &Lab, arguments: &str| with_token(lab, &web, arguments).ok();
    for name in ["a", "b"] {
        web_does(&lab, &format!("volume create {name} --size 1M"));
    }
    let full = "account \"web\" has a quota of 2 volumes: 2 are in use, 0 are left, and 1 more";
    exceeds(&lab, &web, "volume create c --size 1M", full);
    exceeds(&lab, &web, "volume clone volume/a --name c", full);
    web_does(&lab, "volume attach a");
    let attached = "a quota of 1 attached volumes: 1 are in use, 0 are left";
    exceeds(&lab, &web, "volume attach b", attached);
    // A takeover attaches no more than before.
    web_does(&lab, "volume attach a --force");
    web_does(&lab, "snapshot create a --name one --wait");
    // Both or none.
    let two = "a quota of 2 snapshots: 1 are in use, 1 are left, and 2 more are needed";
    exceeds(&lab, &web, "snapshot create a b --name both", two);
    web_does(&lab, "snapshot create b --name two --wait");

    // What is given counts for the receiver.
    admin(&lab, "volume create gift --size 1M");
    admin(&lab, "snapshot create gift --name gift --wait");
    for (gift, says) in [("volume/gift", full), ("snapshot/gift", "2 snapshots")] {
        let give = ["account", "give", "web", gift];
        let said = lab.snapctl().run(give).fails(exit::OUT_OF_SPACE);
        assert!(said.contains(says), "{said}");
    }

    let used = |lab: &Lab| lab.snapctl().json(["account", "show", "web"])["quotas"].clone();
    let all = json!({
        "volumes": { "limit": 2, "used": 2 },
        "snapshots": { "limit": 2, "used": 2 },
        "attached_volumes": { "limit": 1, "used": 1 },
        "uploads": { "limit": null, "used": 0 },
    });
    assert_eq!(used(&lab), all);
    let me = with_token(&lab, &web, "whoami").success().text();
    assert!(me.contains("2 of 2 snapshots"), "{me}");

    // After a restart, and after a rebuild of the index.
    for rebuilds in [false, true] {
        lab.varved.stop();
        if rebuilds {
            fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
            let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
            rebuild.arg(lab.data_dir());
            run(rebuild).ok();
        }
        lab.restart_with(Options::tcp);
        assert_eq!(used(&lab), all);
        exceeds(&lab, &web, "volume create c --size 1M", full);
    }

    // What is deleted makes room, and so does a higher limit.
    web_does(&lab, "snapshot delete one");
    web_does(&lab, "snapshot create a --name three --wait");
    web_does(&lab, "volume detach a");
    web_does(&lab, "volume attach b");
    admin(
        &lab,
        "account set web --quota volumes=none --quota snapshots=5",
    );
    web_does(&lab, "volume create c --size 1M");
    admin(&lab, "account give web volume/gift snapshot/gift");
    // A limit below what is there takes nothing away.
    admin(&lab, "account set web --quota volumes=1");
    exceeds(
        &lab,
        &web,
        "volume create d --size 1M",
        "4 are in use, 0 are left",
    );
    for name in ["a", "c", "gift"] {
        web_does(&lab, &format!("volume delete {name}"));
    }
    exceeds(&lab, &web, "volume create d --size 1M", "1 are in use");
}

#[test]
fn of_many_callers_at_once_as_many_as_fit_get_a_place() {
    const CALLERS: usize = 12;
    let lab = lab();
    account(&lab, "web");
    let web = token(&lab, "web.token", "web");
    admin(&lab, "account set web --quota volumes=5");
    let made = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|number| {
                let (lab, web) = (&lab, &web);
                let create = format!("volume create v{number} --size 1M");
                scope.spawn(move || with_token(lab, web, &create).status.success())
            })
            .collect();
        let made = callers.into_iter().map(|caller| caller.join().unwrap());
        made.filter(|made| *made).count()
    });
    assert_eq!(made, 5);
    let list = lab.snapctl().json(["volume", "list", "--owner", "web"]);
    assert_eq!(list["volumes"].as_array().unwrap().len(), 5, "{list}");
}

#[test]
fn uploads_under_way_have_a_quota() {
    let lab = lab();
    let image = lab.image("image", 1 << 20, 1);
    admin(&lab, "account set admin --quota uploads=0");
    let import = varve_tests::snapctl::import_arguments(&image, "image");
    let said = lab.snapctl().run(&import).fails(exit::OUT_OF_SPACE);
    let says = "account \"admin\" has a quota of 0 uploads: 0 are in use, 0 are left";
    assert!(said.contains(says), "{said}");
    admin(
        &lab,
        "account set admin --quota uploads=1 --quota snapshots=1",
    );
    lab.snapctl().run(&import).ok();
    // Refused before anything is sent.
    let more = varve_tests::snapctl::import_arguments(&image, "more");
    let said = lab.snapctl().run(&more).fails(exit::OUT_OF_SPACE);
    assert!(said.contains("a quota of 1 snapshots"), "{said}");
    // The quotas of one account are no matter of another.
    account(&lab, "web");
    let web = token(&lab, "web.token", "web");
    let import = format!("import {} --name image", image.display());
    with_token(&lab, &web, &import).ok();
    admin(&lab, "account set web --quota uploads=0");
    let import = format!("import {} --name more", image.display());
    exceeds(
        &lab,
        &web,
        &import,
        "account \"web\" has a quota of 0 uploads",
    );
}

/// A caller that does not try again by itself.
struct Impatient {
    grpc: Grpc<tonic::transport::Channel>,
    bearer: MetadataValue<tonic::metadata::Ascii>,
}

impl Impatient {
    async fn new(lab: &Lab, token: &Path) -> Self {
        let secret = fs::read_to_string(token).unwrap();
        let endpoint = Endpoint::new(lab.varved.tcp_endpoint()).unwrap();
        Self {
            grpc: Grpc::new(endpoint.connect().await.unwrap()),
            bearer: MetadataValue::try_from(format!("Bearer {}", secret.trim())).unwrap(),
        }
    }

    async fn call(&mut self, method: &str) -> Result<(), Status> {
        self.grpc.ready().await.unwrap();
        let mut request = Request::new(Vec::new());
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.bearer.clone());
        let path = format!("/varve.v1.{method}").parse().unwrap();
        self.grpc.unary(request, path, Raw).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_per_second_have_a_quota_that_says_when_to_come_back() {
    let lab = lab();
    account(&lab, "web");
    account(&lab, "db");
    let (web, db) = (
        token(&lab, "web.token", "web"),
        token(&lab, "db.token", "db"),
    );
    let said = lab
        .snapctl()
        .run(["account", "set", "web", "--quota", "requests-per-second=0"])
        .fails(exit::USAGE);
    assert!(said.contains("at least 1"), "{said}");
    admin(&lab, "account set web --quota requests-per-second=2");
    let mut caller = Impatient::new(&lab, &web).await;
    let mut other = Impatient::new(&lab, &db).await;
    let begun = Instant::now();
    let (mut served, mut refused) = (0, Vec::new());
    for _ in 0..40 {
        match caller.call("VolumeService/ListVolumes").await {
            Ok(()) => served += 1,
            Err(status) => refused.push(status),
        }
    }
    // Ten at once, and two a second.
    let most = 10 + 2 * (1 + begun.elapsed().as_secs());
    assert!(
        (10..=most).contains(&served),
        "{served} in {:?}",
        begun.elapsed()
    );
    let status = refused.last().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let says = "account \"web\" has a quota of 2 requests per second, and none are left";
    assert!(status.message().contains(says), "{status}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
    let pushback: u64 = pushback.to_str().unwrap().parse().unwrap();
    assert!((1..=500).contains(&pushback), "{pushback} ms");
    // Others, the question who one is, and what takes away go on.
    other.call("VolumeService/ListVolumes").await.unwrap();
    for _ in 0..20 {
        caller.call("AccountService/WhoAmI").await.unwrap();
    }
    let status = caller.call("VolumeService/DeleteVolume").await.unwrap_err();
    assert_ne!(status.code(), Code::ResourceExhausted, "{status}");
    tokio::time::sleep(Duration::from_millis(pushback + 50)).await;
    caller.call("VolumeService/ListVolumes").await.unwrap();
    // `snapctl` comes back by itself.
    let list = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            with_token(&lab, &web, "volume list").ok();
        }
    });
    list.await.unwrap();
}

/// A guest's disk is no matter of its account's requests.
#[test]
fn what_an_nbd_client_reads_and_writes_is_no_request() {
    let lab = lab();
    lab.snapctl()
        .run(["volume", "create", "data", "--size", "1M"])
        .ok();
    admin(&lab, "volume attach data");
    admin(&lab, "account set admin --quota requests-per-second=1");
    let begun = Instant::now();
    for round in 0..20 {
        let mut guest = Peer::unix(&lab.varved.nbd_socket()).unwrap();
        guest.open("volume/data").unwrap();
        for _ in 0..20 {
            assert_eq!(guest.write(0, &[round; 4096]).unwrap(), 0);
            assert_eq!(guest.read_bytes(0, 4096).unwrap().unwrap(), [round; 4096]);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
}
