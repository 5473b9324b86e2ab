//! Copying a snapshot from one store to another, over a long link and on one machine.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use varve_tests::daemon::free_address;
use varve_tests::link::Link;

use crate::bench::{Bench, remove, write_noise};
use crate::failure::{Failure, While};
use crate::page_cache;
use crate::peers::Restic;
use crate::process::{Service, run};
use crate::samples::{Samples, in_turns};
use crate::table::{Figure, Row, Wanted};
use crate::varve::Varved;

/// 1 Gbit/s.
const LINK_BYTES_PER_SECOND: u64 = 125_000_000;
/// Half of a round trip.
const LINK_DELAY: Duration = Duration::from_millis(75);
/// The data that crosses the link: it does not compress.
const NOISE_BYTES: u64 = 1 << 30;
/// Sizes of a volume of which nothing is missing, and of its data.
const SPARSE_BYTES: (u64, u64) = (64 << 30, 2 << 30);
/// Time limit for a server to listen.
const SERVER_LIMIT: Duration = Duration::from_secs(60);

fn far(target: SocketAddr) -> Link {
    Link::with(target, LINK_DELAY, LINK_BYTES_PER_SECOND)
}

/// A server of another make that listens on TCP.
fn serve(command: &mut Command, log: &Path, address: SocketAddr) -> Result<Service, Failure> {
    let service = Service::start(command, log, &[])?;
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        if started.elapsed() > SERVER_LIMIT {
            let said = fs::read_to_string(log).unwrap_or_default();
            return Err(Failure::new(format!("{address} is not served: {said}")));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(service)
}

fn noise(bench: &Bench) -> Result<PathBuf, Failure> {
    let path = bench.path("noise.raw");
    write_noise(&path, NOISE_BYTES).during(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Over a link of 1 Gbit/s with a round trip of 150 ms.
pub(crate) fn over_a_link(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let image = noise(bench)?;
    let (there, there_dir, address) = bench.serve_on_tcp("copy-there")?;
    there.import(&image, "noise")?;
    let stored_bytes = there.of_snapshot("noise", "stored_bytes")?;

    let restic_dir = bench.fresh_directory("copy-restic")?;
    let restic = Restic::create(&restic_dir)?;
    restic.backup(&image)?;
    let rclone_address = free_address();
    let rclone = serve(
        Command::new("rclone")
            .args(["serve", "restic", "--addr", &rclone_address.to_string()])
            .arg(restic.repository()),
        &bench.path("rclone.log"),
        rclone_address,
    )?;
    let rsync_address = free_address();
    let config = bench.path("rsyncd.conf");
    let module = format!(
        "use chroot = no\n[images]\npath = {}\nread only = yes\n",
        bench.path("").display()
    );
    fs::write(&config, module).during(|| format!("write {}", config.display()))?;
    let rsyncd = serve(
        Command::new("rsync")
            .args([
                "--daemon",
                "--no-detach",
                "--address",
                "127.0.0.1",
                "--port",
            ])
            .arg(rsync_address.port().to_string())
            .arg("--config")
            .arg(&config),
        &bench.path("rsyncd.log"),
        rsync_address,
    )?;

    let mut wire = Vec::new();
    let mut varve = |_| {
        let (here, dir) = bench.serve_fresh("copy-here")?;
        let link = far(address);
        let seconds = copy(&here, &link.endpoint(), "noise")?;
        #[expect(clippy::cast_precision_loss, reason = "bytes on their way to a ratio")]
        wire.push(link.answered_bytes() as f64);
        here.stop()?;
        remove(&dir)?;
        Ok(seconds)
    };
    let mut rsync = |_| {
        let to = bench.path("rsynced.raw");
        remove(&to)?;
        page_cache::settle();
        let link = far(rsync_address);
        let from = format!("rsync://{}/images/noise.raw", link.address());
        let seconds = run(Command::new("rsync").args(["--inplace", &from]).arg(&to))?.seconds;
        remove(&to)?;
        Ok(seconds)
    };
    let mut restic_copy = |_| {
        let directory = bench.fresh_directory("copy-restic-here")?;
        let here = Restic::create(&directory)?;
        page_cache::settle();
        let link = far(rclone_address);
        let seconds = here
            .copy_from(&format!("rest:{}", link.endpoint()))?
            .seconds;
        remove(&directory)?;
        Ok(seconds)
    };
    let [varve, rsync, restic_copy] = in_turns(
        "copy over a link",
        bench.runs,
        [&mut varve, &mut rsync, &mut restic_copy],
    )?;
    for service in [rclone, rsyncd] {
        service.stop()?;
    }
    there.stop()?;
    for path in [there_dir, restic_dir, image] {
        remove(&path)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "bytes on their way to a rate")]
    let rate = |seconds: f64| stored_bytes as f64 / seconds;
    #[expect(clippy::cast_precision_loss, reason = "a constant")]
    let cap = Samples::from_runs(vec![LINK_BYTES_PER_SECOND as f64]);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of bytes"
    )]
    let crossed = Samples::from_runs(wire).median() as u64;
    Ok(vec![
        Row {
            what: "copy, 1 Gbit/s and 150 ms".to_owned(),
            against: "the link's limit".to_owned(),
            ours: Figure::BytesPerSecond(varve.map(rate)),
            theirs: Figure::BytesPerSecond(cap),
            wanted: Wanted::TimesAsFast(0.8),
            note: "1 GiB of data that does not compress, into an empty store, from snapctl's start \
                   to its end, when everything is durable; through a relay that delays bytes by 75 \
                   ms each way and passes 125 MB a second.",
        },
        Row {
            what: "copy, 1 Gbit/s and 150 ms".to_owned(),
            against: "rsync --inplace".to_owned(),
            ours: Figure::Seconds(varve.clone()),
            theirs: Figure::Seconds(rsync),
            wanted: Wanted::Nothing,
            note: "from rsync's daemon, to a new file.",
        },
        Row {
            what: "copy, 1 Gbit/s and 150 ms".to_owned(),
            against: "restic copy".to_owned(),
            ours: Figure::Seconds(varve),
            theirs: Figure::Seconds(restic_copy),
            wanted: Wanted::Nothing,
            note: "from `rclone serve restic`, into an empty repository.",
        },
        Row {
            what: "copy: bytes on the wire".to_owned(),
            against: "the missing chunks as they are stored".to_owned(),
            ours: Figure::Bytes(crossed),
            theirs: Figure::Bytes(stored_bytes),
            wanted: Wanted::TimesAsMuch(1.02),
            note: "all bytes from the source, including the frames and headers of its answers.",
        },
    ])
}

