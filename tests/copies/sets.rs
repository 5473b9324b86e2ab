//! For any content of two stores, only missing chunks are transferred; and a copied snapshot can be
//! copied again.

use std::{collections::BTreeSet, fs, thread};

use varve_content::ChunkId;
use varve_tests::{daemon::Options, image, lab::Lab, random::Random, snapctl::number};

use super::{MIB, Pair, chunks, copy, count};

/// Stores with random parts of a family of images, and copies in any order.
#[test]
fn what_crosses_is_the_difference_of_the_sets() {
    let mut random = Random::of_test("what_crosses_is_the_difference_of_the_sets");
    for round in 0..4u64 {
        let pair = Pair::new();
        let base = pair.image("base", 8 + random.within(0..20), random.next_u64());
        let mut family = vec![base];
        for number in 0..6 {
            let of = family[random.index(family.len())].clone();
            let places = u32::try_from(random.within(0..40)).unwrap();
            let path = image::copy(&pair.there.scratch, &of, &format!("image-{number}"));
            image::change(&path, places, &mut random);
            if random.one_in(3) {
                // Longer or shorter.
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_len(random.within(MIB..36 * MIB)).unwrap();
            }
            family.push(path);
        }
        let mut present: BTreeSet<ChunkId> = BTreeSet::new();
        for (number, image) in family.iter().enumerate() {
            pair.there.snapctl().import(image, &format!("s{number}"));
            if random.one_in(4) {
                pair.here.snapctl().import(image, &format!("own-{number}"));
                present.extend(chunks(image));
            }
        }
        while !family.is_empty() {
            let at = random.index(family.len());
            let name = format!("s{at}");
            let image = &family[at];
            let wanted = chunks(image);
            let missing = &wanted - &present;
            let copied = pair.copy(&name, &["--name", &format!("{name}-{}", family.len())]);
            assert_eq!(
                number(&copied, "received_chunks"),
                count(&missing),
                "round {round}, {name}"
            );
            present.extend(wanted);
            if random.one_in(2) {
                family.pop();
            }
        }
        let verified = pair.here.snapctl().verify_all();
        assert!(!verified.is_empty());
    }
}

/// Copies from the first store to the second, and from the second to the third while the third
/// copies from the first.
#[test]
fn three_stores_copy_from_each_other() {
    let stores = [0, 1, 2].map(|_| Lab::with(Options::tcp));
    let [first, second, third] = &stores;
    let one = first.image("one", 24 * MIB, 941);
    let two = image::copy(&first.scratch, &one, "two");
    image::change(&two, 20, &mut Random::seeded(942));
    first.snapctl().import(&one, "one");
    first.snapctl().import(&two, "two");
    let endpoints = stores.each_ref().map(|lab| lab.varved.tcp_endpoint());
    copy(&second.varved, &endpoints[0], "one", &[]);
    let all: BTreeSet<_> = &chunks(&one) | &chunks(&two);
    let received: Vec<u64> = thread::scope(|scope| {
        let from_second = scope.spawn(|| copy(&third.varved, &endpoints[1], "one", &[]));
        let from_first = scope.spawn(|| copy(&third.varved, &endpoints[0], "two", &[]));
        let back = scope.spawn(|| copy(&first.varved, &endpoints[1], "one", &["--name", "back"]));
        [from_second, from_first, back]
            .map(|copy| number(&copy.join().unwrap(), "received_chunks"))
            .to_vec()
    });
    assert_eq!(
        received[0] + received[1],
        count(&all),
        "each chunk once, from whichever"
    );
    assert_eq!(received[2], 0);
    third.assert_content("one", &one);
    third.assert_content("two", &two);
    // The third has everything that the second lacks.
    let copied = copy(&second.varved, &endpoints[2], "two", &[]);
    assert_eq!(
        number(&copied, "received_chunks"),
        count(&(&chunks(&two) - &chunks(&one)))
    );
    for lab in &stores {
        assert_eq!(
            lab.snapctl().verify_all().len(),
            lab.snapctl().names().len()
        );
    }
}
