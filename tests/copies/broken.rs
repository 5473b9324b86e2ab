//! Links that break, daemons that are killed, copies that are cancelled: arrived chunks are not
//! fetched again.

use std::{thread, time::Duration};

use serde_json::Value;
use varve_tests::{
    daemon::Options,
    lab::Lab,
    link::Link,
    network::Network,
    process::{command, run, wait_for},
    programs::varved,
    random::Random,
    snapctl::{Snapctl, exit, number, text},
};

use super::{MIB, Pair, chunks, copy, count};

/// Begins a copy through a link. Returns its id.
fn begin(here: &Snapctl, link: &Link, snapshot: &str, more: &[&str]) -> String {
    let endpoint = link.endpoint();
    let arguments = ["copy", snapshot, "--from", &endpoint];
    text(&here.json(arguments.iter().chain(more)), "id")
}

fn show(here: &Snapctl, id: &str) -> Value {
    here.json(["copy", "show", id])
}

fn ended(here: &Snapctl, id: &str) -> Value {
    wait_for("a copy to end", || {
        let shown = show(here, id);
        let ended = !matches!(text(&shown, "state").as_str(), "running" | "waiting");
        ended.then_some(shown)
    })
}

#[test]
fn a_copy_that_is_cut_off_goes_on_by_itself_and_fetches_nothing_twice() {
    let pair = Pair::new();
    let image = pair.image("image", 64, 531);
    let stored = pair.there.snapctl().import(&image, "image");
    let stored_bytes = number(&pair.there.snapctl().show("image"), "stored_bytes");
    assert!(stored.new_bytes() > 8 * MIB);
    let link = Link::to(&pair.there.varved);
    link.cut_after(stored_bytes / 3);
    let here = pair.here.snapctl();
    let id = begin(&here, &link, "image", &[]);
    wait_for("the copy to be cut off", || {
        (show(&here, &id)["state"] == "waiting").then_some(())
    });
    let waiting = show(&here, &id);
    assert_ne!(text(&waiting, "last_error"), "", "{waiting}");
    link.cut_after(stored_bytes / 3);
    let copied = ended(&here, &id);
    assert_eq!(copied["state"], "completed");
    // Only chunks in flight at the cut cross twice, and of those only the ones that were not
    // stored.
    assert!(number(&copied, "received_chunks") <= count(&chunks(&image)));
    pair.here.assert_content("image", &image);
    here.verify("image");
}

/// Copies over a link that does this harm to the bytes, this many bytes from now.
fn copy_over_a_bad_link(seed: u64, harm: fn(&Link, u64)) {
    let pair = Pair::new();
    let image = pair.image("image", 32, seed);
    pair.there.snapctl().import(&image, "image");
    let stored_bytes = number(&pair.there.snapctl().show("image"), "stored_bytes");
    let here = pair.here.snapctl();
    let mut random = Random::seeded(seed + 1);
    let link = Link::to(&pair.there.varved);
    harm(
        &link,
        stored_bytes / 20 + random.within(0..stored_bytes / 2),
    );
    let id = begin(&here, &link, "image", &[]);
    let copied = ended(&here, &id);
    // The error was found and the data fetched again: a single fault of a link is not the source's
    // fault.
    assert_eq!(copied["state"], "completed", "{copied}");
    assert_ne!(text(&copied, "last_error"), "", "{copied}");
    pair.here.assert_content("image", &image);
    here.verify("image");
}

#[test]
fn bits_that_change_on_the_way_are_found() {
    copy_over_a_bad_link(541, Link::corrupt_after);
}

#[test]
fn bytes_in_another_order_are_found() {
    copy_over_a_bad_link(546, Link::reorder_after);
}

#[test]
fn connections_that_overtake_each_other_make_no_difference() {
    let pair = Pair::new();
    let image = pair.image("image", 48, 548);
    pair.there.snapctl().import(&image, "image");
    let link = Link::to(&pair.there.varved);
    link.be_uneven(40);
    let copied = copy(&pair.here.varved, &link.endpoint(), "image", &[]);
    assert_eq!(number(&copied, "received_chunks"), count(&chunks(&image)));
    pair.here.assert_content("image", &image);
}

