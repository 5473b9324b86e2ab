//! Volumes as disks: clients read what was written, at once, after a restart, and in snapshots.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use varve_store::format::names;
use varve_tests::{
    daemon::Options,
    lab::Lab,
    nbd::{Peer, errno, go_data, option, option_reply, request},
    process::{command, run, start},
    programs::tool,
    random::Random,
    snapctl::{exit, number, text},
};

use super::{MIB, make, peer, root, snapshot, tcp_uri, tool_run, uri, volume};

const BLOCK: usize = 4096;

/// One change of random size and offset, of a disk and of the model of its content.
fn change(peer: &mut Peer, model: &mut [u8], random: &mut Random) {
    let grain = [BLOCK, 512, 512, 1][random.index(4)];
    let longest = [3 * grain, 70_000, 600_000][random.index(3)];
    let start = random.index(model.len()) / grain * grain;
    let len = (1 + random.index(longest)).next_multiple_of(grain);
    let end = (start + len).min(model.len());
    let (offset, len) = (start as u64, u32::try_from(end - start).unwrap());
    let error = match random.within(0..6) {
        0 => {
            model[start..end].fill(0);
            peer.clear(request::WRITE_ZEROES, offset, len)
        }
        1 => {
            // Whole blocks are discarded; the last one of a disk is whole, however short.
            let first = start.next_multiple_of(BLOCK);
            let last = if end == model.len() {
                end
            } else {
                end / BLOCK * BLOCK
            };
            if first < last {
                model[first..last].fill(0);
            }
            peer.clear(request::TRIM, offset, len)
        }
        _ => {
            random.fill(&mut model[start..end]);
            peer.write(offset, &model[start..end])
        }
    };
    assert_eq!(error.unwrap(), 0, "{len} bytes at {offset}");
}

/// Asserts that a disk has this content.
fn assert_holds(peer: &mut Peer, model: &[u8]) {
    for (offset, expected) in (0..).step_by(1 << 20).zip(model.chunks(1 << 20)) {
        let len = u32::try_from(expected.len()).unwrap();
        let found = peer.read_bytes(offset, len).unwrap().unwrap();
        if found != expected {
            let at = found.iter().zip(expected).position(|(a, b)| a != b);
            panic!("differs at {}", offset + at.unwrap() as u64);
        }
    }
}

#[test]
fn changes_of_any_size_are_there_after_restarts_and_in_snapshots() {
    let mut random = Random::of_test("changes_of_any_size");
    let mut lab = Lab::new();
    let base = lab.image("base", 9 * MIB + 512, 201);
    lab.snapctl().import(&base, "base");
    // The last block is shorter than a block.
    let size = 24 * MIB + 1536;
    make(&lab.varved, "zeros", &format!("--size {size}"));
    make(
        &lab.varved,
        "of-base",
        &format!("--from base --size {size}"),
    );
    let mut based = fs::read(&base).unwrap();
    based.resize(usize::try_from(size).unwrap(), 0);
    let mut models = [("zeros", vec![0; based.len()]), ("of-base", based)];
    for round in 0..4 {
        for (disk, model) in &mut models {
            let mut peer = peer(&lab.varved, disk);
            for _ in 0..150 {
                change(&mut peer, model, &mut random);
                let start = random.index(model.len());
                let end = (start + 1 + random.index(20_000)).min(model.len());
                let len = u32::try_from(end - start).unwrap();
                let found = peer.read_bytes(start as u64, len).unwrap().unwrap();
                assert!(found == model[start..end], "{len} bytes at {start}");
            }
            assert_holds(&mut peer, model);
        }
        // Snapshots have the whole content, whether they are made before or after a restart.
        let restart_first = round % 2 == 0;
        for restart in [restart_first, !restart_first] {
            if restart {
                lab.varved.stop();
                lab.restart();
                continue;
            }
            for (disk, model) in &models {
                let name = format!("{disk}-{round}");
                snapshot(&lab.varved, disk, &name);
                lab.snapctl().verify(&name);
                let file = lab.scratch.file("model", model);
                lab.assert_content(&name, &file);
            }
        }
        for (disk, model) in &models {
            assert_holds(&mut peer(&lab.varved, disk), model);
        }
    }
    // Later writes did not change the earlier snapshots.
    assert_eq!(lab.snapctl().verify_all().len(), 9);
    lab.assert_content("base", &base);
}

