//! A guest with a database, which waits for the disk at each transaction.

use std::fs;
use std::process::Command;

use crate::bench::{Bench, image, remove};
use crate::failure::{Failure, While};
use crate::page_cache;
use crate::peers::NbdServer;
use crate::process;
use crate::process::Over;
use crate::rows::boot;
use crate::samples::{Samples, in_turns};
use crate::table::{Figure, Row, Wanted};
use crate::varve::Content;

/// The guest's script; the disk under test is its root.
const SCRIPT: &str = r#"
set -e
mkdir -p /run/postgresql /dev/shm
chown postgres /run/postgresql
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
echo writes: $(dd if=/dev/zero of=/var/tmp/synced bs=4k count=3000 oflag=dsync 2>&1)
rm /var/tmp/synced
pg_ctlcluster 15 main start
su postgres -c '/usr/lib/postgresql/15/bin/pgbench -q -i -s 2 postgres'
su postgres -c '/usr/lib/postgresql/15/bin/pgbench -c 8 -j 2 -T 20 postgres'
pg_ctlcluster 15 main stop
sync
"#;
const SYNCED_WRITES: f64 = 3000.0;

/// The guest's rates, per second.
struct Rates {
    writes: f64,
    transactions: f64,
}

pub(crate) fn guest(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let script = bench.path("database.sh");
    fs::write(&script, SCRIPT).during(|| format!("write {}", script.display()))?;
    let run = |drive: &str| {
        page_cache::settle();
        let mut command = Command::new(boot::script());
        command.args(["--keep", "--run"]).arg(&script).arg(drive);
        parse(&process::run(&mut command)?.output)
    };

    let data_dir = bench.fresh_directory("database")?;
    let varved = bench.programs.serve(&data_dir)?;
    let disk = bench.path("database.raw");
    varved.import(&image("database")?, "database")?;
    let volume = varved.make_volume("disk", Content::Snapshot("database"))?;
    let mut copy = Command::new("cp");
    copy.arg("--sparse=never")
        .arg(image("database")?)
        .arg(&disk);
    process::run(&mut copy)?;
    let peer = NbdServer::qemu_nbd_raw(Over::Unix, &bench.path(""), &disk)?;

    let (mut our_writes, mut their_writes) = (Vec::new(), Vec::new());
    let one = |drive: &str, writes: &mut Vec<f64>| {
        let rates = run(drive)?;
        writes.push(rates.writes);
        Ok(rates.transactions)
    };
    let [ours, theirs] = in_turns(
        "a database in a guest",
        bench.runs,
        [&mut |_| one(&volume.drive(), &mut our_writes), &mut |_| {
            one(&peer.drive(), &mut their_writes)
        }],
    )?;
    varved.stop()?;
    peer.stop()?;
    remove(&data_dir)?;
    remove(&disk)?;
    let row = |what: &str, ours, theirs, note| Row {
        what: format!("guest on a volume: {what}"),
        against: "qemu-nbd, raw file, cache none, io_uring".to_owned(),
        ours: Figure::PerSecond(ours),
        theirs: Figure::PerSecond(theirs),
        wanted: Wanted::TimesAsFast(1.0),
        note,
    };
    Ok(vec![
        row(
            "PostgreSQL's transactions",
            ours,
            theirs,
            "pgbench, its standard transaction, 8 clients for 20 s, in a guest with 2 vCPUs and 1 \
             GiB; the measured disk is its root, with the database.",
        ),
        row(
            "synced writes",
            Samples::from_runs(our_writes),
            Samples::from_runs(their_writes),
            "dd with oflag=dsync, 3000 pieces of 4 KiB appended to a file on ext4, in the same guest.",
        ),
    ])
}

/// Parses the guest's console.
fn parse(console: &str) -> Result<Rates, Failure> {
    let number = |what: &str, text: Option<&str>| {
        text.and_then(|text| text.parse::<f64>().ok())
            .ok_or_else(|| Failure::new(format!("the guest did not say {what}: {}", last(console))))
    };
    let seconds = console
        .lines()
        .find_map(|line| line.strip_prefix("writes:")?.split(" copied, ").nth(1));
    let seconds = number(
        "how long its writes took",
        seconds.and_then(|rest| rest.split(' ').next()),
    )?;
    let transactions = console
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
    Ok(Rates {
        writes: SYNCED_WRITES / seconds,
        transactions: number("its transactions per second", transactions)?,
    })
}

fn last(console: &str) -> String {
    let mut lines: Vec<_> = console.lines().rev().take(5).collect();
    lines.reverse();
    lines.join(" | ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn reads_a_console() {
        let console = "writes: 3000+0 records in 3000+0 records out 12288000 bytes (12 MB, 12 MiB) copied, 1.5 s, 8.2 MB/s\r\n\
                       number of clients: 8\r\ntps = 91.5 (without initial connection time)\r\n";
        let rates = parse(console).unwrap();
        assert_eq!((rates.writes, rates.transactions), (2000.0, 91.5));
        assert!(parse("Kernel panic").is_err());
    }
}
