//! varved inside a guest whose power is cut: flushed writes are there afterwards, as the writer
//! outside remembers them.
//!
//! The cut is SIGKILL for QEMU. It takes the memory of the guest's kernel, so all unsynced writes
//! of varved are lost, except for those that this kernel had written to its disk by itself. In
//! every other round the disk keeps everything that it was given, because the host's kernel lives
//! on. In the rounds between, the disk has a cache of its own that is lost with the power: nbdkit's
//! cache filter, which writes through only on a flush, and is killed too.

use std::{
    env, fs,
    net::SocketAddr,
    ops::Range,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use varve_tests::{
    daemon::{Varved, free_address, says_that_it_is_ready},
    guest::{Guest, Machine, export, make_disk, raw_file},
    nbd::Peer,
    process::{Running, command, start, wait_for},
    programs::{self, tool},
    random::Random,
    scratch::Scratch,
};

use crate::volumes::make;

/// The number of power cuts. `make soak` has more rounds, and longer ones.
const ROUNDS_VARIABLE: &str = "VARVE_POWER_CUTS";
const ROUNDS: u32 = 2;
const POWERED_MS: Range<u64> = 200..1500;
const POWERED_LONG_MS: Range<u64> = 200..4000;

const BLOCK: usize = 4096;
const BLOCKS: usize = 512;

const SERVE: &str = r"
set -e
modprobe virtio_net
cd /sys/class/net
for device in [!l]*; do
  ip address add 10.0.2.15/24 dev $device
  ip link set $device up
done
mount /dev/vdc /mnt
exec /mnt/varved --data-dir /mnt/data --nbd-tcp 0.0.0.0:10809 2>&1
";

/// The disk with the data of the guest's varved.
struct Disk {
    scratch: Scratch,
}

impl Disk {
    /// A disk with a program and a store that has one attached volume.
    fn new() -> Self {
        let scratch = Scratch::new();
        let tree = scratch.join("tree");
        fs::create_dir(&tree).unwrap();
        let mut varved = Varved::start(tree.join("data"));
        make(&varved, "disk", &format!("--size {}", BLOCK * BLOCKS));
        varved.stop();
        drop(varved);
        fs::copy(programs::varved(), tree.join("varved")).unwrap();
        let disk = Self { scratch };
        make_disk(&disk.path(), &tree, "2G");
        disk
    }

    fn path(&self) -> PathBuf {
        self.scratch.join("disk")
    }

    /// The same disk behind a cache that a power cut empties.
    fn with_cache(&self, socket: &Path) -> Running {
        let mut nbdkit = command(tool("nbdkit"), ["--foreground", "--filter=cache", "--unix"]);
        nbdkit.arg(socket).arg("file").arg(self.path());
        let nbdkit = start(nbdkit);
        wait_for("nbdkit to listen", || UnixStream::connect(socket).ok());
        nbdkit
    }
}

/// A guest in which varved serves.
struct Server {
    guest: Guest,
    cache: Option<Running>,
    address: SocketAddr,
    _scratch: Scratch,
}

impl Server {
    fn boot(disk: &Disk, cached: bool) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.join("disk.sock");
        let cache = cached.then(|| disk.with_cache(&socket));
        let drive = if cached {
            export(&format!("nbd+unix:///?socket={}", socket.display()))
        } else {
            raw_file(&disk.path())
        };
        let address = free_address();
        let network = format!("user,id=net,hostfwd=tcp:{address}-:10809");
        let mut guest = Machine::new()
            .drive(&drive)
            .argument("-netdev")
            .argument(&network)
            .argument("-device")
            .argument("virtio-net-pci,netdev=net")
            .start(SERVE);
        guest.wait_for("varved to serve", |said| {
            says_that_it_is_ready(said).then_some(())
        });
        Self {
            guest,
            cache,
            address,
            _scratch: scratch,
        }
    }

    fn peer(&self) -> Peer {
        let mut peer = Peer::tcp(self.address).unwrap();
        assert_eq!(peer.open("volume/disk").unwrap(), (BLOCK * BLOCKS) as u64);
        peer
    }

    fn cut_power(&mut self) {
        // Kill the disk first: anything that it gets afterwards is lost.
        if let Some(cache) = &mut self.cache {
            cache.kill();
        }
        self.guest.kill();
    }
}