#[test]
fn a_network_that_goes_away_and_comes_back_is_waited_for() {
    let Some(network) = Network::make() else {
        return;
    };
    let there = network.socket(0, 7420);
    let pair = Pair {
        there: Lab::with(|options| options.within(network.name(0), there)),
        here: Lab::with(|options| options.within(network.name(1), network.socket(1, 7420))),
    };
    let image = pair.image("image", 40, 549);
    pair.there.snapctl().import(&image, "image");
    let here = pair.here.snapctl();
    let endpoint = format!("http://{there}");
    let arguments = ["copy", "image", "--from", &endpoint];
    // It is another machine's address.
    let said = here.run(arguments).fails(exit::USAGE);
    assert!(said.contains("plain HTTP"), "{said}");
    let begun = here.json(
        arguments
            .iter()
            .chain(&["--allow-plaintext", "--limit", "4M"]),
    );
    let id = text(&begun, "id");
    wait_for("something to arrive", || {
        (number(&show(&here, &id), "received_bytes") > 0).then_some(())
    });
    network.set_link(false);
    thread::sleep(Duration::from_secs(1));
    assert!(!here.names().contains(&"image".to_owned()));
    network.set_link(true);
    here.run(["copy", "limit", &id, "none"]).ok();
    let ended = ended(&here, &id);
    assert_eq!(ended["state"], "completed", "{ended}");
    pair.here.assert_content("image", &image);
}

#[test]
fn a_copy_is_limited_shown_and_cancelled_and_what_arrived_stays() {
    let pair = Pair::new();
    let image = pair.image("image", 48, 551);
    pair.there.snapctl().import(&image, "image");
    let here = pair.here.snapctl();
    let link = Link::to(&pair.there.varved);
    // So slow that the copy is still running when it is checked.
    let id = begin(&here, &link, "image", &["--limit", "1M"]);
    wait_for("something to arrive", || {
        (number(&show(&here, &id), "received_bytes") > 0).then_some(())
    });
    let shown = show(&here, &id);
    assert_eq!(shown["state"], "running");
    assert_eq!(number(&shown, "limit_bytes_per_second"), MIB);
    assert_eq!(number(&shown, "size_bytes"), 48 * MIB);
    assert!(number(&shown, "done_data_bytes") <= number(&shown, "data_bytes"));
    let cancelled = here.json(["copy", "cancel", &id]);
    assert_eq!(cancelled["state"], "cancelled");
    assert_eq!(here.names(), [""; 0]);
    let arrived = number(&cancelled, "received_chunks");
    assert!(arrived > 0 && arrived < count(&chunks(&image)));

    let id = begin(&here, &link, "image", &["--limit", "1K"]);
    let faster = here.json(["copy", "limit", &id, "none"]);
    assert_eq!(number(&faster, "limit_bytes_per_second"), 0);
    let copied = ended(&here, &id);
    assert_eq!(copied["state"], "completed");
    // Chunks that were being stored at the cancellation count, too.
    assert!(number(&copied, "received_chunks") + arrived <= count(&chunks(&image)));
    pair.here.assert_content("image", &image);
    let waited = here.run([
        "copy",
        "image",
        "--from",
        &link.endpoint(),
        "--name",
        "x",
        "--wait",
    ]);
    waited.ok();
    // Waiting for a cancelled copy is no success.
    let second = pair.changed(&image, "second", 40, 552);
    pair.there.snapctl().import(&second, "second");
    let arguments = [
        "copy",
        "second",
        "--from",
        &link.endpoint(),
        "--limit",
        "1",
        "--wait",
    ];
    let waiting = here.start(arguments);
    let id = wait_for("the copy to be there", || {
        let listed = here.json(["copy", "list"]);
        let first = &listed["copies"][0];
        (first["snapshot"] == "second").then(|| text(first, "id"))
    });
    let _ = here.json(["copy", "cancel", &id]);
    waiting.wait().fails(exit::INTERRUPTED);
}

#[test]
fn a_source_that_stalls_or_stops_is_waited_for() {
    let mut pair = Pair::new();
    let image = pair.image("image", 32, 561);
    pair.there.snapctl().import(&image, "image");
    let here = pair.here.snapctl();
    let endpoint = pair.there.varved.endpoint();
    pair.there.varved.stop();
    let begun = here.json(["copy", "image", "--from", &endpoint]);
    let id = text(&begun, "id");
    wait_for("the copy to wait", || {
        (show(&here, &id)["state"] == "waiting").then_some(())
    });
    pair.there.restart_with(Options::tcp);
    assert_eq!(ended(&here, &id)["state"], "completed");

    let link = Link::to(&pair.there.varved);
    link.stall(true);
    let id = begin(&here, &link, "image", &["--name", "again"]);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(show(&here, &id)["state"], "running");
    link.stall(false);
    assert_eq!(ended(&here, &id)["state"], "completed");
}

