//! The machine and the versions behind the figures.

use std::fs;
use std::process::Command;

use crate::bench::Bench;
use crate::failure::Failure;
use crate::process::first_line;

/// Lines of Markdown: the machine, and the versions of all programs that were compared.
pub(crate) fn markdown(bench: &Bench) -> Result<String, Failure> {
    let varved = bench.programs.serve(&bench.fresh_directory("facts")?)?;
    let engine = varved.status("io_engine")?;
    varved.stop()?;
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| text += &format!("- {name}: {value}\n");
    fact(
        "date",
        &jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
    );
    fact("processor", &processor());
    fact("memory", &memory());
    fact(
        "kernel",
        fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim(),
    );
    fact(
        "file system",
        &said(
            Command::new("findmnt")
                .args(["-n", "-o", "FSTYPE", "-T"])
                .arg(bench.path("")),
        ),
    );
    fact(
        "Varve",
        &format!(
            "{}, disk engine {engine}",
            said(bench.programs.varved().arg("--version"))
        ),
    );
    let versions: Vec<String> = [
        ("restic", "version"),
        ("borg", "--version"),
        ("qemu-img", "--version"),
        ("qemu-nbd", "--version"),
        ("casync", "--version"),
        ("nbdkit", "--version"),
        ("fio", "--version"),
        ("b3sum", "--version"),
        ("rsync", "--version"),
        ("rclone", "version"),
    ]
    .map(|(program, argument)| said(Command::new(program).arg(argument)))
    .into();
    fact("peers", &versions.join(", "));
    Ok(text)
}

fn said(command: &mut Command) -> String {
    first_line(command).unwrap_or_else(|failure| failure.to_string())
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!(
        "{}, {cores} cores",
        model.trim_start_matches(['\t', ' ', ':'])
    )
}

fn memory() -> String {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = info
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0);
    format!("{} GiB", kibibytes.div_ceil(1 << 20))
}