fn block_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

/// The writer's memory.
struct Memory {
    /// For each block the numbers that were written to it; the first one is durable.
    written: Vec<Vec<u64>>,
    /// Counts writes.
    number: u64,
    flushes: u64,
}

impl Memory {
    fn new() -> Self {
        Self {
            written: vec![vec![0]; BLOCKS],
            number: 0,
            flushes: 0,
        }
    }

    /// Writes one to sixteen blocks at a time, and flushes now and then, until that fails.
    fn write_until_cut_off(&mut self, mut peer: Peer, random: &mut Random) {
        loop {
            self.number += 1;
            let start = random.index(BLOCKS);
            let end = (start + 1 + random.index(16)).min(BLOCKS);
            for written in &mut self.written[start..end] {
                written.push(self.number);
            }
            let bytes = block_of(self.number).repeat(end - start);
            if !matches!(peer.write((start * BLOCK) as u64, &bytes), Ok(0)) {
                return;
            }
            if random.one_in(24) {
                if !matches!(peer.flush(), Ok(0)) {
                    return;
                }
                self.flushes += 1;
                for written in &mut self.written {
                    written.drain(..written.len() - 1);
                }
            }
        }
    }

    /// Asserts that the disk has all flushed writes, and a prefix of the writes after them. Returns
    /// how many of the latter are gone.
    fn check(&mut self, mut peer: Peer) -> u64 {
        let disk = peer.read_bytes(0, u32::try_from(BLOCK * BLOCKS).unwrap());
        let disk = disk.unwrap().unwrap();
        let found: Vec<_> = disk
            .chunks(BLOCK)
            .map(|block| {
                let number = u64::from_le_bytes(block[..8].try_into().unwrap());
                assert!(block == block_of(number), "a mix: {:?}", &block[..16]);
                number
            })
            .collect();
        let last = found.iter().copied().max().unwrap();
        for (block, (found, written)) in found.iter().zip(&mut self.written).enumerate() {
            let kept = written.iter().take_while(|number| **number <= last);
            assert!(
                kept.clone().last() == Some(found),
                "block {block} has {found} of {written:?}, and others have {last}"
            );
            *written = vec![*found];
        }
        self.number - last
    }
}

#[test]
fn what_was_flushed_survives_power_cuts() {
    let (rounds, powered_ms) = env::var(ROUNDS_VARIABLE).map_or((ROUNDS, POWERED_MS), |rounds| {
        (rounds.parse().unwrap(), POWERED_LONG_MS)
    });
    let mut random = Random::of_test("what_was_flushed_survives_power_cuts");
    let disk = Disk::new();
    let mut memory = Memory::new();
    for round in 0..rounds {
        let cached = round % 2 == 0;
        let mut server = Server::boot(&disk, cached);
        if round > 0 {
            let lost = memory.check(server.peer());
            println!("the last {lost} writes before that cut are gone");
        }
        let (before, flushes) = (memory.number, memory.flushes);
        let peer = server.peer();
        let mut of_writer = Random::seeded(random.next_u64());
        let powered = Duration::from_millis(random.within(powered_ms.clone()));
        thread::scope(|scope| {
            scope.spawn(|| memory.write_until_cut_off(peer, &mut of_writer));
            thread::sleep(powered);
            server.cut_power();
        });
        let (writes, flushes) = (memory.number - before, memory.flushes - flushes);
        println!(
            "round {round}, {powered:?}, disk with a cache: {cached}: {writes} writes, {flushes} flushes"
        );
        assert!(writes > 1, "nothing was written in {powered:?}");
    }
    let server = Server::boot(&disk, false);
    let lost = memory.check(server.peer());
    println!("the last {lost} writes before that cut are gone");
}
