//! Early ends of commands: signals, and silent daemons.

use std::{
    fs,
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixListener, process::ExitStatusExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, run, snapctl, succeed};

/// A time that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(60);

const SIGNALS: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];

/// Waits for the end of a program. Kills it and fails if it does not end.
fn end(mut child: Child, what: &str) -> (Option<i32>, String) {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{what} did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said).unwrap();
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), None, "{what}: {said}");
    (status.code(), said)
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A daemon that accepts connections and stays silent.
struct Mute {
    connected: Arc<std::sync::Mutex<usize>>,
    dir: tempfile::TempDir,
}

impl Mute {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("grpc.sock")).unwrap();
        let connected = Arc::default();
        let counter: Arc<std::sync::Mutex<usize>> = Arc::clone(&connected);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                held.push(stream);
                *counter.lock().unwrap() = held.len();
            }
        });
        Self { connected, dir }
    }

    fn connected(&self) -> usize {
        *self.connected.lock().unwrap()
    }

    fn snapctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_snapctl"));
        let socket = self.dir.path().join("grpc.sock");
        command
            .env_remove("VARVE_LOG")
            .env("VARVE_ENDPOINT", format!("unix:{}", socket.display()))
            .current_dir(self.dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

#[test]
fn every_command_that_waits_for_a_daemon_can_be_interrupted() {
    let mute = Mute::start();
    fs::write(mute.dir.path().join("disk.img"), [1; 8192]).unwrap();
    let commands: [&[&str]; 18] = [
        &["status"],
        &["import", "disk.img", "--name", "a"],
        &["import", "-", "--name", "a"],
        &["export", "a", "out.img"],
        &["export", "a", "-"],
        &["export", "a", "out.qcow2", "--format", "qcow2"],
        &["export", "--archive", "a", "out.varve"],
        &["snapshot", "list"],
        &["snapshot", "show", "a"],
        &["snapshot", "create", "v", "--name", "a", "--wait"],
        &["snapshot", "diff", "a", "b"],
        &["snapshot", "verify", "a"],
        &["volume", "list"],
        &["volume", "create", "v", "--size", "1M"],
        &["volume", "delete", "v"],
        &["copy", "a", "--from", "unix:/x", "--wait"],
        &["copy", "list"],
        &["remote", "list"],
    ];
    for (number, arguments) in (1..).zip(commands) {
        let child = mute.snapctl(arguments).spawn().unwrap();
        wait_for("a connection", || {
            (mute.connected() >= number).then_some(())
        });
        signal(&child, SIGNALS[number % SIGNALS.len()]);
        let (code, said) = end(child, &format!("{arguments:?}"));
        assert_eq!(code, Some(130), "{arguments:?}: {said}");
    }
    let left: Vec<_> = fs::read_dir(mute.dir.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_daemon_that_says_nothing_is_given_up_in_time() {
    let mute = Mute::start();
    fs::write(mute.dir.path().join("disk.img"), [1; 8192]).unwrap();
    for arguments in [
        &["status", "--timeout", "1"][..],
        &["import", "disk.img", "--name", "a", "--timeout", "1"],
        &["--timeout", "1", "export", "a", "-"],
    ] {
        let child = mute.snapctl(arguments).spawn().unwrap();
        let (code, said) = end(child, &format!("{arguments:?}"));
        assert_eq!(code, Some(5), "{arguments:?}: {said}");
        assert!(said.contains("it has not answered for 1 s"), "{said}");
    }
}

#[test]
fn people_are_told_what_is_waited_for() {
    let mute = Mute::start();
    let mut child = mute.snapctl(&["status"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut said = Vec::new();
    while !said.contains(&b'\n') {
        let mut byte = [0];
        assert_eq!(stderr.read(&mut byte).unwrap(), 1);
        said.push(byte[0]);
    }
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.starts_with("snapctl: waiting for the daemon at unix:"),
        "{said}"
    );
    signal(&child, Signal::INT);
    assert_eq!(end(child, "status").0, Some(130));
}

/// A user who starts it with `nohup` wants it to continue when the terminal is gone.
#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let mute = Mute::start();
    let mut command = Command::new("nohup");
    let program = mute.snapctl(&["status"]);
    command.arg(program.get_program()).args(program.get_args());
    for (key, value) in program.get_envs() {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let caught = wait_for("its signals", || {
        let caught = signals(&child, "SigCgt:")?;
        (caught & QUIT_AND_INT == QUIT_AND_INT).then_some(caught)
    });
    assert_eq!(caught & HUP, 0);
    assert_eq!(signals(&child, "SigIgn:").unwrap() & HUP, HUP);
    signal(&child, Signal::INT);
    let (code, said) = end(child, "nohup");
    assert_eq!(code, Some(130));
    assert!(said.ends_with("snapctl: interrupted\n"), "{said}");
}

const HUP: u64 = 0b1;
const QUIT_AND_INT: u64 = 0b110;

/// A set of signals of a process, as the system shows it.
fn signals(child: &Child, set: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let found = status.lines().find_map(|line| line.strip_prefix(set))?;
    u64::from_str_radix(found.trim(), 16).ok()
}

#[test]
fn an_export_to_a_pipe_that_nobody_reads_can_be_interrupted() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    for which in SIGNALS {
        let mut child = snapctl(&daemon, &["export", "a", "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It is on its way, and stalls with the next bytes.
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut [0; 100]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        signal(&child, which);
        let (code, said) = end(child, "export");
        assert_eq!(code, Some(130), "{which:?}: {said}");
        drop(pipe);
    }
}

#[test]
fn an_import_from_a_pipe_that_gives_nothing_can_be_interrupted() {
    let daemon = FakeDaemon::start(Manners::default());
    for arguments in [
        &["import", "-", "--name", "a"][..],
        &["import", "--archive", "-"],
        &["archive", "verify", "-"],
        &["archive", "show", "-"],
    ] {
        let mut child = snapctl(&daemon, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = child.stdin.take();
        wait_for("its signals", || {
            let caught = signals(&child, "SigCgt:")?;
            (caught & QUIT_AND_INT == QUIT_AND_INT).then_some(())
        });
        signal(&child, Signal::TERM);
        let (code, said) = end(child, &format!("{arguments:?}"));
        assert_eq!(code, Some(130), "{arguments:?}: {said}");
        drop(pipe);
    }
}

/// A `qemu-img` that writes its process id, and then runs for ever.
fn busy_qemu_img(dir: &Path) -> std::path::PathBuf {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let program = bin.join("qemu-img");
    let script = format!(
        "#!/bin/sh\ncase $1 in\n--version) echo busy ;;\ncheck) echo '{{}}' ;;\nmap) echo '[]' ;;\n\
         *) echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000 ;;\nesac\n",
        dir.join("busy").display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn a_conversion_ends_with_the_command_and_nothing_is_published() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "in.qcow2", "1M"])
        .current_dir(daemon.path(""))
        .status();
    assert!(made.unwrap().success());
    let bin = busy_qemu_img(&daemon.path(""));
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let before = files(&daemon);
    for which in SIGNALS {
        for arguments in [
            &["export", "a", "out.qcow2", "--format", "qcow2"][..],
            &["import", "in.qcow2", "--name", "b"],
        ] {
            let child = snapctl(&daemon, arguments)
                .env("PATH", &path)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let busy = daemon.path("busy");
            let at_work = wait_for("the conversion", || {
                fs::read_to_string(&busy).ok()?.trim().parse().ok()
            });
            fs::remove_file(&busy).unwrap();
            signal(&child, which);
            let (code, said) = end(child, &format!("{arguments:?}"));
            assert_eq!(code, Some(130), "{arguments:?}: {said}");
            let at_work = Pid::from_raw(at_work).unwrap();
            wait_for("the end of the conversion", || {
                let stat = fs::read_to_string(format!("/proc/{}/stat", at_work.as_raw_pid()));
                let is_zombie = stat.is_ok_and(|stat| stat.contains(") Z "));
                (is_zombie || test_kill_process(at_work).is_err()).then_some(())
            });
        }
    }
    assert_eq!(files(&daemon), before);
    assert!(!daemon.state().snapshots.contains_key("b"));
}

fn files(daemon: &FakeDaemon) -> Vec<String> {
    let entries = fs::read_dir(daemon.path("")).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An export to a file leaves nothing, however it ends.
#[test]
fn a_killed_export_leaves_nothing() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    let bin = busy_qemu_img(&daemon.path(""));
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let before = files(&daemon);
    let mut child = snapctl(&daemon, &["export", "a", "out.qcow2", "--format", "qcow2"])
        .env("PATH", &path)
        .spawn()
        .unwrap();
    let busy = daemon.path("busy");
    let at_work: i32 = wait_for("the conversion", || {
        fs::read_to_string(&busy).ok()?.trim().parse().ok()
    });
    fs::remove_file(&busy).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    kill_process(Pid::from_raw(at_work).unwrap(), Signal::KILL).unwrap();
    assert_eq!(files(&daemon), before);
}

#[test]
fn a_timeout_of_nothing_is_refused() {
    let daemon = FakeDaemon::start(Manners::default());
    assert_eq!(run(&daemon, &["status", "--timeout", "0"]).0, 2);
    succeed(&daemon, &["status", "--timeout", "60"]);
}
