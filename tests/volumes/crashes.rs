//! Volumes after crashes and damage, and on disks without space: acknowledged writes are there.

use std::{collections::HashMap, fs, ops::Range, thread, time::Duration};

use varve_store::{
    failpoints::{Failpoint, VARIABLE},
    format::names,
};
use varve_tests::{
    daemon::{Options, Varved},
    data_dir::flip_byte,
    image,
    lab::Lab,
    loop_fs::LoopFs,
    nbd::{Peer, errno, request},
    random::Random,
    scratch::Scratch,
    snapctl::text,
};

use super::{MIB, all_completed, make, peer, snapshot, tool_run, uri};

const BLOCK: u64 = 4096;

/// A place on a disk: the number acknowledged last, and the one tried last.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    acknowledged: u64,
    tried: u64,
}

fn block_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(4096 / 8)
}

/// 64 KiB that do not compress.
fn piece_of(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    Random::seeded(number).fill(&mut bytes);
    bytes
}

/// Writes numbered blocks to random places until the connection breaks; flushes after every 16th.
fn write_until_cut_off(
    mut peer: Peer,
    places: &mut [Place],
    next_number: &mut u64,
    random: &mut Random,
) {
    loop {
        let index = random.index(places.len());
        *next_number += 1;
        places[index].tried = *next_number;
        match peer.write(index as u64 * BLOCK, &block_of(*next_number)) {
            Ok(0) => places[index].acknowledged = *next_number,
            Ok(error) => panic!("a write failed with {error}"),
            Err(_) => return,
        }
        if (*next_number).is_multiple_of(16) && peer.flush().is_err() {
            return;
        }
    }
}

/// Asserts that every place has the acknowledged number, or the one that was tried after it.
fn check(peer: &mut Peer, places: &mut [Place]) {
    for (place, offset) in places.iter_mut().zip((0..).step_by(4096)) {
        let found = peer.read_bytes(offset, 4096).unwrap().unwrap();
        let is = |number| found == block_of(number);
        assert!(
            is(place.acknowledged) || is(place.tried),
            "{place:?} at {offset}: found {:?}",
            &found[..8]
        );
        if is(place.tried) {
            place.acknowledged = place.tried;
        }
        place.tried = place.acknowledged;
    }
}

#[test]
fn kills_at_random_moments_lose_no_acknowledged_write() {
    let mut random = Random::of_test("kills_lose_no_acknowledged_write");
    let mut lab = Lab::new();
    make(&lab.varved, "disk", "--size 8M");
    let mut places = vec![Place::default(); 2048];
    let mut next_number = 0;
    for round in 0..8 {
        let client = peer(&lab.varved, "disk");
        let mut of_writer = random.clone();
        let name = format!("round-{round}");
        let written = next_number;
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                write_until_cut_off(client, &mut places, &mut next_number, &mut of_writer);
            });
            // Every other round makes a snapshot meanwhile.
            thread::sleep(Duration::from_millis(random.within(1..200)));
            let snapshot = (round % 2 == 1).then(|| {
                let arguments = ["snapshot", "create", "disk", "--name", &name];
                lab.snapctl().start(arguments)
            });
            thread::sleep(Duration::from_millis(random.within(0..60)));
            lab.varved.kill();
            writer.join().unwrap();
            if let Some(snapshot) = snapshot {
                let made = snapshot.wait().status.success();
                lab.restart();
                all_completed(&lab.varved);
                let is_there = lab.snapctl().verify_all().contains(&name);
                assert!(is_there || !made, "{name} was reported, and is gone");
            } else {
                lab.restart();
            }
        });
        assert!(next_number > written, "nothing was written");
        check(&mut peer(&lab.varved, "disk"), &mut places);
    }
    snapshot(&lab.varved, "disk", "end");
    let blocks = places.iter().map(|place| block_of(place.acknowledged));
    let model = lab
        .scratch
        .file("model", blocks.collect::<Vec<_>>().concat());
    lab.assert_content("end", &model);
}

const SECTOR: u64 = 512;

fn sector_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(512 / 8)
}

