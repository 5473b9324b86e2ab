//! A guest's file system on a volume: sound after use, and in a snapshot that was taken during
//! writes.

use std::{fs, path::Path};

use varve_tests::{
    guest::{self, Machine, export, raw_file},
    image,
    lab::Lab,
    process::{command, run},
    programs::tool,
    scratch::Scratch,
};

use crate::volumes::{make, snapshot, uri};

/// Files of all sizes, some changed, truncated or removed afterwards; then the checksums of the
/// rest. One process makes them, from a disk of random bytes: without KVM a process takes long to
/// start, and a guest makes random bytes slowly.
const FILL: &str = r#"
set -e
mkfs.ext4 -q /dev/vdc
mount -o discard /dev/vdc /mnt
cd /mnt
cp -a /usr/share/perl /etc .
mkdir sizes
cat >/tmp/fill <<'END'
use strict;
use autodie;
open my $random, '<:raw', '/dev/vdd';
for my $n (1..45) {
  read($random, my $bytes, $n * $n * 997) == $n * $n * 997 or die;
  open my $file, '>:raw', "sizes/$n";
  print $file $bytes;
  close $file;
}
system('sync') == 0 or die;
for my $n (1..45) {
  my $name = "sizes/$n";
  if ($n % 5 == 0) { unlink $name }
  if ($n % 5 == 1) { truncate $name, $n * 1000 }
  if ($n % 5 == 2) {
    open my $file, '+<:raw', $name;
    seek $file, $n * 300, 0;
    print $file 'changed';
    close $file;
  }
  if ($n % 5 == 3) { system(qw(fallocate -p -o 4096 -l 8192), $name) == 0 or die }
}
END
perl /tmp/fill
rm -r etc
find . -xdev -type f -not -name sums -print0 | sort -z | xargs -0 sha256sum >sums
wc -l <sums
sync
cd /
umount /mnt
"#;

fn e2fsck<const N: usize>(options: [&str; N], image: &Path) {
    let mut check = command(tool("e2fsck"), options);
    check.arg(image);
    run(check).ok();
}

/// Asserts that the file system needs no repair.
fn assert_sound(image: &Path) {
    e2fsck(["-f", "-n"], image);
}

#[test]
fn a_guests_files_on_a_volume_are_whole_and_the_file_system_is_sound() {
    let lab = Lab::new();
    make(&lab.varved, "disk", "--size 700M");
    let uri = uri(&lab.varved, "disk");
    let random = image::make_random(&lab.scratch, "random", 32 << 20, 221);
    Machine::new()
        .drive(&format!("discard=unmap,{}", export(&uri)))
        .drive(&format!("readonly=on,{}", raw_file(&random)))
        .run(FILL);

    let copy = lab.scratch.join("copy");
    run(command(tool("nbdcopy"), [Path::new(&uri), &copy])).ok();
    assert_sound(&copy);
    let tree = lab.scratch.join("tree");
    fs::create_dir(&tree).unwrap();
    let dump = format!("rdump / {}", tree.display());
    run(command(
        tool("debugfs"),
        ["-R".as_ref(), dump.as_ref(), copy.as_os_str()],
    ))
    .ok();
    let mut check = command(
        tool("sha256sum"),
        ["--check", "--strict", "--quiet", "sums"],
    );
    check.current_dir(&tree);
    run(check).ok();
    let sums = fs::read_to_string(tree.join("sums")).unwrap();
    assert!(sums.lines().count() > 100, "{sums}");

    // A snapshot has the same content.
    snapshot(&lab.varved, "disk", "after");
    lab.assert_content("after", &copy);
}

/// One file after another, each durable before it is reported; the names have the checksums of the
/// contents.
const WRITE_FOR_EVER: &str = r#"
mkdir /srv/files
cat >/tmp/write <<'END'
use strict;
use autodie;
use Digest::SHA 'sha256_hex';
use IO::Handle;
STDOUT->autoflush(1);
open my $random, '<:raw', '/dev/urandom';
chdir '/srv/files';
open my $directory, '<', '.';
for (my $n = 1; ; $n++) {
  read $random, my $bytes, $n * 7919 % 200000 + 1;
  open my $file, '>:raw', 'new';
  print $file $bytes;
  $file->flush or die;
  rename 'new', "$n-" . sha256_hex($bytes);
  $file->sync && $directory->sync or die "sync: $!";
  close $file;
  print "durable: $n\n";
}
END
perl /tmp/write
"#;

/// Reports which of those files are intact.
const LOOK: &str = r#"
set -e
cd /srv/files
cat >/tmp/look <<'END'
use strict;
use Digest::SHA;
for my $name (glob '*-*') {
  my ($number, $sum) = split /-/, $name;
  my $same = Digest::SHA->new(256)->addfile($name, 'b')->hexdigest eq $sum;
  print $same ? "found: $number\n" : "differs: $name\n";
}
END
perl /tmp/look
touch written-by-the-second-guest
sync
"#;

/// The numbers behind a word at the beginnings of lines.
fn numbers(console: &str, word: &str) -> Vec<u64> {
    let lines = console.lines();
    // The last line may not be whole yet.
    let whole = lines.take(console.matches('\n').count());
    let texts = whole.filter_map(|line| line.strip_prefix(word)?.strip_prefix(": "));
    texts.map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_second_guest_boots_from_a_snapshot_taken_while_the_first_one_writes() {
    let (lab, scratch) = (Lab::new(), Scratch::new());
    let base = guest::image("base");
    lab.snapctl().import(&base, "base");
    make(&lab.varved, "first", "--from base");
    let mut first = Machine::on(&export(&uri(&lab.varved, "first"))).start(WRITE_FOR_EVER);
    let durable = |console: &str| numbers(console, "durable").last().copied();
    let told = first.wait_for("the guest's files to be durable", |console| {
        durable(console).filter(|number| *number >= 20)
    });
    snapshot(&lab.varved, "first", "meanwhile");
    // The snapshot did not stop it.
    let after = durable(&first.console()).unwrap();
    first.wait_for("the guest to go on", |console| {
        durable(console).filter(|number| *number > after + 3)
    });
    first.kill();

    let exported = scratch.join("meanwhile");
    lab.snapctl().export("meanwhile", &exported);
    // It only needs the replay of its journal.
    let replayed = image::copy(&scratch, &exported, "replayed");
    e2fsck(["-y", "-E", "journal_only"], &replayed);
    assert_sound(&replayed);

    make(&lab.varved, "second", "--from meanwhile");
    let console = Machine::on(&export(&uri(&lab.varved, "second"))).run(LOOK);
    let mut found = numbers(&console, "found");
    found.sort_unstable();
    let told: Vec<_> = (1..=told).collect();
    assert!(found.starts_with(&told), "{told:?} were durable: {console}");

    // Neither guest wrote to a snapshot.
    lab.assert_content("meanwhile", &exported);
    lab.assert_content("base", &base);
}
