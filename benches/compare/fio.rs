//! fio with its NBD engine, as the client of all servers.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, While};
use crate::process;

/// A load: what fio does, and how.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) does: Does,
    pub(crate) pattern: Pattern,
    pub(crate) block_bytes: u32,
    pub(crate) depth: u32,
    pub(crate) range: Range<u64>,
    pub(crate) until: Until,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    Read,
    Write,
    /// Each write is followed by NBD's FLUSH.
    WriteAndFlush,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Pattern {
    /// From front to back, and again.
    Sequential,
    /// Each block once, in an order that depends on the seed alone.
    Random { seed: u32 },
}

impl Pattern {
    /// The same order in every run.
    pub(crate) const RANDOM: Self = Self::Random { seed: 1 };
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Ends after this many bytes.
    Bytes(u64),
    Seconds(u32),
}

/// The result of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) bytes_per_second: f64,
    /// Reads or writes.
    pub(crate) per_second: f64,
    /// The median latency.
    pub(crate) median_seconds: f64,
    /// The 99th percentile of latency.
    pub(crate) p99_seconds: f64,
}

/// One request of a logged load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Request {
    /// Time of the answer: seconds since 1970.
    pub(crate) at: f64,
    pub(crate) seconds: f64,
    pub(crate) offset: u64,
}

pub(crate) fn run(uri: &str, load: &Load) -> Result<Rate, Failure> {
    parse(&process::run(&mut command(&[uri], load))?.output, load.does)
}

/// Runs the same load on several exports at a time. Returns no result.
pub(crate) fn run_on_all(uris: &[&str], load: &Load) -> Result<(), Failure> {
    process::run(&mut command(uris, load)).map(drop)
}

/// Runs jobs of random requests of 4 KiB, 70 % of them reads, at depth 16, each on its part of a
/// range and over two connections. Returns requests a second, of all jobs together.
pub(crate) fn run_crowd(
    uri: &str,
    jobs: u32,
    range: &Range<u64>,
    seconds: u32,
) -> Result<f64, Failure> {
    let part = (range.end - range.start) / u64::from(jobs);
    let mut command = Command::new("fio");
    command.args([
        "--output-format=json",
        "--name=global",
        "--ioengine=nbd",
        "--rw=randrw",
        "--rwmixread=70",
        "--bs=4096",
        "--iodepth=16",
        "--numjobs=2",
        "--time_based",
    ]);
    command.args([
        format!("--runtime={seconds}"),
        format!("--size={part}"),
        format!("--uri={uri}"),
    ]);
    for job in 0..jobs {
        let offset = range.start + part * u64::from(job);
        command.args([format!("--name=job-{job}"), format!("--offset={offset}")]);
    }
    let report = report(&process::run(&mut command)?.output)?;
    let jobs = report["jobs"].as_array().map_or(&[][..], Vec::as_slice);
    let mut per_second = 0.0;
    for job in jobs {
        if job["error"] != 0 {
            return Err(Failure::new(format!(
                "fio's requests failed with error {}",
                job["error"]
            )));
        }
        for side in ["read", "write"] {
            per_second += job[side]["iops"].as_f64().unwrap_or_default();
        }
    }
    if per_second == 0.0 {
        return Err(Failure::new("fio did nothing"));
    }
    Ok(per_second)
}

/// The rate of a mixed load, and the 99th percentiles of latency.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mixed {
    pub(crate) read_p99_seconds: f64,
    pub(crate) write_p99_seconds: f64,
    /// Reads and writes.
    pub(crate) per_second: f64,
}

/// Runs random requests of 4 KiB, 70 % of them reads.
pub(crate) fn run_mixed(
    uri: &str,
    range: &Range<u64>,
    depth: u32,
    seconds: u32,
) -> Result<Mixed, Failure> {
    let mut command = Command::new("fio");
    command.args([
        "--output-format=json",
        "--name=mixed",
        "--ioengine=nbd",
        "--rw=randrw",
        "--rwmixread=70",
        "--bs=4096",
        "--time_based",
    ]);
    command.args([
        format!("--iodepth={depth}"),
        format!("--runtime={seconds}"),
        format!("--offset={}", range.start),
        format!("--size={}", range.end - range.start),
        format!("--uri={uri}"),
    ]);
    let output = process::run(&mut command)?.output;
    let (read, write) = (parse(&output, Does::Read)?, parse(&output, Does::Write)?);
    Ok(Mixed {
        read_p99_seconds: read.p99_seconds,
        write_p99_seconds: write.p99_seconds,
        per_second: read.per_second + write.per_second,
    })
}

