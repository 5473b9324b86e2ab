//! Attach tickets: a host of a guest opens one export, and nothing else.

use std::{
    fs::{self, Permissions},
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use varve_tests::{
    daemon::Options,
    identity::Identity,
    lab::Lab,
    nbd::{Peer, go_data, option, option_reply},
    process::{Finished, command, run, wait_for},
    programs::tool,
    scratch::Scratch,
    snapctl::{exit, text},
};

use super::{account, admin, as_user, audit::files, can_be_others, open_lab, snapctl_as};

const WEB: u32 = 30_001;
const NOBODY: u32 = 30_003;

/// A volume that is attached with a ticket.
pub(super) struct Ticketed {
    pub(super) id: String,
    /// The name of its export.
    pub(super) export: String,
    /// The URI of its export on the unix socket.
    pub(super) uri: String,
}

impl Ticketed {
    /// What nobody else may learn.
    fn secret(&self) -> &str {
        self.export.rsplit_once('_').unwrap().1
    }
}

/// Attaches a volume with a ticket, as the administrator.
pub(super) fn attach(lab: &Lab, volume: &str) -> Ticketed {
    let attach = ["volume", "attach", "--force", "--ticket", volume];
    let attached = lab.snapctl().json(attach);
    Ticketed {
        id: text(&attached["volume"], "id"),
        export: text(&attached, "export"),
        uri: attached["nbd_uris"][0].as_str().unwrap().to_owned(),
    }
}

/// A daemon with an account `web`, whose volume `data` is attached with a ticket.
fn ticketed(options: impl FnOnce(Options) -> Options) -> (Lab, Ticketed) {
    let lab = Lab::with(options);
    account(&lab, "web");
    let made = lab
        .snapctl()
        .json("volume create data --size 1M".split(' '));
    let id = text(&made, "id");
    admin(&lab, &format!("account give web volume/{id}"));
    let ticketed = attach(&lab, &id);
    (lab, ticketed)
}

/// Asks for an export as a client over TCP that no account knows. Returns the answer of the option:
/// its type and its text.
fn asked(lab: &Lab, option: u32, export: &str) -> (u32, String) {
    let mut client = Peer::tcp(lab.varved.nbd_address()).unwrap();
    client.greet().unwrap();
    let replies = client.ask(option, &go_data(export)).unwrap();
    let (outcome, said) = replies.last().unwrap();
    (*outcome, String::from_utf8_lossy(said).into_owned())
}

fn is_open_to_nobody(lab: &Lab, export: &str) -> bool {
    asked(lab, option::GO, export).0 == option_reply::ACK
}

#[test]
fn a_host_reads_and_writes_its_export_and_sees_no_other() {
    if !can_be_others() {
        return;
    }
    let lab = open_lab();
    account(&lab, "web --identity uid:30001");
    snapctl_as(WEB, "volume create data --size 1M", &lab).ok();
    snapctl_as(WEB, "volume create other --size 1M", &lab).ok();
    snapctl_as(WEB, "volume attach other", &lab).ok();
    snapctl_as(WEB, "snapshot create data --name monday --wait", &lab).ok();
    let said = snapctl_as(WEB, "volume attach data --ticket -o json", &lab).success();
    let attached: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let (id, export) = (text(&attached["volume"], "id"), text(&attached, "export"));
    assert!(export.starts_with(&format!("volume/{id}@1:varve_ticket_")));
    let uri = attached["nbd_uris"][0].as_str().unwrap();
    assert!(!said.stderr.contains(&export), "{said:?}");

    let socket = lab.varved.nbd_socket();
    let on_socket = |export: &str| format!("nbd+unix:///{export}?socket={}", socket.display());
    assert_eq!(uri, on_socket(&export));
    let by = |program: &str, arguments: &[&str]| as_user(NOBODY, &tool(program), arguments, &lab);
    by("nbdinfo", &["--size", uri]).ok();
    // What it says of the export has no name but that.
    let info = by("nbdinfo", &[uri]).success().text();
    assert!(
        !info.contains("volume/data") && info.contains("base:allocation"),
        "{info}"
    );
    by("nbdinfo", &["--map", uri]).ok();
    by("qemu-img", &["info", "-f", "raw", uri]).ok();
    let write = ["-f", "raw", "-c", "write -P 0x5a 4k 8k", "-c", "flush", uri];
    by("qemu-io", &write).ok();
    let read = by("qemu-io", &["-f", "raw", "-c", "read -P 0x5a 4k 8k", uri]);
    assert!(!read.success().text().contains("failed"));

    // Nothing else, with the ticket or without it.
    for export in [
        "volume/data".to_owned(),
        "volume/other".to_owned(),
        "snapshot/monday".to_owned(),
        format!("volume/{id}"),
        format!("volume/{id}@1"),
        export.replace("volume/", "snapshot/"),
        export.replace(&id, "other"),
    ] {
        let refused = by("nbdinfo", &["--size", &on_socket(&export)]);
        assert!(!refused.status.success(), "{export}");
    }
    let list = by("nbdinfo", &["--list", &on_socket("")]);
    assert!(!list.status.success(), "{list:?}");
    snapctl_as(NOBODY, "volume list", &lab).fails(super::DENIED);
    // Neither does it see snapshots in metadata contexts.
    let map = by("nbdinfo", &["--map=qemu:dirty-bitmap:monday", uri]);
    assert!(!map.status.success(), "{map:?}");

    // It ends with the attachment.
    snapctl_as(WEB, "volume detach data", &lab).ok();
    assert!(!by("nbdinfo", &["--size", uri]).status.success());
    snapctl_as(WEB, "volume attach data", &lab).ok();
    assert!(!by("nbdinfo", &["--size", uri]).status.success());
}

#[test]
fn whatever_is_wrong_with_a_ticket_the_answer_is_that_of_a_name_that_is_not_there() {
    let (lab, data) = ticketed(|options| options.tcp().env("VARVE_LOG", "debug"));
    admin(&lab, "volume create mine --size 1M");
    let mine = attach(&lab, "mine");
    for right in [&data, &mine] {
        assert!(is_open_to_nobody(&lab, &right.export));
        assert_eq!(
            asked(&lab, option::INFO, &right.export).0,
            option_reply::ACK
        );
    }
    let old = data;
    let data = attach(&lab, &old.id);
    assert!(data.export.contains("@2:"), "{}", data.export);
    let absent = "vol-00000000000000000";
    let (head, _) = data.export.split_at(data.export.len() - 1);
    let (before, _) = mine.export.rsplit_once(':').unwrap();
    let (_, ticket) = data.export.rsplit_once(':').unwrap();
    let wrong = [
        data.export.replace(&data.id, absent),
        old.export.clone(),
        head.to_owned(),
        format!("{}0", data.export),
        format!("{before}:{ticket}"),
        data.export.replace(data.secret(), &"0".repeat(64)),
        data.export
            .replace(data.secret(), &data.secret().to_uppercase()),
        data.export.replace("@2", "@1"),
    ];
    let about = |export: &str, option: u32| {
        let (outcome, said) = asked(&lab, option, export);
        let shown = export.rsplit_once('_').unwrap().0;
        (outcome, said.replace(shown, "NAME"))
    };
    let expected = about(&wrong[0], option::GO);
    assert_eq!(expected.0, option_reply::ERR_UNKNOWN, "{expected:?}");
    assert!(expected.1.contains("NAME_..."), "{expected:?}");
    assert_eq!(about(&wrong[1], option::GO), expected);
    assert_eq!(about(&wrong[2], option::INFO), expected);
    assert_eq!(about(&wrong[3], option::GO), expected);
    // Each answer is slower than the one before. As the administrator, they begin anew.
    for export in &wrong[4..] {
        let mut root = Peer::unix(&lab.varved.nbd_socket()).unwrap();
        root.greet().unwrap();
        let outcome = root.ask_outcome(option::INFO, &go_data(export)).unwrap();
        assert_eq!(outcome, option_reply::ERR_UNKNOWN, "{export}");
        if export == wrong.last().unwrap() {
            // The handshake goes on.
            let right = root.ask_outcome(option::GO, &go_data(&data.export));
            assert_eq!(right.unwrap(), option_reply::ACK);
        }
    }
    // A right one does not wait for them.
    assert!(is_open_to_nobody(&lab, &data.export));

    // The oldest way to open an export, which has no errors.
    let mut client = Peer::tcp(lab.varved.nbd_address()).unwrap();
    client.greet().unwrap();
    client
        .send_option(option::EXPORT_NAME, data.export.as_bytes())
        .unwrap();
    let size = client.receive(8).unwrap();
    assert_eq!(size, (1_u64 << 20).to_be_bytes());
    let mut client = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    client.greet().unwrap();
    client
        .send_option(option::EXPORT_NAME, wrong[2].as_bytes())
        .unwrap();
    client.receive_until_closed();
    // A name that is too long, with a ticket in it.
    let long = format!("{}{}", data.export, "0".repeat(5000));
    assert_eq!(asked(&lab, option::GO, &long).0, option_reply::ERR_TOO_BIG);
    // The list is for accounts.
    let mut client = Peer::tcp(lab.varved.nbd_address()).unwrap();
    client.greet().unwrap();
    let listed = client.ask_outcome(option::LIST, b"").unwrap();
    assert_eq!(listed, option_reply::ERR_POLICY);
    let ticketed = client.ask_outcome(option::GO, &go_data(&data.export));
    assert_eq!(ticketed.unwrap(), option_reply::ACK);

    // Where a ticket does not belong, it is not repeated either.
    for wrong in [&data.export, &data.export.to_uppercase()] {
        lab.snapctl()
            .run(["volume", "detach", wrong])
            .fails(exit::NOT_FOUND);
    }
    is_told_nowhere(lab, &[&old, &data, &mine]);
}

/// Searches the log and the files of a daemon for tickets, and the audit log for their uses.
fn is_told_nowhere(mut lab: Lab, tickets: &[&Ticketed]) {
    let opened = wait_for("the refusals", || {
        let all = lab.snapctl().json(["audit"]);
        let events = all["events"].as_array().unwrap().clone();
        let is_refused = |event: &serde_json::Value| {
            let of_ticket = event["message"].as_str().unwrap_or_default();
            of_ticket.contains("ticket is not valid")
        };
        events.iter().any(is_refused).then_some(events)
    });
    let web = opened.iter().find(|event| {
        text(event, "action") == "OpenVolumeExport"
            && text(event, "result") == "ok"
            && text(event, "resources").contains(&tickets[0].id)
    });
    let web = web.unwrap();
    assert_eq!(text(web, "identity"), "ticket");
    assert_ne!(text(web, "account"), "000000000000");
    let status = admin(&lab, "status").text();
    lab.varved.stop();
    let log = lab.varved.log();
    assert!(
        log.contains("varve_ticket_..."),
        "the log tells of refusals"
    );
    let places = files(&lab.data_dir());
    for secret in tickets.iter().map(|it| it.secret()) {
        // Also a part of it.
        let half = &secret[..32];
        assert!(!log.to_lowercase().contains(half) && !status.contains(half));
        let bytes = half.as_bytes();
        for file in &places {
            let content = fs::read(file).unwrap().to_ascii_lowercase();
            let is_told = content.windows(bytes.len()).any(|it| it == bytes);
            assert!(!is_told, "{}", file.display());
        }
    }
}

#[test]
fn a_ticket_acts_for_the_owner_and_outlives_the_daemon() {
    let (mut lab, data) = ticketed(Options::tcp);
    assert!(is_open_to_nobody(&lab, &data.export));
    lab.varved.kill();
    lab.restart_with(Options::tcp);
    assert!(is_open_to_nobody(&lab, &data.export));
    lab.varved.stop();
    lab.restart_with(Options::tcp);
    for state in ["disable web", "set web --read-only"] {
        admin(&lab, &format!("account {state}"));
        let refused = asked(&lab, option::GO, &data.export);
        assert_eq!(refused.0, option_reply::ERR_UNKNOWN, "{refused:?}");
        assert!(!refused.1.contains("web"), "{refused:?}");
        admin(&lab, "account enable web");
        assert!(is_open_to_nobody(&lab, &data.export));
    }
    // Another key knows no ticket.
    lab.varved.stop();
    fs::remove_file(lab.data_dir().join("auth.key")).unwrap();
    lab.restart_with(Options::tcp);
    assert!(!is_open_to_nobody(&lab, &data.export));
    let data = attach(&lab, &data.id);
    assert!(is_open_to_nobody(&lab, &data.export));

    admin(&lab, &format!("volume detach {}", data.id));
    admin(&lab, &format!("account give admin volume/{}", data.id));
    assert!(!is_open_to_nobody(&lab, &data.export));
    assert!(is_open_to_nobody(&lab, &attach(&lab, &data.id).export));
}

#[test]
fn without_accounts_there_are_no_tickets() {
    let lab = Lab::new();
    admin(&lab, "volume create data --size 1M");
    let refused = lab.snapctl().run(["volume", "attach", "data", "--ticket"]);
    let refused = refused.fails(exit::CONFLICT);
    assert!(refused.contains("no accounts"), "{refused}");
    let shown = admin(&lab, "volume show data -o json").text();
    assert!(shown.contains("\"attached_at\": null"), "{shown}");
    assert!(!lab.data_dir().join("auth.key").exists());
}

#[test]
fn snapctl_keeps_a_ticket_in_a_file() {
    let (lab, data) = ticketed(|options| options);
    let file = lab.scratch.join("data.ticket");
    let attach = ["volume", "attach", "--force", "--ticket", &data.id];
    let attach = attach.into_iter().map(Path::new);
    let attach = attach.chain([Path::new("--output-file"), &file]);
    let said = lab.snapctl().run(attach).success();
    let kept = fs::read_to_string(&file).unwrap();
    let kept = kept.trim_end();
    assert!(kept.starts_with(&format!("volume/{}@2:varve_ticket_", data.id)));
    let secret = kept.rsplit_once('_').unwrap().1;
    let all = format!("{}{}", said.text(), said.stderr);
    assert!(
        !all.contains(secret) && all.contains("nbd+unix:///?socket="),
        "{all}"
    );
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);

    let map = |arguments: &[&str]| {
        let server = format!("nbd+unix:///?socket={}", lab.varved.nbd_socket().display());
        let command = ["device", "map"].into_iter();
        let command = command.chain(arguments.iter().copied());
        lab.snapctl().run(command.chain(["--nbd", &server]))
    };
    // On the command line all users would see it.
    let said = map(&[kept]);
    assert!(!said.status.success());
    let said = format!("{}{}", said.text(), said.stderr);
    assert!(
        said.contains("--ticket-file") && !said.contains(secret),
        "{said}"
    );
    // A file that others can read.
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let said = map(&["--ticket-file", file.to_str().unwrap()]).fails(exit::USAGE);
    assert!(
        said.contains("chmod 600") && !said.contains(secret),
        "{said}"
    );
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    // With an address that nobody serves: the error does not name the ticket, whatever the kernel.
    let nowhere = "nbd+unix:///?socket=/nonexistent/nbd.sock";
    let mut command = lab.snapctl().command(["device", "map", "--nbd", nowhere]);
    command.arg("--ticket-file").arg(&file);
    let said = run(command);
    assert!(!said.status.success());
    let said = format!("{}{}", said.text(), said.stderr);
    assert!(!said.contains(secret), "{said}");
}

