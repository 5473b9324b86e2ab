//! The arguments of the examples: the daemon's address, and names.

use std::{env, process};

use varve_client::Endpoint;

/// Reads `[--address ADDRESS]` and at least `names` further arguments, which `usage` describes.
/// Ends the program if arguments are missing.
pub(crate) fn arguments(usage: &str, names: usize) -> (Endpoint, Vec<String>) {
    let mut endpoint = Endpoint::default();
    let mut given = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument != "--address" {
            given.push(argument);
            continue;
        }
        match arguments.next().unwrap_or_default().parse() {
            Ok(address) => endpoint = address,
            Err(error) => fail(&format!("--address: {error}")),
        }
    }
    if given.len() < names {
        fail(&format!("usage: [--address ADDRESS] {usage}"));
    }
    (endpoint, given)
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    process::exit(2);
}
