//! Programs that run to their end, and servers that run until they are stopped; with their peak
//! memory.

use std::fs;
use std::io::{Read, Seek};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::failure::{Failure, While};

/// The interval at which a running program's peak memory is read. The peak only grows, so the last
/// reading is close to the truth.
const MEMORY_INTERVAL: Duration = Duration::from_millis(5);
/// Time limit for a server to listen, and to stop.
const SERVICE_LIMIT: Duration = Duration::from_secs(60);
const SERVICE_INTERVAL: Duration = Duration::from_millis(5);

/// The result of a program that succeeded.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) seconds: f64,
    /// Largest resident set.
    pub(crate) peak_bytes: u64,
    pub(crate) output: String,
}

/// Runs a program to its end. A failure has the program's last output.
pub(crate) fn run(command: &mut Command) -> Result<Finished, Failure> {
    let name = name_of(command);
    let mut output = tempfile::tempfile().during(|| format!("make a file for what {name} says"))?;
    let mut errors = tempfile::tempfile().during(|| format!("make a file for what {name} says"))?;
    let for_child = |file: &fs::File| {
        file.try_clone()
            .during(|| "duplicate a descriptor".to_owned())
    };
    command
        .stdin(Stdio::null())
        .stdout(for_child(&output)?)
        .stderr(for_child(&errors)?);

    let started = Instant::now();
    let mut child = command.spawn().during(|| format!("start {name}"))?;
    let pid = child.id();
    let ended = AtomicBool::new(false);
    let (status, took, peak_bytes) = thread::scope(|scope| {
        let memory = scope.spawn(|| {
            let mut peak = 0;
            while !ended.load(Ordering::Acquire) {
                peak = peak_memory(pid).unwrap_or(0).max(peak);
                thread::sleep(MEMORY_INTERVAL);
            }
            peak
        });
        let status = child.wait();
        let took = started.elapsed();
        ended.store(true, Ordering::Release);
        (status, took, memory.join().unwrap_or(0))
    });
    let status = status.during(|| format!("wait for {name}"))?;
    let mut said = String::new();
    if !status.success() {
        errors
            .rewind()
            .and_then(|()| errors.read_to_string(&mut said))
            .during(|| format!("read what {name} said"))?;
        return Err(Failure::new(format!(
            "{name} failed ({status}): {}",
            last_lines(&said)
        )));
    }
    output
        .rewind()
        .and_then(|()| output.read_to_string(&mut said))
        .during(|| format!("read what {name} said"))?;
    Ok(Finished {
        seconds: took.as_secs_f64(),
        peak_bytes,
        output: said,
    })
}

/// The first line that a program prints for its version argument.
pub(crate) fn first_line(command: &mut Command) -> Result<String, Failure> {
    let output = run(command)?.output;
    Ok(output.lines().next().unwrap_or_default().to_owned())
}

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Address {
    fn is_served(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Tcp(address) => TcpStream::connect(address).is_ok(),
        }
    }

    /// An NBD export there, for libnbd.
    pub(crate) fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

/// The transport to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Unix,
    Tcp,
}

impl Over {
    /// Suffix for the name of a measurement.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Unix => "",
            Self::Tcp => ", TCP",
        }
    }
}

/// A server process. Killed on drop.
#[derive(Debug)]
pub(crate) struct Service {
    name: String,
    child: Child,
}

impl Service {
    /// Starts it, with its output in `log`, and waits until it accepts connections at all of these
    /// addresses.
    pub(crate) fn start(
        command: &mut Command,
        log: &Path,
        listens: &[Address],
    ) -> Result<Self, Failure> {
        let name = name_of(command);
        for address in listens {
            let Address::Unix(socket) = address else {
                continue;
            };
            match fs::remove_file(socket) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::new(format!(
                        "remove {}: {error}",
                        socket.display()
                    )));
                }
                _ => {}
            }
        }
        let said = fs::File::create(log).during(|| format!("create {}", log.display()))?;
        let said_too = said
            .try_clone()
            .during(|| "duplicate a descriptor".to_owned())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(said)
            .stderr(said_too)
            .spawn()
            .during(|| format!("start {name}"))?;
        let mut service = Self { name, child };
        let started = Instant::now();
        while !listens.iter().all(Address::is_served) {
            if let Some(status) = service
                .child
                .try_wait()
                .during(|| format!("look at {}", service.name))?
            {
                let said = fs::read_to_string(log).unwrap_or_default();
                return Err(Failure::new(format!(
                    "{} ended ({status}): {}",
                    service.name,
                    last_lines(&said)
                )));
            }
            if started.elapsed() > SERVICE_LIMIT {
                return Err(Failure::new(format!(
                    "{} does not listen after {SERVICE_LIMIT:?}",
                    service.name
                )));
            }
            thread::sleep(SERVICE_INTERVAL);
        }
        Ok(service)
    }

    /// Its largest resident set so far.
    pub(crate) fn peak_bytes(&self) -> Result<u64, Failure> {
        peak_memory(self.child.id())
            .ok_or_else(|| Failure::new(format!("{}: its memory cannot be read", self.name)))
    }

    /// Processor time so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64, Failure> {
        let path = format!("/proc/{}/stat", self.child.id());
        let line = fs::read_to_string(&path).during(|| format!("read {path}"))?;
        // The name, in parentheses, may contain anything.
        let behind_name = line.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: Vec<f64> = behind_name
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse().ok())
            .collect();
        match ticks[..] {
            [user, system] => Ok((user + system) / rustix::param::clock_ticks_per_second() as f64),
            _ => Err(Failure::new(format!("{path} has no times"))),
        }
    }

    /// Bytes that it has read from the disk so far. Bytes from the page cache do not count.
    pub(crate) fn read_bytes(&self) -> Result<u64, Failure> {
        let path = format!("/proc/{}/io", self.child.id());
        let counters = fs::read_to_string(&path).during(|| format!("read {path}"))?;
        counters
            .lines()
            .find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok())
            .ok_or_else(|| Failure::new(format!("{path} has no read_bytes")))
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)
            .during(|| format!("stop {}", self.name))?;
        let asked = Instant::now();
        while self
            .child
            .try_wait()
            .during(|| format!("wait for {}", self.name))?
            .is_none()
        {
            if asked.elapsed() > SERVICE_LIMIT {
                return Err(Failure::new(format!(
                    "{} does not stop after {SERVICE_LIMIT:?}",
                    self.name
                )));
            }
            thread::sleep(SERVICE_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails if the process has ended, which is the goal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name_of(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_program_that_fails_is_told_with_its_words() {
        let failure = run(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            failure.starts_with("sh failed") && failure.ends_with("no such luck"),
            "{failure}"
        );
        let failure = run(&mut Command::new("/nonexistent/program"))
            .unwrap_err()
            .to_string();
        assert!(failure.starts_with("start program"), "{failure}");
    }

    #[test]
    fn memory_and_output_are_kept() {
        let finished = run(Command::new("sh").args(["-c", "sleep 0.1; echo done"])).unwrap();
        assert_eq!(finished.output, "done\n");
        assert!(
            finished.peak_bytes > 0 && finished.seconds >= 0.1,
            "{finished:?}"
        );
    }
}
