//! A daemon whose log cannot be written, whose settings are reloaded, or whose settings are wrong.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use varve_tests::{
    daemon::{Options, Varved},
    identity::Identity,
    lab::Lab,
    nbd::{Peer, option},
    process::{Finished, command, run, wait_for},
    programs::{self, tool},
    scratch::Scratch,
    snapctl::Snapctl,
};

const MIB: u64 = 1 << 20;

/// A pipe whose reader reads as `taken` says.
enum Reader {
    Gone,
    Stalled(std::io::PipeReader),
}

fn pipe(is_gone: bool) -> (Reader, OwnedFd) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = if is_gone {
        drop(reader);
        Reader::Gone
    } else {
        // The whole buffer of the pipe: the first line of the log finds it full.
        writer.write_all(&[b'x'; 64 << 10]).unwrap();
        Reader::Stalled(reader)
    };
    (reader, writer.into())
}

/// Work that is logged, and a clean stop.
fn works(options: Options) {
    for format in ["text", "json"] {
        let scratch = Scratch::new();
        let options = options
            .clone()
            .env("VARVE_LOG", "debug")
            .env("VARVE_LOG_FORMAT", format);
        let mut lab = Lab {
            varved: options.on(scratch.join("data")).start(),
            scratch,
        };
        let image = lab.image("image", 8 * MIB, 1101);
        lab.snapctl().import(&image, "image");
        // Refused handshakes are logged as warnings.
        for _ in 0..200 {
            let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
            peer.greet().unwrap();
            let _ = peer.send_option(option::EXPORT_NAME, b"no/such export");
            peer.receive_until_closed();
        }
        lab.assert_content("image", &image);
        lab.varved.stop();
    }
}

#[test]
fn a_log_without_a_reader_does_not_end_the_daemon() {
    let (Reader::Gone, writer) = pipe(true) else {
        panic!("the reader is gone")
    };
    works(Options::new("").stderr(writer));
}

#[test]
fn a_log_on_a_full_file_system_does_not_end_the_daemon() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    works(Options::new("").stderr(full));
}

#[test]
fn a_log_whose_reader_takes_nothing_holds_nobody_up() {
    let (Reader::Stalled(mut reader), writer) = pipe(false) else {
        panic!("the reader is there")
    };
    works(Options::new("").stderr(writer));
    let mut beginning = [0; 16];
    reader.read_exact(&mut beginning).unwrap();
}

#[test]
fn text_of_clients_forges_no_lines_of_the_log() {
    let mut lab = Lab::with(|options| options.env("VARVE_LOG", "debug"));
    let forged = "x\n2026-01-01T00:00:00Z ERROR varve_daemon: forged\u{1b}[2J\u{202e}";
    let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    peer.greet().unwrap();
    let _ = peer.send_option(option::EXPORT_NAME, forged.as_bytes());
    peer.receive_until_closed();
    let refused = lab
        .snapctl()
        .run(["remote", "add", "eu", &format!("unix:/{forged}")]);
    assert!(!refused.status.success(), "{refused:?}");
    lab.varved.stop();
    let log = lab.varved.log();
    assert!(log.contains("forged"), "the refusal is logged: {log}");
    for line in log.lines() {
        assert!(!line.starts_with("2026-01-01T00:00:00Z"), "{log}");
        assert!(!line.contains(['\u{1b}', '\u{202e}']), "{log}");
    }
}

#[test]
fn a_hangup_reads_the_levels_again_and_nothing_ends() {
    let scratch = Scratch::new();
    let file = scratch.join("varved.toml");
    fs::write(&file, "[log]\nfilter = 'warn'\n").unwrap();
    let mut varved = Options::new(scratch.join("data"))
        .argument("--config")
        .argument(&file)
        .start();
    assert!(!varved.log().contains("DEBUG"), "{}", varved.log());
    fs::write(&file, "[log]\nfilter = 'debug'\n").unwrap();
    varved.signal(Signal::HUP);
    wait_for("the log to tell more", || {
        let _ = varved.snapctl().run(["status"]);
        varved.log().contains("DEBUG").then_some(())
    });
    // An invalid setting changes nothing.
    fs::write(&file, "[log]\nfilter = 'debugg'\n").unwrap();
    varved.signal(Signal::HUP);
    wait_for("the refusal to be told", || {
        varved.log().contains("stay as they were").then_some(())
    });
    assert!(varved.log().contains("debugg"), "{}", varved.log());
    varved.snapctl().run(["status"]).ok();
    varved.stop();
}