/// A directory as libnbd and QEMU expect it.
fn credentials(scratch: &Scratch, trust: &Identity, show: bool) -> PathBuf {
    let directory = scratch.join(if show { "known" } else { "unknown" });
    fs::create_dir(&directory).unwrap();
    fs::copy(&trust.authority, directory.join("ca-cert.pem")).unwrap();
    if show {
        fs::copy(&trust.cert, directory.join("client-cert.pem")).unwrap();
        fs::copy(&trust.key, directory.join("client-key.pem")).unwrap();
    }
    directory
}

fn with_tls<'a>(identity: &'a Identity) -> impl FnOnce(Options) -> Options + 'a {
    move |options: Options| {
        options
            .tcp()
            .env("VARVE_NBD_TLS_CERT", &identity.cert)
            .env("VARVE_NBD_TLS_KEY", &identity.key)
    }
}

/// Reads from an export with QEMU, over TLS.
fn qemu_reads(lab: &Lab, credentials: &Path, export: &str) -> Finished {
    let tls = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        credentials.display()
    );
    let address = lab.varved.nbd_address();
    let image = format!(
        "driver=nbd,server.type=inet,server.host={},server.port={},export={export},tls-creds=tls0",
        address.ip(),
        address.port()
    );
    let read = ["-c", "read 0 4k", "--object", &tls, "--image-opts", &image];
    run(command(tool("qemu-io"), read))
}