#[test]
fn qemu_io_reads_what_it_writes() {
    let lab = Lab::with(Options::tcp);
    make(&lab.varved, "disk", "--size 8M");
    for uri in [uri(&lab.varved, "disk"), tcp_uri(&lab.varved, "disk")] {
        let mut arguments = vec!["-f", "raw", &uri];
        for line in [
            "write -P 0x11 0 4M",
            "read -P 0x11 0 4M",
            "write -P 0x22 512 512",
            "write -P 0x33 5001 1",
            "write -P 0x44 -f 1M 300k",
            "write -z 2M 64k",
            "write -z -u 2500k 1",
            "discard 3M 1M",
            "aio_write -P 0x55 4M 2M",
            "aio_write -P 0x66 6M 512",
            "aio_flush",
            "flush",
            "read -P 0x11 0 512",
            "read -P 0x22 512 512",
            "read -P 0x11 1024 3977",
            "read -P 0x33 5001 1",
            "read -P 0x11 5002 1000",
            "read -P 0x44 1M 300k",
            "read -P 0 2M 64k",
            "read -P 0 2500k 1",
            "read -P 0x11 2560001 1000",
            "read -P 0 3M 1M",
            "read -P 0x55 4M 2M",
            "read -P 0x66 6M 512",
            "read -P 0 6291968 1M",
            "discard 0 8M",
            "read -P 0 0 8M",
        ] {
            arguments.extend(["-c", line]);
        }
        let said = tool_run("qemu-io", &arguments).success();
        let all = said.text() + &said.stderr;
        assert!(!all.contains("failed") && !all.contains("rror"), "{said:?}");
    }
}

/// Arguments of fio for random writes whose checksums are verified afterwards.
fn fio_arguments(uri: &str, sizes: &str, mib: u64) -> Vec<String> {
    let own = [
        format!("--uri={uri}"),
        format!("--bsrange={sizes}"),
        format!("--size={mib}M"),
    ];
    let same = [
        "--name=blocks",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--randseed=202",
        "--output-format=terse",
    ];
    // The engine comes first, because some options are its own.
    let same = same.into_iter().map(ToOwned::to_owned);
    same.chain(own).collect()
}

#[test]
fn fio_verifies_what_it_writes() {
    let lab = Lab::with(Options::tcp);
    make(&lab.varved, "disk", "--size 100M");
    for uri in [uri(&lab.varved, "disk"), tcp_uri(&lab.varved, "disk")] {
        for (sizes, mib) in [("4k-256k", 100), ("512-64k", 24)] {
            let arguments = fio_arguments(&uri, sizes, mib);
            let fio = run(command(tool("fio"), arguments));
            assert!(fio.status.success(), "{sizes}: {fio:?}");
        }
    }
    snapshot(&lab.varved, "disk", "after");
    lab.snapctl().verify("after");
}

/// Snapshots are sound, and the journal shrinks under writes. (The store's tests check that each
/// snapshot is of one moment.)
#[test]
fn snapshots_are_made_while_fio_writes() {
    let lab = Lab::new();
    let base = lab.image("base", 30 * MIB, 203);
    lab.snapctl().import(&base, "base");
    make(&lab.varved, "disk", "--from base --size 128M");
    assert_holds(
        &mut peer(&lab.varved, "disk"),
        &[fs::read(&base).unwrap(), vec![0; 98 << 20]].concat(),
    );
    let mut arguments = fio_arguments(&uri(&lab.varved, "disk"), "4k-64k", 128);
    // Slow enough for some snapshots on any machine.
    arguments.push("--rate=40M".to_owned());
    let mut fio = start(command(tool("fio"), arguments));
    let mut made = Vec::new();
    while fio.ended().is_none() && made.len() < 8 {
        let name = format!("during-{}", made.len());
        made.push(snapshot(&lab.varved, "disk", &name));
        lab.snapctl().verify(&name);
        thread::sleep(Duration::from_millis(100));
    }
    let fio = fio.wait();
    assert!(fio.status.success(), "{fio:?}");
    made.dedup();
    assert!(made.len() > 1, "nothing was written between {made:?}");
    lab.assert_content("base", &base);
}

