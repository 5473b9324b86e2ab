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
    process::{command, run, wait_for},
    programs,
    random::Random,
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
    let full = "the quota of volumes of account \"web\": limit 2, used 2, left 0, needed 1";
    exceeds(&lab, &web, "volume create c --size 1M", full);
    exceeds(&lab, &web, "volume clone volume/a --name c", full);
    web_does(&lab, "volume attach a");
    let attached = "the quota of attached volumes of account \"web\": limit 1, used 1, left 0";
    exceeds(&lab, &web, "volume attach b", attached);
    // A takeover attaches no more than before.
    web_does(&lab, "volume attach a --force");
    web_does(&lab, "snapshot create a --name one --wait");
    // Both or none.
    let two = "limit 2, used 1, left 1, needed 2";
    exceeds(&lab, &web, "snapshot create a b --name both", two);
    web_does(&lab, "snapshot create b --name two --wait");

    // What is given counts for the receiver.
    admin(&lab, "volume create gift --size 1M");
    admin(&lab, "snapshot create gift --name gift --wait");
    for (gift, says) in [("volume/gift", full), ("snapshot/gift", "limit 2, used 2")] {
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
        "images": { "limit": null, "used": 0 },
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
        "limit 1, used 4, left 0",
    );
    for name in ["a", "c", "gift"] {
        web_does(&lab, &format!("volume delete {name}"));
    }
    exceeds(&lab, &web, "volume create d --size 1M", "limit 1, used 1");
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
    let says = "the quota of uploads of account \"admin\": limit 0, used 0, left 0";
    assert!(said.contains(says), "{said}");
    admin(
        &lab,
        "account set admin --quota uploads=1 --quota snapshots=1",
    );
    lab.snapctl().run(&import).ok();
    // Refused before anything is sent.
    let more = varve_tests::snapctl::import_arguments(&image, "more");
    let said = lab.snapctl().run(&more).fails(exit::OUT_OF_SPACE);
    assert!(said.contains("the quota of snapshots"), "{said}");
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
        "the quota of uploads of account \"web\"",
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
    let says = "the quota of requests per second of account \"web\": limit 2, left 0";
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

/// What a guest writes counts once it is in the store, and what is deleted makes room again.
#[test]
fn stored_bytes_have_a_quota_of_which_a_guest_hears_that_its_disk_is_full() {
    const NO_SPACE: u32 = 28;
    let lab = lab();
    account(&lab, "web");
    let web = token(&lab, "web.token", "web");
    let mut random = Random::of_test("stored bytes");
    let mut noise = |len: usize| {
        let mut bytes = vec![0; len];
        random.fill(&mut bytes);
        bytes
    };
    let image = lab.scratch.file("image", noise(3 << 20));
    let import = |name: &str| format!("import {} --name {name}", image.display());
    admin(&lab, "account set web --quota stored-bytes=4M");
    with_token(&lab, &web, &import("first")).ok();
    let used = |lab: &Lab| {
        let web = lab.snapctl().json(["account", "show", "web"]);
        web["quotas"]["stored_bytes"].clone()
    };
    // With a leaf.
    let is = json!({ "limit": 4 << 20, "used": (3 << 20) + 4096 });
    wait_for("a count", || (used(&lab) == is).then_some(()));
    let shown = admin(&lab, "account show web").text();
    assert!(shown.contains("3.0 MiB of 4.0 MiB stored"), "{shown}");

    // It does not know that it has this already, and leaves nothing behind.
    let says = "the quota of stored bytes of account \"web\": limit 4194304, used ";
    exceeds(&lab, &web, &import("again"), says);
    wait_for("the upload's end", || (used(&lab) == is).then_some(()));
    let similar = import("again") + " --similar-to first";
    with_token(&lab, &web, &similar).ok();

    // A guest may write in place as long as it likes, and no more than is left.
    let made = with_token(&lab, &web, "volume create data --size 8M --output json");
    let made: serde_json::Value = serde_json::from_str(&made.success().text()).unwrap();
    let volume = made["id"].as_str().unwrap();
    with_token(&lab, &web, "volume attach data").ok();
    let mut guest = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    guest.open(&format!("volume/{volume}")).unwrap();
    for _ in 0..40 {
        let block = noise(512 << 10);
        assert_eq!(guest.write(0, &block).unwrap(), 0);
    }
    let mut slots = (0..4).cycle();
    wait_for("a full disk", || {
        let offset = (1 << 20) + slots.next()? * (512 << 10);
        let outcome = guest.write(offset, &noise(512 << 10)).unwrap();
        (outcome == NO_SPACE).then_some(())
    });
    assert_eq!(guest.read_bytes(7 << 20, 4096).unwrap().unwrap(), [0; 4096]);
    exceeds(&lab, &web, &import("more"), says);
    exceeds(&lab, &web, "volume clone snapshot/first --name more", says);
    with_token(&lab, &web, "snapshot delete first again").ok();
    wait_for("room", || {
        let outcome = guest.write(0, &[7; 4096]).unwrap();
        (outcome == 0).then_some(())
    });
    admin(&lab, "account set web --quota stored-bytes=0");
    assert_eq!(guest.write(0, &[7; 4096]).unwrap(), NO_SPACE);
    admin(&lab, "account set web --quota stored-bytes=none");
    assert_eq!(guest.write(0, &[7; 4096]).unwrap(), 0);
}
