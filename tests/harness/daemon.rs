//! Daemons for tests: options, start, end.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal};

use crate::{
    process::{peak_memory_bytes, wait_for},
    programs,
    scratch::Scratch,
    snapctl::Snapctl,
};

/// The longest delay between an event and its line in the log file.
const LOG_DELAY: Duration = Duration::from_millis(50);

/// Options for the start of a daemon. The default is an operator's first start: a data directory
/// and nothing else.
#[derive(Debug, Clone)]
pub struct Options {
    data_dir: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    tcp: bool,
    /// Target of its standard error, if not the log that the tests read.
    stderr: Option<Arc<OwnedFd>>,
    /// A network namespace, and the daemon's gRPC address in it.
    network: Option<(String, SocketAddr)>,
    /// Limits of its process, as arguments of `prlimit`.
    process_limits: Vec<String>,
    directory: Option<PathBuf>,
}

impl Options {
    /// Options for a daemon on this data directory, with its sockets in it.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            tcp: false,
            stderr: None,
            network: None,
            process_limits: Vec::new(),
            directory: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Makes it listen on TCP ports, too.
    #[must_use]
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// The same options for another data directory.
    #[must_use]
    pub fn on(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.data_dir = data_dir.into();
        self
    }

    /// Replaces its standard error.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(Arc::new(stderr.into()));
        self
    }

    /// Runs it in a network namespace, with gRPC at an address there.
    #[must_use]
    pub fn within(mut self, namespace: &str, grpc: SocketAddr) -> Self {
        self.network = Some((namespace.to_owned(), grpc));
        self
    }

    /// Limits its open files.
    #[must_use]
    pub fn open_files(mut self, count: u64) -> Self {
        self.process_limits
            .push(format!("--nofile={count}:{count}"));
        self
    }

    /// Lets the system write core dumps of any size, and runs it in this directory, where they are
    /// unless the machine has another place for them.
    #[must_use]
    pub fn core_dumps_in(mut self, directory: &Path) -> Self {
        self.process_limits
            .push("--core=unlimited:unlimited".to_owned());
        self.directory = Some(directory.to_owned());
        self
    }

    /// Starts it, and waits until it serves.
    #[must_use]
    pub fn start(&self) -> Varved {
        let mut varved = self.spawn();
        wait_for("varved to say that it is ready", || {
            if varved.is_ready() {
                return Some(());
            }
            if let Some(status) = varved.ended() {
                panic!("varved ended with {status} before it was ready");
            }
            None
        });
        varved
    }

    /// Starts it, and waits until it fails by itself. Returns its output.
    #[must_use]
    pub fn start_refused(&self) -> String {
        let mut varved = self.spawn();
        let status = varved.wait();
        assert!(
            status.code().is_some_and(|code| code != 0),
            "varved should have refused to start, with a code of its own, and ended with {status}"
        );
        varved.log()
    }

    /// Starts it without waiting.
    #[must_use]
    pub fn spawn(&self) -> Varved {
        let logs = Scratch::new();
        let log = File::create(logs.join("log")).expect("make a log file");
        let [mut grpc_tcp, nbd_tcp] = [(); 2].map(|()| self.tcp.then(free_address));
        let mut command = match (&self.network, &*self.process_limits) {
            (None, []) => Command::new(programs::varved()),
            (None, limits) => {
                // prlimit becomes the program, too.
                let mut command = Command::new(programs::tool("prlimit"));
                command.args(limits).arg(programs::varved());
                command
            }
            (Some((namespace, grpc)), _) => {
                grpc_tcp = Some(*grpc);
                // ip becomes the program, so the process is the daemon's.
                let mut command = Command::new(programs::tool("ip"));
                command.args(["netns", "exec", namespace]);
                command.arg(programs::varved());
                command
            }
        };
        command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(&self.arguments);
        for (option, address) in [("--grpc-tcp", grpc_tcp), ("--nbd-tcp", nbd_tcp)] {
            if let Some(address) = address {
                command.arg(option).arg(address.to_string());
            }
        }
        // Of the tests' environment the daemon gets only the log level.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VARVE_") && name != "VARVE_LOG" {
                command.env_remove(name);
            }
        }
        // Not in /run/varve, where operators' daemons are: tests run many at a time.
        for (variable, name) in [
            ("VARVE_GRPC_UNIX", "grpc.sock"),
            ("VARVE_NBD_UNIX", "nbd.sock"),
        ] {
            command.env(variable, self.data_dir.join(name));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().expect("share a log file"));
        match &self.stderr {
            None => command.stderr(log),
            Some(other) => command.stderr(other.try_clone().expect("share a descriptor")),
        };
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Varved {
            child,
            data_dir: self.data_dir.clone(),
            grpc_tcp,
            nbd_tcp,
            logs,
        }
    }
}

