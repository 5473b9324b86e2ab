//! Imported content is exported bit for bit, and known content is not stored again.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use varve_tests::{
    daemon::Options,
    files, image,
    lab::Lab,
    process::{command, run, run_given},
    programs::tool,
    random::Random,
    rpc::Rpc,
    snapctl::{Imported, Snapctl, exit, import_arguments, number},
    valve::Valve,
};

const MIB: u64 = 1 << 20;

fn convert(from: &Path, to: &Path, arguments: &[&str]) {
    let all = ["convert", "-f", "raw"]
        .iter()
        .chain(arguments)
        .map(Path::new)
        .chain([from, to]);
    run(command(tool("qemu-img"), all)).ok();
}

#[test]
fn sizes_of_all_kinds_come_out_as_they_went_in() {
    let lab = Lab::new();
    let sizes = [
        1,
        511,
        4095,
        4096,
        4097,
        64 << 10,
        8 * MIB - 1,
        8 * MIB,
        8 * MIB + 1,
        8 * MIB + 4096,
        37 * MIB + 3 * 4096 + 17,
    ];
    for (seed, size_bytes) in (1..).zip(sizes) {
        let file = lab.image("image", size_bytes, seed);
        let name = format!("size-{size_bytes}");
        let imported = lab.snapctl().import(&file, &name);
        assert_eq!(number(&imported.0, "size_bytes"), size_bytes);
        lab.assert_content(&name, &file);
        lab.snapctl().verify(&name);
    }
}

#[test]
fn a_single_byte_is_a_snapshot() {
    let lab = Lab::new();
    for (name, content) in [("zero", b"\0"), ("one", b"\x01")] {
        let file = lab.scratch.file(name, content);
        lab.snapctl().import(&file, name);
        lab.assert_content(name, &file);
    }
}

#[test]
fn a_volume_of_holes_takes_no_space() {
    let lab = Lab::new();
    let file = lab.scratch.file("holes", "");
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(3 << 30)
        .unwrap();
    let imported = lab.snapctl().import(&file, "holes");
    assert_eq!((imported.data_bytes(), imported.new_bytes()), (0, 0));
    let exported = lab.scratch.join("out");
    lab.snapctl().export("holes", &exported);
    assert_eq!(files::len(&exported), 3 << 30);
    assert!(
        files::allocated_bytes(&exported) <= 64 << 10,
        "{}",
        files::allocated_bytes(&exported)
    );
}

/// Beyond 2 GiB a tree has two levels of inner nodes, beyond 512 GiB three.
#[test]
fn volumes_with_high_trees_come_out_as_they_went_in() {
    let lab = Lab::new();
    for size_bytes in [(5 << 30) + 4096, (513 << 30) + 1] {
        let file = lab.scratch.file("high", "");
        let image = File::options().write(true).open(&file).unwrap();
        image.set_len(size_bytes).unwrap();
        let places = [0, (2 << 30) - 4096, 2 << 30, size_bytes / 2, size_bytes - 5];
        for offset in places {
            image
                .write_all_at(&offset.to_le_bytes()[..5], offset)
                .unwrap();
        }
        let name = format!("high-{size_bytes}");
        let imported = lab.snapctl().import(&file, &name);
        assert!(imported.data_bytes() <= 8 * 4096, "{imported:?}");
        let out = lab.scratch.join(format!("out-{size_bytes}"));
        lab.snapctl().export(&name, &out);
        assert_eq!(files::len(&out), size_bytes);
        for offset in places {
            assert_eq!(
                files::read_range(&out, offset, 5),
                files::read_range(&file, offset, 5),
                "at {offset}"
            );
        }
        assert!(
            files::allocated_bytes(&out) < MIB,
            "{}",
            files::allocated_bytes(&out)
        );
        lab.snapctl().verify(&name);
    }
}

