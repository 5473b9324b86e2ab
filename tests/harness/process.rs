//! Processes, with all their output and a time limit.

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    io::{Read, Seek, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

/// A limit that only a hang exceeds, on the slowest machine.
pub const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Interval between looks at a condition.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` returns a value. A timeout names `what`.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(TIME_LIMIT, condition).unwrap_or_else(|| panic!("waited {TIME_LIMIT:?} for {what}"))
}

fn wait_within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let looked = Instant::now();
        if let Some(value) = condition() {
            return Some(value);
        }
        if start.elapsed() > limit {
            return None;
        }
        // A look that takes long, such as a command, is at most a third of the time: what it waits
        // for needs the processor, too.
        thread::sleep(POLL.max(2 * looked.elapsed()));
    }
}

/// A command for [`start`] and [`run`], in one line.
#[must_use]
pub fn command<S: AsRef<OsStr>>(
    program: impl AsRef<Path>,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program.as_ref());
    command.args(arguments);
    command
}

/// Runs a command to its end.
pub fn run(command: Command) -> Finished {
    start(command).wait()
}

/// Runs a command to its end, with a time limit of its own.
pub fn run_within(limit: Duration, command: Command) -> Finished {
    start(command).wait_within(limit)
}

/// Runs a command to its end, with `input` on its standard input.
pub fn run_with_input(mut command: Command, input: &[u8]) -> Finished {
    let mut file = tempfile::tempfile().expect("make a temporary file");
    file.write_all(input).expect("write a program's input");
    file.rewind().expect("rewind a program's input");
    command.stdin(file);
    run_given(command)
}

/// Runs a command whose standard input is set.
pub fn run_given(command: Command) -> Finished {
    Running::spawn(command).wait()
}

/// Starts a command, with an empty standard input.
#[must_use]
pub fn start(mut command: Command) -> Running {
    command.stdin(Stdio::null());
    Running::spawn(command)
}

/// Starts a command whose standard input is set.
#[must_use]
pub fn start_given(command: Command) -> Running {
    Running::spawn(command)
}

/// A running program. Ended on drop.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    fn spawn(mut command: Command) -> Self {
        let shown = format!("{command:?}");
        // Files, not pipes: they take any amount of output while no one reads it.
        let [stdout, stderr] =
            [(); 2].map(|()| tempfile::tempfile().expect("make a temporary file"));
        command.stdout(stdout.try_clone().expect("share a file"));
        command.stderr(stderr.try_clone().expect("share a file"));
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {shown}: {error}"));
        Self {
            shown,
            child,
            stdout,
            stderr,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for a program's state")
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        // A program that has ended and was not waited for keeps its id, so the signal hits no other
        // process.
        if self.ended().is_none() {
            rustix::process::kill_process(Pid::from_child(&self.child), signal)
                .expect("send a signal");
        }
    }

    /// Its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        text_of(&self.stdout)
    }

    /// Its standard error so far.
    pub fn stderr(&mut self) -> String {
        text_of(&self.stderr)
    }

    /// Waits for its end.
    pub fn wait(self) -> Finished {
        self.wait_within(TIME_LIMIT)
    }

    /// Waits for its end, with a time limit.
    pub fn wait_within(mut self, limit: Duration) -> Finished {
        let status = self.wait_for_end(limit);
        Finished {
            shown: std::mem::take(&mut self.shown),
            status,
            stdout: bytes_of(&self.stdout),
            stderr: text_of(&self.stderr),
        }
    }

    fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        match wait_within(limit, || self.ended()) {
            Some(status) => status,
            None => panic!(
                "{} did not end within {limit:?}\nstdout: {}\nstderr: {}",
                self.shown,
                text_of(&self.stdout),
                text_of(&self.stderr)
            ),
        }
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill a program");
        self.child.wait().expect("wait for a program");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole content of a file, independent of its position.
fn bytes_of(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let len = file.metadata().expect("ask for a file's length").len();
    let mut bytes = vec![0; usize::try_from(len).expect("a program's output fits into memory")];
    file.read_exact_at(&mut bytes, 0)
        .expect("read a program's output");
    bytes
}

fn text_of(file: &File) -> String {
    String::from_utf8_lossy(&bytes_of(file)).into_owned()
}

/// A program that has ended, and its output.
pub struct Finished {
    shown: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts that it succeeded.
    #[must_use = "what it said, if only its success matters: use `ok`"]
    pub fn success(self) -> Self {
        assert!(
            self.status.success(),
            "this should have succeeded: {self:?}"
        );
        self
    }

    /// Asserts that it succeeded, with any output.
    pub fn ok(self) {
        let _ = self.success();
    }

    /// Asserts that it failed with this exit code and an error message. Returns the message.
    pub fn fails(self, code: i32) -> String {
        assert_eq!(
            self.status.code(),
            Some(code),
            "this should have ended with {code}: {self:?}"
        );
        assert!(
            !self.stderr.trim().is_empty(),
            "a failure must have a message: {self:?}"
        );
        self.stderr
    }

    /// Returns true if a signal ended it.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.status.signal().is_some()
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Output may be an image.
        let shown_bytes = self.stdout.len().min(16 << 10);
        write!(
            f,
            "{}\n{}\nstdout ({} bytes): {}\nstderr: {}",
            self.shown,
            self.status,
            self.stdout.len(),
            String::from_utf8_lossy(&self.stdout[..shown_bytes]),
            self.stderr
        )
    }
}

/// The peak resident memory of a running process so far, in bytes.
#[must_use]
pub fn peak_memory_bytes(process_id: u32) -> Option<u64> {
    let mut status = String::new();
    File::open(format!("/proc/{process_id}/status"))
        .ok()?
        .read_to_string(&mut status)
        .ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Raises this process's limit of open files to what thousands of connections take.
pub fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const WANTED: u64 = 8192;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < WANTED) {
        let current = limit.maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
        let raised = Rlimit {
            current: Some(current),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).expect("raise the limit of open files");
    }
}
