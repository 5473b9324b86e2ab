//! A guest that continues while the daemon under its disk is stopped, killed and restarted.

use std::time::Instant;

use varve_tests::{
    guest::{Machine, patient_export},
    lab::Lab,
};

use crate::volumes::make;

/// Many files one after another, each durable before it is reported; then a check of their
/// contents.
const WRITE: &str = r#"
set -e
mkfs.ext4 -q /dev/vdc
mount /dev/vdc /mnt
cd /mnt
n=0
while [ $n -lt 100 ]; do
  n=$((n + 1))
  head -c $((n * 7919 % 200000 + 1)) /dev/urandom >new
  sha256sum <new >>/tmp/sums
  mv new $n
  sync $n .
  echo "durable: $n"
done
cd /
umount /mnt
e2fsck -f -n /dev/vdc
mount -o ro /dev/vdc /mnt
for n in $(seq 1 100); do sha256sum </mnt/$n; done | cmp - /tmp/sums
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
    let mut guest = Machine::new().drive(&drive).start(WRITE);
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
    let console = guest.finish();
    assert!(
        console.contains("all are as they were written"),
        "{console}"
    );
}