/// Either daemon is killed at any moment. The copy goes on as the same copy, even if the other
/// daemon was killed, too.
#[test]
fn copies_go_on_after_kills_of_either_daemon() {
    let there = Lab::with(Options::tcp);
    let mut pair = Pair {
        there,
        here: Lab::new(),
    };
    let image = pair.image("image", 96, 571);
    pair.there.snapctl().import(&image, "image");
    let chunks = count(&chunks(&image));
    // Over a unix socket, which is the same after a restart.
    let endpoint = pair.there.varved.endpoint();
    let begun = pair.here.snapctl().json([
        "copy", "image", "--from", &endpoint, "--name", "copied", "--tag", "k=v", "--limit", "12M",
    ]);
    let id = text(&begun, "id");
    let mut random = Random::seeded(572);
    for round in 0..6 {
        thread::sleep(Duration::from_millis(random.within(0..400)));
        if round % 2 == 0 {
            pair.here.varved.kill();
            pair.here.restart();
        } else {
            pair.there.varved.kill();
            pair.there.restart_with(Options::tcp);
        }
        let shown = show(&pair.here.snapctl(), &id);
        assert_eq!(shown["endpoint"], *endpoint, "round {round}");
        assert_eq!(number(&shown, "limit_bytes_per_second"), 12 * MIB);
    }
    let here = pair.here.snapctl();
    let _ = here.json(["copy", "limit", &id, "none"]);
    let copied = ended(&here, &id);
    assert_eq!(copied["state"], "completed", "{copied}");
    assert_eq!(copied["created_at"], begun["created_at"]);
    let shown = here.show("copied");
    assert_eq!(shown["tags"], serde_json::json!({ "k": "v" }));
    assert_eq!(shown["id"], copied["snapshot_id"]);
    pair.here.assert_content("copied", &image);
    here.verify("copied");
    assert!(chunks > 500, "{chunks}");

    // Ended copies are listed after a restart, and after a rebuild of the index.
    pair.here.varved.stop();
    pair.here.restart();
    assert_eq!(show(&pair.here.snapctl(), &id), copied);
    pair.here.varved.stop();
    let rebuilt = pair.here.data_dir();
    std::fs::remove_dir_all(rebuilt.join("index")).unwrap();
    run(command(
        varved(),
        ["rebuild", "--data-dir", rebuilt.to_str().unwrap()],
    ))
    .ok();
    pair.here.restart();
    assert_eq!(show(&pair.here.snapctl(), &id), copied);
}

/// After a kill only chunks that the daemon had not written yet are fetched again.
#[test]
fn a_kill_costs_what_was_on_its_way_to_the_disk() {
    let mut pair = Pair::new();
    let image = pair.image("image", 96, 581);
    pair.there.snapctl().import(&image, "image");
    let chunks = count(&chunks(&image));
    let endpoint = pair.there.varved.tcp_endpoint();
    let mut received = 0;
    let mut random = Random::seeded(582);
    for _ in 0..4 {
        let here = pair.here.snapctl();
        let begun = here.json(["copy", "image", "--from", &endpoint, "--limit", "40M"]);
        thread::sleep(Duration::from_millis(random.within(100..500)));
        let cancelled = here.json(["copy", "cancel", &text(&begun, "id")]);
        received += number(&cancelled, "received_chunks");
        pair.here.varved.kill();
        pair.here.restart();
    }
    let copied = pair.copy("image", &[]);
    received += number(&copied, "received_chunks");
    println!("{received} chunks were received of {chunks}");
    pair.here.assert_content("image", &image);
    pair.here.snapctl().verify("image");
    // Four times the data between two flushes.
    assert!(received < chunks * 2, "{received} of {chunks}");
}

#[test]
fn silent_sources_keep_no_turns_from_others() {
    let pair = Pair::new();
    let image = pair.image("image", 8, 591);
    pair.there.snapctl().import(&image, "image");
    let here = pair.here.snapctl();
    // It accepts connections and sends nothing on them.
    let silent = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let silent: Vec<_> = (0..5)
        .map(|number| {
            let name = format!("silent{number}");
            let begun = here.json(["copy", "none", "--from", &endpoint, "--name", &name]);
            text(&begun, "id")
        })
        .collect();
    wait_for("four to have their turn and one to wait for it", || {
        let states: Vec<_> = silent
            .iter()
            .map(|id| text(&show(&here, id), "state"))
            .collect();
        let of = |wanted| states.iter().filter(|state| *state == wanted).count();
        (of("running") == 4 && of("queued") == 1).then_some(())
    });
    let copied = pair.copy("image", &[]);
    assert_eq!(copied["state"], "completed");
    let listed = here.json(["copy", "list"]);
    assert_eq!(listed["copies"].as_array().unwrap().len(), 6);
}
