//! A disk that fills up in the middle of an import loses that import, and nothing else.

use std::{fs, path::Path};

use varve_tests::{
    daemon::{Options, Varved},
    files, image,
    loop_fs::LoopFs,
    scratch::Scratch,
    snapctl::{exit, import_arguments, text},
};

const MIB: u64 = 1 << 20;

/// Asserts that a snapshot is whole.
fn assert_whole(varved: &Varved, scratch: &Scratch, snapshot: &str, file: &Path) {
    varved.snapctl().verify(snapshot);
    let out = scratch.join("out");
    varved.snapctl().export(snapshot, &out);
    files::assert_same(file, &out);
    fs::remove_file(out).unwrap();
}

#[test]
fn an_import_that_fills_the_disk_fails_and_all_else_goes_on() {
    let Some(disk) = LoopFs::mount(320 * MIB) else {
        return;
    };
    let scratch = Scratch::new();
    let options = Options::new(disk.path().join("data"));
    let mut varved = options.start();
    let kept = image::make(&scratch, "kept", 24 * MIB, 71);
    varved.snapctl().import(&kept, "kept");
    // Another file on the same disk, to be removed later.
    fs::write(disk.path().join("other"), vec![0xab; 100 << 20]).unwrap();

    let large = image::make_random(&scratch, "large", 500 * MIB, 72);
    let said = varved
        .snapctl()
        .run(import_arguments(&large, "large"))
        .fails(exit::OUT_OF_SPACE);
    assert!(said.contains("space"), "{said}");
    assert_eq!(varved.snapctl().names(), ["kept"]);
    assert_whole(&varved, &scratch, "kept", &kept);
    // Again, with a disk that is full from the start.
    varved
        .snapctl()
        .run(import_arguments(&large, "large"))
        .fails(exit::OUT_OF_SPACE);
    assert_eq!(varved.snapctl().names(), ["kept"]);

    // A daemon that starts on a full disk, after a kill and after a clean stop.
    for killed in [false, true] {
        if killed {
            varved.kill()
        } else {
            varved.stop()
        }
        varved = options.start();
        assert_eq!(varved.snapctl().names(), ["kept"]);
        assert_whole(&varved, &scratch, "kept", &kept);
    }
    varved
        .snapctl()
        .run(import_arguments(&large, "large"))
        .fails(exit::OUT_OF_SPACE);

    fs::remove_file(disk.path().join("other")).unwrap();
    let small = image::make_random(&scratch, "small", 40 * MIB, 73);
    varved.snapctl().import(&small, "small");
    varved.stop();
    varved = options.start();
    assert_eq!(varved.snapctl().names(), ["kept", "small"]);
    assert_whole(&varved, &scratch, "kept", &kept);
    assert_whole(&varved, &scratch, "small", &small);
}

#[test]
fn an_import_goes_on_without_a_restart_when_space_was_freed() {
    let Some(disk) = LoopFs::mount(256 * MIB) else {
        return;
    };
    let scratch = Scratch::new();
    let mut varved = Varved::start(disk.path().join("data"));
    fs::write(disk.path().join("other"), vec![0xcd; 120 << 20]).unwrap();
    let file = image::make_random(&scratch, "image", 150 * MIB, 74);
    varved
        .snapctl()
        .run(import_arguments(&file, "image"))
        .fails(exit::OUT_OF_SPACE);
    fs::remove_file(disk.path().join("other")).unwrap();
    let imported = varved.snapctl().import(&file, "image");
    assert!(
        imported.new_bytes() < 150 * MIB,
        "what was stored before the disk was full is not sent again: {imported:?}"
    );
    assert_whole(&varved, &scratch, "image", &file);
    varved.stop();
}

/// Another program takes the last byte: not even the catalog can be written.
#[test]
fn a_disk_without_a_single_free_block_stops_writes_only() {
    let Some(disk) = LoopFs::mount(256 * MIB) else {
        return;
    };
    let scratch = Scratch::new();
    let options = Options::new(disk.path().join("data"));
    let mut varved = options.start();
    let kept = image::make(&scratch, "kept", 16 * MIB, 75);
    varved
        .snapctl()
        .import_with(&kept, "kept", ["--tag", "state=before"]);
    fill(&disk.path().join("other"));

    let more = image::make_random(&scratch, "more", 20 * MIB, 76);
    varved
        .snapctl()
        .run(import_arguments(&more, "more"))
        .fails(exit::OUT_OF_SPACE);
    assert_eq!(varved.snapctl().names(), ["kept"]);
    assert_whole(&varved, &scratch, "kept", &kept);
    let tagged = varved
        .snapctl()
        .run(["snapshot", "tag", "kept", "state=after"]);

    fs::remove_file(disk.path().join("other")).unwrap();
    varved.stop();
    varved = options.start();
    // Reported changes hold.
    let state = text(&varved.snapctl().show("kept")["tags"], "state");
    assert_eq!(
        state,
        if tagged.status.success() {
            "after"
        } else {
            "before"
        }
    );
    varved.snapctl().import(&more, "more");
    assert_whole(&varved, &scratch, "kept", &kept);
    assert_whole(&varved, &scratch, "more", &more);
    varved.stop();
}

/// Takes all free space of a file system.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    for piece in [1 << 20, 4096, 512, 1] {
        let bytes = vec![0xef; piece];
        while file.write_all(&bytes).is_ok() {}
        let _ = file.sync_all();
    }
}
