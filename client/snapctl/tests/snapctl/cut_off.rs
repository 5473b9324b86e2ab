//! Images that are cut off: they are refused, or the missing part does not matter. It never becomes
//! zeros.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::run;

const MIB: u64 = 1 << 20;

/// A disk of 5 MiB with data at its beginning, in its middle, and at its end.
fn disk(daemon: &FakeDaemon) {
    let file = File::create(daemon.path("disk.img")).unwrap();
    file.set_len(5 * MIB).unwrap();
    let data: Vec<u8> = (0..30_000_u32)
        // Compressible data without zeros.
        .flat_map(|number| (number | 1 << 24).to_le_bytes())
        .collect();
    for offset in [4096, 2 * MIB + 8192, 5 * MIB - data.len() as u64] {
        file.write_all_at(&data, offset).unwrap();
    }
}

fn qemu_img(daemon: &FakeDaemon, arguments: &[&str]) {
    let done = Command::new("qemu-img")
        .current_dir(daemon.path(""))
        .args(arguments)
        .output();
    let done = done.expect("this test needs qemu-img (apt install qemu-utils)");
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

/// The options of an image.
struct Case {
    format: &'static str,
    /// For `qemu-img convert`.
    options: &'static [&'static str],
    /// Options in the image's name.
    extension: &'static str,
    /// Other files with the image's content.
    others: &'static [&'static str],
}

const fn case(
    format: &'static str,
    options: &'static [&'static str],
    extension: &'static str,
) -> Case {
    Case {
        format,
        options,
        extension,
        others: &[],
    }
}

const CASES: [Case; 20] = [
    case("qcow2", &["-o", "compat=0.10"], "qcow2"),
    case("qcow2", &["-o", "compat=1.1"], "qcow2"),
    case("qcow2", &["-o", "extended_l2=on"], "qcow2"),
    case("qcow2", &["-o", "preallocation=metadata"], "qcow2"),
    case("qcow2", &["-c"], "qcow2"),
    case("qcow2", &["-c", "-o", "compression_type=zstd"], "img"),
    Case {
        format: "qcow2",
        options: &["-o", "data_file=a.data"],
        extension: "qcow2",
        others: &["a.data"],
    },
    Case {
        format: "qcow2",
        options: &["-o", "data_file=a.data,data_file_raw=on"],
        extension: "qcow2",
        others: &["a.data"],
    },
    case("vmdk", &["-o", "subformat=monolithicSparse"], "vmdk"),
    case("vmdk", &["-o", "subformat=streamOptimized"], "vmdk"),
    Case {
        format: "vmdk",
        options: &["-o", "subformat=monolithicFlat"],
        extension: "vmdk",
        others: &["a-flat.vmdk"],
    },
    Case {
        format: "vmdk",
        options: &["-o", "subformat=twoGbMaxExtentSparse"],
        extension: "vmdk",
        others: &["a-s001.vmdk"],
    },
    Case {
        format: "vmdk",
        options: &["-o", "subformat=twoGbMaxExtentFlat"],
        extension: "vmdk",
        others: &["a-f001.vmdk"],
    },
    case("vpc", &["-o", "subformat=dynamic,force_size=on"], "vhd"),
    case("vpc", &["-o", "subformat=fixed,force_size=on"], "vhd"),
    case("vhdx", &["-o", "subformat=dynamic"], "vhdx"),
    // The last byte of the file is the last one of the disk.
    case("vhdx", &["-o", "subformat=fixed,block_size=1M"], "vhdx"),
    case("vdi", &[], "vdi"),
    case("qed", &[], "qed"),
    case("parallels", &[], "hds"),
];

/// Lengths at which a file of `len` bytes is cut: early, in the middle, within its last cluster,
/// sector and byte.
fn cuts(len: u64) -> Vec<u64> {
    let mut cuts = vec![
        len / 3,
        len * 2 / 3,
        len.saturating_sub(65_537),
        len.saturating_sub(4096),
        len.saturating_sub(513),
        len.saturating_sub(511),
        len - 1,
    ];
    cuts.dedup();
    cuts
}

/// Imports the image. Returns the root, or the error message.
fn import(daemon: &FakeDaemon, image: &str, format: &str) -> Result<Vec<u8>, String> {
    daemon.state().snapshots.remove("image");
    let import = ["import", image, "--name", "image", "--format", format];
    let (code, _, stderr) = run(daemon, &import);
    if code != 0 {
        assert_eq!(code, 1, "{image}: {stderr}");
        return Err(stderr);
    }
    Ok(daemon.state().snapshots["image"].0.root.to_vec())
}