#[test]
fn an_image_written_by_qemu_img_is_the_image_imported() {
    let lab = Lab::with(Options::tcp);
    let image = lab.image("image", 90 * MIB + 4096, 204);
    let size = format!("--size {}", 90 * MIB + 4096);
    lab.snapctl().import(&image, "imported");
    let imported = root(&lab.varved, "imported");
    for (disk, uri) in [
        ("unix", uri(&lab.varved, "unix")),
        ("tcp", tcp_uri(&lab.varved, "tcp")),
    ] {
        make(&lab.varved, disk, &size);
        // The earlier content leaves no trace.
        let mut peer = peer(&lab.varved, disk);
        for place in 0..90 {
            assert_eq!(peer.write(place * MIB + 1000, &[7; 9000]).unwrap(), 0);
        }
        let convert = ["convert", "-n", "-f", "raw", "-O", "raw"];
        tool_run(
            "qemu-img",
            &[&convert[..], &[image.to_str().unwrap(), &uri]].concat(),
        )
        .ok();
        assert_eq!(snapshot(&lab.varved, disk, disk), imported);
        let diff = lab.snapctl().json(["snapshot", "diff", "imported", disk]);
        assert_eq!(diff["extents"], json!([]));
        lab.assert_content(disk, &image);
    }
}

#[test]
fn a_detached_volume_takes_no_more_requests() {
    let lab = Lab::new();
    make(&lab.varved, "disk", "--size 4M");
    let mut before = peer(&lab.varved, "disk");
    assert_eq!(before.write(0, &[1; BLOCK]).unwrap(), 0);
    volume(&lab.varved, "detach disk");
    assert_eq!(before.write(0, &[2; BLOCK]).unwrap(), errno::ESHUTDOWN);
    for command in [request::TRIM, request::WRITE_ZEROES] {
        assert_eq!(before.clear(command, 0, 4096).unwrap(), errno::ESHUTDOWN);
    }
    assert_eq!(before.flush().unwrap(), errno::ESHUTDOWN);
    assert_eq!(before.read_bytes(0, 1).unwrap(), Err(errno::ESHUTDOWN));

    // A second attachment is a new one: the client that was disconnected stays so.
    volume(&lab.varved, "attach disk");
    assert_eq!(before.write(0, &[2; BLOCK]).unwrap(), errno::ESHUTDOWN);
    let mut after = peer(&lab.varved, "disk");
    assert_eq!(after.read_bytes(0, 4096).unwrap(), Ok(vec![1; BLOCK]));
}

#[test]
fn an_attachment_by_force_cuts_off_the_one_before() {
    let lab = Lab::new();
    make(&lab.varved, "disk", "--size 64M");
    let mut first = peer(&lab.varved, "disk");
    assert_eq!(first.write(MIB, &[1; 3 * BLOCK]).unwrap(), 0);
    assert_eq!(first.flush().unwrap(), 0);
    let said = lab
        .snapctl()
        .run(["volume", "attach", "disk"])
        .fails(exit::CONFLICT);
    assert!(said.contains("\"disk\" is attached"), "{said}");
    assert_eq!(first.write(MIB, &[2; BLOCK]).unwrap(), 0);

    // Also in the middle of many writes.
    let writer = thread::spawn(move || {
        for place in 0.. {
            let offset = 2 * MIB + place % 1000 * 4096;
            if first.write(offset, &[3; BLOCK]).unwrap() != 0 {
                return (first, place);
            }
        }
        unreachable!()
    });
    thread::sleep(Duration::from_millis(50));
    volume(&lab.varved, "attach disk --force");
    let mut second = peer(&lab.varved, "disk");
    assert_eq!(second.write(0, &[4; BLOCK]).unwrap(), 0);
    let (mut first, written) = writer.join().unwrap();
    assert_eq!(first.write(0, &[5; BLOCK]).unwrap(), errno::ESHUTDOWN);
    assert_eq!(second.read_bytes(0, 4096).unwrap(), Ok(vec![4; BLOCK]));
    let flushed = second.read_bytes(MIB, 3 * 4096).unwrap().unwrap();
    assert_eq!(flushed, [[2; BLOCK], [1; BLOCK], [1; BLOCK]].concat());
    for place in 0..written.min(1000) {
        let found = second.read_bytes(2 * MIB + place * 4096, 4096).unwrap();
        assert_eq!(found, Ok(vec![3; BLOCK]), "{place}");
    }
    let shown = lab.snapctl().json(["volume", "show", "disk"]);
    assert_eq!(number(&shown, "attachments"), 2);
}

