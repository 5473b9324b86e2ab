//! Peers that break the protocol lose at most their own connection. All other clients are served
//! meanwhile.

use std::{io, time::Duration};

use varve_tests::{
    daemon::Options,
    files, image,
    lab::Lab,
    nbd::{
        CLIENT_FLAGS, Peer, go_data, option, option_bytes, option_reply, request, request_bytes,
    },
    process::{allow_open_files, command, run, wait_for},
    programs::tool,
    random::Random,
};

const MIB: u64 = 1 << 20;
/// The daemon's bound.
const MEMORY_MAX: u64 = 512 << 20;

/// A lab with an image to read, on both transports.
fn served() -> (Lab, std::path::PathBuf) {
    let lab = Lab::with(Options::tcp);
    let file = image::make_random(&lab.scratch, "image", 24 * MIB, 191);
    lab.snapctl().import(&file, "image");
    (lab, file)
}

fn connect(lab: &Lab, over_tcp: bool) -> Peer {
    let peer = if over_tcp {
        Peer::tcp(lab.varved.nbd_address())
    } else {
        Peer::unix(&lab.varved.nbd_socket())
    };
    peer.unwrap()
}

/// Asserts that an ordinary client gets the whole image, and that the daemon has stayed within its
/// bounds.
fn assert_serving(lab: &Lab, file: &std::path::Path) {
    let out = lab.scratch.join("out");
    run(command(
        tool("nbdcopy"),
        [lab.varved.nbd_uri("image").as_str(), out.to_str().unwrap()],
    ))
    .ok();
    files::assert_same(file, &out);
    std::fs::remove_file(out).unwrap();
    assert!(
        lab.varved.peak_memory_bytes() < MEMORY_MAX,
        "{} bytes",
        lab.varved.peak_memory_bytes()
    );
    assert!(
        !lab.varved.log().contains("panicked"),
        "{}",
        lab.varved.log()
    );
}

#[test]
fn garbage_in_place_of_a_handshake_is_answered_by_closing() {
    let (lab, file) = served();
    let mut random = Random::of_test("garbage_in_place_of_a_handshake");
    for round in 0..60 {
        let mut peer = connect(&lab, round % 2 == 1);
        if round % 3 == 0 {
            peer.greet().unwrap();
        }
        let mut garbage = vec![0; random.index(5000) + 64];
        random.fill(&mut garbage);
        // The server may be faster than this and have closed already.
        let _ = peer.send(&garbage);
        peer.receive_until_closed();
    }
    // Other protocols, on the wrong socket.
    for words in [
        &b"GET / HTTP/1.1\r\nHost: varve\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
    ] {
        let mut peer = connect(&lab, true);
        peer.receive(18).unwrap();
        let _ = peer.send(words);
        peer.receive_until_closed();
    }
    assert_serving(&lab, &file);
}

#[test]
fn unknown_client_flags_are_answered_by_closing() {
    let (lab, file) = served();
    for flags in [4u32, 1 << 31, u32::MAX] {
        let mut peer = connect(&lab, false);
        peer.receive(18).unwrap();
        peer.send(&flags.to_be_bytes()).unwrap();
        peer.receive_until_closed();
    }
    assert_serving(&lab, &file);
}

#[test]
fn oversized_options_are_refused_without_being_kept() {
    let (lab, file) = served();
    for (option, len) in [
        (option::GO, u32::MAX),
        (option::EXPORT_NAME, 1 << 30),
        (option::LIST, 100 << 20),
        (option::SET_META_CONTEXT, 1 << 31),
        (0xdead_beef, u32::MAX),
    ] {
        let mut peer = connect(&lab, false);
        peer.greet().unwrap();
        peer.send(&option_bytes(option, len)).unwrap();
        // As much as the server reads: it closes, or it refuses and reads on without keeping
        // anything.
        let piece = vec![0; 1 << 20];
        for _ in 0..64 {
            if peer.send(&piece).is_err() {
                break;
            }
        }
    }
    assert_serving(&lab, &file);
}