#[test]
fn a_ticket_travels_in_tls() {
    let identities = Scratch::new();
    let identity = Identity::make(&identities);
    let (lab, data) = ticketed(with_tls(&identity));
    let trusting = credentials(&identities, &identity, false);
    let uri = |export: &str| {
        let address = lab.varved.nbd_address();
        let certificates = trusting.display();
        format!("nbds://{address}/{export}?tls-certificates={certificates}")
    };
    let size = |export: &str| run(command(tool("nbdinfo"), ["--size", &uri(export)]));
    size(&data.export).ok();
    qemu_reads(&lab, &trusting, &data.export).ok();
    assert!(!size(&format!("volume/{}", data.id)).status.success());
    assert!(!size(&data.export.replace("@1", "@2")).status.success());
    // The unix socket takes it, too.
    run(command(tool("nbdinfo"), ["--size", &data.uri])).ok();
}

#[test]
fn the_subject_of_a_certificate_is_an_identity_over_nbd() {
    let identities = Scratch::new();
    let identity = Identity::make(&identities);
    let (lab, data) = ticketed(|options| {
        let options = with_tls(&identity)(options);
        options.env("VARVE_NBD_TLS_CLIENT_CA", &identity.authority)
    });
    let known = credentials(&identities, &identity, true);
    let unknown = credentials(&identities, &identity, false);
    let with = |arguments: &[&str], credentials: &Path, export: &str| {
        let address = lab.varved.nbd_address();
        let uri = format!(
            "nbds://{address}/{export}?tls-certificates={}",
            credentials.display()
        );
        let arguments = arguments.iter().copied().chain([&*uri]);
        run(command(tool("nbdinfo"), arguments))
    };
    let export = format!("volume/{}", data.id);
    // Nobody, with a certificate of the right authority: the ticket is enough, and is needed.
    assert!(!with(&["--list"], &known, "").status.success());
    assert!(!with(&["--size"], &known, &export).status.success());
    assert!(!qemu_reads(&lab, &known, &export).status.success());
    with(&["--size"], &known, &data.export).ok();
    // Without a certificate there is no TLS, so the ticket is not even read.
    assert!(!with(&["--size"], &unknown, &data.export).status.success());

    admin(&lab, "account set web --add-identity cert:CN=varved");
    let list = with(&["--list", "--json"], &known, "").success().text();
    assert!(list.contains("\"volume/data\""), "{list}");
    with(&["--size"], &known, &export).ok();
    qemu_reads(&lab, &known, "volume/data").ok();
    // With an account of its own, too, a wrong ticket opens nothing.
    let wrong = data.export.replace("@1", "@2");
    assert!(!with(&["--size"], &known, &wrong).status.success());
    admin(&lab, "account disable web");
    assert!(!with(&["--size"], &known, &export).status.success());
    assert!(!qemu_reads(&lab, &known, &export).status.success());
}