/// Runs a load and logs the latency of each request, in files that begin with `prefix`.
pub(crate) fn run_logged(uri: &str, load: &Load, prefix: &Path) -> Result<Vec<Request>, Failure> {
    let mut command = command(&[uri], load);
    command
        .arg(format!("--write_lat_log={}", prefix.display()))
        .args(["--log_unix_epoch=1", "--log_offset=1"]);
    parse(&process::run(&mut command)?.output, load.does)?;
    let log = format!("{}_lat.1.log", prefix.display());
    let text = fs::read_to_string(&log).during(|| format!("read {log}"))?;
    text.lines()
        .map(|line| {
            parse_logged(line).ok_or_else(|| Failure::new(format!("{log} has a line '{line}'")))
        })
        .collect()
}

fn command(uris: &[&str], load: &Load) -> Command {
    let does = if load.does == Does::Read {
        "read"
    } else {
        "write"
    };
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--name=global", "--ioengine=nbd"]);
    match load.pattern {
        Pattern::Sequential => command.arg(format!("--rw={does}")),
        Pattern::Random { seed } => {
            command.args([format!("--rw=rand{does}"), format!("--randseed={seed}")])
        }
    };
    if load.does == Does::WriteAndFlush {
        command.arg("--fsync=1");
    }
    command.args([
        format!("--bs={}", load.block_bytes),
        format!("--iodepth={}", load.depth),
        format!("--offset={}", load.range.start),
        format!("--size={}", load.range.end - load.range.start),
    ]);
    match load.until {
        Until::Bytes(bytes) => command.arg(format!("--io_size={bytes}")),
        Until::Seconds(seconds) => {
            command.args([format!("--runtime={seconds}"), "--time_based".to_owned()])
        }
    };
    for (number, uri) in uris.iter().enumerate() {
        command.args([format!("--name=on-{number}"), format!("--uri={uri}")]);
    }
    command
}

/// fio prints a line or two before its JSON.
fn report(output: &str) -> Result<Value, Failure> {
    let start = output.find("{\n").unwrap_or(0);
    serde_json::from_str(&output[start..]).during(|| "read fio's report".to_owned())
}

fn parse(output: &str, does: Does) -> Result<Rate, Failure> {
    let report = report(output)?;
    let job = &report["jobs"][0];
    if job["error"] != 0 {
        return Err(Failure::new(format!(
            "fio's requests failed with error {}",
            job["error"]
        )));
    }
    if does == Does::WriteAndFlush && job["sync"]["total_ios"].as_u64().unwrap_or(0) == 0 {
        return Err(Failure::new("fio sent no FLUSH"));
    }
    let side = match does {
        Does::Read => "read",
        Does::Write | Does::WriteAndFlush => "write",
    };
    let number = |pointer: &str| {
        job[side]
            .pointer(pointer)
            .and_then(Value::as_f64)
            .ok_or_else(|| Failure::new(format!("fio's report has no number {side}{pointer}")))
    };
    Ok(Rate {
        bytes_per_second: number("/bw_bytes")?,
        per_second: number("/iops")?,
        median_seconds: number("/clat_ns/percentile/50.000000")? * 1e-9,
        p99_seconds: number("/clat_ns/percentile/99.000000")? * 1e-9,
    })
}

/// The fields: milliseconds of the clock, latency in nanoseconds, direction, bytes, offset,
/// priority.
fn parse_logged(line: &str) -> Option<Request> {
    let mut fields = line.split(',').map(str::trim);
    let at_ms: f64 = fields.next()?.parse().ok()?;
    let took_ns: f64 = fields.next()?.parse().ok()?;
    Some(Request {
        at: at_ms * 1e-3,
        seconds: took_ns * 1e-9,
        offset: fields.nth(2)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn reads_a_report() {
        let side = r#"{"bw_bytes": 4096, "iops": 1.5, "clat_ns": {"percentile": {"50.000000": 2000, "99.000000": 5000}}}"#;
        let report = format!(
            "fio: connected to NBD server\n{{\n\"jobs\": [{{\"error\": 0, \"read\": {side}, \"write\": {side}, \
             \"sync\": {{\"total_ios\": 0}}}}]}}"
        );
        let rate = parse(&report, Does::Read).unwrap();
        assert_eq!((rate.bytes_per_second, rate.per_second), (4096.0, 1.5));
        assert!((rate.median_seconds - 2e-6).abs() < 1e-12);
        assert!(parse(&report.replace("\"error\": 0", "\"error\": 5"), Does::Read).is_err());
        assert!(parse(&report, Does::WriteAndFlush).is_err());
        assert!(parse("fio: connection refused", Does::Read).is_err());
    }

    #[test]
    fn reads_a_log() {
        let request = parse_logged("1795229394528, 2500000, 1, 4096, 8192, 0").unwrap();
        assert_eq!((request.at, request.offset), (1_795_229_394.528, 8192));
        assert!((request.seconds - 0.0025).abs() < 1e-12);
        assert_eq!(parse_logged("fio"), None);
    }
}
