//! `snapctl` as a user runs it.

use crate::fake::{FakeDaemon, Manners};

#[test]
#[ignore]
fn serve() {
    let daemon = FakeDaemon::start(Manners::default());
    println!("{}", daemon.endpoint);
    std::thread::sleep(std::time::Duration::from_secs(3600));
}