#[test]
fn whoever_starts_it_need_not_read_what_it_prints() {
    let scratch = Scratch::new();
    let (_stalled, stdout) = pipe(false);
    let socket = scratch.join("grpc.sock");
    let mut varved = Command::new(programs::varved())
        .arg("--data-dir")
        .arg(scratch.join("data"))
        .arg("--grpc-unix")
        .arg(&socket)
        .arg("--nbd-unix")
        .arg(scratch.join("nbd.sock"))
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let snapctl = Snapctl::new(format!("unix:{}", socket.display()));
    wait_for("varved to serve", || {
        snapctl.run(["status"]).status.success().then_some(())
    });
    kill_process(Pid::from_child(&varved), Signal::TERM).unwrap();
    let ended = wait_for("varved to end", || varved.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
}

/// Opening the file blocks, as on a file system that hangs.
#[test]
fn settings_that_cannot_be_read_hold_up_neither_guests_nor_the_end() {
    let scratch = Scratch::new();
    let file = scratch.join("varved.toml");
    fs::write(&file, "[log]\nfilter = 'info'\n").unwrap();
    let mut varved = Options::new(scratch.join("data"))
        .argument("--config")
        .argument(&file)
        .start();
    fs::remove_file(&file).unwrap();
    run(command(tool("mkfifo"), [&file])).ok();
    varved.signal(Signal::HUP);
    wait_for("the settings to be read", || {
        let asked = varved.log().contains("reading settings again");
        asked.then_some(())
    });
    varved.snapctl().run(["status"]).ok();
    varved.stop();
    assert!(varved.log().contains("asked to stop"), "{}", varved.log());
}

/// Returns true if the server's certificate is signed by an authority, checked by `openssl
/// s_client`.
fn is_trusted(varved: &Varved, authority: &Path) -> bool {
    let asked = run(command(
        tool("openssl"),
        [
            "s_client",
            "-connect",
            &varved.grpc_address().to_string(),
            "-verify_return_error",
            "-CAfile",
            authority.to_str().unwrap(),
            "-alpn",
            "h2",
        ],
    ));
    asked.status.success()
}

#[test]
fn certificates_that_are_renewed_are_shown_from_then_on() {
    let (old_scratch, new_scratch) = (Scratch::new(), Scratch::new());
    let (old, new) = (Identity::make(&old_scratch), Identity::make(&new_scratch));
    let mut varved = old
        .serve(Options::new(old_scratch.join("data")).tcp())
        .env("VARVE_NBD_TLS_CERT", &old.cert)
        .env("VARVE_NBD_TLS_KEY", &old.key)
        .start();
    let nbd = |varved: &Varved, trusted: &Identity| {
        let directory = Scratch::new();
        fs::copy(&trusted.authority, directory.join("ca-cert.pem")).unwrap();
        let uri = format!(
            "nbds://{}/?tls-certificates={}",
            varved.nbd_address(),
            directory.join("").display()
        );
        run(command(tool("nbdinfo"), ["--list", &uri]))
            .status
            .success()
    };
    assert!(is_trusted(&varved, &old.authority) && nbd(&varved, &old));
    // Half a renewal is ignored: clients are served as before.
    fs::copy(&new.cert, &old.cert).unwrap();
    varved.signal(Signal::HUP);
    wait_for("the refusal to be told", || {
        varved.log().contains("cannot be used").then_some(())
    });
    assert!(is_trusted(&varved, &old.authority) && nbd(&varved, &old));
    // The other half follows, and is found without a signal.
    fs::copy(&new.key, &old.key).unwrap();
    wait_for("the files to be read again", || {
        nbd(&varved, &new).then_some(())
    });
    assert!(!nbd(&varved, &old));
    varved.stop();
}

fn check_config(data_dir: &Path, environment: &[(&str, &str)]) -> Finished {
    let mut check = command(programs::varved(), ["--check-config", "--data-dir"]);
    check.arg(data_dir);
    check.envs(environment.iter().copied());
    run(check)
}

#[test]
fn settings_are_checked_before_anything_is_made() {
    let scratch = Scratch::new();
    let identity = Identity::make(&scratch);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key) = (path(&identity.cert), path(&identity.key));
    let data_dir = scratch.join("data");
    check_config(&data_dir, &[]).ok();
    let tls = |prefix: &str, cert: &str, key: &str, ca: &str| {
        let name = |what: &str| format!("VARVE_{prefix}_{what}");
        let mut all = vec![
            (name("TLS_CERT"), cert.to_owned()),
            (name("TLS_KEY"), key.to_owned()),
        ];
        if prefix != "COPIES" {
            all.push((name("TCP"), "127.0.0.1:1".to_owned()));
            all.push((name("TLS_CLIENT_CA"), ca.to_owned()));
        } else {
            all.push((name("TLS_CA"), ca.to_owned()));
        }
        all
    };
    let authority = path(&identity.authority);
    for prefix in ["GRPC", "NBD", "COPIES"] {
        let environment = tls(prefix, &cert, &key, &authority);
        let environment: Vec<_> = environment.iter().map(|(n, v)| (&**n, &**v)).collect();
        check_config(&data_dir, &environment).ok();
        for (environment, named) in [
            (tls(prefix, "/etc/passwd", &key, &authority), "/etc/passwd"),
            (tls(prefix, &cert, "/etc/passwd", &authority), "/etc/passwd"),
            (tls(prefix, &cert, &key, "/etc/passwd"), "/etc/passwd"),
            (tls(prefix, &cert, &key, "/no/such/file"), "/no/such/file"),
            // A key that does not match the certificate.
            (tls(prefix, &authority, &key, &authority), &*authority),
        ] {
            let environment: Vec<_> = environment.iter().map(|(n, v)| (&**n, &**v)).collect();
            let said = check_config(&data_dir, &environment).fails(2);
            assert!(said.contains(named), "{environment:?}: {said}");
            // The daemon itself reports the same, before it makes the store.
            let mut start = command(programs::varved(), ["--data-dir"]);
            start.arg(&data_dir).envs(environment.iter().copied());
            let said = run(start).fails(2);
            assert!(said.contains(named), "{environment:?}: {said}");
        }
    }
    let long = format!("/tmp/{}", "x".repeat(120));
    for (environment, named) in [
        ([("VARVE_LOG", "inof")], "inof"),
        ([("VARVE_CPU_THREADS", "100000")], "100000"),
        ([("VARVE_GRPC_UNIX", &*long)], "107"),
        ([("VARVE_SOCKET_MODE", "0666")], "socket_open_to_all"),
    ] {
        let said = check_config(&data_dir, &environment).fails(2);
        assert!(said.contains(named), "{environment:?}: {said}");
    }
    let tcp = |grpc, nbd| [("VARVE_GRPC_TCP", grpc), ("VARVE_NBD_TCP", nbd)];
    check_config(&data_dir, &tcp("127.0.0.1:0", "127.0.0.1:0")).ok();
    let said = check_config(&data_dir, &tcp("127.0.0.1:7", "127.0.0.1:7")).fails(2);
    assert!(said.contains("both 127.0.0.1:7"), "{said}");
    // It checks settings for the daemon, and rebuilds nothing.
    let mut check = command(programs::varved(), ["--check-config", "--data-dir"]);
    check.arg(&data_dir).arg("rebuild");
    let said = run(check).fails(2);
    assert!(said.contains("--check-config"), "{said}");
    assert!(!data_dir.exists(), "nothing was made");
}