/// Cuts the file at all these lengths, and checks the import of `image` each time.
fn cut(daemon: &FakeDaemon, file: &Path, image: &str, format: &str, root: &[u8], about: &str) {
    let whole = fs::read(file).unwrap();
    for cut in cuts(whole.len() as u64) {
        fs::write(file, &whole[..usize::try_from(cut).unwrap()]).unwrap();
        match import(daemon, image, format) {
            Ok(found) => assert!(
                found == root,
                "{about}, cut at {cut} of {}, is taken for something else",
                whole.len()
            ),
            Err(said) => assert!(
                said.lines().any(|line| line.starts_with("snapctl: read ")
                    || line.starts_with("snapctl: import ")
                    || line.starts_with("snapctl: convert ")),
                "{about}: {said}"
            ),
        }
    }
    fs::write(file, whole).unwrap();
}

#[test]
fn images_of_every_kind_are_read_whole_or_refused() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let root = import(&daemon, "disk.img", "raw").unwrap();
    for Case {
        format,
        options,
        extension,
        others,
    } in CASES
    {
        let image = format!("a.{extension}");
        let convert = ["convert", "-f", "raw", "-O", format];
        let arguments = convert
            .iter()
            .chain(options)
            .copied()
            .chain(["disk.img", image.as_str()]);
        qemu_img(&daemon, &arguments.collect::<Vec<_>>());
        let about = format!("{format} {options:?}");
        let choice = match (format, others) {
            (format, [_, ..]) => format,
            // Also under its other name.
            ("vpc", _) => "vpc",
            _ => "auto",
        };
        assert_eq!(
            import(&daemon, &image, choice).as_deref(),
            Ok(&root[..]),
            "{about}"
        );
        let first = [image.as_str()];
        for file in first.iter().chain(others) {
            let path = daemon.path(file);
            let which = format!("{file} of {about}");
            cut(&daemon, &path, &image, choice, &root, &which);
            // The rest is not taken for a raw disk, either.
            if others.is_empty() {
                cut(&daemon, &path, &image, "auto", &root, &which);
            }
            assert_eq!(import(&daemon, &image, choice).as_deref(), Ok(&root[..]));
        }
        for file in first.iter().chain(others) {
            fs::remove_file(daemon.path(file)).unwrap();
        }
    }
}

#[test]
fn files_behind_an_image_are_looked_at_too() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let root = import(&daemon, "disk.img", "raw").unwrap();
    for (format, base_options, base) in [
        ("qcow2", &[][..], "base.qcow2"),
        ("qcow2", &["-c"][..], "base.qcow2"),
        ("qed", &[], "base.qed"),
        ("vmdk", &[], "base.vmdk"),
    ] {
        let convert = ["convert", "-f", "raw", "-O", format];
        let arguments = convert.iter().chain(base_options).copied();
        qemu_img(
            &daemon,
            &arguments.chain(["disk.img", base]).collect::<Vec<_>>(),
        );
        let top = format!("top.{format}");
        let create = ["create", "-q", "-f", format, "-b", base, "-F", format, &top];
        qemu_img(&daemon, &create);
        let about = format!("{base} {base_options:?}");
        assert_eq!(
            import(&daemon, &top, format).as_deref(),
            Ok(&root[..]),
            "{about}"
        );
        cut(&daemon, &daemon.path(base), &top, format, &root, &about);
        fs::remove_file(daemon.path(&top)).unwrap();
        fs::remove_file(daemon.path(base)).unwrap();
    }
    // A raw image shows only that it does not end within a sector.
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "disk.img",
        "-F",
        "raw",
        "top.qcow2",
    ];
    qemu_img(&daemon, &create);
    assert_eq!(
        import(&daemon, "top.qcow2", "qcow2").as_deref(),
        Ok(&root[..])
    );
    let base = File::options().write(true).open(daemon.path("disk.img"));
    base.unwrap().set_len(3 * MIB + 100).unwrap();
    let said = import(&daemon, "top.qcow2", "qcow2").unwrap_err();
    assert!(said.contains("disk.img: it is truncated"), "{said}");
}