/// An address on which no process listened a moment ago. Its port is outside the range that the
/// system gives to connections: otherwise a connection could take it before the daemon does.
#[must_use]
pub fn free_address() -> SocketAddr {
    wait_for("a port that is free", || {
        let random = RandomState::new().hash_one(process::id());
        let port = 10_000 + u16::try_from(random % 20_000).expect("less than that");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        listener.local_addr().ok()
    })
}

/// Returns true if a log says that its daemon serves.
#[must_use]
pub fn says_that_it_is_ready(log: &str) -> bool {
    log.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word == "ready")
        // On standard output.
        || log.contains("export VARVE_ENDPOINT=")
}

/// A running daemon. Killed on drop. Its log is shown when the test fails.
#[derive(Debug)]
pub struct Varved {
    child: Child,
    data_dir: PathBuf,
    grpc_tcp: Option<SocketAddr>,
    nbd_tcp: Option<SocketAddr>,
    logs: Scratch,
}

impl Varved {
    /// Starts a daemon on this data directory, and waits until it serves.
    #[must_use]
    pub fn start(data_dir: impl Into<PathBuf>) -> Self {
        Options::new(data_dir).start()
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its gRPC endpoint, as `snapctl` takes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.data_dir.join("grpc.sock").display())
    }

    /// The TCP address of gRPC.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_tcp.expect("started with Options::tcp")
    }

    /// Its gRPC endpoint over TCP, as `snapctl` takes it.
    #[must_use]
    pub fn tcp_endpoint(&self) -> String {
        format!("http://{}", self.grpc_address())
    }

    /// A `snapctl` for it.
    #[must_use]
    pub fn snapctl(&self) -> Snapctl {
        Snapctl::new(self.endpoint())
    }

    /// Its NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.data_dir.join("nbd.sock")
    }

    /// Its NBD address over TCP.
    #[must_use]
    pub fn nbd_address(&self) -> SocketAddr {
        self.nbd_tcp.expect("started with Options::tcp")
    }

    /// The NBD URI of a snapshot.
    #[must_use]
    pub fn nbd_uri(&self, snapshot: &str) -> String {
        format!(
            "nbd+unix:///snapshot/{snapshot}?socket={}",
            self.nbd_socket().display()
        )
    }

    /// The same over TCP.
    #[must_use]
    pub fn nbd_tcp_uri(&self, snapshot: &str) -> String {
        format!("nbd://{}/snapshot/{snapshot}", self.nbd_address())
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its peak resident memory so far, in bytes.
    #[must_use]
    pub fn peak_memory_bytes(&self) -> u64 {
        peak_memory_bytes(self.id()).expect("varved runs")
    }

    /// Its log since it started, up to a moment ago: a thread of its own writes it.
    #[must_use]
    pub fn log(&self) -> String {
        thread::sleep(LOG_DELAY);
        self.logged()
    }

    fn logged(&self) -> String {
        let bytes = std::fs::read(self.logs.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns true if it has said that it serves.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        says_that_it_is_ready(&self.logged())
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for varved's state")
    }

    /// Waits until it ends for another reason.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("varved to end", || self.ended())
    }

    /// Kills it. That is like a power cut, except that the kernel keeps its writes.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill varved");
        self.child.wait().expect("wait for varved");
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            rustix::process::kill_process(Pid::from_child(&self.child), signal)
                .expect("send a signal to varved");
        }
    }

    /// Asks it to stop, and waits until it has stopped cleanly.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(
            status.success(),
            "varved was asked to stop, and ended with {status}"
        );
    }
}

impl Drop for Varved {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!(
                "--- log of varved on {}\n{}---",
                self.data_dir.display(),
                self.log()
            );
        }
    }
}
