//! Backups of a running guest's disk that read only what has changed.

use std::path::{Path, PathBuf};

use varve_tests::{
    files,
    guest::{self, Machine, export},
    lab::Lab,
    process::{command, run},
    programs::{repository, tool},
};

use crate::volumes::{make, snapshot, uri};

/// Makes and changes files for ever; the pauses leave the processor to the reader of the backups.
const WORK: &str = r#"
mkdir /srv/files
cat >/tmp/work <<'END'
use strict;
use autodie;
use IO::Handle;
STDOUT->autoflush(1);
open my $random, '<:raw', '/dev/urandom';
chdir '/srv/files';
open my $directory, '<', '.';
for (my $n = 1; ; $n++) {
  read $random, my $bytes, $n * 7919 % 100000 + 1;
  open my $file, '>:raw', $n % 20;
  print $file $bytes;
  $file->flush or die;
  $file->sync && $directory->sync or die "sync: $!";
  close $file;
  print "written: $n\n";
  select undef, undef, undef, 0.2;
}
END
perl /tmp/work
"#;

fn written(console: &str) -> usize {
    console.matches("written: ").count()
}

#[test]
fn a_running_guests_disk_is_backed_up_by_its_changes() {
    let lab = Lab::new();
    lab.snapctl().import(&guest::image("base"), "base");
    make(&lab.varved, "disk", "--from base");
    let mut guest = Machine::on(&export(&uri(&lab.varved, "disk"))).start(WORK);
    let snapshot_uri = |name: &str| lab.varved.nbd_uri(name);
    let copy = |name: &str| -> PathBuf {
        let file = lab.scratch.join(format!("{name}.raw"));
        run(command(
            tool("nbdcopy"),
            [snapshot_uri(name).as_ref(), file.as_os_str()],
        ))
        .ok();
        file
    };
    let mut more = |number: usize| {
        let before = written(&guest.console());
        guest.wait_for("the guest to work", |console| {
            (written(console) >= before + number).then_some(())
        });
    };

    more(20);
    snapshot(&lab.varved, "disk", "day-0");
    let backup = copy("day-0");
    let size = files::len(&backup);
    let script = repository().join("tests/python/pull_backup.py");
    for day in 1..=2 {
        more(15);
        let (since, until) = (format!("day-{}", day - 1), format!("day-{day}"));
        snapshot(&lab.varved, "disk", &until);
        let mut pull = command(Path::new("/usr/bin/python3"), [&script]);
        pull.arg(snapshot_uri(&until)).arg(&since).arg(&backup);
        let pulled = run(pull).success();
        let read: u64 = pulled.text().trim().parse().unwrap();
        println!("day {day}: {read} of {size} bytes were read");
        assert!(read > 0 && read < size / 20, "{read} of {size}");
        more(1);
        files::assert_same(&backup, &copy(&until));
        std::fs::remove_file(lab.scratch.join(format!("{until}.raw"))).unwrap();
    }
    guest.kill();
    lab.snapctl().verify("day-2");
}
