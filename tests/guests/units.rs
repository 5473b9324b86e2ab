//! The shipped systemd units, in a guest that systemd has booted.

use std::fs;

use varve_tests::{
    guest::{Machine, make_disk, raw_file},
    programs::{self, repository},
    scratch::Scratch,
};

const SCRIPT: &str = r#"
set -e
mount /dev/vdc /usr/local/bin
cp /usr/local/bin/*.socket /usr/local/bin/*.service /etc/systemd/system
systemd-analyze verify --man=no /etc/systemd/system/varve* && echo "units are sound"
show() { systemctl show --value --property "$1" varved.service; }

# Without any settings it serves: store, sockets and client find each other. systemd reads the
# units as they are enabled.
systemctl enable --quiet --now varved-grpc.socket varved-nbd.socket varved.service
echo "it is $(systemctl is-active varved.service)"
snapctl -q status >/dev/null && echo "snapctl finds it"
stat --format '%n %a %U' /var/lib/varve /run/varve/grpc.sock /run/varve/nbd.sock
snapctl -q volume create disk --size 64M >/dev/null

systemctl restart varved.service
snapctl volume show disk | grep -q 'vol-' && echo "the volume is there"
systemctl kill --signal KILL varved.service
for try in $(seq 60); do
  if snapctl volume show disk >/dev/null 2>&1; then break; fi
  sleep 1
done
echo "killed, it was started again $(show NRestarts) time"
snapctl -q volume attach disk >/dev/null
unit=$(systemd-escape --template=varve-map@.service volume/disk)
systemctl start "$unit"
mkfs.ext4 -q /dev/nbd0
echo "mapped, it is $(systemctl is-active "$unit")"
systemctl stop "$unit"
snapctl -q volume detach disk >/dev/null
before=$(show MainPID)
systemctl reload varved.service
sleep 2
test "$(show MainPID)" = "$before" && echo "reloaded, it goes on"

# Settings that cannot be used: it says so once, and systemd does not retry.
systemctl stop varved.service varved-grpc.socket varved-nbd.socket
echo VARVE_LOG=inof >/etc/default/varved
systemctl reset-failed
systemctl start varved.service || echo "it does not start"
sleep 5
eval "$(systemctl show --property ActiveState,ExecMainStatus,NRestarts varved.service)"
echo "it is $ActiveState with $ExecMainStatus after $NRestarts more tries"
journalctl --no-pager --unit varved.service | grep -c '"inof"'
rm /etc/default/varved
systemctl reset-failed
systemctl start varved.service
snapctl volume show disk | grep -q 'vol-' && echo "the volume is there again"
systemctl stop varved.service varved-grpc.socket varved-nbd.socket
echo "stopped with $(show ExecMainStatus)"
"#;

#[test]
fn units_serve_without_any_setting_and_do_not_loop_over_wrong_ones() {
    let scratch = Scratch::new();
    let tree = scratch.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::copy(programs::varved(), tree.join("varved")).unwrap();
    fs::copy(programs::snapctl(), tree.join("snapctl")).unwrap();
    for unit in fs::read_dir(repository().join("daemon/systemd")).unwrap() {
        let unit = unit.unwrap();
        fs::copy(unit.path(), tree.join(unit.file_name())).unwrap();
    }
    let disk = scratch.join("disk");
    make_disk(&disk, &tree, "1G");
    let console = Machine::new().systemd().drive(&raw_file(&disk)).run(SCRIPT);
    let mut rest = &*console;
    for said in [
        "units are sound",
        "it is active",
        "snapctl finds it",
        "/var/lib/varve 700 root",
        "/run/varve/grpc.sock 600 root",
        "/run/varve/nbd.sock 600 root",
        "the volume is there",
        "killed, it was started again 1 time",
        "mapped, it is active",
        "reloaded, it goes on",
        "it does not start",
        "it is failed with 2 after 0 more tries",
        "the volume is there again",
        "stopped with 0",
    ] {
        let Some((_, behind)) = rest.split_once(said) else {
            panic!("{said:?} is not said, or not in its place: {console}");
        };
        rest = behind;
    }
}
