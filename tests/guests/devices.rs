//! Exports as block devices through the kernel's NBD client, in a guest, because not every kernel
//! has one.
//!
//! The guest runs daemon and client, and checks what a shell script can check. Its output is
//! checked here.

use std::fs;

use varve_tests::{
    guest::{Machine, make_disk, raw_file},
    programs,
    scratch::Scratch,
};

/// The beginning of all scripts: the programs, and functions that start and kill a daemon.
const BEGIN: &str = r#"
set -e
mount /dev/vdc /mnt
cd /mnt
PATH=$PATH:/mnt
# The default of both programs.
socket=/run/varve/nbd.sock
serve() {
  varved --data-dir /mnt/data >/mnt/log 2>&1 &
  varved=$!
  for try in $(seq 600); do
    if grep -qw ready /mnt/log; then snapctl -q status >/dev/null && return 0; fi
    sleep 0.1
  done
  cat /mnt/log
  return 1
}
# Prints the exit code and the output.
refused() {
  code=0
  said=$("$@" 2>&1) || code=$?
  echo "refused with $code: $said"
}
# Runs in the background until it has printed the device, which is then in $device.
map() {
  rm -f device
  snapctl map "$@" >device 2>>map.log &
  map=$!
  for try in $(seq 600); do
    if [ -s device ]; then device=$(cat device); return 0; fi
    if ! kill -0 $map; then cat map.log; return 1; fi
    sleep 0.1
  done
  return 1
}
ended() {
  code=0
  wait $1 || code=$?
  echo "ended with $code"
}
"#;

fn run(script: &str) -> String {
    let scratch = Scratch::new();
    let tree = scratch.join("tree");
    fs::create_dir(&tree).unwrap();
    for (program, name) in [
        (programs::varved(), "varved"),
        (programs::snapctl(), "snapctl"),
    ] {
        fs::copy(program, tree.join(name)).unwrap();
    }
    let disk = scratch.join("disk");
    make_disk(&disk, &tree, "3G");
    Machine::new()
        .drive(&raw_file(&disk))
        .run(&format!("{BEGIN}{script}"))
}

/// Asserts that the console output has these, in this order.
fn assert_says(console: &str, all: &[&str]) {
    let mut rest = console;
    for said in all {
        let Some((_, behind)) = rest.split_once(said) else {
            panic!("{said:?} is not said, or not in its place: {console}");
        };
        rest = behind;
    }
}

/// Files are written while the daemon is stopped, and killed; then the process that keeps the
/// device connected is killed with it. One process writes the files: without KVM a process takes
/// longer to start than a file to write.
const KILLED: &str = r#"
modprobe nbd
serve
snapctl -q volume create disk --size 1G >/dev/null
snapctl volume attach disk >/dev/null
map volume/disk --request-timeout 5
mkfs.ext4 -q $device
mkdir /t
mount $device /t
cat >/tmp/write <<'END'
use strict;
use autodie;
use Digest::SHA 'sha256_hex';
use Fcntl;
use IO::Handle;
use Time::HiRes 'time';
open my $random, '<:raw', '/dev/urandom';
open my $sums, '>', '/mnt/sums';
open my $times, '>', '/mnt/times';
$_->autoflush(1) for $sums, $times;
for (my $n = 1; !-e '/mnt/enough'; $n++) {
  read($random, my $bytes, 200000) == 200000 or die;
  open my $file, '>:raw', "/t/$n";
  print $file $bytes;
  $file->flush or die;
  print $sums sha256_hex($bytes), "  /t/$n\n";
  # syncfs
  syscall(306, fileno $file) == 0 or die "sync: $!";
  close $file;
  printf $times "%.6f %d\n", time, $n;
}
END
# Writes past the page cache, from memory that is aligned for this.
cat >/tmp/load <<'END'
use strict;
use autodie;
use Fcntl;
my $buffer = "\0" x (65536 + 4096);
my $aligned = -unpack('Q', pack 'P', $buffer) & 4095;
sysopen my $file, $ARGV[0], O_WRONLY | O_CREAT | 040000;
until (-e '/mnt/enough') {
  sysseek $file, 0, 0;
  for (1..64) { syswrite($file, $buffer, 65536, $aligned) == 65536 or die "write: $!" }
}
close $file;
END
perl /tmp/write & writer=$!
# Many requests are always under way.
perl /tmp/load /t/load1 & one=$!
perl /tmp/load /t/load2 & two=$!
# Waits until a file has so many more lines than before.
grown() {
  touch $1
  until=$(($(wc -l <$1) + $2))
  for try in $(seq 1200); do
    if [ $(wc -l <$1) -ge $until ]; then return 0; fi
    sleep 0.1
  done
  echo "$1 has $(wc -l <$1) lines, not $until"
  return 1
}
rounds=0
for signal in TERM KILL; do
  grown times 3
  kill -$signal $varved
  wait $varved || true
  serve
  rounds=$((rounds + 1))
  back=
  for try in $(seq 600); do
    if [ $(grep -c ': reconnected after' map.log) -ge $rounds ]; then back=yes; break; fi
    sleep 0.1
  done
  if [ -z "$back" ]; then cat map.log; exit 1; fi
  grown times 3
