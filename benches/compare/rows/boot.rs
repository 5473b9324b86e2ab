//! Booting a guest from an export.

use std::path::PathBuf;
use std::process::Command;

use crate::bench::{Bench, remove};
use crate::failure::{Failure, While};
use crate::page_cache;
use crate::process;
use crate::samples::in_turns;
use crate::table::{Figure, Row, Wanted};

pub(crate) fn guest(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.data_dir_with_base("boot")?;
    let accel = process::run(Command::new(script()).arg("--which-accel"))?
        .output
        .trim()
        .to_owned();
    let boot = |drive: &str| {
        page_cache::empty()?;
        seconds_to_prompt(
            &process::run(Command::new(script()).args(["--accel", &accel, "--quiet", drive]))?
                .output,
        )
    };
    let mut varve = |_| {
        let varved = bench.programs.serve(&data_dir)?;
        let seconds = boot(&varved.drive("base"))?;
        varved.stop()?;
        Ok(seconds)
    };
    let mut raw_file = |_| boot(&format!("format=raw,file={}", bench.base.display()));
    let [varve, raw_file] =
        in_turns("guest boot", bench.runs, [&mut varve, &mut raw_file])?.map(Figure::Seconds);
    remove(&data_dir)?;
    Ok(vec![Row {
        what: format!("guest boot to its login prompt ({})", accel.to_uppercase()),
        against: "the same image as a local raw file".to_owned(),
        ours: varve,
        theirs: raw_file,
        wanted: Wanted::TimesAsMuch(1.1),
        note: "2 vCPUs and 1 GiB; from QEMU's start to the prompt on the serial console, with an \
               empty page cache.",
    }])
}

pub(super) fn script() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../scripts/boot-guest"
    ))
}

/// Parses the script's last line: `login prompt after 18.106 s`.
fn seconds_to_prompt(output: &str) -> Result<f64, Failure> {
    let last = output.lines().last().unwrap_or_default();
    let seconds = last
        .strip_prefix("login prompt after ")
        .and_then(|rest| rest.strip_suffix(" s"));
    seconds
        .unwrap_or(last)
        .parse()
        .during(|| format!("read a time from '{last}'"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn reads_the_time_from_the_last_line() {
        assert_eq!(
            seconds_to_prompt("hello\nlogin prompt after 18.106 s\n").unwrap(),
            18.106
        );
        assert!(seconds_to_prompt("").is_err());
    }
}