/// As in a new file system, which has some blocks in many places.
#[test]
fn thin_data_in_many_segments_comes_out_as_it_went_in() {
    let lab = Lab::new();
    let thin = lab.scratch.join("thin");
    let file = File::create(&thin).unwrap();
    file.set_len(3 << 40).unwrap();
    for number in 0..300_u64 {
        let block = [u8::try_from(number % 255).unwrap() + 1; 4096];
        file.write_all_at(&block, number * (10 << 30)).unwrap();
        // Two in the same segment, and some in the next one.
        file.write_all_at(&block, number * (10 << 30) + (1 << 20))
            .unwrap();
        file.write_all_at(&block, number * (10 << 30) + (9 << 20))
            .unwrap();
    }
    lab.snapctl().import(&thin, "thin");
    let exported = lab.scratch.join("exported");
    lab.snapctl().export("thin", &exported);
    let exported = File::open(exported).unwrap();
    assert_eq!(exported.metadata().unwrap().len(), 3 << 40);
    let mut block = [0; 4096];
    for number in 0..300_u64 {
        for offset in [0, 1 << 20, 9 << 20] {
            exported
                .read_exact_at(&mut block, number * (10 << 30) + offset)
                .unwrap();
            assert_eq!(block, [u8::try_from(number % 255).unwrap() + 1; 4096]);
        }
        exported
            .read_exact_at(&mut block, number * (10 << 30) + (5 << 20))
            .unwrap();
        assert_eq!(block, [0; 4096]);
    }
    lab.snapctl().verify("thin");
}

#[test]
fn holes_stay_holes_and_written_zeros_become_holes() {
    let lab = Lab::new();
    let sparse = lab.image("sparse", 80 * MIB, 11);
    let dense = lab.scratch.join("dense");
    files::copy_dense(&sparse, &dense);
    assert!(files::allocated_bytes(&dense) >= 80 * MIB);
    let imported = lab.snapctl().import(&dense, "dense");
    assert!(
        imported.data_bytes() < 70 * MIB,
        "the image has holes: {imported:?}"
    );
    for (name, arguments) in [("file", vec![]), ("raw", vec!["--format", "raw"])] {
        let out = lab.scratch.join(name);
        let command = lab.snapctl().command(
            ["export", "dense", out.to_str().unwrap()]
                .into_iter()
                .chain(arguments),
        );
        run(command).ok();
        files::assert_same(&dense, &out);
        // The file system's own records of extents come on top.
        assert!(
            files::allocated_bytes(&out) <= imported.data_bytes() + MIB,
            "{}",
            files::allocated_bytes(&out)
        );
    }
}

#[test]
fn content_alone_decides_the_root() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let sparse = lab.image("sparse", 40 * MIB, 12);
    let dense = lab.scratch.join("dense");
    files::copy_dense(&sparse, &dense);
    let qcow2 = lab.scratch.join("image.qcow2");
    convert(&sparse, &qcow2, &["-O", "qcow2"]);

    let first = snapctl.import(&sparse, "sparse");
    assert!(first.new_bytes() > 0);
    let others: [(&str, Imported); 4] = [
        ("dense", snapctl.import(&dense, "dense")),
        ("qcow2", snapctl.import(&qcow2, "qcow2")),
        ("stdin", snapctl.import_stdin(&sparse, "stdin")),
        ("pipe", import_through_pipe(&lab, &sparse, "pipe")),
    ];
    for (name, other) in others {
        assert_eq!(other.root(), first.root(), "{name}");
        assert_eq!(other.data_bytes(), first.data_bytes(), "{name}");
        assert_eq!(other.new_bytes(), 0, "{name}");
        assert_ne!(other.id(), first.id(), "{name}");
    }
    let longer = lab.scratch.join("longer");
    std::fs::copy(&sparse, &longer).unwrap();
    File::options()
        .write(true)
        .open(&longer)
        .unwrap()
        .set_len(40 * MIB + 1)
        .unwrap();
    assert_ne!(
        snapctl.import(&longer, "longer").root(),
        first.root(),
        "the size is part of the content"
    );
}

/// A file on standard input can be read by offsets; a pipe cannot.
fn import_through_pipe(lab: &Lab, file: &Path, name: &str) -> Imported {
    let mut cat = command(tool("cat"), [file])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let arguments = ["--output", "json"]
        .map(Into::into)
        .into_iter()
        .chain(import_arguments(Path::new("-"), name));
    let mut import = lab.snapctl().command(arguments);
    import.stdin(cat.stdout.take().unwrap());
    let finished = run_given(import).success();
    assert!(cat.wait().unwrap().success());
    Imported(serde_json::from_slice(&finished.stdout).unwrap())
}