done
# The process that looks after the device is killed, too, and the daemon: the next one takes over.
kill -9 $map
wait $map || true
snapctl mapped
kill -9 $varved
wait $varved || true
serve
map volume/disk
grown times 3
touch enough
for ended in $writer $one $two; do wait $ended; done
echo "writers ended with $?"
sync
echo 3 >/proc/sys/vm/drop_caches
echo "$(wc -l <sums) files"
sha256sum --quiet --check sums
echo "all are as they were written"
awk '{ if (last && $1 - last > longest) longest = $1 - last; last = $1 } END { print "longest pause: " longest " s" }' times
umount /t
e2fsck -f -n $device
snapctl unmap volume/disk
ended $map
snapctl mapped
grep ': reconnected after' map.log
if dmesg | grep 'I/O error' | grep nbd; then exit 1; fi
"#;

#[test]
fn files_on_a_device_outlive_stops_and_kills_of_the_daemon() {
    let console = run(KILLED);
    assert_says(
        &console,
        &[
            "nobody",
            "writers ended with 0",
            "all are as they were written",
            "longest pause",
            "detached /dev/nbd0",
            "ended with 0",
            "no devices",
            "reconnected after",
        ],
    );
    let told = console.lines().filter(|line| {
        ["longest pause", " files", "reconnected"]
            .iter()
            .any(|it| line.contains(it))
    });
    told.for_each(|line| println!("{line}"));
}

/// Refusals and their reasons, and all ways in which a device can go away.
const USED: &str = r#"
serve
head -c 4000000 /dev/urandom >image
printf odd >>image
snapctl -q import image --name base >/dev/null
snapctl -q volume create disk --from base --size 64M >/dev/null
refused snapctl map volume/disk
modprobe nbd nbds_max=2
refused snapctl map volume/disk
refused snapctl map volume/none
refused snapctl map disk
refused snapctl map volume/disk --nbd nbds://localhost
refused snapctl map volume/disk --nbd nbd+unix:///?socket=/nowhere
refused snapctl map snapshot/base --nbd nbd+unix:///?socket=/nowhere
refused snapctl unmap volume/disk
snapctl volume attach disk >/dev/null

# A device that is named, and one that is in use.
map volume/disk --device nbd1 --block-size 4096 --connections 2
echo "device $device of $(blockdev --getsize64 $device) in $(blockdev --getss $device), read-only $(blockdev --getro $device)"
cmp -n 4000003 image $device
snapctl mapped --output json
refused snapctl map volume/disk
refused snapctl map snapshot/base --device nbd1
# In use by a program that has it open, and then not in use.
exec 5<$device
refused snapctl unmap $device
refused snapctl map volume/disk --read-only
exec 5<&-
mkfs.ext4 -q -F $device
mkdir /t
mount $device /t
echo kept >/t/file
refused snapctl unmap $device
# Interrupted while it is in use, it stays; then it is taken over.
kill -TERM $map
ended $map
snapctl mapped
first=$map
map volume/disk
echo "again $device"
umount /t
kill -INT $map
ended $map
cat map.log
snapctl mapped

# A snapshot whose last bytes are not a whole sector.
map snapshot/base
echo "device $device of $(blockdev --getsize64 $device), read-only $(blockdev --getro $device)"
cmp -n 3999744 image $device
refused dd if=/dev/zero of=$device bs=512 count=1 oflag=direct
snapctl unmap snapshot/base
ended $map

