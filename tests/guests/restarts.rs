//! A guest that continues while the daemon under its disk is stopped, killed and restarted.

use std::time::Instant;

use varve_tests::{
    files,
    guest::{Machine, patient_export, raw_file},
    lab::Lab,
};

use crate::volumes::make;

/// Many files one after another, each durable before it is reported, until there have been enough
/// and a disk of one sector says so; then a check of their contents. One process writes them
/// all: without KVM a process takes longer to start than a file to write.
const WRITE: &str = r#"
set -e
mkfs.ext4 -q /dev/vdc
mount /dev/vdc /mnt
cd /mnt
cat >/tmp/write <<'END'
use strict;
use autodie;
use Digest::SHA 'sha256_hex';
use IO::Handle;
STDOUT->autoflush(1);
open my $random, '<:raw', '/dev/urandom';
open my $stop, '<:raw', '/dev/vdd';
open my $sums, '>', '/tmp/sums';
open my $directory, '<', '.';
my ($n, $said) = (0, '');
until ($n >= 100 && $said =~ /^enough/) {
  $n++;
  read $random, my $bytes, $n * 7919 % 200000 + 1;
  open my $file, '>:raw', 'new';
  print $file $bytes;
  $file->flush or die;
  rename 'new', $n;
  $file->sync && $directory->sync or die "sync: $!";
  close $file;
  print $sums sha256_hex($bytes), "\n";
  print "durable: $n\n";
  # BLKFLSBUF: the next look is at the disk itself.
  ioctl $stop, 0x1261, 0;
  sysseek $stop, 0, 0;
  sysread $stop, $said, 512;
}
close $sums;
END
perl /tmp/write
cd /
umount /mnt
e2fsck -f -n /dev/vdc
mount -o ro /dev/vdc /mnt
cd /mnt
seq 1 $(wc -l </tmp/sums) | xargs sha256sum | cut -d ' ' -f 1 | cmp - /tmp/sums
echo "all are as they were written"
if dmesg | grep -i 'I/O error' | grep vdc; then exit 1; fi
"#;

fn durable(console: &str) -> usize {
    console.matches("durable: ").count()
}

#[test]
fn a_guest_goes_on_when_the_daemon_is_started_again() {
    let mut lab = Lab::new();
    make(&lab.varved, "disk", "--size 300M");
    let drive = patient_export(&lab.varved.nbd_socket(), "volume/disk", 600);
    let stop = lab.scratch.file("stop", [0; 512]);
    let mut guest = Machine::new()
        .drive(&drive)
        .drive(&raw_file(&stop))
        .start(WRITE);
    for (round, killed) in [false, true, false, true].into_iter().enumerate() {
        let before = durable(&guest.console());
        guest.wait_for("files to be written", |console| {
            (durable(console) >= before + 15).then_some(())
        });
        let at = Instant::now();
        if killed {
            lab.varved.kill();
        } else {
            lab.varved.stop();
        }
        lab.restart();
        let served = at.elapsed();
        let before = durable(&guest.console());
        guest.wait_for("the guest to go on", |console| {
            (durable(console) > before).then_some(())
        });
        println!(
            "round {round}: {}, served again after {:.2} s, the guest's next file durable after {:.2} s",
            if killed { "killed" } else { "stopped" },
            served.as_secs_f64(),
            at.elapsed().as_secs_f64()
        );
    }
    files::write_range(&stop, 0, b"enough");
    let console = guest.finish();
    assert!(
        console.contains("all are as they were written"),
        "{console}"
    );
}