#[test]
fn every_format_that_is_read_gives_the_same_content() {
    let lab = Lab::new();
    let raw = lab.image("raw", 33 * MIB, 13);
    let root = lab.snapctl().import(&raw, "raw").root();
    let formats: [(&str, &[&str]); 7] = [
        ("plain.qcow2", &["-O", "qcow2"]),
        (
            "zlib.qcow2",
            &["-O", "qcow2", "-c", "-o", "compression_type=zlib"],
        ),
        (
            "zstd.qcow2",
            &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        ),
        (
            "small-clusters.qcow2",
            &["-O", "qcow2", "-o", "cluster_size=4k"],
        ),
        ("version-2.qcow2", &["-O", "qcow2", "-o", "compat=0.10"]),
        ("sparse.vmdk", &["-O", "vmdk"]),
        (
            "stream.vmdk",
            &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        ),
    ];
    for (name, arguments) in formats {
        let file = lab.scratch.join(name);
        convert(&raw, &file, arguments);
        let imported = lab.snapctl().import(&file, name);
        assert_eq!(imported.root(), root, "{name}");
        assert_eq!(imported.new_bytes(), 0, "{name}");
        let format = if name.ends_with("vmdk") {
            "vmdk"
        } else {
            "qcow2"
        };
        let again = lab
            .snapctl()
            .import_with(&file, &format!("{name}-said"), ["--format", format]);
        assert_eq!(again.root(), root, "{name} with --format {format}");
    }
}

#[test]
fn an_image_that_is_said_to_be_raw_is_kept_as_it_is() {
    let lab = Lab::new();
    let raw = lab.image("raw", 4 * MIB, 14);
    let qcow2 = lab.scratch.join("image.qcow2");
    convert(&raw, &qcow2, &["-O", "qcow2"]);
    lab.snapctl()
        .import_with(&qcow2, "as-raw", ["--format", "raw"]);
    lab.assert_content("as-raw", &qcow2);
}

#[test]
fn exports_are_read_by_qemu() {
    let lab = Lab::new();
    let file = lab.image("image", 50 * MIB + 512, 15);
    lab.snapctl().import(&file, "image");
    let qcow2 = lab.scratch.join("out.qcow2");
    lab.snapctl()
        .run([
            "export",
            "image",
            qcow2.to_str().unwrap(),
            "--format",
            "qcow2",
        ])
        .ok();
    run(command(
        tool("qemu-img"),
        ["check", "-f", "qcow2", qcow2.to_str().unwrap()],
    ))
    .ok();
    let compare = [
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        file.to_str().unwrap(),
        qcow2.to_str().unwrap(),
    ];
    run(command(tool("qemu-img"), compare)).ok();
    // It can be imported again.
    let again = lab.snapctl().import(&qcow2, "again");
    assert_eq!(again.new_bytes(), 0);
    lab.assert_content("again", &file);
}

#[test]
fn a_snapshot_is_exported_to_standard_output() {
    let lab = Lab::new();
    let file = lab.image("image", 20 * MIB + 99, 16);
    let id = lab.snapctl().import(&file, "image").id();
    for key in ["image", &id] {
        let exported = lab.snapctl().run(["export", key, "-"]).success();
        assert!(
            exported.stdout == std::fs::read(&file).unwrap(),
            "the content of standard output differs"
        );
    }
}

#[test]
fn the_same_content_is_stored_once() {
    let lab = Lab::new();
    let file = lab.image("image", 90 * MIB, 17);
    let first = lab.snapctl().import(&file, "first");
    assert!(
        first.new_bytes() > 0 && first.new_bytes() <= first.data_bytes(),
        "{first:?}"
    );
    assert!(number(&first.0, "stored_bytes") > 0, "{first:?}");
    let before = lab.snapctl().json(["status"]);
    let second = lab.snapctl().import(&file, "second");
    assert_eq!(second.new_bytes(), 0);
    assert_eq!(number(&second.0, "stored_bytes"), 0);
    assert_eq!(second.root(), first.root());
    let after = lab.snapctl().json(["status"]);
    assert_eq!(number(&after, "chunks"), number(&before, "chunks"));
    assert_eq!(
        number(&after, "chunk_bytes"),
        number(&before, "chunk_bytes")
    );
    assert_eq!(number(&after, "snapshots"), 2);
}

#[test]
fn a_changed_image_stores_what_changed() {
    let lab = Lab::new();
    let file = image::make_random(&lab.scratch, "image", 64 * MIB, 18);
    lab.snapctl().import(&file, "before");
    image::change(&file, 3, &mut Random::seeded(18));
    let changed = lab.snapctl().import(&file, "after");
    // Three extents of at most 48 blocks, and around each some chunks that are cut anew.
    assert!(
        changed.new_bytes() > 0 && changed.new_bytes() < 6 * MIB,
        "{changed:?}"
    );
    lab.assert_content("after", &file);
}

