//! Common tools: nbdinfo, nbdcopy, qemu-img, qemu-io, fio.

use std::path::{Path, PathBuf};

use serde_json::Value;
use varve_tests::{
    daemon::Options,
    files, image,
    lab::Lab,
    process::{Finished, command, run},
    programs::tool,
};

use super::data_extents;

const MIB: u64 = 1 << 20;

fn tool_run(name: &str, arguments: &[&str]) -> Finished {
    run(command(tool(name), arguments))
}

/// A lab with an imported image, served over both transports. Returns the image and its URIs.
fn served(size_bytes: u64, seed: u64) -> (Lab, PathBuf, [String; 2]) {
    let lab = Lab::with(Options::tcp);
    let file = lab.image("image", size_bytes, seed);
    lab.snapctl().import(&file, "image");
    let uris = [lab.varved.nbd_uri("image"), lab.varved.nbd_tcp_uri("image")];
    (lab, file, uris)
}

#[test]
fn nbdinfo_lists_every_snapshot() {
    let (lab, file, _) = served(9 * MIB, 161);
    lab.snapctl().import(&file, "nested/name:with+signs@all");
    let socket = lab.varved.nbd_socket();
    let all = [
        format!("nbd+unix://?socket={}", socket.display()),
        format!("nbd://{}", lab.varved.nbd_address()),
    ];
    for uri in all {
        let list: Value = serde_json::from_slice(
            &tool_run("nbdinfo", &["--list", "--json", &uri])
                .success()
                .stdout,
        )
        .unwrap();
        assert_eq!(list["protocol"], "newstyle-fixed");
        assert_eq!(list["structured"], true);
        let exports = list["exports"].as_array().unwrap();
        let names: Vec<_> = exports
            .iter()
            .map(|export| export["export-name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["snapshot/image", "snapshot/nested/name:with+signs@all"]
        );
        for export in exports {
            assert_eq!(export["export-size"], 9 * MIB);
            assert_eq!(export["is_read_only"], true);
            assert_eq!(export["can_multi_conn"], true);
            assert_eq!(export["can_df"], true);
            assert_eq!(export["can_trim"], false);
            assert_eq!(export["block_size_minimum"], 1);
            assert_eq!(export["block_size_preferred"], 4096);
            assert!(
                export["contexts"].to_string().contains("base:allocation"),
                "{export}"
            );
        }
        let text = tool_run("nbdinfo", &["--list", &uri]).success().text();
        assert!(text.contains("snapshot/image"), "{text}");
    }
}

#[test]
fn nbdinfo_shows_what_is_data_and_what_is_hole() {
    let (_lab, file, uris) = served(30 * MIB + 4096, 162);
    for uri in uris {
        let size = tool_run("nbdinfo", &["--size", &uri]).success().text();
        assert_eq!(size.trim(), (30 * MIB + 4096).to_string());
        let map: Value = serde_json::from_slice(
            &tool_run("nbdinfo", &["--map", "--json", &uri])
                .success()
                .stdout,
        )
        .unwrap();
        let mut data = Vec::new();
        let mut end = 0;
        for extent in map.as_array().unwrap() {
            let (offset, len) = (
                extent["offset"].as_u64().unwrap(),
                extent["length"].as_u64().unwrap(),
            );
            assert_eq!(offset, end, "extents follow each other");
            end = offset + len;
            match extent["type"].as_u64().unwrap() {
                0 => data.push((offset, len)),
                3 => {}
                other => panic!("type {other} in {map}"),
            }
        }
        assert_eq!(end, 30 * MIB + 4096);
        assert_eq!(data, data_extents(&file));
    }
}

#[test]
fn nbdcopy_reads_the_whole_image() {
    let (lab, file, uris) = served(100 * MIB + 512, 163);
    let settings: [&[&str]; 4] = [
        &[],
        &["--connections=4", "--requests=64"],
        &["--connections=1", "--requests=1", "--request-size=8192"],
        &["--synchronous"],
    ];
    for uri in &uris {
        for setting in settings {
            let out = lab.scratch.join("out");
            tool_run(
                "nbdcopy",
                &[setting, &[uri, out.to_str().unwrap()]].concat(),
            )
            .ok();
            files::assert_same(&file, &out);
            std::fs::remove_file(&out).unwrap();
        }
    }
}

#[test]
fn many_copies_run_side_by_side() {
    let (lab, file, uris) = served(60 * MIB, 164);
    let outs: Vec<_> = (0..6)
        .map(|number| lab.scratch.join(format!("out-{number}")))
        .collect();
    let running: Vec<_> = outs
        .iter()
        .zip(uris.iter().cycle())
        .map(|(out, uri)| {
            varve_tests::process::start(command(
                tool("nbdcopy"),
                ["--connections=4", uri, out.to_str().unwrap()],
            ))
        })
        .collect();
    for copy in running {
        copy.wait().ok();
    }
    for out in outs {
        files::assert_same(&file, &out);
    }
}

#[test]
fn qemu_img_finds_the_same_content() {
    let (lab, file, uris) = served(70 * MIB, 165);
    for uri in &uris {
        tool_run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "raw",
                file.to_str().unwrap(),
                uri,
            ],
        )
        .ok();
        let map: Value = serde_json::from_slice(
            &tool_run("qemu-img", &["map", "--output=json", "-f", "raw", uri])
                .success()
                .stdout,
        )
        .unwrap();
        let data: Vec<_> = map
            .as_array()
            .unwrap()
            .iter()
            .filter(|extent| extent["data"] == true)
            .map(|extent| {
                (
                    extent["start"].as_u64().unwrap(),
                    extent["length"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(data, data_extents(&file));
        let out = lab.scratch.join("out.qcow2");
        tool_run(
            "qemu-img",
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                "qcow2",
                uri,
                out.to_str().unwrap(),
            ],
        )
        .ok();
        tool_run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "qcow2",
                file.to_str().unwrap(),
                out.to_str().unwrap(),
            ],
        )
        .ok();
        let info = tool_run("qemu-img", &["info", uri]).success().text();
        assert!(info.contains("70 MiB"), "{info}");
    }
    let other = image::make(&lab.scratch, "other", 70 * MIB, 166);
    let differs = tool_run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            other.to_str().unwrap(),
            &uris[0],
        ],
    );
    assert_eq!(differs.status.code(), Some(1), "{differs:?}");
}