/// A large volume of which every chunk is here already, over the same link.
pub(crate) fn nothing_missing(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let image = bench.path("sparse.raw");
    write_noise(&image, SPARSE_BYTES.1).during(|| format!("write {}", image.display()))?;
    fs::File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(SPARSE_BYTES.0))
        .during(|| format!("lengthen {}", image.display()))?;
    let (there, there_dir, address) = bench.serve_on_tcp("copy-there")?;
    there.import(&image, "sparse")?;
    let (here, here_dir) = bench.serve_fresh("copy-here")?;
    here.import(&image, "sparse")?;
    let mut times = |run| {
        let link = far(address);
        let name = format!("again-{run}");
        copy_as(&here, &link.endpoint(), "sparse", &name)
    };
    let [times] = in_turns("copy of nothing", bench.runs, [&mut times])?;
    here.stop()?;
    there.stop()?;
    for path in [here_dir, there_dir, image] {
        remove(&path)?;
    }
    Ok(vec![Row {
        what: "copy with nothing missing, 64 GiB, 150 ms".to_owned(),
        against: "its limit".to_owned(),
        ours: Figure::Seconds(times),
        theirs: Figure::seconds(1.0),
        wanted: Wanted::TimesAsMuch(1.0),
        note: "2 GiB of data; the same content under another name, from snapctl's start to its end.",
    }])
}