/// Keeps sixteen writes under way, of 512 bytes to 64 KiB, which do not overlap, until the
/// connection breaks. Places are sectors; the numbers begin with this one, or are 0 where zeros are
/// written.
fn write_deeply(
    mut peer: Peer,
    start: u64,
    places: &mut [Place],
    mut number: u64,
    random: &mut Random,
) {
    let mut under_way: HashMap<u64, (Range<usize>, u64)> = HashMap::new();
    loop {
        while under_way.len() < 16 {
            let longest = [1, 8, 128][random.index(3)];
            let first = random.index(places.len());
            let range = first..(first + 1 + random.index(longest)).min(places.len());
            let touches = |(other, _): &(Range<usize>, u64)| {
                other.start < range.end && range.start < other.end
            };
            if under_way.values().any(touches) {
                continue;
            }
            number += 1;
            let offset = start + first as u64 * SECTOR;
            let zeros = random.one_in(16);
            let value = if zeros { 0 } else { number };
            for place in &mut places[range.clone()] {
                place.tried = value;
            }
            let sent = if zeros {
                let len = u32::try_from(range.len() as u64 * SECTOR).unwrap();
                peer.send_request(request::WRITE_ZEROES, number, offset, len)
            } else {
                peer.send_write(number, offset, &sector_of(value).repeat(range.len()))
            };
            under_way.insert(number, (range, value));
            if sent.is_err() {
                return;
            }
        }
        let Ok((cookie, reply)) = peer.receive_any_reply() else {
            return;
        };
        assert_eq!(reply.error, 0);
        let (range, value) = under_way.remove(&cookie).unwrap();
        for place in &mut places[range] {
            place.acknowledged = value;
        }
    }
}

/// The journal is small, so some kills come during a checkpoint.
#[test]
fn kills_under_deep_queues_of_any_sizes_lose_no_acknowledged_write() {
    let mut random = Random::of_test("kills_under_deep_queues");
    let small = |options: Options| options.env("VARVE_JOURNAL_BYTES_MAX", (16 * MIB).to_string());
    let mut lab = Lab::with(small);
    make(&lab.varved, "disk", "--size 16M");
    let mut places = vec![Place::default(); (16 * MIB / SECTOR) as usize];
    let part = places.len() / 2;
    for round in 0..8_u64 {
        let clients = [(); 2].map(|()| peer(&lab.varved, "disk"));
        thread::scope(|scope| {
            for (client, (index, places)) in
                clients.into_iter().zip((0..).zip(places.chunks_mut(part)))
            {
                let (start, numbers) = (index * 8 * MIB, (2 * round + index) << 32);
                let mut random = Random::seeded(random.next_u64());
                scope.spawn(move || write_deeply(client, start, places, numbers, &mut random));
            }
            thread::sleep(Duration::from_millis(random.within(20..600)));
            lab.varved.kill();
        });
        lab.restart_with(small);
        let mut client = peer(&lab.varved, "disk");
        for (index, places) in places.chunks_mut(2048).enumerate() {
            let found = client
                .read_bytes(index as u64 * MIB, 1 << 20)
                .unwrap()
                .unwrap();
            for (sector, place) in found.chunks(512).zip(places) {
                let is = |number| sector == sector_of(number);
                assert!(
                    is(place.acknowledged) || is(place.tried),
                    "{place:?} in {index}"
                );
                place.acknowledged = u64::from_le_bytes(sector[..8].try_into().unwrap());
                place.tried = place.acknowledged;
            }
        }
    }
    snapshot(&lab.varved, "disk", "end");
    let sectors = places.iter().map(|place| sector_of(place.acknowledged));
    let model = lab
        .scratch
        .file("model", sectors.collect::<Vec<_>>().concat());
    lab.assert_content("end", &model);
}

#[test]
fn a_crash_at_a_point_of_the_journal_loses_no_acknowledged_write() {
    let points = [Failpoint::JournalWritten, Failpoint::JournalSynced];
    for (point, count) in points.into_iter().flat_map(|it| [(it, 1), (it, 20)]) {
        let mut random = Random::seeded(211);
        let mut lab = Lab::new();
        make(&lab.varved, "disk", "--size 1M");
        lab.varved.stop();
        let armed = format!("{}:{count}", point.name());
        lab.restart_with(|options| options.env(VARIABLE, &armed));
        let mut places = vec![Place::default(); 256];
        let client = peer(&lab.varved, "disk");
        write_until_cut_off(client, &mut places, &mut 0, &mut random);
        lab.varved.wait();
        assert!(lab.varved.log().contains("failpoint"), "{armed}");
        lab.restart();
        check(&mut peer(&lab.varved, "disk"), &mut places);
    }
}