#[test]
fn import_works_over_tcp_with_every_compression() {
    let scratch_image = varve_tests::scratch::Scratch::new();
    let file = image::make(&scratch_image, "image", 48 * MIB, 19);
    let mut roots = Vec::new();
    for compression in ["zstd", "lz4", "none"] {
        let lab = Lab::with(|options| options.tcp().env("VARVE_COMPRESSION", compression));
        let snapctl = Snapctl::new(lab.varved.tcp_endpoint());
        roots.push(snapctl.import(&file, "image").root());
        let out = lab.scratch.join("out");
        snapctl.export("image", &out);
        files::assert_same(&file, &out);
        assert_eq!(snapctl.json(["status"])["compression"], compression);
        lab.snapctl().verify("image");
    }
    roots.dedup();
    assert_eq!(
        roots.len(),
        1,
        "how chunks are packed is no part of the content"
    );
}

#[test]
fn the_blocking_disk_does_what_io_uring_does() {
    let mut lab = Lab::with(|options| options.env("VARVE_IO_ENGINE", "blocking"));
    assert_eq!(lab.snapctl().json(["status"])["io_engine"], "blocking");
    let file = lab.image("image", 48 * MIB, 20);
    let first = lab.snapctl().import(&file, "blocking");
    lab.assert_content("blocking", &file);
    lab.varved.stop();
    lab.restart();
    lab.assert_content("blocking", &file);
    let second = lab.snapctl().import(&file, "again");
    assert_eq!((second.new_bytes(), second.root()), (0, first.root()));
}

#[test]
fn imports_run_side_by_side() {
    let lab = Lab::new();
    let files: Vec<(String, PathBuf)> = (0..4u64)
        // Two of each content: the second one finds chunks that are not committed yet.
        .map(|number| {
            (
                format!("image-{number}"),
                lab.image(&format!("image-{number}"), 40 * MIB, 21 + number / 2),
            )
        })
        .collect();
    let running: Vec<_> = files
        .iter()
        .map(|(name, file)| lab.snapctl().start(import_arguments(file, name)))
        .collect();
    for import in running {
        import.wait().ok();
    }
    for (name, file) in &files {
        lab.assert_content(name, file);
        lab.snapctl().verify(name);
    }
}

#[tokio::test]
async fn an_import_that_is_killed_leaves_nothing_visible_and_goes_on_where_it_was() {
    const TOTAL: u64 = 192 * MIB;
    let lab = Lab::with(Options::tcp);
    let rpc = Rpc::connect(&lab.varved).await;
    let file = image::make_random(&lab.scratch, "image", TOTAL, 23);
    let valve = Valve::before(&lab.varved, 96 << 20);
    let mut import = Snapctl::new(valve.endpoint()).start(import_arguments(&file, "image"));
    rpc.wait_for_status("the first chunks to be in the index", |status| {
        status.chunk_bytes > 0
    })
    .await;
    import.kill();
    drop(valve);

    assert!(lab.snapctl().names().is_empty());
    lab.snapctl()
        .run(["snapshot", "show", "image"])
        .fails(exit::NOT_FOUND);
    let second = lab.snapctl().import(&file, "image");
    assert!(
        second.new_bytes() < TOTAL,
        "everything was sent again: {second:?}"
    );
    assert!(
        number(&second.0, "sent_bytes") < TOTAL,
        "everything was sent again: {second:?}"
    );
    assert_eq!(second.data_bytes(), TOTAL);
    lab.snapctl().verify("image");
    lab.assert_content("image", &file);
}

/// A connection may break while the daemon is at any point of its work.
#[test]
fn imports_that_are_cut_off_anywhere_lose_nothing() {
    const ROUNDS: usize = 8;
    let mut random = Random::of_test("imports_that_are_cut_off_anywhere");
    let mut lab = Lab::with(Options::tcp);
    for round in 0..ROUNDS {
        let name = format!("round-{round}");
        let file = image::make_random(&lab.scratch, &name, 48 * MIB, random.next_u64());
        // Chunks are indexed in groups of 32 MiB. About there the daemon does most of its work.
        let bytes = usize::try_from(random.within(30 * MIB..38 * MIB)).unwrap();
        let valve = Valve::before(&lab.varved, bytes);
        let import = Snapctl::new(valve.endpoint()).start(import_arguments(&file, &name));
        valve.wait_until_spent();
        drop(valve);
        import.wait().fails(exit::UNREACHABLE);

        lab.snapctl().import(&file, &name);
        lab.snapctl().verify(&name);
        lab.assert_content(&name, &file);
        std::fs::remove_file(file).unwrap();
    }
    lab.varved.kill();
    lab.restart();
    assert_eq!(lab.snapctl().verify_all().len(), ROUNDS);
}