/// With both stores on this machine.
pub(crate) fn near(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let (there, there_dir, _) = bench.serve_on_tcp("copy-there")?;
    there.import(&bench.base, "base")?;
    let restic_dir = bench.fresh_directory("copy-restic")?;
    let restic = Restic::create(&restic_dir)?;
    restic.backup(&bench.base)?;
    let mut varve = |_| {
        let (here, dir) = bench.serve_fresh("copy-here")?;
        let seconds = copy(&here, &there.endpoint(), "base")?;
        here.stop()?;
        remove(&dir)?;
        Ok(seconds)
    };
    let mut restic_copy = |_| {
        let directory = bench.fresh_directory("copy-restic-here")?;
        let here = Restic::create(&directory)?;
        page_cache::settle();
        let seconds = here
            .copy_from(&restic.repository().to_string_lossy())?
            .seconds;
        remove(&directory)?;
        Ok(seconds)
    };
    let [varve, restic_copy] =
        in_turns("copy", bench.runs, [&mut varve, &mut restic_copy])?.map(Figure::Seconds);
    there.stop()?;
    for path in [there_dir, restic_dir] {
        remove(&path)?;
    }
    Ok(vec![Row {
        what: "copy from store to store".to_owned(),
        against: "restic copy".to_owned(),
        ours: varve,
        theirs: restic_copy,
        wanted: Wanted::TimesAsFast(2.0),
        note: "the base image, into an empty store on the same machine; both read from the page cache and end with everything durable.",
    }])
}

/// The same with data that does not compress, beside the least work that a copy needs: reading
/// packs and hashing their chunks.
pub(crate) fn bound(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let image = noise(bench)?;
    let (there, there_dir, _) = bench.serve_on_tcp("copy-there")?;
    there.import(&image, "noise")?;
    let mut varve = |_| {
        let (here, dir) = bench.serve_fresh("copy-here")?;
        page_cache::empty()?;
        let seconds = copy(&here, &there.endpoint(), "noise")?;
        here.stop()?;
        remove(&dir)?;
        Ok(seconds)
    };
    let packs = there_dir.join("packs");
    let mut read = |_| {
        page_cache::empty()?;
        let mut cat = Command::new("sh");
        cat.args(["-c", "find \"$1\" -type f -exec cat {} + >/dev/null", "sh"]);
        Ok(run(cat.arg(&packs))?.seconds)
    };
    let mut hash = |_| Ok(run(Command::new("b3sum").arg(&image))?.seconds);
    let [varve, read, hash] = in_turns(
        "copy, and its bound",
        bench.runs,
        [&mut varve, &mut read, &mut hash],
    )?;
    there.stop()?;
    for path in [there_dir, image] {
        remove(&path)?;
    }
    let slower = if read.median() > hash.median() {
        read
    } else {
        hash
    };
    Ok(vec![Row {
        what: "copy from store to store, no compression".to_owned(),
        against: "its packs read, or its data hashed".to_owned(),
        ours: Figure::Seconds(varve),
        theirs: Figure::Seconds(slower),
        wanted: Wanted::TimesAsFast(0.8),
        note: "1 GiB; beside the slower of cat, from the disk like the copy, and b3sum with all cores.",
    }])
}

fn copy(here: &Varved, endpoint: &str, snapshot: &str) -> Result<f64, Failure> {
    copy_as(here, endpoint, snapshot, snapshot)
}

fn copy_as(here: &Varved, endpoint: &str, snapshot: &str, name: &str) -> Result<f64, Failure> {
    let arguments = [
        "copy", snapshot, "--from", endpoint, "--name", name, "--wait",
    ];
    Ok(here.ctl(&arguments)?.seconds)
}