#[test]
fn damage_in_a_journal_is_found_and_stops_that_volume_only() {
    let mut lab = Lab::new();
    let image = lab.image("image", 3 * MIB, 212);
    lab.snapctl().import(&image, "image");
    for disk in ["damaged", "sound"] {
        make(&lab.varved, disk, "--size 1M");
        let mut peer = peer(&lab.varved, disk);
        for number in 0..3 {
            assert_eq!(peer.write(number * BLOCK, &block_of(7)).unwrap(), 0);
            assert_eq!(peer.flush().unwrap(), 0);
        }
    }
    let shown = lab.snapctl().json(["volume", "show", "damaged"]);
    let id = text(&shown, "id");
    lab.varved.kill();
    let dir = names::volumes(&lab.data_dir()).join(&id);
    let mut files = fs::read_dir(&dir).unwrap();
    let journal = files.next().unwrap().unwrap().path();
    // The data of the first batch, behind its descriptor and the header of the file.
    flip_byte(&journal, 2 * BLOCK + 100);
    lab.restart();
    let said = tool_run("nbdinfo", &[&uri(&lab.varved, "damaged")]);
    said.fails(1);
    let log = lab.varved.log();
    for part in ["volume=\"damaged\"", &id, journal.to_str().unwrap(), "4096"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    let mut peer = peer(&lab.varved, "sound");
    assert_eq!(peer.read_bytes(0, 4096).unwrap(), Ok(block_of(7)));
    assert_eq!(peer.write(0, &block_of(8)).unwrap(), 0);
    lab.assert_content("image", &image);
}

/// Writes different pieces of 64 KiB until one fails. Returns their number, and the error.
fn fill_up(peer: &mut Peer, from: u64, most: u64) -> (u64, u32) {
    for piece in from..most {
        let error = peer.write(piece << 16, &piece_of(piece));
        match error.unwrap() {
            0 => {}
            error => return (piece, error),
        }
    }
    panic!("there was room for everything");
}

fn assert_filled(peer: &mut Peer, pieces: u64) {
    for piece in 0..pieces {
        let found = peer.read_bytes(piece << 16, 1 << 16).unwrap();
        assert_eq!(found, Ok(piece_of(piece)), "{piece}");
    }
}

/// Ten times the limit of a journal.
#[test]
fn a_journal_is_emptied_beside_its_writers() {
    let limit = 16 * MIB;
    let lab = Lab::with(|options| options.env("VARVE_JOURNAL_BYTES_MAX", limit.to_string()));
    make(&lab.varved, "disk", "--size 256M");
    let mut peer = peer(&lab.varved, "disk");
    let pieces = (10 * limit) >> 16;
    for piece in 0..pieces {
        let bytes = piece_of(piece);
        assert_eq!(peer.write(piece << 16, &bytes).unwrap(), 0, "{piece}");
    }
    assert_filled(&mut peer, pieces);
    snapshot(&lab.varved, "disk", "full");
    lab.snapctl().verify("full");
    assert_filled(&mut peer, pieces);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_space() {
    let Some(disk) = LoopFs::mount(400 * MIB) else {
        return;
    };
    let scratch = Scratch::new();
    let options = Options::new(disk.path().join("data"));
    let mut varved: Varved = options.start();
    make(&varved, "disk", "--size 1G");
    let other = disk.path().join("other");
    fs::write(&other, vec![0xab; 150 << 20]).unwrap();
    let mut client = peer(&varved, "disk");
    let (filled, error) = fill_up(&mut client, 0, 16384);
    assert_eq!(error, errno::ENOSPC);
    assert_filled(&mut client, filled);
    fs::remove_file(&other).unwrap();
    let more = filled + 200;
    for piece in filled..more {
        let bytes = piece_of(piece);
        assert_eq!(client.write(piece << 16, &bytes).unwrap(), 0);
    }
    assert_eq!(client.flush().unwrap(), 0);
    assert_filled(&mut client, more);
    varved.kill();
    varved = options.start();
    assert_filled(&mut peer(&varved, "disk"), more);
    let small = image::make(&scratch, "small", MIB, 213);
    varved.snapctl().import(&small, "small");
    varved.stop();
}