#[test]
fn sockets_have_the_permissions_that_the_file_says() {
    let scratch = Scratch::new();
    let file = scratch.join("varved.toml");
    fs::write(&file, "socket_mode = 0o660\n").unwrap();
    let varved = Options::new(scratch.join("data"))
        .argument("--config")
        .argument(&file)
        .start();
    for name in ["grpc.sock", "nbd.sock"] {
        let socket = fs::metadata(varved.data_dir().join(name)).unwrap();
        assert_eq!(socket.permissions().mode() & 0o7777, 0o660, "{name}");
    }
    let endpoint = format!("export VARVE_ENDPOINT={}\n", varved.endpoint());
    let nbd = format!("export VARVE_NBD={}\n", varved.nbd_socket().display());
    let both = endpoint + &nbd;
    assert!(varved.log().contains(&both), "{}", varved.log());
}

#[test]
fn what_is_set_and_hardly_meant_is_told() {
    let scratch = Scratch::new();
    let data_dir = scratch.join("data");
    let wrong = [
        ("VARVE_CPU_THREAD", "3"),
        ("VARVE_ENDPOINT", "unix:/x"),
        ("VARVE_GRPC_TCP", "0.0.0.0:0"),
    ];
    let checked = check_config(&data_dir, &wrong);
    assert!(checked.status.success());
    let options = wrong
        .into_iter()
        .fold(Options::new(&data_dir), |options, (name, value)| {
            options.env(name, value)
        });
    let varved = options.start();
    for said in [&checked.stderr, &varved.log()] {
        let told = |what: &str| said.lines().filter(|line| line.contains(what)).count();
        assert_eq!(
            told("unknown environment variable VARVE_CPU_THREAD"),
            1,
            "{said}"
        );
        assert_eq!(told("gRPC is in the clear at 0.0.0.0:"), 1, "{said}");
        assert_eq!(
            told("unknown environment variable VARVE_ENDPOINT"),
            0,
            "{said}"
        );
    }
}