#[test]
fn malformed_options_are_answered_with_errors() {
    let (lab, file) = served();
    let mut peer = connect(&lab, false);
    peer.greet().unwrap();
    let long_name = go_data(&"n".repeat(5000));
    let mut lying_len = go_data("snapshot/image");
    lying_len[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut many_infos = go_data("snapshot/image");
    let at = many_infos.len() - 2;
    many_infos[at..].copy_from_slice(&u16::MAX.to_be_bytes());
    let mut no_utf8 = go_data("snapshot/image");
    no_utf8[5] = 0xff;
    for (what, option, data) in [
        ("no data", option::GO, vec![]),
        ("a byte", option::GO, vec![1]),
        ("a name that is too long", option::GO, long_name),
        ("a length that lies", option::GO, lying_len.clone()),
        ("a length that lies", option::INFO, lying_len),
        ("more infos than there are", option::GO, many_infos),
        ("no UTF-8", option::GO, no_utf8),
        (
            "trailing bytes",
            option::INFO,
            [go_data("snapshot/image"), vec![0]].concat(),
        ),
        ("data where there are none", option::LIST, vec![0; 8]),
        (
            "data where there are none",
            option::STRUCTURED_REPLY,
            vec![0; 8],
        ),
        ("no data", option::SET_META_CONTEXT, vec![]),
        (
            "a million queries",
            option::SET_META_CONTEXT,
            [go_data("x")[..5].to_vec(), vec![0, 0xf, 0xff, 0xff]].concat(),
        ),
        ("unknown", 4711, vec![0; 100]),
        ("unknown", u32::MAX, vec![]),
    ] {
        let outcome = peer.ask_outcome(option, &data).unwrap();
        assert_ne!(
            outcome & option_reply::ERROR,
            0,
            "{what} in option {option}: {outcome:#x}"
        );
    }
    assert_eq!(
        peer.ask_outcome(4711, &[]).unwrap(),
        option_reply::ERR_UNSUP
    );
    // None of it has harmed the handshake.
    assert_eq!(
        peer.ask_outcome(option::STRUCTURED_REPLY, &[]).unwrap(),
        option_reply::ACK
    );
    assert_eq!(
        peer.ask_outcome(option::GO, &go_data("snapshot/image"))
            .unwrap(),
        option_reply::ACK
    );
    assert_eq!(peer.read(0, 4096).unwrap().data_bytes, 4096);
    assert_serving(&lab, &file);
}

/// Handshakes cut off at every byte, as by a client that dies.
#[test]
fn half_finished_handshakes_are_forgotten() {
    let (lab, file) = served();
    let whole = [
        CLIENT_FLAGS.to_be_bytes().to_vec(),
        option_bytes(option::STRUCTURED_REPLY, 0),
        option_bytes(option::GO, 20),
        go_data("snapshot/image"),
    ]
    .concat();
    let mut waiting = Vec::new();
    for len in 0..whole.len() {
        let mut gone = connect(&lab, false);
        gone.send(&whole[..len]).unwrap();
        drop(gone);
        // The other one stays, and sends nothing more.
        let mut silent = connect(&lab, len % 2 == 0);
        silent.send(&whole[..len]).unwrap();
        waiting.push(silent);
    }
    assert_serving(&lab, &file);
    drop(waiting);
    assert_serving(&lab, &file);
}

/// The wait for a silent client in its handshake has an end.
#[test]
fn a_silent_handshake_is_ended() {
    let (lab, _file) = served();
    connect(&lab, false).receive_until_closed();
}

#[test]
fn half_finished_requests_are_forgotten() {
    let (lab, file) = served();
    let whole = request_bytes(request::READ, 1, 0, 4096);
    for len in 0..whole.len() {
        let mut peer = connect(&lab, len % 2 == 0);
        peer.open("snapshot/image").unwrap();
        peer.send(&whole[..len]).unwrap();
    }
    // Half of the announced payload of a write.
    for payload in [0, 1, 1000] {
        let mut peer = connect(&lab, false);
        peer.open("snapshot/image").unwrap();
        peer.send_request(request::WRITE, 1, 0, 1 << 20).unwrap();
        peer.send(&vec![1; payload]).unwrap();
    }
    assert_serving(&lab, &file);
}

#[test]
fn garbage_in_place_of_a_request_is_answered_by_closing() {
    let (lab, file) = served();
    let mut random = Random::of_test("garbage_in_place_of_a_request");
    for _ in 0..30 {
        let mut peer = connect(&lab, false);
        peer.open("snapshot/image").unwrap();
        let mut garbage = vec![0; random.index(3000) + 28];
        random.fill(&mut garbage);
        let _ = peer.send(&garbage);
        peer.receive_until_closed();
    }
    assert_serving(&lab, &file);
}

#[test]
fn requests_that_cannot_be_met_are_answered_and_the_connection_goes_on() {
    let (lab, file) = served();
    let mut peer = connect(&lab, false);
    peer.open("snapshot/image").unwrap();
    for (command, offset, len) in [
        (request::READ, 24 * MIB, 1),
        (request::READ, u64::MAX, u32::MAX),
        (request::READ, u64::MAX - 4095, 4096),
        (request::READ, 0, u32::MAX),
        // No metadata context was agreed on.
        (request::BLOCK_STATUS, 0, 4096),
        (999, 0, 4096),
        (u16::MAX, u64::MAX, u32::MAX),
    ] {
        peer.send_request(command, 7, offset, len).unwrap();
        let reply = peer.receive_reply(7).unwrap();
        assert_ne!(reply.error, 0, "command {command}, {len} bytes at {offset}");
        assert_eq!(peer.read(4096, 4096).unwrap().data_bytes, 4096);
    }
    assert_serving(&lab, &file);
}

#[test]
fn a_write_is_refused_and_its_payload_is_not_taken_for_requests() {
    let (lab, file) = served();
    let mut peer = connect(&lab, false);
    peer.open("snapshot/image").unwrap();
    // The payload looks like requests to disconnect.
    let payload = request_bytes(request::DISCONNECT, 0, 0, 0).repeat(1000);
    peer.send_request(request::WRITE, 3, 0, u32::try_from(payload.len()).unwrap())
        .unwrap();
    peer.send(&payload).unwrap();
    assert_eq!(peer.receive_reply(3).unwrap().error, 1, "EPERM");
    assert_eq!(peer.read(0, 4096).unwrap().data_bytes, 4096);
    // A write that announces 4 GiB cannot be skipped silently: it is refused or the connection
    // closed, and nothing is kept.
    peer.send_request(request::WRITE, 4, 0, u32::MAX).unwrap();
    let piece = vec![0; 1 << 20];
    for _ in 0..200 {
        if peer.send(&piece).is_err() {
            break;
        }
    }
    drop(peer);
    assert_serving(&lab, &file);
}

#[test]
fn a_flood_of_options_is_ended_or_answered() {
    let (lab, file) = served();
    let mut peer = connect(&lab, false);
    peer.greet().unwrap();
    let flood = option_bytes(4711, 0).repeat(64);
    let mut outcome: io::Result<()> = Ok(());
    for _ in 0..4000 {
        outcome = peer
            .send(&flood)
            .and_then(|()| (0..64).try_for_each(|_| peer.receive_option_reply(4711).map(drop)));
        if outcome.is_err() {
            break;
        }
    }
    assert!(
        outcome.is_err(),
        "a handshake of a quarter of a million options should have been ended"
    );
    assert_serving(&lab, &file);
}

/// Requests listings and reads no answers.
#[test]
fn a_peer_that_takes_no_answers_holds_nobody_up() {
    let (lab, file) = served();
    let mut peers = Vec::new();
    for over_tcp in [false, true] {
        let mut handshaking = connect(&lab, over_tcp);
        handshaking.greet().unwrap();
        let listing = option_bytes(option::LIST, 0);
        handshaking.send(&listing.repeat(200)).unwrap();
        peers.push(handshaking);
        // Reads of gigabytes in all.
        for _ in 0..8 {
            let mut reading = connect(&lab, over_tcp);
            reading.open("snapshot/image").unwrap();
            let requests: Vec<_> = (0..200)
                .flat_map(|cookie| request_bytes(request::READ, cookie, 0, 16 << 20))
                .collect();
            reading.send(&requests).unwrap();
            peers.push(reading);
        }
    }
    assert_serving(&lab, &file);
    // Again, after it has had time to work ahead.
    std::thread::sleep(Duration::from_millis(300));
    assert_serving(&lab, &file);
}

#[test]
fn thousands_of_idle_connections_leave_room_for_work() {
    allow_open_files();
    let (lab, file) = served();
    let mut idle = Vec::new();
    for number in 0..3000 {
        let mut peer = connect(&lab, number % 2 == 0);
        peer.open("snapshot/image").unwrap();
        idle.push(peer);
    }
    assert_serving(&lab, &file);
    lab.assert_content("image", &file);
    // Each of them still works.
    for peer in &mut idle {
        assert_eq!(peer.read(8 * MIB, 512).unwrap().data_bytes, 512);
    }
    drop(idle);
    assert_serving(&lab, &file);
}

#[test]
fn connections_over_the_limit_are_refused_and_room_comes_back() {
    let lab = Lab::with(|options| options.tcp().env("VARVE_NBD_CONNECTIONS_MAX", "8"));
    let file = lab.image("image", 4 * MIB, 192);
    lab.snapctl().import(&file, "image");
    let mut open: Vec<_> = (0..8)
        .map(|_| {
            let mut peer = connect(&lab, false);
            peer.open("snapshot/image").unwrap();
            peer
        })
        .collect();
    // Refused at once, with a reason.
    let mut late = connect(&lab, false);
    late.greet().unwrap();
    let structured = late.ask_outcome(option::STRUCTURED_REPLY, &[]).unwrap();
    assert_eq!(structured, option_reply::ACK);
    let go = go_data("snapshot/image");
    let refused = late.ask_outcome(option::GO, &go).unwrap();
    assert_eq!(refused, option_reply::ERR_POLICY);
    let log = lab.varved.log();
    assert!(
        log.contains("the limit of 8 connections is reached"),
        "{log}"
    );
    open.truncate(4);
    wait_for("room for a connection", || {
        let outcome = late.ask_outcome(option::GO, &go).unwrap();
        (outcome == option_reply::ACK).then_some(())
    });
    assert_eq!(late.read(0, 4096).unwrap().data_bytes, 4096);
    for peer in &mut open {
        assert_eq!(peer.read(0, 4096).unwrap().data_bytes, 4096);
    }
}

/// Any number of peers that send nothing, half of the handshake, or all but its end.
#[test]
fn endless_handshakes_keep_nobody_out() {
    allow_open_files();
    let lab = Lab::with(|options| options.tcp().env("VARVE_NBD_CONNECTIONS_MAX", "64"));
    let file = lab.image("image", 4 * MIB, 193);
    lab.snapctl().import(&file, "image");
    let mut hostile = Vec::new();
    for number in 0..1200 {
        let mut peer = connect(&lab, number % 4 != 0);
        if number % 3 > 0 {
            // The oldest are closed to make room.
            let _ = peer.greet();
        }
        hostile.push(peer);
        if number % 200 == 0 {
            for over_tcp in [false, true] {
                let mut guest = connect(&lab, over_tcp);
                guest.open("snapshot/image").unwrap();
                assert_eq!(guest.read(0, 4096).unwrap().data_bytes, 4096);
            }
        }
    }
    assert_serving(&lab, &file);
    let log = lab.varved.log();
    assert!(log.contains("the limit of handshakes is reached"), "{log}");
    let lines = log.matches("under way").count();
    assert!(lines < 200, "{lines} lines for a thousand peers");
}

/// Clients over TCP that have finished their handshake and are idle.
#[test]
fn idle_clients_over_tcp_leave_places_to_the_unix_socket() {
    let lab = Lab::with(|options| options.tcp().env("VARVE_NBD_CONNECTIONS_MAX", "16"));
    let file = lab.image("image", 4 * MIB, 194);
    lab.snapctl().import(&file, "image");
    let mut idle = Vec::new();
    let refused = loop {
        let mut peer = connect(&lab, true);
        peer.greet().unwrap();
        let outcome = peer
            .ask_outcome(option::GO, &go_data("snapshot/image"))
            .unwrap();
        if outcome != option_reply::ACK {
            break outcome;
        }
        idle.push(peer);
    };
    assert_eq!((idle.len(), refused), (6, option_reply::ERR_POLICY));
    let mut guests: Vec<_> = (0..10).map(|_| connect(&lab, false)).collect();
    for guest in &mut guests {
        guest.open("snapshot/image").unwrap();
        assert_eq!(guest.read(0, 4096).unwrap().data_bytes, 4096);
    }
}

/// Clients that request as much as they may and read none of it, or a little now and then, from an
/// image that no cache holds.
#[test]
fn replies_that_nobody_takes_hold_little_and_hold_up_nobody() {
    let lab = Lab::with(|options| {
        let options = options.tcp().env("VARVE_CHUNK_CACHE_BYTES", "8388608");
        options.env("VARVE_NBD_CONNECTIONS_MAX", "1024")
    });
    let file = image::make_random(&lab.scratch, "image", 192 * MIB, 195);
    lab.snapctl().import(&file, "image");
    let mut hostile = Vec::new();
    for number in 0..300_u64 {
        let mut peer = connect(&lab, number % 2 == 0);
        peer.open("snapshot/image").unwrap();
        // 95 MiB by a few large requests, or by many small ones.
        let (count, len) = if number % 4 < 2 { (3, 31) } else { (95, 1) };
        let requests: Vec<_> = (0..count)
            .flat_map(|cookie| {
                let offset = (number * 7 + cookie * len) % 160 * MIB;
                let len = u32::try_from(len * MIB).unwrap();
                request_bytes(request::READ, cookie, offset, len)
            })
            .collect();
        peer.send(&requests).unwrap();
        hostile.push(peer);
    }
    for round in 0..20_u64 {
        for over_tcp in [false, true] {
            let mut guest = connect(&lab, over_tcp);
            guest.open("snapshot/image").unwrap();
            let offset = round * 8 * MIB;
            assert_eq!(guest.read(offset, 4096).unwrap().data_bytes, 4096);
            assert_eq!(guest.read(offset, 16 << 10).unwrap().data_bytes, 16 << 10);
        }
        for peer in &mut hostile {
            if peer.unread_bytes() >= 100 {
                let _ = peer.receive(100);
            }
        }
    }
    // The kernel's buffers for them are small, too.
    let unread: Vec<_> = hostile.iter().map(Peer::unread_bytes).collect();
    let most = unread.iter().max().unwrap();
    assert!(*most <= 2 << 20, "{most} bytes for one connection");
    let of_unix: u64 = unread.iter().skip(1).step_by(2).sum();
    assert!(of_unix <= 150 * (32 << 10), "{of_unix} bytes in the kernel");
    assert_serving(&lab, &file);
}