# It is found by name again after the volume has been renamed, because a device keeps its id.
map volume/disk --read-only
mount -o ro $device /t
cat /t/file
umount /t
# By force, while it is in use.
exec 5<$device
mount -o ro $device /t
snapctl unmap --force $device
umount /t
exec 5<&-
ended $map

# A daemon that stops for good: requests fail when their waiting time is over.
map volume/disk --dead-timeout 3
kill -TERM $varved
ended $varved
refused dd if=$device of=/dev/null bs=4096 count=1 iflag=direct
refused snapctl unmap --force $device
ended $map

# The kernel's client in its common use, through nbd-client.
serve
nbd-client -unix $socket -N snapshot/base -readonly /dev/nbd0 >/dev/null
cmp -n 3999744 image /dev/nbd0 && echo "nbd-client reads the same"
refused snapctl map volume/disk --device nbd0
snapctl mapped
nbd-client -d /dev/nbd0 >/dev/null
nbd-client -unix $socket -N volume/disk -C 2 /dev/nbd0 >/dev/null
mount /dev/nbd0 /t
echo more >/t/more
umount /t
nbd-client -d /dev/nbd0 >/dev/null
map volume/disk
mount -o ro $device /t
cat /t/file /t/more
umount /t
snapctl unmap $device
ended $map

# Attached elsewhere, by force, and the daemon restarted: the device does not get the new
# attachment.
map volume/disk --request-timeout 2 --dead-timeout 2
snapctl volume attach disk --force >/dev/null
kill -9 $varved
wait $varved || true
serve
refused dd if=$device of=/dev/null bs=4096 count=1 iflag=direct
grep 'attached again since' map.log
snapctl unmap --force $device
map volume/disk
dd if=$device of=/dev/null bs=4096 count=1 iflag=direct status=none && echo "its own is read"
snapctl unmap $device
# At once, and by its number.
map snapshot/base --device nbd0
snapctl unmap $device

"#;

#[test]
fn devices_come_and_go_as_people_ask() {
    let console = run(USED);
    assert_says(
        &console,
        &[
            "refused with 1: snapctl: map volume/disk: the kernel has no NBD client now: load it with `modprobe nbd`",
            "refused with 3: snapctl: open volume/vol-",
            "is not attached",
            "refused with 3:",
            "refused with 2: snapctl: map disk: an export is volume/NAME, snapshot/NAME or image/NAME",
            "refused with 2:",
            "does not support TLS",
            "refused with 2: snapctl: map volume/disk: with --nbd, give the id of the volume",
            "refused with 5: snapctl: connect to nbd+unix:///?socket=/nowhere",
            "refused with 3: snapctl: unmap volume/disk: it is not attached to a device",
            "device /dev/nbd1 of 67108864 in 4096, read-only 0",
            r#""connections": 2"#,
            "refused with 8: snapctl: map volume/disk: it is /dev/nbd1 already, and process",
            "refused with 8: snapctl: map snapshot/base: /dev/nbd1 is in use",
            "refused with 8: snapctl: detach /dev/nbd1: it is in use: process",
            "refused with 8: snapctl: map volume/disk: it is /dev/nbd1 already, writable",
            "refused with 8: snapctl: detach /dev/nbd1: it is in use",
            "ended with 0",
            "nobody",
            "again /dev/nbd1",
            "ended with 0",
            "in use: mounted, or part of a volume group, for example; it stays attached",
            "/dev/nbd1 was attached already; keeping it connected",
            "detached /dev/nbd1",
            "device /dev/nbd0 of 3999744, read-only 1",
            "refused with 1:",
            "detached /dev/nbd0",
            "ended with 0",
            "kept",
            "detached",
            "ended with 0",
            // The daemon, the request, and the device.
            "ended with 0",
            "refused with 1:",
            "refused with 0:",
            "ended with 0",
            "nbd-client reads the same",
            "/dev/nbd0 is in use",
            "kept\nmore",
            "ended with 0",
            "refused with 1:",
            "attached again since",
            "its own is read",
            "detached /dev/nbd0",
        ],
    );
}