#[test]
fn qemu_io_reads_and_is_refused_to_write() {
    let lab = Lab::new();
    let mut content = vec![0; 4 << 20];
    content[1 << 20..2 << 20].fill(0x5a);
    let file = lab.scratch.file("image", &content);
    lab.snapctl().import(&file, "image");
    let uri = lab.varved.nbd_uri("image");
    let reads = [
        "read -P 0 0 1M",
        "read -P 0x5a 1M 1M",
        "read -P 0x5a 1048577 511",
        "read -P 0 2M 2M",
        "aio_read -P 0x5a 1M 64k",
        "aio_read -P 0x5a 1500k 300k",
        "aio_flush",
        "map",
    ];
    let mut arguments = vec!["-r", "-f", "raw", &uri];
    for read in &reads {
        arguments.extend(["-c", read]);
    }
    let said = tool_run("qemu-io", &arguments).success();
    assert!(
        !said.text().contains("verification failed") && !said.stderr.contains("failed"),
        "{said:?}"
    );
    let wrong = tool_run(
        "qemu-io",
        &["-r", "-f", "raw", &uri, "-c", "read -P 1 0 4k"],
    );
    assert!(
        wrong.text().contains("verification failed"),
        "the check above would not notice: {wrong:?}"
    );

    for write in ["write 0 4k", "discard 0 4k", "write -z 0 4k"] {
        let refused = tool_run("qemu-io", &["-f", "raw", &uri, "-c", write]);
        assert!(!refused.status.success(), "{refused:?}");
        let said = refused.text() + &refused.stderr;
        assert!(
            said.contains("ead-only") || said.contains("ermission denied"),
            "{refused:?}"
        );
    }
    lab.assert_content("image", &file);
}

/// fio writes blocks that carry checksums to a file, and finds them again in the export.
#[test]
fn fio_verifies_what_it_reads() {
    let lab = Lab::with(Options::tcp);
    let file = lab.scratch.join("image");
    let job = [
        "--name=blocks",
        "--bs=4k",
        "--size=64M",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--randseed=167",
        "--output-format=terse",
    ];
    let filename = format!("--filename={}", file.display());
    tool_run(
        "fio",
        &[
            &job[..],
            &["--rw=write", "--do_verify=0", "--ioengine=psync", &filename],
        ]
        .concat(),
    )
    .ok();
    lab.snapctl().import(&file, "image");
    for uri in [lab.varved.nbd_uri("image"), lab.varved.nbd_tcp_uri("image")] {
        let uri = format!("--uri={uri}");
        for pattern in ["--rw=read", "--rw=randread"] {
            let read = tool_run(
                "fio",
                &[&job[..], &[pattern, "--ioengine=nbd", "--iodepth=32", &uri]].concat(),
            );
            assert!(read.status.success(), "{read:?}");
        }
    }
    // fio detects a changed block.
    files::write_range(&file, 8 * MIB, &[1; 4096]);
    lab.snapctl().import(&file, "changed");
    let uri = format!("--uri={}", lab.varved.nbd_uri("changed"));
    let read = tool_run(
        "fio",
        &[
            &job[..],
            &["--rw=read", "--ioengine=nbd", "--iodepth=32", &uri],
        ]
        .concat(),
    );
    assert!(
        !read.status.success(),
        "fio does not check what it reads: {read:?}"
    );
}

#[test]
fn nbdkit_stands_in_front_of_an_export() {
    let (lab, file, uris) = served(20 * MIB, 168);
    let out = lab.scratch.join("out");
    let uri = format!("uri={}", uris[0]);
    let copy = format!("nbdcopy \"$uri\" {}", out.display());
    tool_run("nbdkit", &["-U", "-", "nbd", &uri, "--run", &copy]).ok();
    files::assert_same(&file, Path::new(&out));
}

#[test]
fn a_volume_is_offered_with_all_that_it_can() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    snapctl
        .run(["volume", "create", "disk", "--size", "64M"])
        .ok();
    snapctl.run(["volume", "attach", "disk"]).ok();
    let uri = format!(
        "nbd+unix:///volume/disk?socket={}",
        lab.varved.nbd_socket().display()
    );
    let info = tool_run("nbdinfo", &["--json", &uri]).success();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["is_read_only"], false);
    for can in [
        "cache",
        "df",
        "fast_zero",
        "flush",
        "fua",
        "multi_conn",
        "trim",
        "zero",
    ] {
        assert_eq!(export[format!("can_{can}")], true, "{can}: {export}");
    }
}
