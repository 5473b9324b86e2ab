//! The store as a journal sees it.

use futures::future::BoxFuture;

use super::journal::{ChecksummedBlocks, Host};
use crate::{
    Error, Result,
    engine::{Engine, Priority},
    io::AlignedBuf,
};

impl Host for Engine {
    fn stop_writing(&self, why: &Error) {
        self.commit.poison(why);
    }

    fn checksum(&self, bytes: AlignedBuf) -> BoxFuture<'_, Result<ChecksummedBlocks>> {
        let checksum = move |_: &mut _| ChecksummedBlocks::new(bytes);
        Box::pin(self.workers.run(Priority::Read, checksum))
    }
}
