//! fio with its NBD engine, as the client of all servers.

use std::ops::Range;
use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, While};
use crate::process;

/// What fio reads, and how.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) pattern: Pattern,
    pub(crate) block_bytes: u32,
    pub(crate) depth: u32,
    pub(crate) range: Range<u64>,
    /// Ends after so many bytes.
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Pattern {
    /// From front to back, and again.
    Sequential,
    /// Each block once, in an order that is the same in every run.
    Random,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) bytes_per_second: f64,
    pub(crate) reads_per_second: f64,
}

pub(crate) fn read(uri: &str, load: &Load) -> Result<Rate, Failure> {
    let pattern = match load.pattern {
        Pattern::Sequential => "read",
        Pattern::Random => "randread",
    };
    let mut command = Command::new("fio");
    command
        .args([
            "--name=varve-compare",
            "--ioengine=nbd",
            "--output-format=json",
        ])
        .args([
            format!("--uri={uri}"),
            format!("--rw={pattern}"),
            format!("--bs={}", load.block_bytes),
            format!("--iodepth={}", load.depth),
            format!("--offset={}", load.range.start),
            format!("--size={}", load.range.end - load.range.start),
            format!("--io_size={}", load.bytes),
        ]);
    parse(&process::run(&mut command)?.output)
}

/// fio says a line or two before its JSON.
fn parse(output: &str) -> Result<Rate, Failure> {
    let start = output.find("{\n").unwrap_or(0);
    let report: Value =
        serde_json::from_str(&output[start..]).during(|| "read fio's report".to_owned())?;
    let job = &report["jobs"][0];
    let number = |name: &str| {
        job["read"][name]
            .as_f64()
            .ok_or_else(|| Failure::new(format!("fio's report has no number read.{name}")))
    };
    if job["error"] != 0 {
        return Err(Failure::new(format!(
            "fio's reads failed with error {}",
            job["error"]
        )));
    }
    Ok(Rate {
        bytes_per_second: number("bw_bytes")?,
        reads_per_second: number("iops")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn reads_a_report() {
        let report = "fio: connected to NBD server\n{\n\"jobs\": [{\"error\": 0, \"read\": {\"bw_bytes\": 4096, \"iops\": 1.5}}]}";
        let rate = parse(report).unwrap();
        assert_eq!(
            (rate.bytes_per_second, rate.reads_per_second),
            (4096.0, 1.5)
        );
        assert!(parse(&report.replace("\"error\": 0", "\"error\": 5")).is_err());
        assert!(parse("fio: connection refused").is_err());
    }
}