/// Connections that show nothing, half of them over NBD and half over gRPC.
fn strangers(lab: &Lab, count: usize) {
    varve_tests::process::allow_open_files();
    let before = lab.varved.peak_memory_bytes();
    let mut open: Vec<Peer> = Vec::new();
    let mut grpc: Vec<TcpStream> = Vec::new();
    let data = attach(lab, "data");
    for number in 0..count / 2 {
        // The daemon ends the oldest ones, and may do so while they greet.
        if let Ok(mut client) = Peer::tcp(lab.varved.nbd_address()) {
            let greeted = client.receive(18).and_then(|_| client.send(&[0, 0, 0, 3]));
            if greeted.is_ok() && number % 2 == 0 {
                let _ = client.send_option(option::GO, &go_data("volume/data"));
            }
            open.push(client);
        }
        grpc.extend(TcpStream::connect(lab.varved.grpc_address()));
        if number % (count / 8) == 0 {
            // Others are served meanwhile: the administrator, and who shows a ticket.
            admin(lab, "volume list");
            let mut host = Peer::unix(&lab.varved.nbd_socket()).unwrap();
            assert_eq!(host.open(&data.export).unwrap(), 1 << 20);
            assert_eq!(host.read(0, 4096).unwrap().error, 0);
        }
    }
    assert!(open.len() + grpc.len() > count / 2, "most were accepted");
    let more = lab.varved.peak_memory_bytes() - before;
    assert!(more < 256 << 20, "{count} strangers took {more} bytes");
}

#[test]
fn strangers_keep_nobody_out() {
    let lab = Lab::with(Options::tcp);
    account(&lab, "web");
    admin(&lab, "volume create data --size 1M");
    strangers(&lab, 1000);
}

#[test]
#[ignore = "it takes 10,000 connections, and a limit of open files that allows them"]
fn ten_thousand_strangers_keep_nobody_out() {
    let lab = Lab::with(|options| options.tcp().open_files(20_000));
    account(&lab, "web");
    admin(&lab, "volume create data --size 1M");
    strangers(&lab, 10_000);
}