#[test]
fn only_attached_volumes_are_exported() {
    let lab = Lab::new();
    lab.snapctl().import(&lab.image("image", MIB, 205), "image");
    for name in ["a", "b", "c/d"] {
        volume(&lab.varved, &format!("create {name} --size 3M"));
    }
    let listed = || {
        let all = format!("nbd+unix://?socket={}", lab.varved.nbd_socket().display());
        let list = tool_run("nbdinfo", &["--list", "--json", &all]).success();
        let list: Value = serde_json::from_slice(&list.stdout).unwrap();
        let exports = list["exports"].as_array().unwrap().clone();
        for export in &exports {
            let is_volume = text(export, "export-name").starts_with("volume/");
            assert_eq!(export["is_read_only"], !is_volume);
            assert_eq!(export["can_trim"], is_volume);
            assert_eq!(export["can_zero"], is_volume);
            assert_eq!(export["can_flush"], is_volume);
            assert_eq!(export["can_fua"], is_volume);
            assert_eq!(export["can_multi_conn"], true);
        }
        let names = exports.iter().map(|export| text(export, "export-name"));
        names.collect::<Vec<_>>()
    };
    assert_eq!(listed(), ["snapshot/image"]);
    let refused = tool_run("nbdinfo", &[&uri(&lab.varved, "b")]);
    let said = refused.fails(1);
    assert!(said.contains("volume/b"), "{said}");
    let mut asking = Peer::unix(&lab.varved.nbd_socket()).unwrap();
    asking.greet().unwrap();
    let replies = asking.ask(option::GO, &go_data("volume/b")).unwrap();
    let (kind, said) = replies.last().unwrap();
    assert_eq!(*kind, option_reply::ERR_UNKNOWN);
    let said = String::from_utf8_lossy(said);
    assert!(said.contains("\"b\" is not attached"), "{said}");

    volume(&lab.varved, "attach b");
    volume(&lab.varved, "attach c/d");
    assert_eq!(listed(), ["snapshot/image", "volume/b", "volume/c/d"]);
    let size = tool_run("nbdinfo", &["--size", &uri(&lab.varved, "b")]).success();
    assert_eq!(size.text().trim(), (3 * MIB).to_string());
    volume(&lab.varved, "detach b");
    assert_eq!(listed(), ["snapshot/image", "volume/c/d"]);
    tool_run("nbdinfo", &[&uri(&lab.varved, "b")]).fails(1);
}

/// The files of a volume's journal.
fn journal(lab: &Lab, volume: &str) -> Vec<PathBuf> {
    let shown = lab.snapctl().json(["volume", "show", volume]);
    let dir = names::volumes(&lab.data_dir()).join(text(&shown, "id"));
    files_in(&dir)
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_deleted_volume_leaves_its_snapshots_and_no_files() {
    let lab = Lab::new();
    make(&lab.varved, "disk", "--size 20M");
    let mut peer = peer(&lab.varved, "disk");
    let mut model = vec![0; 20 << 20];
    let mut random = Random::seeded(206);
    random.fill(&mut model[3 << 20..9 << 20]);
    for place in 3..9_usize {
        let bytes = &model[place << 20..(place + 1) << 20];
        assert_eq!(peer.write((place as u64) << 20, bytes).unwrap(), 0);
    }
    snapshot(&lab.varved, "disk", "kept");
    assert_eq!(peer.write(0, &[1; 10_000]).unwrap(), 0);
    let files = journal(&lab, "disk");
    assert!(!files.is_empty());
    volume(&lab.varved, "detach disk");
    volume(&lab.varved, "delete disk");
    let left: Vec<_> = files.iter().filter(|file| file.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(peer.write(0, &[2; 10_000]).unwrap(), errno::ESHUTDOWN);
    lab.snapctl().verify("kept");
    lab.assert_content("kept", &lab.scratch.file("model", &model));
    // A new volume of the same name has none of its content.
    make(&lab.varved, "disk", "--size 20M");
    assert_holds(&mut super::peer(&lab.varved, "disk"), &vec![0; 20 << 20]);
}
